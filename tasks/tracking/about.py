"""How a run is presented in MLflow's pages: its name, tags, parameters and description, and who made it."""
import contextlib
import getpass
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from tasks.tracking.client import tracking_uri

REPORT = "report.html"      # among a run's files, the page of the run itself
RUNS_PAGE = "?workflowType=machine_learning"  # without it MLflow shows an empty page for traces of language models


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """How a run is presented."""
    name: str
    tags: dict[str, str]
    params: dict[str, str]              # empty for a suite's own run
    files: dict[str, str]               # path -> text
    note: str = ""                      # Markdown, the first of its description
    benchmarks: tuple[str, ...] = ()    # by name


def pages() -> str:
    """The address of MLflow's pages, for links; of a local store, the one that `mlflow server` has by itself.

    $OPD_MLFLOW_URL says it where people's browsers find the server under another address than runs do.
    """
    uri = os.environ.get("OPD_MLFLOW_URL") or tracking_uri()
    return uri.rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"


def file_page(state: dict, path: str) -> str:
    """Where MLflow's pages show a file of a run, given by the state of its `Run`; empty while it is not there."""
    return f"{pages()}/#/experiments/{state['experiment']}/runs/{state['run']}/artifacts/{path}" if state["run"] else ""


def author_tags() -> dict[str, str]:
    """Who made a run, by which command, as MLflow's own columns show it."""
    user = str(os.getuid())
    with contextlib.suppress(OSError, KeyError):    # a container's user may have no name
        user = getpass.getuser()
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]])  # opd compare; of more, what follows a slash is shown
    return {"mlflow.user": user, "mlflow.source.name": command, "mlflow.source.type": "LOCAL"}
