"""What a refresh decided, tick by tick, under OPD_HOME/refreshes/<name>, and which prompts each tick took.

    journal.jsonl               one line a decision, an end, a promotion, an alarm; replaced as a whole, so never torn
    ticks/0007/plan.json        what tick 7 starts from: champion, ids of its rows, watermark; in place by one rename
    ticks/0007/trained.jsonl    its rows, in whole: what their source does to them later does not matter
    ticks/0007/held_out.jsonl   those asked as benchmark `production`
    lock                        whose flock a refresh holds: at most one of a name runs

The journal is the truth: a tick that was decided and has not ended is taken up by whoever comes next, and a folder
without a decision is made anew. A row is seen once the tick that took it has ended, never before: no prompt is lost.
"""
import dataclasses
import json
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tasks.opd.core.errors import CorruptArtifact
from tasks.opd.core.files import flock, room_to_write, sync
from tasks.opd.refresh.decision import Decision
from tasks.opd.refresh.drift import REFRESH, Measure
from tasks.opd.refresh.failpoints import failpoint
from tasks.opd.refresh.rows import Row, read_rows, write_rows
from tasks.opd.store.artifacts import discard, home

DECIDED, ENDED, OVERLAP, ALARM, PROMOTED, ROLLED_BACK = (
    "decided", "ended", "overlap", "alarm", "promoted", "rolled back")  # events
MOVES = (PROMOTED, ROLLED_BACK)         # events of the alias
CANDIDATE, REFUSED = "candidate", "refused"
TAKEN = (PROMOTED, CANDIDATE, REFUSED)  # outcomes that move the watermark
ABANDONED = "abandoned"                 # its champion was replaced meanwhile: its rows are new again
OVERLAPS = 3                            # in a row: an alarm
TRAINED, HELD_OUT, PLAN, CONTAMINATED = "trained.jsonl", "held_out.jsonl", "plan.json", "contaminated.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """What one refresh starts from."""
    name: str                           # of the refresh
    number: int                         # from 1 on; a skipped one has a number too
    champion: str | None                # version that it starts from; None: the recipe's student
    folder: str                         # where that version's model lies; empty: the recipe's student
    new: list[str]                      # ids of rows never seen before that it trains on
    old: list[str]                      # ids of rows from earlier ticks: not learnt yet, or anchors
    held_out: list[str]                 # ids of new rows that it asks
    watermark: str                      # names all rows seen, these included

    @property
    def path(self) -> Path:
        """Its directory."""
        return tick_folder(self.name, self.number)


def folder(name: str) -> Path:
    """Where a refresh keeps its state."""
    return home() / "refreshes" / name


def tick_folder(name: str, number: int) -> Path:
    """The directory of a tick, there or not."""
    return folder(name) / "ticks" / f"{number:04d}"


def only_one(name: str):
    """Hold the flock of a refresh (a context manager that yields whether it was free); the kernel frees it."""
    return flock(folder(name) / "lock", wait=False)


def read(name: str) -> list[dict]:
    """All lines, from old to new. Raises CorruptArtifact for a journal that somebody else wrote to."""
    file = folder(name) / "journal.jsonl"
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise CorruptArtifact(f"{file} is not JSON Lines: {error}; mend it by hand, it says which prompts were "
                              "taken") from error


def append(name: str, event: str, **facts) -> dict:
    """Add one line, which is returned; on the disk when this returns."""
    line = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "event": event, **facts}
    file = folder(name) / "journal.jsonl"
    with flock(folder(name) / "journal.lock"), room_to_write(file):
        text = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in [*read(name), line])
        replace(file, text)
    return line


def replace(file: Path, text: str) -> None:
    """Give a file another content, in one step."""
    draft = file.with_name(f".{file.name}")
    draft.write_text(text, encoding="utf-8")
    sync(draft)
    os.replace(draft, file)
    sync(file.parent)


def last_number(lines: Iterable[dict]) -> int:
    """The number of the last tick that was decided; 0 before the first."""
    return max((line["tick"] for line in lines if line["event"] == DECIDED), default=0)


def propose(tick: Tick, trained: Iterable[Row], held_out: Iterable[Row]) -> Tick:
    """The tick, its rows written down; nothing is decided yet, and what an earlier process left there goes."""
    draft = tick.path.with_name(f".{tick.path.name}")
    with room_to_write(draft):
        discard(draft)
        draft.mkdir(parents=True)
        write_rows(draft / TRAINED, trained)
        write_rows(draft / HELD_OUT, held_out)
        replace(draft / PLAN, json.dumps(dataclasses.asdict(tick), indent=1))
        discard(tick.path)
        os.rename(draft, tick.path)
        sync(tick.path.parent)
    failpoint("planned")
    return tick


def decide(tick: Tick, decision: Decision, measures: Sequence[Measure], *, teacher: str, score: float | None) -> dict:
    """Write down what a tick does. One that refreshes is finished from now on, by whomever; the rows of others go."""
    if decision.action != REFRESH:
        discard(tick.path)
    values = {measure.name: measure.value for measure in measures} | {"score": score}
    line = append(tick.name, DECIDED, tick=tick.number, action=decision.action, reason=decision.reason,
                  new=len(tick.new), old=len(tick.old), held_out=len(tick.held_out), champion=tick.champion,
                  teacher=teacher, measures=values)
    failpoint("decided")
    return line


def decision_of(tick: Tick) -> dict | None:
    """The line that says what a tick does; None before it is decided."""
    return next((line for line in read(tick.name) if line["event"] == DECIDED and line["tick"] == tick.number), None)


def end(tick: Tick, outcome: str, reason: str, **facts) -> dict:
    """Write down what became of a tick; from now on its rows were seen, unless it was abandoned."""
    file = tick.path / CONTAMINATED
    contaminated = json.loads(file.read_text()) if file.exists() else []
    line = append(tick.name, ENDED, tick=tick.number, outcome=outcome, reason=reason, contaminated=contaminated,
                  **facts)
    failpoint("ended")
    return line


def read_tick(name: str, number: int) -> Tick:
    """A tick as it was written down."""
    return Tick(**json.loads((tick_folder(name, number) / PLAN).read_text(encoding="utf-8")))


def unfinished(name: str) -> Tick | None:
    """The tick that was decided and has not ended; None when there is none."""
    lines = read(name)
    ended = {line["tick"] for line in lines if line["event"] == ENDED}
    waiting = [line["tick"] for line in lines if line["event"] == DECIDED and line["action"] == REFRESH
               and line["tick"] not in ended]
    return read_tick(name, waiting[-1]) if waiting else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """Which rows earlier ticks took: ids."""
    seen: set[str]                      # by a tick that ended with a candidate, whatever became of it
    learnt: set[str]                    # by the champion and those that it comes from
    waiting: set[str]                   # taken and not learnt, since their candidate is no champion

    def rows(self, name: str, row_ids: Collection[str]) -> list[Row]:
        """Rows by their ids, out of the ticks that took them; in the order of the ids."""
        found = {}
        for file in sorted((folder(name) / "ticks").glob(f"*/{TRAINED}")):
            found |= read_rows(file)
        return [found[row_id] for row_id in row_ids]


def taken(name: str, ancestry: Collection[int]) -> Taken:
    """The rows that ticks took; `ancestry` are the ticks of the champion and of those that it comes from.

    Rows that stand in a benchmark (`contaminated`) were seen and wait for nothing.
    """
    seen, trained, learnt, contaminated = set(), set(), set(), set()
    for line in read(name):
        if line["event"] == ENDED and line["outcome"] in TAKEN:
            tick = read_tick(name, line["tick"])
            seen |= {*tick.new, *tick.held_out}
            trained |= {*tick.new}
            contaminated |= set(line.get("contaminated", ()))
            learnt |= {*tick.new, *tick.old} if tick.number in ancestry else set()
    return Taken(seen=seen, learnt=learnt, waiting=trained - learnt - contaminated)


def what(line: dict) -> str:
    """A line in a word or two: what was decided, or became of it."""
    if line["event"] == OVERLAP:
        return f"missed {line['missed']}"
    return line.get("outcome") or line.get("action") or line["event"]


def described(line: dict) -> str:
    """A line with its reason: `promoted: target/tiny +20.5 [+12.0 +29.0]`."""
    reason = line.get("reason", "another refresh of it is running" if line["event"] == OVERLAP else "")
    version = f", version {line['version']}" if "version" in line else ""
    return f"{what(line)}{version}: {reason}"


def refreshed(lines: Iterable[dict]) -> list[dict]:
    """The measures of the ticks that refreshed, from old to new."""
    return [line["measures"] for line in lines if line["event"] == DECIDED and line["action"] == REFRESH]


def overlaps_in_a_row(lines: Iterable[dict]) -> int:
    """Ticks in a row, up to now, that did not run since another was running; an alarm begins a new count."""
    count = 0
    for line in lines:
        if line["event"] == OVERLAP:
            count += line.get("missed", 1)
        elif line["event"] in (DECIDED, ALARM):
            count = 0
    return count
