"""The console command `opd`. Exit codes: 0 ok, those of tasks/opd/core/errors.py, 130 interrupted, 1 anything else.

Results go to standard output, with --json as one object on the last line; progress and complaints go to standard error.
Prefect and all that is heavy are imported by the command that needs them, after the environment is set: telemetry off,
Prefect's files under the run's own home, no log lines unless --verbose.
"""
import argparse
import dataclasses
import json
import logging
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from flows.gc import add_options, gc
from tasks import server, workers
from tasks.opd.core.errors import OpdError, RecipeError
from tasks.opd.core.files import try_writing
from tasks.opd.recipe import catalogue, loading, slots
from tasks.opd.recipe.checks import recipes
from tasks.opd.recipe.schema import Recipe
from tasks.opd.store.artifacts import Artifact, home


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code."""
    try:
        arguments = parsed(argv)
    except SystemExit as done:  # argparse has said why
        return 1 if done.code else 0
    stopped = watch_interrupts()
    try:
        result, text = arguments.run(arguments)
    except (Exception, KeyboardInterrupt) as error:
        return refused(arguments, *explained(error, bool(stopped)))
    print(json.dumps(result, default=plain) if arguments.json else text)
    return 0


def explained(error: BaseException, interrupted: bool) -> tuple[int, str]:
    """Exit code and message; whatever an interrupt became on its way through threads and tasks, it is 130."""
    if interrupted or isinstance(error, KeyboardInterrupt):
        return 130, "interrupted; finished stages are kept, the same command goes on from there"
    if isinstance(error, OpdError):
        return error.exit_code, str(error)
    return 1, f"{type(error).__name__}: {error}\n(--verbose shows the traceback)"


def watch_interrupts() -> list[int]:
    """A list that fills when the person interrupts, besides the KeyboardInterrupt itself."""
    stopped: list[int] = []
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a background job of a shell ignores them

        def note(number: int, frame) -> None:
            stopped.append(number)
            signal.default_int_handler(number, frame)
        signal.signal(signal.SIGINT, note)
    return stopped


def refused(arguments: argparse.Namespace, code: int, message: str) -> int:
    """Say why a command ended, on standard error and, with --json, as an object; the exit code."""
    if arguments.verbose:
        traceback.print_exc()
    print(f"opd: {message}", file=sys.stderr)
    if arguments.json:
        print(json.dumps({"error": message, "exit_code": code}))
    return code


def plain(value):
    """What JSON does not know: artifacts with their paths, other records as dicts, anything else as text."""
    if isinstance(value, Artifact):
        return {**value.to_json(), "path": str(value.path)}
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else str(value)


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The command line; key=value may stand anywhere after the command."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    shared.add_argument("--verbose", action="store_true", help="Prefect's log lines, and tracebacks")
    top = argparse.ArgumentParser(prog="opd", description="On-policy distillation of language models.")
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def command(run, text: str, *positional: str) -> argparse.ArgumentParser:
        added = commands.add_parser(run.__name__, help=text, description=text, parents=[shared])
        for name in positional:
            added.add_argument(name, metavar=name.upper())
        added.set_defaults(run=run, overrides=[], takes="recipe" in positional or "suite" in positional)
        return added
    command(distill, "one recipe: bootstrap, rounds, benchmarks before and after; takes key=value", "recipe")
    added = command(evaluate, "a checkpoint's or model folder's answers, graded; takes key=value", "checkpoint")
    added.add_argument("--benchmark", required=True, help="a name in configs/benchmarks, or a file")
    added.set_defaults(takes=True)
    command(compare, "variants x seeds, paired over prompts against the baseline; takes key=value", "suite")
    command(check, "is the recipe sound? without loading a model; takes key=value", "recipe")
    command(bootstrap, "make a recipe's models and prompts; takes key=value", "recipe")
    added = command(variants, "the variants in configs/variants: paper, arXiv id, idea, cost; --json: slots, placebo")
    added.add_argument("--markdown", action="store_true", help="print configs/variants/README.md")
    add_options(command(gc, "what no recorded run refers to, listed or removed"))
    command(doctor, "versions, cores, GPU, disk, telemetry switches")
    arguments, rest = top.parse_known_args(argv)
    arguments.overrides = [word for word in rest if arguments.takes and "=" in word and not word.startswith("-")]
    if unknown := [word for word in rest if word not in arguments.overrides]:
        top.error(f"unknown arguments: {' '.join(unknown)}" + ("; settings are key=value" if arguments.takes else ""))
    return arguments


def prepare(arguments: argparse.Namespace) -> None:
    """The environment of a command that runs flows, before Prefect is imported."""
    workers.quiet_environment()
    os.environ.setdefault("PREFECT_HOME", str(home() / "prefect"))
    for folder in (home(), Path(os.environ["PREFECT_HOME"])):
        try_writing(folder)
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO" if arguments.verbose else "WARNING")
    for name in ("flow_runs", "task_runs"):  # for the runs' pages; the terminal has what we say ourselves
        os.environ.setdefault(f"PREFECT_LOGGING_LOGGERS_PREFECT_{name.upper()}_LEVEL", "INFO")
        logging.getLogger(f"prefect.{name}").propagate = arguments.verbose
    logging.raiseExceptions = arguments.verbose  # what cannot be logged, on a full disk say, is no news of its own
    server.start()


def distill(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Run a recipe."""
    recipe, started = loading.load(arguments.recipe, arguments.overrides), time.monotonic()
    prepare(arguments)
    from prefect import tags

    from flows.distill import distill as run
    from flows.tables import divergence_line, of_run
    with tags(f"variant:{recipe.name}", f"seed:{recipe.seed}"):
        result, lines = run(recipe), []
    result["comparison"] = {}
    for name, table in of_run(result).items():
        result["comparison"][name] = dataclasses.asdict(table)
        apart = divergence_line(result["start"][name], result["end"][name])
        lines += [f"benchmark {name}", table.to_text(), *filter(None, [apart]),
                  f"report      {result['end'][name].path}", ""]
    result |= {"seconds": round(time.monotonic() - started, 1), "mlflow": ui_command()}
    return result, "\n".join([*lines, f"checkpoint  {result['checkpoint'].path}", *ending(result)])


def compare(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Run a suite."""
    plan, _ = loading.load_suite(arguments.suite, arguments.overrides)  # what is wrong is said before anything starts
    started = time.monotonic()
    prepare(arguments)
    from prefect import tags

    from flows.compare import compare as run
    with tags(f"suite:{plan.name}"):
        result = run(arguments.suite, arguments.overrides)
    text = result.pop("text")
    result |= {"seconds": round(time.monotonic() - started, 1), "mlflow": ui_command()}
    return result, "\n".join([text, "", f"written to  {result['folder']}", *ending(result)])


def ending(result: dict) -> list[str]:
    """The last lines of a run: how long it took, and how to look at it."""
    page = [f"page        {result['mlflow_page']}"] if "/runs/" in result["mlflow_page"] else []  # MLflow was reached
    return [f"seconds     {result['seconds']}", f"mlflow      {result['mlflow']}", *page]


def evaluate(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Benchmark a folder."""
    recipe = loading.load(loading.CONFIGS / "base.yaml", [f"benchmarks={arguments.benchmark}", *arguments.overrides])
    prepare(arguments)
    from prefect import tags

    from flows.evaluate import evaluate as run
    with tags(*(f"benchmark:{benchmark.name}" for benchmark in recipe.benchmarks)):
        reports = run(recipe, arguments.checkpoint)
    return {"reports": reports}, "\n".join(f"{name}  {format_counts(report.counts)}\n{report.path}"
                                           for name, report in reports.items())


def format_counts(counts: dict) -> str:
    """Counts on one line."""
    return ", ".join(f"{name} {value:.4g}" for name, value in counts.items() if isinstance(value, int | float))


def bootstrap(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Make models and prompts."""
    recipe = loading.load(arguments.recipe, arguments.overrides)
    prepare(arguments)
    from flows.bootstrap import bootstrap as run
    made = run(recipe)
    return made, "\n".join(f"{kind}  {name}  {artifact.path}" for kind, some in made.items()
                           for name, artifact in some.items())


def check(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Load a recipe and say what it needs. Raises RecipeError with all that is wrong."""
    recipe = loading.load(arguments.recipe, arguments.overrides)
    report = recipes.report(recipe, loading.provenance(arguments.recipe, arguments.overrides))
    if report["problems"]:
        raise RecipeError("\n".join(report["problems"]))
    needs = [f"{model}: {', '.join(column for column, amount in want.items() if amount)}"
             for model, want in report["needs"].items()]
    files = ", ".join(report["files"])
    summary = f"{recipe.name} is sound; teachers give {'; '.join(needs) or 'nothing'}; read {files}"
    return report, "\n".join([summary, *report["changes"], *report["notes"]])


def variants(arguments: argparse.Namespace) -> tuple[dict, str]:
    """All variants that come with opdlab, with the sizes their papers have."""
    base, *found = (loading.load(file, ["pair.tiny=false"]) for file in
                      [loading.CONFIGS / "base.yaml", *sorted((loading.CONFIGS / "variants").glob("*.yaml"))])
    found = [described(recipe, base) for recipe in found]
    return {"variants": found}, catalogue.markdown(found) if arguments.markdown else catalogue.text(found)


def described(recipe: Recipe, base: Recipe) -> dict:
    """A variant as `opd variants` lists it; models, prompts and benchmarks are not the variant's."""
    data = recipe.model_dump(mode="json")
    chosen = {".".join(map(str, path)): {"name": value["name"], **value["params"]} if value["params"] else value["name"]
              for path, _, value in slots.found(data) if path[0] not in ("pair", "prompts", "benchmarks")}
    return {"name": recipe.name, **data["about"], "slots": chosen,
            "differs": catalogue.differs(data, base.model_dump(mode="json"))}


def doctor(arguments: argparse.Namespace) -> tuple[dict, str]:
    """What this machine has."""
    from flows.doctor import doctor as examine
    from flows.doctor import pretty
    workers.quiet_environment()
    report = examine()
    return report, pretty(report)


def ui_command() -> str:
    """How to open what was tracked."""
    from tasks.tracking.client import ui_command as command
    return command()


if __name__ == "__main__":
    sys.exit(main())
