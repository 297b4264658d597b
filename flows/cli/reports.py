"""`opd report`: the page of a suite or a run, made anew from what the store holds, and opened."""
import argparse
import os
import sys
import webbrowser
from pathlib import Path

from tasks.opd.core.errors import DataError
from tasks.opd.evaluation.report import lineage, runs, suites
from tasks.opd.recipe import loading
from tasks.opd.store import run_records


def round_numbers(text: str) -> list[int]:
    """Rounds from 1 on, separated by commas, as argparse asks for them."""
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError("rounds are counted from 1")
    return numbers


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--rounds", metavar="2,3", type=round_numbers, default=[],
                        help="of a run: whose rollouts it shows, counted from 1; else the first, the middle, the last")
    parser.add_argument("--no-open", action="store_true", help="only write it, where there is a display too")


def report(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Write the page of a suite or a run. Raises DataError when there is neither, and for rounds of a suite."""
    name = arguments.name
    if name.endswith((".yaml", ".yml")):
        name = loading.read_suite(name)[0].name
    state = suites.read_state(name)
    if state and arguments.rounds:
        variant, seed, _ = state.cells[0]
        raise DataError(f"--rounds chooses rollouts, and the page of suite {name} shows none; name a run of it, as opd "
                        f"report {name}/{variant}-seed{seed} --rounds {','.join(map(str, arguments.rounds))}")
    file, html = of_suite(state) if state else of_run(name, arguments.rounds)
    runs.write(file, html)
    opened = not arguments.no_open and has_display() and webbrowser.open(file.as_uri())
    return {"report": str(file), "bytes": len(html.encode()), "opened": bool(opened)}, str(file)


def of_suite(state: suites.State) -> tuple[Path, str]:
    """Where a suite's page lies, and the page."""
    return suites.file_of(state.suite), suites.html_of(state)


def of_run(name: str, rounds: list[int]) -> tuple[Path, str]:
    """Where the page of the run last begun of that name lies, and the page."""
    record = runs.named(name)
    return run_records.page_of(record.name.partition(".")[0]), runs.html_of(lineage.read(record), rounds)


def has_display() -> bool:
    """Whether a browser could show anything."""
    return sys.platform in ("darwin", "win32") or any(name in os.environ for name in ("DISPLAY", "WAYLAND_DISPLAY"))
