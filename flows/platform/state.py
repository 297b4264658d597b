"""What runs: for commands that use it, and for people that ask."""
import os
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx

from flows.platform import api, children, servers
from flows.platform import settings as settings_of
from flows.platform.reconcile import ACTIVE
from flows.platform.servers import POOL
from flows.platform.settings import Settings

REFRESH, CHAMPION = "refresh", "champion"   # the flow of refreshes; the alias of the model in use
NEXT_RUNS = 5                               # scheduled runs that are listed


@dataclass(frozen=True, kw_only=True, slots=True)
class Platform:
    """A platform that answers."""
    prefect_url: str                    # the pages; the API lies at /api
    mlflow_url: str


def running() -> Platform | None:
    """The platform of this OPD_HOME if both of its servers answer, else None."""
    settings = settings_of.read()
    if settings is None or not all(children.living(name) and servers.is_well(name, settings)
                                   for name in ("prefect", "mlflow")):
        return None
    return Platform(prefect_url=settings.prefect_url, mlflow_url=settings.mlflow_url)


def use() -> Platform | None:
    """Make this process a client of the platform that runs, if one does, where the user named no server himself."""
    mine = {name: not os.environ.get(name) for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")}
    found = running() if any(mine.values()) else None
    if found:
        servers.become_client(settings_of.read(), of_prefect=mine["PREFECT_API_URL"],
                              of_mlflow=mine["MLFLOW_TRACKING_URI"])
    return found


def report() -> dict:
    """Facts about the platform as JSON values; `running` is false where there is none."""
    settings = settings_of.read()
    if settings is None:
        return {"running": False, "home": str(settings_of.folder().parent), "children": []}
    facts = {"running": bool(running()), "home": settings.home, "prefect": settings.prefect_url,
             "mlflow": settings.mlflow_url, "database": "PostgreSQL" if settings.database_url else "SQLite",
             "children": [described(name, settings) for name in children.NAMES]}
    try:
        return facts | runs_of(api.prefect(settings), settings.slots) | {"refreshes": refreshes_of(settings)}
    except httpx.HTTPError as error:
        return facts | {"problem": f"Prefect does not answer: {type(error).__name__}"}


def described(name: str, settings: Settings) -> dict:
    """A child: since when, and how it is."""
    child = children.living(name)
    if child is None:
        return {"name": name, "state": "dead", "pid": None, "since": None, "log": str(children.log_of(name))}
    well = name in ("worker", "keeper") or servers.is_well(name, settings)
    return {"name": name, "state": "running" if well else "silent", "pid": child.pid, "log": child.log,
            "since": datetime.fromtimestamp(child.since, UTC).isoformat(timespec="seconds"),
            "seconds": round(time.time() - child.since)}


def runs_of(prefect: api.Api, slots: int) -> dict:
    """Slots, how many runs are active, scheduled for now and late, and those that come next."""
    def found(**state) -> list[dict]:
        return prefect.post("/flow_runs/filter", {"flow_runs": {"state": state}, "limit": 200,
                                                  "sort": "EXPECTED_START_TIME_ASC"})
    active, waiting = found(type={"any_": [*ACTIVE]}), found(type={"any_": ["SCHEDULED"]})
    now, used = datetime.now(UTC), sum(run["work_pool_name"] == POOL for run in active)
    later = [run for run in waiting if datetime.fromisoformat(run["expected_start_time"]) > now]
    names = Counter(run["state_name"] for run in waiting if run not in later)
    return {"slots": {"used": used, "of": slots},
            "runs": {"active": [run["name"] for run in active], "waiting": len(waiting) - len(later),
                     "late": names["Late"], "scheduled": len(later)},
            "next": [{"name": run["name"], "at": run["expected_start_time"]} for run in later[:NEXT_RUNS]]}


def refreshes_of(settings: Settings) -> list[dict]:
    """Every refresh that is deployed: its last and next run, and the version that is champion."""
    prefect, found = api.prefect(settings), []
    for deployment in prefect.post("/deployments/filter", {"flows": {"name": {"any_": [REFRESH]}}}):
        only = {"deployments": {"id": {"any_": [deployment["id"]]}}, "limit": 1}
        past = {"type": {"not_any_": ["SCHEDULED"]}}
        last = prefect.post("/flow_runs/filter", {**only, "flow_runs": {"state": past}, "sort": "START_TIME_DESC"})
        coming = {"type": {"any_": ["SCHEDULED"]}}
        soon = prefect.post("/flow_runs/filter", {**only, "flow_runs": {"state": coming},
                                                  "sort": "EXPECTED_START_TIME_ASC"})
        found.append({"name": deployment["name"], "champion": champion(settings, deployment["name"]),
                      "last": {"state": last[0]["state_name"], "at": last[0]["start_time"]} if last else None,
                      "next": soon[0]["expected_start_time"] if soon else None})
    return found


def champion(settings: Settings, model: str) -> str | None:
    """The version of a registered model in use; None without one, or while MLflow does not answer."""
    try:
        found = api.mlflow(settings).get("/api/2.0/mlflow/registered-models/alias", name=model, alias=CHAMPION)
    except httpx.HTTPError:
        return None
    return found["model_version"]["version"]
