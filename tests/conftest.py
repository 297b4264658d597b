"""Fixtures shared by all tests: every test has its own OPD_HOME, quiet tools and no progress bars."""
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that `tests.stages_for_tests` can be named as a stage

from tasks.tracking.client import client_at, tracking_uri  # noqa: E402  the path comes first
from tasks.workers import launchers, pools  # noqa: E402

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # tests run side by side
launchers.quiet_environment()
os.environ["OPD_PROGRESS"] = "0"
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it


@pytest.fixture(autouse=True)
def opd_home(tmp_path, monkeypatch) -> Path:
    """An empty OPD_HOME of this test's own."""
    home = tmp_path / "opd"
    monkeypatch.setenv("OPD_HOME", str(home))
    return home


@pytest.fixture
def pool():
    """A pool that makes stages in this process."""
    with pools.for_run(SimpleNamespace(workers="inline")) as pool:
        yield pool


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """MLflow's database with its tables, which take seconds to make, and nothing in them."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPD_HOME", str(folder))
        client_at(tracking_uri())
    return folder / "mlflow.db"
