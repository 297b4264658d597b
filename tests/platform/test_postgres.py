"""Both servers on a real PostgreSQL, with a password: each in its schema, and a run on the worker between them."""
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from flows.platform import api, children, lifecycle, settings, state
from tests.platform.runs_for_tests import deploy, pid_of, state_of, wait_for

PASSWORD = "tr0ub4dor"
PROGRAMS = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)),
                Path(shutil.which("initdb") or "initdb")).parent
pytestmark = pytest.mark.skipif(not (PROGRAMS / "initdb").is_file() and "OPD_CI" not in os.environ,
                                reason="needs PostgreSQL (Debian: apt install postgresql)")


@pytest.fixture(scope="module")
def database():
    """The address of an empty database, with its password. PostgreSQL does not run as root; then it is `postgres`."""
    user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="opd-postgres-") as folder, socket.socket() as probe:
        secret = Path(folder) / "password"
        secret.write_text(PASSWORD)
        for path in (folder, secret) if user else ():
            shutil.chown(path, "postgres", "postgres")
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        data = f"{folder}/data"
        subprocess.run([PROGRAMS / "initdb", "--pgdata", data, "--username", "opd", "--pwfile", secret, "--auth",
                        "scram-sha-256", "--encoding", "UTF8", "--no-sync"], check=True, stdout=subprocess.DEVNULL,
                       cwd=folder, **user)
        server = subprocess.Popen([PROGRAMS / "postgres", "-D", data, "-k", folder, "-h", "127.0.0.1", "-p", str(port),
                                   "-c", "fsync=off"], cwd=folder, stderr=subprocess.DEVNULL, **user)
        try:
            yield f"postgresql://opd:{PASSWORD}@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)  # ends connections too
            server.wait(timeout=30)


@pytest.fixture
def platform(database, opd_home, monkeypatch):
    """A platform on it: (its settings, Prefect's API)."""
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(settings.DATABASE, database)
    wait_for(lambda: is_open(database), "PostgreSQL")
    try:
        runs, _ = lifecycle.up(settings.asked_for("127.0.0.1", 0, 0, "", 1))
        yield runs, api.prefect(runs)
    finally:
        lifecycle.down()


def is_open(database: str) -> bool:
    """Whether the database takes connections."""
    with contextlib.suppress(Exception):
        tables(database)
        return True
    return False


def tables(database: str) -> dict[str, set[str]]:
    """Schema -> the names of its tables."""
    import psycopg2
    with contextlib.closing(psycopg2.connect(database)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT table_schema, table_name FROM information_schema.tables")
        found = cursor.fetchall()
    return {schema: {name for of, name in found if of == schema} for schema, _ in found}


def test_both_servers_keep_what_they_know_in_postgresql(platform, database, opd_home):
    runs, prefect = platform
    found = tables(database)
    assert "flow_run" in found["prefect"] and "experiments" in found["mlflow"]
    assert "alembic_version" in found["prefect"] & found["mlflow"] and "public" not in found
    assert not [*opd_home.rglob("*.db")] and state.report()["database"] == "PostgreSQL"
    commands = [(Path("/proc") / str(pid) / "cmdline").read_text() for pid in children.family()]
    assert commands and not [command for command in commands if PASSWORD in command]

    run = prefect.post(f"/deployments/{deploy(prefect, 'greet')}/create_flow_run", {"parameters": {"name": "elephant"}})
    wait_for(lambda: state_of(prefect, run["id"]) == "COMPLETED", "the run")
    assert "hello elephant" in children.last_lines("worker")
    mlflow = api.mlflow(runs)
    made = mlflow.post("/api/2.0/mlflow/runs/create", {"experiment_id": "0"})["run"]["info"]["run_id"]
    mlflow.post("/api/2.0/mlflow/runs/log-metric", {"run_id": made, "key": "loss", "value": 0.5, "timestamp": 1})

    for name in ("prefect", "mlflow"):
        os.kill(pid_of(name), signal.SIGKILL)
    wait_for(lambda: state.running() is None, "their death")
    wait_for(state.running, "their return")
    assert state_of(prefect, run["id"]) == "COMPLETED"
    [metric] = mlflow.get("/api/2.0/mlflow/runs/get", run_id=made)["run"]["data"]["metrics"]
    assert (metric["key"], metric["value"]) == ("loss", 0.5)
