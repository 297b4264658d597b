"""MLflow's client and store: where it is, opened by one process at a time. The only file that imports mlflow."""
import contextlib
import fcntl
import functools
import logging
import os

from tasks.opd.core.errors import EngineError
from tasks.opd.store.artifacts import home

QUICK = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "CRITICAL", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
         "MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}


def tracking_uri() -> str:
    """$MLFLOW_TRACKING_URI, else a SQLite file under home()."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


def ui_command() -> str:
    """The one command, or the address, that opens what was tracked."""
    uri = tracking_uri()
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"


@contextlib.contextmanager
def alone():
    """While one creates tables, experiments or runs, all others of this home wait."""
    (home() / "tracking").mkdir(parents=True, exist_ok=True)
    with open(home() / "tracking" / ".lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@functools.lru_cache(maxsize=4)
def client_at(uri: str):
    """A client of a store, whose tables are made by one process at a time."""
    for name, value in QUICK.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient
    for name in ("mlflow", "sqlalchemy", "alembic"):  # what they have to say is said in one warning
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with alone():
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    return client


def experiment_id(client, name: str) -> str:
    """The experiment of that name, created when there is none; artifacts of a SQLite store lie under home()."""
    found = client.get_experiment_by_name(name)
    if found:
        return found.experiment_id
    local = (home() / "mlartifacts").as_uri() if tracking_uri().startswith("sqlite") else None  # else ./mlruns
    return client.create_experiment(name, artifact_location=local)


def is_there(client, run: str | None) -> bool:
    """Whether a run is in the store and was not deleted. Raises when the store cannot be asked."""
    from mlflow.exceptions import MlflowException
    try:
        return bool(run) and client.get_run(run).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


@contextlib.contextmanager
def reached():
    """What is asked of MLflow inside has to be answered. Raises EngineError where it is not."""
    try:
        yield
    except Exception as error:
        from mlflow.exceptions import MlflowException  # after its environment was set, by whoever made the client
        if not isinstance(error, MlflowException):
            raise
        raise EngineError(f"MLflow at {tracking_uri()} did not do what it was asked, and it holds the registry: "
                          f"{str(error).splitlines()[0][:300]}. Start it, or set MLFLOW_TRACKING_URI, and run the same "
                          "command again: it goes on from there") from error


def entities():
    """MLflow's Metric, Param and RunTag, imported when first used."""
    from mlflow import entities
    return entities
