"""Commands that run flows. Prefect and all that is heavy are imported by the command that needs them, after the
environment is set: telemetry off, Prefect's files under the run's own home, no log lines unless --verbose.
"""
import argparse
import contextlib
import dataclasses
import logging
import os
import sys
import time
from pathlib import Path

from flows.platform import reconcile, state
from tasks import server
from tasks.opd.core.files import make_private, try_writing
from tasks.opd.evaluation import power
from tasks.opd.evaluation.comparison_tables import to_text
from tasks.opd.recipe import loading
from tasks.opd.recipe.tuning import load_trials
from tasks.opd.store import disk
from tasks.opd.store.artifacts import home
from tasks.workers import launchers


def prepare(arguments: argparse.Namespace) -> None:
    """The environment of a command that runs flows, before Prefect is imported."""
    launchers.quiet_environment()
    prefect = Path(os.environ.setdefault("PREFECT_HOME", str(home() / "prefect")))
    for folder in (home(), prefect):
        try_writing(folder)
    if prefect.parent == home():
        make_private(prefect)  # its database holds Prefect's Secrets
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO" if arguments.verbose else "WARNING")
    for name in ("flow_runs", "task_runs"):  # for the runs' pages; the terminal has what we say ourselves
        os.environ.setdefault(f"PREFECT_LOGGING_LOGGERS_PREFECT_{name.upper()}_LEVEL", "INFO")
        logging.getLogger(f"prefect.{name}").propagate = arguments.verbose
    logging.raiseExceptions = arguments.verbose  # what cannot be logged, on a full disk say, is no news of its own
    if platform := state.use():
        print(f"opd: uses the platform: Prefect {platform.prefect_url}, MLflow {platform.mlflow_url}", file=sys.stderr)
    server.start(meanwhile=import_flows)


def import_flows() -> None:
    """Import Prefect, the main flow and MLflow, which every command that runs flows needs, and which takes seconds."""
    from flows import distill  # noqa: F401
    from tasks.tracking.client import import_store
    with contextlib.suppress(Exception):  # without MLflow a run goes on, and says so
        import_store()


def terminal() -> str:
    """The tag by which the platform sees, when this process was killed, that its runs are not at work any more."""
    return reconcile.terminal_tag(os.getpid())


def distill(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Run a recipe."""
    recipe, started = loading.load(arguments.recipe, arguments.overrides), time.monotonic()
    prepare(arguments)
    from prefect import tags

    from flows.distill import distill as run
    from flows.tables import of_run
    from tasks.opd.evaluation.reports import divergence_line, overlap_line
    with tags(f"variant:{recipe.name}", f"seed:{recipe.seed}", terminal()):
        result, lines = run(recipe), []
    result["comparison"] = {}
    for name, table in of_run(result).items():
        result["comparison"][name] = dataclasses.asdict(table)
        apart = divergence_line(result["start"][name], result["end"][name])
        lines += [f"benchmark {name}", to_text(table), *filter(None, [apart, overlap_line(result["end"][name])]),
                  f"report      {result['end'][name].path}", ""]
    result |= ended(started)
    lines += [f"finding     round {finding.rounds}, {finding.rule}: {finding.text}" for finding in result["findings"]]
    return result, "\n".join([*lines, f"checkpoint  {result['checkpoint'].path}", f"html        {result['report']}",
                               *ending(result)])


def compare(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Run a suite."""
    plan, cells = loading.load_suite(arguments.suite, arguments.overrides)  # what is wrong is said before all else
    load_trials(arguments.suite, arguments.overrides)
    if not arguments.anyway:
        power.refuse_undetectable(plan, cells)
    print(f"opd: {power.described(plan, cells)}", file=sys.stderr, flush=True)
    started = time.monotonic()
    prepare(arguments)
    from prefect import tags

    from flows.compare import compare as run
    with tags(f"suite:{plan.name}", terminal()):
        result = run(arguments.suite, arguments.overrides)
    text = result.pop("text")
    result |= ended(started) | {"detectable": power.detectable_by(plan, power.benchmark_of(plan, cells))}
    lines = [f"written to  {result['folder']}", f"html        {result['folder']}/report.html", *ending(result)]
    return result, "\n".join([text, "", *lines])


def ended(started: float) -> dict:
    """What a command says of itself at its end: seconds since `started`, bytes of all artifacts, how to open MLflow."""
    return {"seconds": round(time.monotonic() - started, 1), "kept_bytes": disk.kept_bytes(), "mlflow": ui_command()}


def ending(result: dict) -> list[str]:
    """The last lines of a run: how long it took, what is kept, and how to look at it."""
    reached = "/runs/" in result["mlflow_page"]
    page = [f"page        {result['mlflow_page']}", f"charts      {result['mlflow_charts']}"] if reached else []
    return [*spent(result), *page]


def spent(result: dict) -> list[str]:
    """What `ended` says, as lines."""
    return [f"seconds     {result['seconds']}", f"kept        {disk.described(result['kept_bytes'])}",
            f"mlflow      {result['mlflow']}"]


def evaluate(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Benchmark a folder."""
    recipe = loading.load(loading.CONFIGS / "base.yaml", [f"benchmarks={arguments.benchmark}", *arguments.overrides])
    prepare(arguments)
    from prefect import tags

    from flows.evaluate import evaluate as run
    with tags(*(f"benchmark:{benchmark.name}" for benchmark in recipe.benchmarks), terminal()):
        reports = run(recipe, arguments.checkpoint)
    lines = [f"{name}  {format_counts(report.counts)}\n{report.path}" for name, report in reports.items()]
    return {"reports": reports}, "\n".join([*lines, f"kept  {disk.described(disk.kept_bytes())}"])


def format_counts(counts: dict) -> str:
    """Counts on one line."""
    return ", ".join(f"{name} {value:.4g}" for name, value in counts.items() if isinstance(value, int | float))


def bootstrap(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Make models and prompts."""
    recipe = loading.load(arguments.recipe, arguments.overrides)
    prepare(arguments)
    from prefect import tags

    from flows.bootstrap import bootstrap as run
    with tags(terminal()):
        made = run(recipe)
    lines = [f"{kind}  {name}  {artifact.path}" for kind, some in made.items() for name, artifact in some.items()]
    return made, "\n".join([*lines, f"kept  {disk.described(disk.kept_bytes())}"])


def ui_command() -> str:
    """How to open what was tracked."""
    from tasks.tracking.client import ui_command as command
    return command()
