"""What infra/ holds, read: services, pods, units, their commands and their environments."""
import functools
import importlib.util
import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
INFRA = ROOT / "infra"
TEMPLATE = json.loads((INFRA / "kubernetes/base-job-template.json").read_text())
TEMPLATE_POD = TEMPLATE["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]


def found(command: str) -> str | None:
    """A command beside this interpreter, as packages bring it, or in PATH; None where there is none."""
    return shutil.which(command, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


def needs(module: str = "", command: str = ""):
    """Skips a test where a package or a command is missing; under OPD_CI the test runs, and fails."""
    missing = importlib.util.find_spec(module) is None if module else found(command) is None
    return pytest.mark.skipif(missing and "OPD_CI" not in os.environ, reason=f"{module or command} is not installed")


@functools.cache
def compose() -> dict:
    """compose.yaml, read."""
    return yaml.safe_load((INFRA / "compose.yaml").read_text())


@functools.cache
def cluster() -> dict[str, dict]:
    """Every object of infra/kubernetes, as kind/name."""
    documents = [document for file in sorted((INFRA / "kubernetes").glob("*.yaml"))
                 for document in yaml.safe_load_all(file.read_text())]
    return {f"{document['kind']}/{document['metadata']['name']}": document for document in documents}


def pods() -> dict[str, dict]:
    """Every pod's spec: the cluster's, and that of a flow run's Job."""
    found = {name: made["spec"]["template"]["spec"] for name, made in cluster().items()
             if "template" in made.get("spec", {})}
    return {**found, "base-job-template": TEMPLATE_POD}


@functools.cache
def units() -> dict[str, list[tuple[str, str]]]:
    """The settings of every unit, in order, as (key, value); lines that go on are joined."""
    found = {}
    for file in sorted((INFRA / "systemd").iterdir()):
        text = file.read_text().replace("\\\n", " ")
        found[file.name] = re.findall(r"^([A-Za-z]+)=(.*)$", text, re.MULTILINE)
    return found


def values(unit: str, key: str) -> list[str]:
    """A unit's values of a key."""
    return [value for name, value in units()[unit] if name == key]


@functools.cache
def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions in order, as (name, rest); comments left out, lines joined."""
    text = re.sub(r"^#.*\n", "", (INFRA / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line.strip())]


def environments() -> dict[str, dict[str, str | None]]:
    """Every environment that infra/ sets, by where it stands; None where the value is a reference to a secret."""
    found = {f"compose {name}": service.get("environment", {}) for name, service in compose()["services"].items()}
    for name, pod in pods().items():
        found[f"pod {name}"] = {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}
    for name in units():
        pairs = [pair for line in values(name, "Environment") for pair in line.split()]
        found[f"unit {name}"] = dict(pair.split("=", 1) for pair in pairs)
    for number, (name, rest) in enumerate(instructions()):
        if name == "ENV":
            found[f"image {number}"] = dict(pair.split("=", 1) for pair in rest.split())
    return found


def commands() -> dict[str, list[str]]:
    """Every command that infra/ starts of prefect, mlflow or opd, by where it stands."""
    found = {f"compose {name}": service["command"] for name, service in compose()["services"].items()
             if "command" in service}
    found |= {f"pod {name}": pod["containers"][0]["args"] for name, pod in pods().items()
              if isinstance(pod["containers"][0].get("args"), list)}
    found |= {f"unit {name}": [Path(words[1]).name, *words[2:]] for name in units()
              for words in map(shlex.split, values(name, "ExecStart"))}
    return found | {f"image {number}": json.loads(rest) for number, (name, rest) in enumerate(instructions())
                    if name == "CMD"}
