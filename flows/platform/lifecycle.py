"""Up and down: one at a time, each of them a repetition without harm."""
import contextlib
import dataclasses
import sqlite3
import sys
import time

import httpx

from flows.platform import api, automations, children, databases, pools, ports, servers
from flows.platform import settings as settings_of
from flows.platform.keeper import launch
from flows.platform.processes import end
from flows.platform.reconcile import end_in_mlflow, end_orphans, reconcile
from flows.platform.settings import LOCK, PlatformError, Settings
from tasks import server
from tasks.opd.core.files import flock, make_private, try_writing
from tasks.opd.store.artifacts import home
from tasks.tracking import client

START_SECONDS = 180                     # a server on a busy machine
RUNS_SECONDS, SERVERS_SECONDS = 4.0, 1.5  # that runs and servers have to end by themselves
STOPPED = "the platform was stopped (opd down) while it ran; run it again, finished stages are kept"


def lock():
    """Held by whoever starts or stops; the keeper rests meanwhile."""
    return flock(settings_of.folder() / LOCK)


def up(wanted: Settings) -> tuple[Settings, list[str]]:
    """Start what does not run; the settings it runs with, and the names of what was started. A port of 0 is any.

    Raises: PlatformError when it runs with other settings, a port is taken, or a server does not start.
    """
    for folder in (home(), settings_of.folder()):
        try_writing(folder)
    make_private(home() / "prefect")  # its database holds Prefect's Secrets
    with lock():
        settings, alive = settle(wanted), {name for name in children.NAMES if children.living(name)}
        start_servers(settings, alive)
        prefect = api.prefect(settings)
        if "worker" not in alive:
            children.stop("worker")
        end_orphans()
        pools.ensure(prefect, settings.slots)
        reconcile(prefect, at_once="worker" not in alive)
        if "worker" not in alive:
            launch("worker", settings)
        automations.ensure(prefect, settings.alarm_url)
        demand_passwords(settings)
        end_in_mlflow(prefect, api.mlflow(settings))
        await_worker(prefect)
        if "keeper" not in alive:
            children.stop("keeper")
            launch("keeper", settings)
    return settings, [name for name in children.NAMES if name not in alive]


def start_servers(settings: Settings, alive: set[str]) -> None:
    """Start those of the two servers that do not live, and wait until both answer.

    Commands of this home make the same tables, so each server starts under the lock under which they do, until it
    answers: then they are made. Where it lives nobody is kept waiting, for it may hang.
    Raises: PlatformError when a port is taken, or a server does not start.
    """
    locks = {"prefect": server.starting, "mlflow": client.alone}
    dead = [name for name in locks if name not in alive]
    for name in dead:
        children.stop(name)  # what a dead one left
        ports.demand(name, settings.host, getattr(settings, f"{name}_port"))
    settings_of.write(settings)
    if settings.database_url and not alive:
        databases.ensure_schemas(settings.database_url)
    with contextlib.ExitStack() as held:
        for name in dead:
            held.enter_context(locks[name]())
        if "mlflow" in dead:
            with contextlib.suppress(sqlite3.DatabaseError):    # its server says what is wrong with it
                client.follow_home(home() / "mlflow.db")
        for name in dead:
            launch(name, settings)
        for name in dead:
            await_answer(name, settings)
    for name in locks.keys() - {*dead}:
        await_answer(name, settings)


def settle(wanted: Settings) -> Settings:
    """The settings to run with: those that it runs with, if they are what is wanted; ports of 0 become free ones."""
    known = settings_of.read()
    if known and any(children.living(name) for name in ("prefect", "mlflow")):
        for name in ("host", "prefect_port", "mlflow_port", "database_url", "prefect_auth", "mlflow_auth"):
            asked, runs = getattr(wanted, name), getattr(known, name)
            if asked != runs and asked not in (0, ""):
                shown = "" if "auth" in name or "url" in name else f" ({runs}, not {asked})"
                raise PlatformError(f"the platform of {known.home} runs with another {name}{shown}: opd down first")
        return dataclasses.replace(known, slots=wanted.slots, alarm_url=wanted.alarm_url or known.alarm_url)
    return dataclasses.replace(wanted, **{f"{name}_port": ports.free_port(wanted.host)
                                          for name in ("prefect", "mlflow") if not getattr(wanted, f"{name}_port")})


def await_answer(name: str, settings: Settings) -> None:
    """Wait until a server answers. Raises PlatformError with the end of its log when it ends, or takes too long."""
    until = time.monotonic() + (seconds := server.start_seconds(START_SECONDS))
    while not servers.is_well(name, settings):
        alive = children.living(name)
        if not alive or time.monotonic() > until:
            reason = f"did not answer within {seconds:g} s ({server.PATIENCE} gives it more)" if alive else "ended"
            raise PlatformError(f"{name} {reason}; {children.log_of(name)} ends:\n{children.last_lines(name)}")
        time.sleep(0.5)
    address = getattr(settings, f"{name}_url")
    print(f"opd: {name} answers at {address}", file=sys.stderr)


def await_worker(prefect: api.Api) -> None:
    """Wait until the worker has reported. Raises PlatformError with the end of its log when it does not."""
    until = time.monotonic() + server.start_seconds(START_SECONDS)
    while not pools.is_served(prefect):
        if not children.living("worker") or time.monotonic() > until:
            raise PlatformError(f"the worker did not report; {children.log_of('worker')} ends:\n"
                                f"{children.last_lines('worker')}")
        time.sleep(0.5)


def demand_passwords(settings: Settings) -> None:
    """Raises PlatformError when a server does not take our own: MLflow keeps the one it was first started with."""
    try:
        api.prefect(settings).post("/flows/count")
        api.mlflow(settings).get("/api/2.0/mlflow/experiments/search", max_results=1)
    except httpx.HTTPStatusError as error:
        raise PlatformError(f"{error.request.url.host}:{error.request.url.port} does not take our password "
                            f"({error.response.status_code}). MLflow keeps the password of its first start: use that, "
                            f"or stop, remove {settings.home}/mlflow_users.db and start again") from error


def down() -> int:
    """Stop everything, runs included, and mark them; how many processes there were.

    Raises: PlatformError when something could not be ended.
    """
    if not settings_of.folder().is_dir():
        return 0
    before = len(children.family())
    children.stop("keeper", grace_seconds=0.5)  # it may hold the lock for as long as a server does not answer
    with lock():
        settings, worker = settings_of.read(), children.read("worker")
        children.stop("keeper", grace_seconds=0.5)
        end(lambda: children.family_of("worker"), lambda process: worker is not None and worker.pid in
            (process.pid, process.parent), grace_seconds=RUNS_SECONDS)
        children.record_of("worker").unlink(missing_ok=True)
        if settings and children.living("prefect"):
            mark_stopped(settings)
        asked = {child.pid for name in ("prefect", "mlflow") if (child := children.living(name))}
        if not end(children.family, lambda process: process.pid in asked, grace_seconds=SERVERS_SECONDS):
            left = ", ".join(map(str, children.family()))
            raise PlatformError(f"could not end processes {left}: they wait for a disk or a driver")
        for name in ("prefect", "mlflow", "settings"):
            children.record_of(name).unlink(missing_ok=True)
    return before


def mark_stopped(settings: Settings) -> None:
    """Mark the runs that were ended, while the servers are there to be told."""
    try:
        prefect = api.prefect(settings, timeout_seconds=3)
        reconcile(prefect, message=STOPPED, at_once=True)
        end_in_mlflow(prefect, api.mlflow(settings, timeout_seconds=3))
    except httpx.HTTPError as error:
        print(f"opd: {error.request.url} could not be told what was stopped ({type(error).__name__}); the next opd up "
              "tells Prefect", file=sys.stderr)
