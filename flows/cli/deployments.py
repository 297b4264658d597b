"""What `opd deploy` registers: every variant, suite and evaluation on Prefect's server, to be run from its pages."""
import argparse
import os

from flows.platform import state
from tasks.opd.core.errors import EngineError, RecipeError
from tasks.server import keep_password_apart
from tasks.workers import launchers


def deploy(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Register what configs holds. Raises RecipeError, after the rest was registered, for files that are wrong."""
    launchers.quiet_environment()
    state.use()
    keep_password_apart()
    if not os.environ.get("PREFECT_API_URL"):
        raise EngineError("no Prefect server runs: start the platform with opd up, or set PREFECT_API_URL, for example "
                          "to http://127.0.0.1:4200/api")
    from flows.deployments import deploy as register
    done = register(arguments.pool)
    if done["refused"]:
        raise RecipeError("\n".join(done["refused"].values()))
    lines = [f"{what:<11}{len(done[what]):>4}  {shortened(done[what])}".rstrip() for what in
             ("added", "updated", "removed", "unchanged")]
    return done, "\n".join([f"{done['server']}, work pool {done['pool']}", *lines])


def shortened(names: list[str], most: int = 6) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
