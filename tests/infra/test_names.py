"""Every variable and command that infra/ names is one that the tool of its name knows, by the tool's own source."""
import ast
import importlib.util
import re
from pathlib import Path

import pytest

from flows.cli.main import parsed
from tests.infra_files import ROOT, commands, environments, needs

NAMES = sorted({name.removesuffix("_FILE") for variables in environments().values() for name in variables})
# libpq's, the PostgreSQL image's, the container toolkit's, and the operating system's.
OTHERS = {"PGHOST", "PGUSER", "PGDATABASE", "PGPASSWORD", "PGDATA", "POSTGRES_PASSWORD", "POSTGRES_INITDB_ARGS",
          "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "HOME", "PATH", "PYTHONDONTWRITEBYTECODE",
          "PYTHONUNBUFFERED"}
OPD = {"OPD_HOME": "tasks/opd/store/artifacts.py", "OPD_MLFLOW_URL": "tasks/tracking/about.py"}
SOURCES = {"MLFLOW": ("mlflow", ["environment_variables.py", "cli/__init__.py", "utils/cli_args.py"]),
           "VLLM": ("vllm", ["envs.py"]), "HF": ("huggingface_hub", ["constants.py"]),
           "TORCHINDUCTOR": ("torch", ["_inductor/runtime/cache_dir_utils.py"])}


def text_of(package: str, file: str) -> str:
    """The source of an installed package's file, without importing the package."""
    return (Path(importlib.util.find_spec(package).origin).parent / file).read_text()


def prefect_settings() -> set[str]:
    """Every variable that Prefect reads, and those of its Kubernetes worker where that is installed."""
    from prefect.settings.models.root import Settings
    schemas = [Settings.model_json_schema()]
    if importlib.util.find_spec("prefect_kubernetes"):
        from prefect_kubernetes.settings import KubernetesSettings
        schemas.append(KubernetesSettings.model_json_schema())
    return set(re.findall(r"'(PREFECT_[A-Z0-9_]+)'", str(schemas)))


def test_every_name_belongs_to_a_tool():
    prefixes = ("PREFECT_", *(f"{prefix}_" for prefix in SOURCES))
    assert {name for name in NAMES if not name.startswith(prefixes)} - OTHERS == set(OPD)
    assert {name.partition("_")[0] for name in NAMES} > {"PREFECT", *SOURCES}


def test_prefect_knows_its_settings():
    named = {name for name in NAMES if name.startswith("PREFECT_") and "_INTEGRATIONS_" not in name}
    assert len(named) > 8 and named - prefect_settings() == set()
    assert "PREFECT_SERVER_API_AUTH_STRINGS" not in prefect_settings()


@needs("prefect_kubernetes")
def test_prefects_kubernetes_worker_knows_its_settings():
    named = {name for name in NAMES if "_INTEGRATIONS_" in name}
    assert len(named) == 3 and named - prefect_settings() == set()


@pytest.mark.parametrize("prefix", SOURCES)
def test_a_tool_reads_the_variables_of_its_name(prefix):
    package, files = SOURCES[prefix]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    text = "\n".join(text_of(package, file) for file in files)
    named = [name for name in NAMES if name.startswith(f"{prefix}_")]
    assert named and [name for name in named if not re.search(rf"\b{name}\b", text)] == []


def test_opd_reads_the_variables_of_its_name():
    assert all(name in (ROOT / file).read_text() for name, file in OPD.items())


def options(package: str, *files: str) -> set[str]:
    """The options of a command's source: its strings that look like one, and what its functions' parameters become."""
    source = "\n".join(text_of(package, file) for file in files)
    parameters = {node.arg for node in ast.walk(ast.parse(source)) if isinstance(node, ast.arg)}
    return set(re.findall(r'"(--[a-z-]+)"', source)) | {f"--{name.replace('_', '-')}" for name in parameters}


def test_every_option_is_known():
    known = {("prefect", "server"): options("prefect", "cli/server.py"),
             ("prefect", "worker"): options("prefect", "cli/worker.py"),
             ("mlflow", "server"): options("mlflow", "cli/__init__.py", "utils/cli_args.py")}
    for place, (tool, group, *words) in commands().items():
        if tool != "opd":  # argparse says so itself, in the test below
            assert {word for word in words if word.startswith("--")} <= known[tool, group], place
    assert "--polls" not in known["prefect", "worker"] and "--app-names" not in known["mlflow", "server"]


def test_every_command_is_one_of_three():
    assert {tuple(words[:2]) for words in commands().values()} == {
        ("prefect", "server"), ("prefect", "worker"), ("mlflow", "server"), ("opd", "deploy")}


def test_opd_takes_the_commands_that_are_named():
    named = {tuple(words[1:]) for words in commands().values() if words[0] == "opd"}
    assert named == {("deploy", "--pool", "opd"), ("deploy", "--pool", "kubernetes")}
    for words in named:
        parsed([*words])  # ends the test where the command or an option is unknown
