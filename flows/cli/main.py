"""The command line: what is said, which command runs, how it ends.

Exit codes: 0 ok, those of tasks/opd/core/errors.py, 130 interrupted, 143 terminated, 129 the terminal is gone, 1
anything else. Results go to standard output, with --json as one object on the last line; progress and complaints go to
standard error.
"""
import argparse
import dataclasses
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import TextIO

from flows.cli.deployments import deploy
from flows.cli.jobs import add_options as add_job_options
from flows.cli.jobs import jobs
from flows.cli.machine import doctor
from flows.cli.platform import add_logs_options, add_up_options, down, logs, status, up
from flows.cli.recipes import check, variants
from flows.cli.refreshes import add_refresh_commands
from flows.cli.reports import add_report_options, report
from flows.cli.runs import bootstrap, compare, distill, evaluate
from flows.cli.store import add_options, gc
from tasks.opd.core.errors import OpdError
from tasks.opd.core.streams import keep_printing
from tasks.opd.store.artifacts import Artifact

STOPPED = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "the terminal is gone"}


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code."""
    keep_printing()
    try:
        arguments = parsed(argv)
    except SystemExit as done:  # argparse has said why
        return 1 if done.code else 0
    stopped = watch_signals()
    try:
        result, text = arguments.run(arguments)
    except BaseException as error:
        if not isinstance(error, Exception | KeyboardInterrupt) and not stopped:
            raise
        return refused(arguments, *explained(error, stopped))
    lost = tell(json.dumps(result, default=plain) if arguments.json else text, sys.stdout)
    if lost and not isinstance(lost, BrokenPipeError):  # whoever closes a pipe has seen enough
        return refused(arguments, 1, f"the result could not be printed: {lost}")
    return 0


def explained(error: BaseException, stopped: list[int]) -> tuple[int, str]:
    """Exit code and message; whatever a signal became on its way through threads and tasks, it is 128 + its number."""
    if stopped or isinstance(error, KeyboardInterrupt):
        number = stopped[0] if stopped else signal.SIGINT
        return 128 + number, f"{STOPPED[number]}; finished stages are kept, the same command goes on from there"
    if isinstance(error, OpdError):
        return error.exit_code, str(error)
    return 1, f"{type(error).__name__}: {error}\n(--verbose shows the traceback)"


def watch_signals() -> list[int]:
    """A list that fills when the person interrupts, something terminates this process, or the terminal goes.

    Each is raised as a KeyboardInterrupt too. Where a signal is ignored, as nohup or a shell's background job has it,
    or handled otherwise, it stays so.
    """
    stopped: list[int] = []
    terminal = [stream.fileno() for stream in (sys.__stdout__, sys.__stderr__) if stream and stream.isatty()]

    def note(number: int, frame) -> None:
        stopped.append(number)
        for gone in (stream for stream in terminal if number == signal.SIGHUP and not os.isatty(stream)):
            os.dup2(os.open(os.devnull, os.O_WRONLY), gone)  # a word to it would be an error, and hide the signal
        raise KeyboardInterrupt
    for number in STOPPED:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, note)
    return stopped


def refused(arguments: argparse.Namespace, code: int, message: str) -> int:
    """Say why a command ended, on standard error and, with --json, as an object; the exit code."""
    trace = f"{traceback.format_exc()}\n" if arguments.verbose else ""
    tell(f"{trace}opd: {message}", sys.stderr)
    if arguments.json:
        tell(json.dumps({"error": message, "exit_code": code}), sys.stdout)
    return code


def tell(text: str, stream: TextIO) -> OSError | None:
    """Print a line; why it could not be, if so: the stream, a terminal that is gone say, takes no more then."""
    try:
        print(text, file=stream, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return error
    return None


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
    add_runs(command)
    add_platform(command)
    arguments, rest = top.parse_known_args(argv)
    arguments.overrides = [word for word in rest if arguments.takes and "=" in word and not word.startswith("-")]
    if unknown := [word for word in rest if word not in arguments.overrides]:
        top.error(f"unknown arguments: {' '.join(unknown)}" + ("; settings are key=value" if arguments.takes else ""))
    return arguments


def add_runs(command: Callable[..., argparse.ArgumentParser]) -> None:
    """The commands that run recipes, or read them."""
    command(distill, "one recipe: bootstrap, rounds, benchmarks before and after; takes key=value", "recipe")
    added = command(evaluate, "a checkpoint's or model folder's answers, graded; takes key=value", "checkpoint")
    added.add_argument("--benchmark", required=True, help="a name in configs/benchmarks, or a file")
    added.set_defaults(takes=True)
    added = command(compare, "variants x seeds, paired over prompts against the baseline; takes key=value", "suite")
    added.add_argument("--anyway", action="store_true", help="even if it cannot detect what it looks for (detect)")
    command(check, "is the recipe or suite sound? without loading a model; takes key=value", "recipe")
    command(bootstrap, "make a recipe's models and prompts; takes key=value", "recipe")
    add_report_options(command(report, "the page of a suite or a run, made anew from the store, and opened", "name"))
    added = command(variants, "the variants in configs/variants: paper, arXiv id, idea, cost; --json: slots, placebo")
    added.add_argument("--markdown", action="store_true", help="print configs/variants/README.md")
    add_refresh_commands(command)


def add_platform(command: Callable[..., argparse.ArgumentParser]) -> None:
    """The commands of the platform, the store and the machine."""
    added = command(deploy, "every variant, suite and evaluation as a deployment in Prefect, to be run from its pages")
    added.add_argument("--pool", default="opd", help="the work pool whose workers run them (opd)")
    add_options(command(gc, "what no recorded run refers to, listed or removed"))
    add_job_options(command(jobs, "a Kubernetes Job for every cell of a suite, for kubectl; takes key=value", "suite"))
    add_up_options(command(up, "start Prefect, MLflow and a worker, register what can be run; harmless when they run"))
    command(status, "what of the platform runs, since when and where; runs, slots and refreshes")
    command(down, "stop the platform and all that it runs; nothing is left")
    add_logs_options(command(logs, "what prefect, mlflow, worker or keeper said last", "name"))
    command(doctor, "versions, cores, GPU, disk, telemetry switches")
