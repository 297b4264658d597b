"""Garbage: what no recorded run refers to, found and removed. No torch.

A run's record keeps all that the run asked for, and whatever that was made from: so the same command makes nothing
again, every number can be compared and traced, and what is damaged can be made again. Of checkpoints the last two of
each run keep their weights, and the last one its optimizer's state; hidden states stay only where a recipe keeps them,
or a run was cut off and needs them.
What a live process makes, reads or has asked for is left alone.
"""
import contextlib
import os
import re
import stat
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from tasks.opd.core.errors import CorruptArtifact, DataError
from tasks.opd.core.files import flock, is_locked
from tasks.opd.store import artifacts, run_records
from tasks.opd.store.artifacts import HIDDEN, RECORD, STATE, WEIGHTS, Artifact
from tasks.opd.store.run_records import Key, RunRecord

KEEP_CHECKPOINTS = 2
UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 604800}
UNFINISHED, DAMAGED = "unfinished", "damaged"   # directories that are no artifacts


@dataclass(frozen=True, kw_only=True, slots=True)
class Garbage:
    """Something that may go: a directory, or the large files of an artifact that stays."""
    what: str                           # the artifact's kind, UNFINISHED, DAMAGED, or which files
    key: Key
    path: Path
    patterns: tuple[str, ...]           # of the files; empty: the directory
    num_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What is in a store."""
    runs: list[RunRecord]
    forgotten: list[RunRecord]          # to be removed with the garbage
    num_at_work: int                    # of the runs
    num_kept: int                       # artifacts that they refer to
    kept_bytes: int                     # without what may go of them
    garbage: list[Garbage]


def survey(*, forget: list[str] = (), older_than_seconds: float = 0) -> Survey:
    """What may go, once the records of runs are gone that `forget` names; only what is older, runs too. Writes nothing.

    Raises: DataError without a store, for a name that no run has, or the name of a run at work; CorruptArtifact for a
    record that cannot be read.
    """
    if not (artifacts.home() / "artifacts").is_dir():
        raise DataError(f"{artifacts.home()} holds no artifacts; set OPD_HOME to the folder where runs write")
    forgotten = [record for record in forgettable(forget) if age(record.path) >= older_than_seconds]
    runs = [record for record in run_records.read_all() if record not in forgotten]
    kept = reachable([key for record in runs for key in record.artifacts])
    found = [*unreferred(kept), *left_behind(), *spare_files(runs, kept)]
    spare = sum(item.num_bytes for item in found if item.patterns)
    sizes = [size_of(path) for key in kept if (path := artifacts.place(*key)).exists()]
    return Survey(runs=runs, forgotten=forgotten, num_at_work=sum(map(run_records.is_at_work, runs)),
                  num_kept=len(sizes), kept_bytes=sum(sizes) - spare,
                  garbage=[item for item in found if age(item.path) >= older_than_seconds])


def forgettable(patterns: list[str]) -> list[RunRecord]:
    """The records of the runs, or suites, of these names. Raises DataError where there are none, or one is at work."""
    runs, found = run_records.read_all(), []
    for pattern in patterns:
        named = [record for record in runs if run_records.matches(record, [pattern])]
        if not named:
            names = sorted({word for record in runs for word in (record.name, record.suite) if word})
            raise DataError(f"no run or suite is called {pattern!r}; recorded are {', '.join(names) or 'none'}")
        if busy := [record.name for record in named if run_records.is_at_work(record)]:
            raise DataError(f"{', '.join(busy)} is at work and cannot be forgotten: wait for its end, or stop it")
        found += named
    return found


def reachable(roots: list[Key]) -> set[Key]:
    """Artifacts and what they were made from, there or not."""
    found, waiting = set(), [*roots]
    while waiting:
        if (key := waiting.pop()) not in found:
            found.add(key)
            waiting += [(entry["kind"], entry["fingerprint"]) for entry in record_of(*key).get("inputs", {}).values()]
    return found


def record_of(kind: str, fingerprint: str) -> dict:
    """An artifact's record; empty when it is not there or damaged."""
    try:
        return artifacts.read_record(artifacts.place(kind, fingerprint)) or {}
    except CorruptArtifact:
        return {}


def unreferred(kept: set[Key]) -> list[Garbage]:
    """The artifacts that are not kept."""
    there = {(path.parent.name, path.name): path for path in sorted(artifacts.home().glob("artifacts/*/[!.]*/"))}
    return [Garbage(what=key[0], key=key, path=path, patterns=(), num_bytes=size_of(path))
            for key, path in there.items() if key not in kept]


def left_behind() -> list[Garbage]:
    """The directories that dead processes did not finish, and those that were damaged and set aside."""
    found = []
    for path in sorted(artifacts.home().glob("artifacts/*/.[tc]*-*")):
        key = path.parent.name, path.name.split("-")[1]
        what = UNFINISHED if path.name.startswith(".tmp-") else DAMAGED
        if not is_locked(artifacts.home() / "locks" / f"{'-'.join(key)}.lock"):
            found.append(Garbage(what=what, key=key, path=path, patterns=(), num_bytes=size_of(path)))
    return found


def spare_files(runs: list[RunRecord], kept: set[Key]) -> list[Garbage]:
    """Large files that their runs would have retired, had they not been read, or their process killed, just then."""
    needed, resumed = ({key for record in runs for key in needed_files(record, last)} for last in (KEEP_CHECKPOINTS, 1))
    files = {"scores": ("hidden states", (HIDDEN,)), "checkpoint": ("weights", WEIGHTS)}
    found = []
    for key in sorted(key for key in kept if key[0] in files and key not in resumed):
        what, patterns = files[key[0]] if key not in needed else ("optimizer state", (STATE,))
        path, record = artifacts.place(*key), record_of(*key)
        num_bytes = sum(file.stat().st_size for file in artifacts.removable(path, record, patterns))
        if num_bytes and not record.get("kept") and not path.is_symlink():
            found.append(Garbage(what=what, key=key, path=path, patterns=patterns, num_bytes=num_bytes))
    return found


def needed_files(record: RunRecord, last: int) -> set[Key]:
    """The artifacts whose large files a run needs: its `last` checkpoints; scores to go on; all while at work."""
    if run_records.is_at_work(record):
        return set(record.artifacts)
    checkpoints = [key for key in record.artifacts if key[0] == "checkpoint" and artifacts.place(*key).exists()]
    scores = [] if record.finished else [key for key in record.artifacts if key[0] == "scores"]
    return {*checkpoints[-last:], *scores}


def collect(found: Survey) -> list[Garbage]:
    """Remove what a survey found, forgotten runs with their pages first. Returns what somebody uses, which is left."""
    for record in found.forgotten:
        record.path.unlink(missing_ok=True)
        run_records.page_of(record.path.name.partition(".")[0]).unlink(missing_ok=True)
    left = [item for item in found.garbage if not remove(item)]
    remove_locks()
    return left


def remove(item: Garbage) -> bool:
    """Whether it could be removed: nobody makes or reads it, and no run has come to refer to it since it was found."""
    if item.patterns:
        runs = [record for record in run_records.read_all() if run_records.is_at_work(record)]
        return not refers(runs, item.key) and artifacts.retire(Artifact.from_json(record_of(*item.key)), item.patterns)
    with artifacts.lock(*item.key, wait=False) as unmade:
        if not unmade:
            return False
        if item.what in (UNFINISHED, DAMAGED):
            with contextlib.suppress(OSError):
                artifacts.remove(item.path)
            return True
        with artifacts.lease(*item.key, shared=False, wait=False) as unread:
            if not unread or refers(run_records.read_all(), item.key):
                return False
            artifacts.discard(item.path)
    return True


def refers(runs: list[RunRecord], key: Key) -> bool:
    """Whether one of the runs has asked for an artifact."""
    return any(key in record.artifacts for record in runs)


def remove_locks() -> None:
    """Remove the locks and leases of what is not there; whoever waits for one makes it anew."""
    for file in (artifacts.home() / "locks").glob("*-*.l*"):
        kind, _, fingerprint = file.stem.rpartition("-")
        with flock(file, wait=False) as free:
            if free and not artifacts.place(kind, fingerprint).exists():
                file.unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """Bytes of the files below a directory; of a file or a link, its own."""
    inside = [Path(root, name) for root, folders, names in os.walk(path) for name in (*names, *folders)]
    total = 0
    for file in inside if path.is_dir() and not path.is_symlink() else [path]:
        with contextlib.suppress(FileNotFoundError):  # another run removes what it wrote
            found = file.lstat()
            total += 0 if stat.S_ISDIR(found.st_mode) else found.st_size
    return total


def age(path: Path) -> float:
    """Seconds since an artifact was finished, or another directory was last written to."""
    return time.time() - ((path / RECORD) if (path / RECORD).exists() else path).lstat().st_mtime


def totals(garbage: list[Garbage]) -> dict[str, tuple[int, int]]:
    """How many, and how many bytes, of each sort; the largest first."""
    sorts = defaultdict(lambda: (0, 0))
    for item in garbage:
        number, num_bytes = sorts[item.what]
        sorts[item.what] = number + 1, num_bytes + item.num_bytes
    return dict(sorted(sorts.items(), key=lambda entry: -entry[1][1]))


def seconds_of(text: str) -> float:
    """`90m`, `12h`, `7d` or `2w` in seconds. Raises ValueError for anything else."""
    if not (match := re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text)):
        raise ValueError(f"{text!r} is no age; give a number and m, h, d or w, for example 7d")
    return float(match[1]) * UNITS[match[2]]


def readable_size(num_bytes: float) -> str:
    """A size with its unit, in powers of 1000: 1.2 GB."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while num_bytes >= 999.95 and len(units) > 1:
        num_bytes, units = num_bytes / 1000, units[1:]
    return f"{num_bytes:.0f} B" if units[0] == "B" else f"{num_bytes:.1f} {units[0]}"
