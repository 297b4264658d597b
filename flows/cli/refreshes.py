"""Commands on refreshes: run one, or say what it would do; its history; move its champion by hand, or back."""
import argparse
import time
from collections.abc import Callable

from flows.cli.runs import ended, prepare, spent
from flows.cli.serving import add_serve_options, serve
from tasks.opd.core.errors import RecipeError
from tasks.opd.core.files import is_locked
from tasks.opd.core.tables import aligned
from tasks.opd.recipe import refreshes
from tasks.opd.refresh import gate, journal, planning
from tasks.opd.refresh.decision import decide
from tasks.opd.refresh.drift import prompt_measures
from tasks.tracking import registry
from tasks.tracking.about import author_tags

COLUMNS = ("at", "tick", "what", "new", "version", "reason")


def add_refresh_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """The commands on refreshes, added by `command(function, help, *positional)`."""
    added = command(refresh, "a refresh: when it is due, what it would decide; --now runs it", "refresh")
    added.add_argument("--now", action="store_true", help="run it; without this, only say what it would decide")
    added.add_argument("--accept-drift", action="store_true", help="train on prompts even where their drift alarms")
    command(history, "a refresh's decisions and their reasons", "refresh")
    added = command(promote, "make a version the champion that passed its gate", "refresh", "version")
    added.add_argument("--by", metavar="WHO", required=True, help="who approves it")
    added.add_argument("--reason", metavar="WHY", required=True, help="why; it stands on the version in MLflow")
    added = command(rollback, "make the version before the champion the champion again", "refresh")
    added.add_argument("--by", metavar="WHO", default="", help="who decides; otherwise whoever runs it")
    added.add_argument("--reason", metavar="WHY", default="not said", help="why; it stands on the version in MLflow")
    add_serve_options(command(serve, "the command that serves the champion, printed or started", "refresh"))


def refresh(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Refresh now, or say when it is due and what it would decide."""
    ask = refreshes.load(arguments.refresh)
    if not arguments.now:
        return dry_run(ask, arguments.accept_drift)
    started = time.monotonic()
    prepare(arguments)
    from prefect import tags

    from flows.refresh import refresh as run
    with tags(f"refresh:{ask.name}"):
        line = run(arguments.refresh, arguments.accept_drift)
    result = line | ended(started)
    table = gate.from_json(registry.version_of(ask.name, line["version"]).tags["table"]) if "version" in line else []
    return result, "\n".join([*([gate.to_text(table), ""] if table else []), journal.described(line),
                              *spent(result)])


def dry_run(ask: refreshes.Refresh, accept_drift: bool) -> tuple[dict, str]:
    """What the next tick would do by its prompts alone; teacher, age and score are looked at when it runs."""
    champion, busy = registry.champion_of(ask.name), is_locked(journal.folder(ask.name) / "lock")
    waiting = journal.unfinished(ask.name)
    taken = journal.taken(ask.name, registry.ancestry(champion))
    number = champion.number if champion else None
    tick, rows, _, skipped = planning.proposed(ask, refreshes.recipe_of(ask), taken, champion=number, folder="")
    measures = prompt_measures(planning.learnt(ask, taken), rows[len(tick.old):], journal.refreshed(
        journal.read(ask.name)), ask.drift)
    found = decide(len(tick.new), ask.prompts.at_least, measures, num_old=len(tick.old), accept_drift=accept_drift)
    result = {"refresh": ask.name, "champion": number, "due": due(ask.schedule), "running": busy,
              "unfinished": waiting.number if waiting else None, "action": found.action, "reason": found.reason,
              "new": len(tick.new), "held_out": len(tick.held_out), "old": len(tick.old), "skipped": skipped,
              "measures": {measure.name: measure.value for measure in measures}}
    first = f"would finish tick {waiting.number}" if waiting else f"would {found.action}: {found.reason}"
    lines = [f"{ask.name}, champion {f'version {number}' if number else 'none yet'}{', running now' if busy else ''}",
             f"due         {result['due']}", first, f"rows        {len(tick.new)} new, {len(tick.held_out)} more "
             f"held out, {len(tick.old)} old; left out: {skipped or 'none'}", "--now runs it"]
    return result, "\n".join(lines)


def due(schedule: refreshes.Schedule) -> str:
    """When a schedule next starts, in words."""
    if schedule.cron:
        from datetime import datetime
        from zoneinfo import ZoneInfo

        from prefect._vendor.croniter import croniter
        zone = ZoneInfo(schedule.timezone)
        following = croniter(schedule.cron, datetime.now(zone)).get_next(datetime)
        return f"{following.isoformat(timespec='minutes')} ({schedule.cron}, {schedule.timezone})"
    if schedule.interval_seconds:
        return f"every {schedule.interval_seconds} s"
    return f"upon the event {schedule.event}" if schedule.event else "by hand"


def history(arguments: argparse.Namespace) -> tuple[dict, str]:
    """What was decided, and why; from old to new."""
    name = refreshes.load(arguments.refresh).name
    lines = journal.read(name)
    rows = [[line["at"][:16].replace("T", " "), str(line.get("tick", "")), journal.what(line), str(line.get("new", "")),
             line.get("version") or line.get("champion") or "", line.get("reason", "")] for line in lines]
    text = "\n".join(aligned([list(COLUMNS), *rows])) if rows else f"{name} was never refreshed"
    return {"refresh": name, "lines": lines, "champion": registry.aliases_of(name).get(registry.CHAMPION)}, text


def promote(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Make a version the champion."""
    name, number = refreshes.load(arguments.refresh).name, arguments.version.removeprefix("v")
    if not number.isdigit():
        raise RecipeError(f"version = {arguments.version}: must be a number, as `opd history {name}` shows it")
    prepare(arguments)
    from flows.promote import promote as run
    result = run(name, number, arguments.by, arguments.reason)
    return result, f"version {result['version']} of {name} is the champion\n{result['folder']}"


def rollback(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Go back to the champion before."""
    name = refreshes.load(arguments.refresh).name
    prepare(arguments)
    from flows.rollback import rollback as run
    result = run(name, arguments.by or author_tags()["mlflow.user"], arguments.reason)
    return result, f"version {result['version']} of {name} is the champion again\n{result['folder']}"
