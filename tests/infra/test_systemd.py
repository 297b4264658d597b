"""The units: systemd reads them without a word, and they are as closed as what runs in them allows."""
import subprocess
import sys
from pathlib import Path

import pytest

from tests.infra_files import INFRA, ROOT, found, units, values

SERVICES = [name for name in units() if name.endswith(".service")]
pytestmark = pytest.mark.skipif(found("systemd-analyze") is None, reason="systemd-analyze is not installed")


@pytest.fixture
def folder(tmp_path) -> Path:
    """The units with the paths of this checkout and this interpreter in place of the installation's."""
    for file in (INFRA / "systemd").iterdir():
        text = file.read_text().replace("/opt/opdlab/.venv/bin", str(Path(sys.executable).parent))
        (tmp_path / file.name).write_text(text.replace("/opt/opdlab", str(ROOT)))
    return tmp_path


def analyze(*arguments) -> subprocess.CompletedProcess:
    """systemd-analyze."""
    return subprocess.run(["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, timeout=60)


def test_systemd_has_nothing_to_say(folder):
    checked = analyze("verify", "--man=no", *folder.iterdir())
    said = [line for line in checked.stderr.splitlines() if str(folder) in line or line.startswith("opd-")]
    assert said == [] and checked.returncode == 0
    (folder / "opd-prefect.service").write_text("[Service]\nNoNewPrivilege=yes\nExecStart=/not/there\n")
    wrong = analyze("verify", "--man=no", folder / "opd-prefect.service")
    assert "NoNewPrivilege" in wrong.stderr and "/not/there" in wrong.stderr


@pytest.mark.parametrize("name, most", [("opd-prefect.service", 20), ("opd-mlflow.service", 20),
                                        ("opd-deploy.service", 35), ("opd-worker.service", 45)])
def test_a_unit_is_closed(folder, name, most):
    # systemd's own measure, 0 (closed) to 100 (open): a unit without a directive has 96.
    checked = analyze("security", "--offline=true", f"--threshold={most}", folder / name)
    assert checked.returncode == 0, checked.stdout[-200:]


def test_every_service_is_part_of_the_target():
    assert set(values("opd.target", "Wants")[0].split()) == set(SERVICES)
    assert all(values(name, "PartOf") == ["opd.target"] for name in SERVICES)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_runs_as_opd_and_comes_back(name):
    assert values(name, "User") == ["opd"] and values(name, "CapabilityBoundingSet") == [""]
    assert values(name, "Restart") == (["on-failure"] if name == "opd-deploy.service" else ["always"])
    assert values(name, "StartLimitIntervalSec") == ["0"]


def test_a_stopped_worker_leaves_no_process():
    # The control group is ended, whatever sessions its processes lead; `process` would spare all but the worker.
    assert values("opd-worker.service", "KillMode") == ["mixed"]
    assert values("opd-worker.service", "OOMPolicy") == ["continue"]


def test_folders_that_are_written_are_made():
    # Under ProtectSystem=strict nothing else can be written.
    for name in SERVICES:
        made = [f"/var/lib/{folder}" for line in values(name, "StateDirectory") for folder in line.split()]
        made += [f"/var/cache/{folder}" for line in values(name, "CacheDirectory") for folder in line.split()]
        pairs = [pair.split("=", 1) for line in values(name, "Environment") for pair in line.split()]
        paths = [value for _, value in pairs if value.startswith(("/var/lib", "/var/cache"))]
        assert paths and all(any(Path(path).is_relative_to(folder) for folder in made) for path in paths), name
