"""What a platform is: its folder, addresses, database, slots and passwords, kept in one file that only its owner reads.

Passwords come from the environment or from files that it names (`NAME_FILE`), never from a command line, where every
user of the machine can read them.
"""
import dataclasses
import ipaddress
import json
import os
import secrets
import socket
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tasks.opd.core.addresses import masked
from tasks.opd.core.errors import OpdError
from tasks.opd.core.files import room_to_write
from tasks.opd.store.artifacts import home

PREFECT_PASSWORD = "PREFECT_SERVER_API_AUTH_STRING"     # user:password
MLFLOW_PASSWORD, MLFLOW_USER = "MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_AUTH_ADMIN_USERNAME"
ALARM, DATABASE = "OPD_ALARM_WEBHOOK", "OPD_DATABASE_URL"
MLFLOW_SHORTEST = 12                                    # characters MLflow wants of a password
LOCK = "platform.lock"                  # held by whoever starts, stops or mends; in folder()


class PlatformError(OpdError):
    """The platform cannot be started, reached or stopped as asked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """A platform, as `opd up` was asked for it."""
    home: str                           # absolute OPD_HOME
    host: str                           # what both servers bind to
    prefect_port: int
    mlflow_port: int
    slots: int                          # runs at once: one a device
    database_url: str = ""              # postgresql://..; empty: SQLite under `home`
    prefect_auth: str = field(default="", repr=False)   # user:password; empty: nobody is asked
    mlflow_auth: str = field(default="", repr=False)    # user:password
    mlflow_secret: str = field(default="", repr=False)  # signs MLflow's forms
    alarm_url: str = field(default="", repr=False)      # called when a run failed; empty: nobody is

    @property
    def address(self) -> str:
        """The host under which clients reach the servers; where they bind to all, this machine's name if it has one."""
        if self.host not in ("0.0.0.0", "::"):
            return f"[{self.host}]" if ":" in self.host else self.host
        name = socket.gethostname()
        try:
            socket.getaddrinfo(name, None)
        except OSError:
            return "127.0.0.1"
        return name

    @property
    def prefect_url(self) -> str:
        """Prefect's pages; its API lies at /api."""
        return f"http://{self.address}:{self.prefect_port}"

    @property
    def mlflow_url(self) -> str:
        """MLflow's pages and API."""
        return f"http://{self.address}:{self.mlflow_port}"


def folder() -> Path:
    """Where settings, records and logs of the platform of this OPD_HOME lie."""
    return home() / "platform"


def read() -> Settings | None:
    """The settings of the platform of this OPD_HOME; None when `opd up` left none."""
    try:
        return Settings(**json.loads((folder() / "settings.json").read_text()))
    except (FileNotFoundError, NotADirectoryError):
        return None


def write(settings: Settings) -> None:
    """Keep settings, readable by their owner only."""
    file, draft = folder() / "settings.json", folder() / ".settings.json"
    with room_to_write(file):
        folder().mkdir(parents=True, exist_ok=True)
        draft.unlink(missing_ok=True)
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
            json.dump(dataclasses.asdict(settings), opened, indent=1)
        os.replace(draft, file)


def asked_for(host: str, prefect_port: int, mlflow_port: int, database_url: str, slots: int) -> Settings:
    """Settings as options and environment ask for them.

    Raises: PlatformError for a host that others reach without passwords, and for a password on the command line.
    """
    if masked(database_url) != database_url:
        raise PlatformError("--database-url holds a password, which every user of this machine could read: give the "
                            f"address in {DATABASE} or in a file that {DATABASE}_FILE names")
    url = database_url or secret(DATABASE)
    if url and urlsplit(url).scheme not in ("postgresql", "postgres"):
        raise PlatformError(f"the database is {urlsplit(url).scheme}://..; it can be postgresql://user@host/name, or "
                            "nothing: SQLite")
    password, user = secret(MLFLOW_PASSWORD), os.environ.get(MLFLOW_USER, "admin")
    settings = Settings(
        home=str(home()), host=host, prefect_port=prefect_port, mlflow_port=mlflow_port, slots=slots, database_url=url,
        prefect_auth=secret(PREFECT_PASSWORD), mlflow_auth=password and f"{user}:{password}",
        mlflow_secret=password and secrets.token_hex(16), alarm_url=secret(ALARM))
    refuse_weak(settings, password)
    return settings


def refuse_weak(settings: Settings, mlflow_password: str) -> None:
    """Raises PlatformError where others could reach a server without a password, or a server would refuse it."""
    missing = [name for name, value in ((PREFECT_PASSWORD, settings.prefect_auth), (MLFLOW_PASSWORD, mlflow_password))
               if not value]
    if not is_loopback(settings.host) and missing:
        raise PlatformError(
            f"--host {settings.host} can be reached from other machines, so both servers need passwords; missing: "
            f"{', '.join(missing)}. Export {PREFECT_PASSWORD}=user:password and {MLFLOW_PASSWORD}=password, or name "
            f"files that hold them in {PREFECT_PASSWORD}_FILE and {MLFLOW_PASSWORD}_FILE")
    if settings.prefect_auth and not all(settings.prefect_auth.partition(":")):
        raise PlatformError(f"{PREFECT_PASSWORD} has the form user:password")
    if mlflow_password and len(mlflow_password) < MLFLOW_SHORTEST:
        raise PlatformError(f"{MLFLOW_PASSWORD} has {len(mlflow_password)} characters, MLflow wants {MLFLOW_SHORTEST}")


def secret(name: str) -> str:
    """A secret from $NAME, else from the file that $NAME_FILE names; empty without both. Raises PlatformError."""
    if value := os.environ.get(name):
        return value
    file = os.environ.get(f"{name}_FILE")
    try:
        return Path(file).read_text().strip() if file else ""
    except OSError as error:
        raise PlatformError(f"{name}_FILE names {file}, which cannot be read: {error}") from error


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
