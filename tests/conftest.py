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

# The files and folders whose tests take longest, in the order in which they are begun: what is short comes at the end,
# when few files are left for the processes that run side by side.
LONGEST = ("e2e/test_main_job.py", "e2e/test_survival.py", "platform", "e2e", "runtime", "makers", "models", "engines")
ONE_PLATFORM = ("tests/platform/test_lifecycle.py", "tests/platform/test_reconcile.py")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # tests run side by side
launchers.quiet_environment()
os.environ["OPD_PROGRESS"] = "0"
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put LONGEST first; within a file, and among the others, the order stays."""
    def rank(item: pytest.Item) -> int:
        place = item.path.relative_to(ROOT / "tests").as_posix() + "/"
        return next((i for i, name in enumerate(LONGEST) if place.startswith(f"{name}/")), len(LONGEST))
    items.sort(key=rank)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Of `--dist loadfile`: the files that share a platform, which takes half a minute to start, go to one process."""
    from xdist.scheduler import LoadFileScheduling

    class ByPlatform(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return ONE_PLATFORM[0] if file in ONE_PLATFORM else file
    return ByPlatform(config, log) if config.getoption("dist") == "loadfile" else None


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
