"""The commands and environments of the platform's children, and when each counts as well.

Prefect's server is started without its console command, which would keep a second process of 150 MB; MLflow's needs
its own, which sets what its server reads.
"""
import os
import socket
import sys
from pathlib import Path

from flows.platform import api
from flows.platform.settings import Settings, is_loopback
from tasks.opd.store.artifacts import home
from tasks.workers.launchers import ROOT, quiet_environment, without_proxy

POOL = "opd"                            # the work pool
HEARTBEAT_SECONDS = 60                  # of a flow run; a run that misses three is dead
POLL_SECONDS = 5                        # between two looks of the worker for runs
SQLITE_SECONDS = "60"                   # that a request waits for the database before it fails
LEASES = "prefect.server.concurrency.lease_storage.filesystem"  # in memory, a restart would leak every slot
FOREIGN = ("PREFECT_API_KEY", "PREFECT_PROFILE", "PREFECT_API_DATABASE_CONNECTION_URL", "MLFLOW_RUN_ID",
           "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")    # would send children elsewhere


def prefect_client(settings: Settings) -> dict[str, str]:
    """What a client of Prefect's server has in its environment."""
    found = {"PREFECT_API_URL": f"{settings.prefect_url}/api", "PREFECT_CLIENT_MAX_RETRIES": "10"}  # on 429, 502, 503
    return found | ({"PREFECT_API_AUTH_STRING": settings.prefect_auth} if settings.prefect_auth else {})


def mlflow_client(settings: Settings) -> dict[str, str]:
    """What a client of MLflow's server has in its environment."""
    user, _, password = settings.mlflow_auth.partition(":")
    found = {"MLFLOW_TRACKING_URI": settings.mlflow_url}
    return found | ({"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password} if password else {})


def become_client(settings: Settings, *, of_prefect: bool = True, of_mlflow: bool = True) -> None:
    """Make this process, and those that it starts, a client of both servers, or of one."""
    os.environ.update(without_proxy(settings.address))
    if of_prefect:
        os.environ.pop("PREFECT_API_KEY", None)  # it would be sent in place of the password
        os.environ.update(prefect_client(settings))
    if of_mlflow:
        os.environ.update(mlflow_client(settings))


def environment(settings: Settings) -> dict[str, str]:
    """What all children have in theirs."""
    quiet_environment()
    mine = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return mine | prefect_client(settings) | mlflow_client(settings) | without_proxy(settings.address) | {
        "OPD_HOME": settings.home, "PREFECT_HOME": str(home() / "prefect"), "PYTHONPATH": path,
        "PYTHONUNBUFFERED": "1", "OPD_PROGRESS": "0"}


def prefect_command(settings: Settings) -> list[str]:
    """Prefect's server with its services and pages."""
    return [sys.executable, "-m", "uvicorn", "--factory", "flows.platform.prefect_server:create_app", "--host",
            settings.host, "--port", str(settings.prefect_port), "--log-level", "warning", "--lifespan", "on",
            "--timeout-keep-alive", "5", "--timeout-graceful-shutdown", "1"]


def prefect_environment(settings: Settings) -> dict[str, str]:
    """Of Prefect's server. With a port of its own, its pages ask PREFECT_API_URL where the API is."""
    own = {"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES, "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
           "PREFECT_SERVER_DATABASE_TIMEOUT": SQLITE_SECONDS, "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
           "PREFECT_SERVER_API_HOST": settings.host, "PREFECT_SERVER_API_PORT": str(settings.prefect_port)}
    if settings.prefect_auth:
        own["PREFECT_SERVER_API_AUTH_STRING"] = settings.prefect_auth
    if settings.database_url:
        own |= {"PREFECT_SERVER_DATABASE_CONNECTION_URL": with_driver(settings.database_url, "postgresql+asyncpg"),
                "PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_SEARCH_PATH": "prefect,public"}
    return environment(settings) | own


def mlflow_command(settings: Settings) -> list[str]:
    """MLflow's server: one worker, files through it. The database's address, which may hold a password, is not here."""
    passwords = ["--app-name", "basic-auth"] if settings.mlflow_auth else []
    return [sys.executable, "-m", "mlflow", "server", "--host", settings.host, "--port", str(settings.mlflow_port),
            "--workers", "1", "--artifacts-destination", (home() / "mlartifacts").as_uri(),
            "--uvicorn-opts", "--log-level warning --timeout-graceful-shutdown 1", *passwords]


def mlflow_environment(settings: Settings) -> dict[str, str]:
    """Of MLflow's server: without job execution it is two processes, with it fourteen."""
    uri = f"sqlite:///{home() / 'mlflow.db'}"
    if settings.database_url:
        search = "&" if "?" in settings.database_url else "?"
        uri = with_driver(settings.database_url, "postgresql") + f"{search}options=-csearch_path%3Dmlflow"
    own = {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
           "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    if not is_loopback(settings.host):  # by itself it answers to localhost and private addresses only
        names = ("localhost", "127.0.0.1", settings.address, settings.host, socket.gethostname(), socket.getfqdn())
        hosts = ",".join(dict.fromkeys(f"{name}:{settings.mlflow_port}" for name in names))
        own["MLFLOW_SERVER_ALLOWED_HOSTS"] = os.environ.get("MLFLOW_SERVER_ALLOWED_HOSTS", hosts)
    if settings.mlflow_auth:
        user, _, password = settings.mlflow_auth.partition(":")
        own |= {"MLFLOW_AUTH_ADMIN_USERNAME": user, "MLFLOW_AUTH_ADMIN_PASSWORD": password,
                "MLFLOW_FLASK_SERVER_SECRET_KEY": settings.mlflow_secret,
                "MLFLOW_AUTH_CONFIG_PATH": str(write_mlflow_auth(home() / "platform" / "mlflow_auth.ini"))}
    base = environment(settings)
    del base["MLFLOW_TRACKING_URI"]  # the server is not its own client
    return base | own


def write_mlflow_auth(file: Path) -> Path:
    """The file in which MLflow reads where its users are; a password is compared once a minute, for it costs 0.1 s."""
    file.write_text(f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{home() / 'mlflow_users.db'}\n"
                    "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
                    "auth_cache_ttl_seconds = 60\n")
    return file


def worker_command(settings: Settings) -> list[str]:
    """Prefect's worker, which runs flows as processes of this machine."""
    return [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process",
            "--name", f"opd-{socket.gethostname()}", "--limit", str(settings.slots)]


def worker_environment(settings: Settings) -> dict[str, str]:
    """Of the worker and of the flow runs that it starts."""
    return environment(settings) | {
        "PREFECT_WORKER_QUERY_SECONDS": str(POLL_SECONDS), "PREFECT_WORKER_ENABLE_CANCELLATION": "true",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS)}


def with_driver(url: str, scheme: str) -> str:
    """A database's address under the scheme that names the driver."""
    return f"{scheme}://{url.partition('://')[2]}"


def is_well(name: str, settings: Settings) -> bool:
    """Whether a server answers: Prefect with its database, MLflow with its pages."""
    if name == "prefect":
        return api.prefect(settings).is_well("/ready")
    return api.mlflow(settings).is_well("/health")
