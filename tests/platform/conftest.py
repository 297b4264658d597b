"""One platform for all tests of this folder, with passwords; each test may kill of it what it likes."""
import os
from types import SimpleNamespace

import pytest

from flows.platform import api, lifecycle, settings

PASSWORDS = {"PREFECT_SERVER_API_AUTH_STRING": "opd:correct horse", "MLFLOW_AUTH_ADMIN_PASSWORD": "battery staple"}


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory):
    """The OPD_HOME of the platform, which is stopped at the end of all tests."""
    home = tmp_path_factory.mktemp("platform")
    yield home
    os.environ["OPD_HOME"] = str(home)
    lifecycle.down()


@pytest.fixture
def platform(shared_home, monkeypatch) -> SimpleNamespace:
    """The platform, up: its settings and Prefect's API."""
    for name, value in {**PASSWORDS, "OPD_HOME": str(shared_home)}.items():
        monkeypatch.setenv(name, value)
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    runs, _ = lifecycle.up(settings.asked_for("127.0.0.1", 0, 0, "", 1))
    return SimpleNamespace(settings=runs, prefect=api.prefect(runs))
