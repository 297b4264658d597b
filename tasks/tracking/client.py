"""MLflow's client and store: where it is, opened by one process at a time. The only file that imports mlflow."""
import atexit
import contextlib
import fcntl
import functools
import gc
import json
import logging
import os
import shutil
import sqlite3
import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from tasks.opd.core.addresses import masked, without_user
from tasks.opd.core.errors import EngineError
from tasks.opd.core.progress import print_line
from tasks.opd.store.artifacts import home

QUICK = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "CRITICAL", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
         "MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
         "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}  # standard output is the command's result
KEY, SUPERSEDED = "opd.key", "superseded"   # tags: which recipe, suite and home it is of; another took its place


def tracking_uri() -> str:
    """$MLFLOW_TRACKING_URI, else a SQLite file under home(); of a database it may hold a password: show it `masked`.

    A server's user and password are moved to the variables that MLflow has for them: an address is shown in its errors.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"
    address, user, password = without_user(uri) if uri.startswith("http") else (uri, "", "")
    if not password:
        return uri
    os.environ.update(MLFLOW_TRACKING_URI=address, MLFLOW_TRACKING_USERNAME=user, MLFLOW_TRACKING_PASSWORD=password)
    return address


def ui_command() -> str:
    """The one command, or the address, that opens what was tracked."""
    uri = tracking_uri() if masked(tracking_uri()) == tracking_uri() else '"$MLFLOW_TRACKING_URI"'
    serve = f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow server --workers 1 --backend-store-uri {uri}"
    return uri if uri.startswith("http") else f"{serve} --artifacts-destination {home() / 'mlartifacts'}"


def under_home(uri: str) -> str:
    """A store's address without its password, the same wherever home() is moved to."""
    return masked(uri).replace(str(home()), "$OPD_HOME")


@contextlib.contextmanager
def alone():
    """While one creates tables, experiments or runs, all others of this home wait."""
    (home() / "tracking").mkdir(parents=True, exist_ok=True)
    with open(home() / "tracking" / ".lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def import_client() -> type:
    """MLflow's class of clients, imported once its settings stand in the environment."""
    for name, value in QUICK.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient
    return MlflowClient


def import_store() -> None:
    """Import what `client_at` is going to need: seconds, for who has to wait for something else anyway."""
    import_client()
    if tracking_uri().startswith("sqlite:"):
        from mlflow.store.tracking import sqlalchemy_store  # noqa: F401


@functools.lru_cache(maxsize=4)
def client_at(uri: str):
    """A client of a store, whose tables are made by one process at a time."""
    client_class = import_client()
    atexit.register(skip_last_collection)
    for name in ("mlflow", "sqlalchemy", "alembic"):  # what they have to say is said in one warning
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with alone():
        if uri.startswith("sqlite:///"):
            follow_home(Path(uri.removeprefix("sqlite:///")))
        client = client_class(tracking_uri=uri)
        client.search_experiments(max_results=1)
    return client


def skip_last_collection() -> None:
    """At a process's end leave MLflow's objects uncollected: that takes 1.6 s, and a stopped run is to be gone at once.

    Not beside torch, whose bindings report as leaks what is not collected.
    """
    if "torch" not in sys.modules:
        gc.freeze()


def experiment_id(client, name: str) -> str:
    """The experiment of that name, created when there is none; artifacts of a SQLite store lie under home().

    One that was deleted in MLflow's pages keeps its name, and takes no runs: it is restored, with those that it had.
    """
    found = client.get_experiment_by_name(name)
    if found and found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
        print_line(f"opd: MLflow's experiment {name} was deleted, and a run of it is at work again: it is restored, "
                   "with the runs that it had")
    if found:
        return found.experiment_id
    local = (home() / "mlartifacts").as_uri() if tracking_uri().startswith("sqlite") else None  # else ./mlruns
    return client.create_experiment(name, artifact_location=local)


def follow_home(database: Path) -> None:
    """Where home() was moved, its runs' artifacts were too; MLflow keeps their addresses in full.

    A database elsewhere may serve several homes: of its experiments only those follow whose folder is gone.
    """
    if not database.exists():
        return
    own, now = database.resolve() == (home() / "mlflow.db").resolve(), (home() / "mlartifacts").as_uri()
    with contextlib.closing(sqlite3.connect(database, timeout=60)) as store, store:
        if not store.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone():
            return
        for (before,) in store.execute("SELECT DISTINCT artifact_location FROM experiments WHERE artifact_location "
                                       "LIKE 'file:///%/mlartifacts' AND artifact_location != ?", [now]).fetchall():
            if not own and Path(url2pathname(urlsplit(before).path)).exists():
                continue
            store.execute("UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?", [now, before])
            store.execute("UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) WHERE artifact_uri LIKE ?",
                          [now, len(before) + 1, f"{before}/%"])


def save_files(client, run: str, folder: str) -> None:
    """Put the files of a folder among a run's artifacts.

    Where a server with the artifacts of home() made the experiment and does not run now, they go to where it has them.
    """
    root = client.get_run(run).info.artifact_uri
    if root.startswith("mlflow-artifacts:") and not tracking_uri().startswith("http"):
        shutil.copytree(folder, home() / "mlartifacts" / urlsplit(root).path.lstrip("/"), dirs_exist_ok=True)
    else:
        client.log_artifacts(run, folder)


def run_of(client, run: str | None, experiment: str, key: str):
    """The run of that id or, where it is not in the store, the newest with that tag KEY; None without one.

    Neither is one that was deleted or superseded. Raises when the store cannot be asked.
    """
    found = [there] if (there := run_at(client, run)) else client.search_runs(
        [experiment], f"tags.`{KEY}` = '{key}'", order_by=["attributes.start_time DESC"])
    return next((one for one in found if SUPERSEDED not in one.data.tags), None)


def run_at(client, run: str | None):
    """The run of that id; None when it is not in the store, or was deleted. Raises when the store cannot be asked."""
    from mlflow.exceptions import MlflowException
    try:
        found = client.get_run(run) if run else None
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return found if found and found.info.lifecycle_stage == "active" else None


def is_refusal(error: Exception) -> bool:
    """Whether the store answered that a run, or an experiment, is not there or takes nothing because it was deleted.

    Of a deleted run MLflow has no code of its own: it "must be in the 'active' state", "in 'active' lifecycle_stage".
    """
    code = getattr(error, "error_code", "")
    return code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_STATE") or \
        code == "INVALID_PARAMETER_VALUE" and "must be in" in str(error) and "'active'" in str(error)


@contextlib.contextmanager
def reached():
    """What is asked of MLflow inside has to be answered. Raises EngineError where it is not."""
    try:
        yield
    except Exception as error:
        from mlflow.exceptions import MlflowException  # after its environment was set, by whoever made the client
        if not isinstance(error, MlflowException | sqlite3.DatabaseError):
            raise
        address, reason = masked(tracking_uri()), masked(str(error).splitlines()[0])[:300]
        raise EngineError(f"MLflow at {address} did not do what it was asked, and it holds the registry: {reason}. "
                          "Start it, or set MLFLOW_TRACKING_URI, and run the same command again: it goes on from "
                          "there") from error


def entities():
    """MLflow's Metric, Param and RunTag, imported when first used."""
    from mlflow import entities
    return entities


def datasets(described: list[dict[str, str]]) -> list:
    """MLflow's inputs of datasets, given by name, digest, source (a folder) and context (train or test)."""
    found = entities()
    return [found.DatasetInput(
        found.Dataset(one["name"], one["digest"], "local", json.dumps({"uri": one["source"]})),
        [found.InputTag("mlflow.data.context", one["context"])]) for one in described]


def machine_monitors() -> list:
    """MLflow's own monitors of CPU and memory and, where nvidia-ml-py finds one, of the GPU."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    found = [CPUMonitor()]
    with contextlib.suppress(ImportError, RuntimeError):  # without that package, or without a GPU
        found.append(GPUMonitor())
    return found
