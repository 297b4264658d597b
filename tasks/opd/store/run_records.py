"""What every run refers to, in `.opd/runs`: the roots of garbage collection. No torch.

A file is lines of JSON: what the run is, one line an artifact in the order it was asked for, and how it ended, or why
it failed. A run writes `<name>-<key>.<uuid>.jsonl`, whose flock it holds while it works, and ends as
`<name>-<key>.jsonl`, in place of what the same run left before. One that fails or is killed keeps its own file: the
same command goes on from there.
"""
import contextlib
import fnmatch
import functools
import hashlib
import json
import os
import re
import uuid
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tasks.opd.core.errors import CorruptArtifact
from tasks.opd.core.files import flock, is_locked, room_to_write
from tasks.opd.store.artifacts import home
from tasks.opd.store.fingerprints import canonical

Key = tuple[str, str]                       # kind and fingerprint
_writing: ContextVar[Path | None] = ContextVar("run_record", default=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """A run, as its file has it."""
    path: Path
    name: str
    suite: str                              # empty outside a suite
    artifacts: dict[Key, None]              # all that it asked for, in that order
    finished: bool
    has_recipe: bool                        # that of a refresh, or of a suite's validation prompts, has none


def folder() -> Path:
    """Where the files lie."""
    return home() / "runs"


def stem_of(name: str, **about) -> str:
    """How the files of a run are called, up to the first dot."""
    key = hashlib.sha256(canonical(about).encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '_', name)}-{key}"


def page_of(stem: str) -> Path:
    """Where the page of a run lies, whether or not it has one."""
    return home() / "reports" / f"{stem}.html"


def files_of(stem: str) -> list[Path]:
    """The files of a run, the one last written to first; none where it was never begun."""
    found = [*folder().glob(f"{stem}.jsonl"), *folder().glob(f"{stem}.*.jsonl")]
    return sorted(found, key=lambda file: file.stat().st_mtime_ns, reverse=True)


@contextlib.contextmanager
def recorded(name: str, **about):
    """Write down every artifact that is asked for inside. Name, suite and all else in `about` say which run it is."""
    stem = stem_of(name, **about)
    file = folder() / f"{stem}.{uuid.uuid4().hex[:8]}.jsonl"
    with flock(file):
        append(file, {"name": name, **about, "started": now()})
        token = _writing.set(file)
        try:
            yield
        except Exception as error:
            append(file, {"failed": f"{type(error).__name__}: {error}"})
            raise
        finally:
            _writing.reset(token)
        append(file, {"ended": now()})
        os.replace(file, folder() / f"{stem}.jsonl")
    for left in folder().glob(f"{stem}.*.jsonl"):
        if not is_locked(left):
            left.unlink(missing_ok=True)


def refer(kind: str, fingerprint: str) -> None:
    """Note that the run at work, if any, refers to an artifact: before it is looked for, so that nobody removes it."""
    if file := _writing.get():
        append(file, {"kind": kind, "fingerprint": fingerprint})


def note(line: dict) -> None:
    """Keep a line with the run at work, if any; it refers to no artifact."""
    if file := _writing.get():
        append(file, line)


def append(file: Path, line: dict) -> None:
    """Add one line, in one write."""
    with room_to_write(file), open(file, "ab") as opened:
        opened.write((json.dumps(line) + "\n").encode())


def now() -> str:
    """The time, as records have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_all() -> list[RunRecord]:
    """Every run's record, by file. Raises CorruptArtifact naming a file that cannot be read."""
    while True:
        try:
            return [read(path, version_of(path)) for path in sorted(folder().glob("*.jsonl"))]
        except FileNotFoundError:  # its run has ended meanwhile, under another name
            continue


def version_of(path: Path) -> tuple[int, int, int]:
    """Tells a file from what it was before a line was added, or another took its place."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


@functools.lru_cache(maxsize=1024)
def read(path: Path, version: tuple[int, int, int]) -> RunRecord:
    """The record in a file of this version; a last line that was cut off does not count."""
    lines = []
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            lines.append(json.loads(text))
        except ValueError as error:
            raise CorruptArtifact(f"{path}:{number} is not JSON, so nobody knows what that run refers to: {error}. "
                                  "Delete the file to give up the run's artifacts") from error
    about = lines[0] if lines else {}
    asked = dict.fromkeys((line["kind"], line["fingerprint"]) for line in lines[1:] if "kind" in line)
    return RunRecord(path=path, name=about.get("name", path.stem), suite=about.get("suite", ""), artifacts=asked,
                     finished=any("ended" in line for line in lines[1:]), has_recipe="recipe" in about)


def is_at_work(record: RunRecord) -> bool:
    """Whether its run is alive."""
    return not record.finished and is_locked(record.path)


def matches(record: RunRecord, patterns: list[str]) -> bool:
    """Whether one of these is the run's name or its suite's; * stands for anything."""
    return any(fnmatch.fnmatchcase(word, pattern) for pattern in patterns for word in (record.name, record.suite))
