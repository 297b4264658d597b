"""The command line: what is said, which command runs, how it ends.

Exit codes: 0 ok, those of tasks/opd/core/errors.py, 130 interrupted, 1 anything else. Results go to standard output,
with --json as one object on the last line; progress and complaints go to standard error.
"""
import argparse
import dataclasses
import json
import signal
import sys
import traceback

from flows.cli.machine import doctor
from flows.cli.recipes import check, variants
from flows.cli.refreshes import add_reasons, add_refresh_options, history, promote, refresh, rollback
from flows.cli.runs import bootstrap, compare, distill, evaluate
from flows.cli.serving import add_serve_options, serve
from flows.cli.store import add_options, gc
from tasks.opd.core.errors import OpdError
from tasks.opd.store.artifacts import Artifact


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
    add_refresh_options(command(refresh, "a refresh: when it is due, what it would decide; --now runs it", "refresh"))
    command(history, "a refresh's decisions and their reasons", "refresh")
    add_reasons(command(promote, "make a version the champion that passed its gate", "refresh", "version"),
                required=True)
    add_reasons(command(rollback, "make the version before the champion the champion again", "refresh"), required=False)
    add_serve_options(command(serve, "the command that serves the champion, printed or started", "refresh"))
    add_options(command(gc, "what no recorded run refers to, listed or removed"))
    command(doctor, "versions, cores, GPU, disk, telemetry switches")
    arguments, rest = top.parse_known_args(argv)
    arguments.overrides = [word for word in rest if arguments.takes and "=" in word and not word.startswith("-")]
    if unknown := [word for word in rest if word not in arguments.overrides]:
        top.error(f"unknown arguments: {' '.join(unknown)}" + ("; settings are key=value" if arguments.takes else ""))
    return arguments
