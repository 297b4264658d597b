"""Finished directories: `artifact.json` with the SHA-256 of every file, written last, then one atomic rename. No torch.

No `artifact.json`, no artifact. Whoever makes one holds an flock on its fingerprint (the kernel frees it when a process
dies) and works in `.tmp-<fingerprint>-<uuid>` beside the place it will have. Whoever reads one holds a shared flock on
its lease until it has read; large files are removed, and the whole is replaced, only while nobody does.
"""
import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from tasks.opd.core.errors import CorruptArtifact, DataError
from tasks.opd.core.files import damage_named, flock, hash_file, room_to_write, sync
from tasks.opd.core.metrics import FILE as METRICS
from tasks.opd.store.contents import compare, compare_outside, matches, refuse_added
from tasks.opd.store.fingerprints import canonical

RECORD = "artifact.json"
LOCATION = "location.json"
STATE = "trainer.safetensors"                          # the optimizer's, twice as large as the weights
WEIGHTS = ("model/*", "ema/*", STATE)                  # what `retire` removes from a checkpoint
HIDDEN = "hidden.safetensors"                          # and from scores
_verified: set[tuple[str, str]] = set()  # (path, hash of the record) of what this process has verified or made


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """A reference to a finished directory; small, frozen, JSON-able."""
    kind: str                           # the stage that made it
    fingerprint: str                    # 32 hex characters: the hash of what made it
    digest: str                         # the hash of the bytes that stay, metrics apart
    counts: dict                        # what the stage counted

    @property
    def path(self) -> Path:
        """Its directory."""
        return place(self.kind, self.fingerprint)

    def to_json(self) -> dict:
        """A dict of JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict) -> "Artifact":
        """The inverse of `to_json`; further keys are ignored, missing counts are empty."""
        return cls(kind=data["kind"], fingerprint=data["fingerprint"], digest=data["digest"],
                   counts=data.get("counts", {}))


def home() -> Path:
    """Where everything a run writes lives: $OPD_HOME, or .opd in the current directory."""
    return Path(os.environ.get("OPD_HOME") or ".opd").absolute()


def place(kind: str, fingerprint: str) -> Path:
    """The directory of an artifact, there or not."""
    return home() / "artifacts" / kind / fingerprint


def read_record(path: Path) -> dict | None:
    """The `artifact.json` of a directory; None when there is none. Raises CorruptArtifact when it was changed."""
    file = path / RECORD
    with damage_named(file), contextlib.suppress(FileNotFoundError):
        record = json.loads(file.read_text(encoding="utf-8"))
        expected = record.pop("sha256", None) if isinstance(record, dict) else None
        return agreed(file, record, expected, hash_record(record))
    return None


def agreed(file: Path, record: dict, expected: str | None, actual: str) -> dict:
    """The record whose contents have the hash that it carries. Raises CorruptArtifact where they have not."""
    if actual != expected:
        raise CorruptArtifact(f"{file}: sha256 of its contents is {actual}, expected {expected}")
    return record


def hash_record(record: dict) -> str:
    """SHA-256 of a record's contents, in hex."""
    return hashlib.sha256(canonical(record).encode()).hexdigest()


def find(kind: str, fingerprint: str) -> Artifact | None:
    """The artifact of that name; None when it was not made. Raises CorruptArtifact: changed, or another's."""
    path = place(kind, fingerprint)
    record = read_record(path)
    if record and (record["kind"], record["fingerprint"]) != (kind, fingerprint):
        raise CorruptArtifact(f"{path / RECORD} is that of {record['kind']} {record['fingerprint']}")
    return Artifact.from_json(record) if record else None


def verify(artifact: Artifact) -> None:
    """Compare every file with its recorded SHA-256, once a process; of a retired artifact those may lack that go.

    Its directory may be a link to where somebody moved it. Files of a model that lies outside (`location.json`) are
    compared too.
    Raises: CorruptArtifact naming the file, the expected and the actual hash; DataError for a file that was added and
    might be read, see `refuse_added`.
    """
    record = read_record(artifact.path)
    if record is None:
        raise CorruptArtifact(f"{artifact.path / RECORD} is missing")
    key = str(artifact.path), hash_record(record)
    if key in _verified:
        return
    expected = {artifact.path / name: entry["sha256"] for name, entry in record["files"].items()}
    written = {artifact.path / RECORD, *expected}
    if record["retired"]:
        gone = {artifact.path / name for name in record["files"] if matches(name, (*WEIGHTS, HIDDEN))}
        expected = {file: sha for file, sha in expected.items() if file not in gone or file.exists()}
        expected.pop(artifact.path / HIDDEN, None)
    if record.get("stateless"):
        expected.pop(artifact.path / STATE, None)
    compare(expected)
    refuse_added(artifact.path, written)
    if (artifact.path / LOCATION).exists():
        compare_outside(json.loads((artifact.path / LOCATION).read_text()))
    _verified.add(key)


def digest_of(files: dict[str, dict]) -> str:
    """The hash of a files table without metrics and hidden states.

    Metrics have other timestamps each time. Hidden states go after their round; made again, with another batch size
    perhaps, they may differ by rounding, and what was made from the first ones stays valid.
    """
    table = {name: entry["sha256"] for name, entry in files.items() if name not in (METRICS, HIDDEN)}
    return hashlib.sha256(canonical(table).encode()).hexdigest()[:32]


def begin(kind: str, fingerprint: str) -> Path:
    """A new empty directory to make an artifact in. Raises DiskFull where nothing can be written."""
    folder = place(kind, f".tmp-{fingerprint}-{uuid.uuid4().hex[:8]}")
    with room_to_write(folder.parent):
        folder.mkdir(parents=True)
        probe = folder / ".probe"
        probe.write_bytes(bytes(4096))
        probe.unlink()
    return folder


def seal(folder: Path, record: dict) -> Artifact:
    """Turn a finished directory into an artifact: hash and sync its files, write its record, rename.

    record holds kind, fingerprint and whatever else `artifact.json` should say. What stood in its place is removed,
    once nobody reads it.
    """
    with room_to_write(folder):
        files = {str(file.relative_to(folder)): entry_of_file(file)
                 for file in sorted(path for path in folder.rglob("*") if path.is_file())}
        record = {**record, "files": files, "digest": digest_of(files), "retired": False}
        write_record(folder, record)
        for path in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
            sync(path)
        final = place(record["kind"], record["fingerprint"])
        if os.path.lexists(final):
            with lease(record["kind"], record["fingerprint"], shared=False):
                discard(final)
        os.rename(folder, final)
        sync(final.parent)
    _verified.add((str(final), hash_record(record)))
    return Artifact.from_json(record)


def entry_of_file(file: Path) -> dict:
    """Sync a file; its entry in a record."""
    sync(file)
    return {"sha256": hash_file(file), "bytes": file.stat().st_size}


def write_record(folder: Path, record: dict) -> None:
    """Replace `artifact.json` in one step; it carries the hash of its own contents."""
    text = json.dumps({**record, "sha256": hash_record(record)}, indent=1)
    draft = folder / f".{RECORD}"
    draft.write_text(text, encoding="utf-8")
    sync(draft)
    os.replace(draft, folder / RECORD)


def discard(path: Path) -> None:
    """Remove a directory so that nobody ever sees half of it."""
    if os.path.lexists(path):
        trash = path.with_name(f".tmp-{path.name}-{uuid.uuid4().hex[:8]}")
        os.rename(path, trash)
        remove(trash)


def remove(path: Path) -> None:
    """Remove a directory with what is in it, a file, or a link, but not what that leads to."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def set_aside(path: Path) -> Path:
    """Move a damaged artifact out of the way, kept for inspection; returns where it is now."""
    aside = path.with_name(f".corrupt-{path.name}-{uuid.uuid4().hex[:8]}")
    os.rename(path, aside)
    return aside


def retire(artifact: Artifact, patterns: tuple[str, ...] = WEIGHTS) -> bool:
    """Remove an artifact's large files, keep its record: it can be passed on, and is remade when it has to be read.

    Without its STATE alone a checkpoint is read as before, and remade only where training goes on from it.
    Returns whether they are gone. They stay while somebody reads them, where `keep` was called, and behind a link to
    where somebody moved the artifact: that may be another's. What nobody wrote stays too.
    """
    with lock(artifact.kind, artifact.fingerprint), \
            lease(artifact.kind, artifact.fingerprint, shared=False, wait=False) as unread:
        record = read_record(artifact.path)
        files = removable(artifact.path, record, patterns)
        if not files:
            return True
        if record.get("kept") or not unread or artifact.path.is_symlink():
            return False
        write_record(artifact.path, {**record, "stateless" if patterns == (STATE,) else "retired": True})
        for file in files:
            file.unlink()
    return True


def removable(path: Path, record: dict | None, patterns: tuple[str, ...]) -> list[Path]:
    """Those of an artifact's files that match any of the patterns, and are there."""
    return [path / name for name in (record or {}).get("files", ())
            if matches(name, patterns) and (path / name).exists()]


def keep(artifact: Artifact) -> None:
    """Have `retire` leave the artifact as it is, whoever calls it."""
    with lock(artifact.kind, artifact.fingerprint):
        record = read_record(artifact.path)
        if record and not record.get("kept"):
            write_record(artifact.path, {**record, "kept": True})


def is_retired(artifact: Artifact, *, with_state: bool = False) -> bool:
    """Whether its large files were removed; `with_state`: or a checkpoint's optimizer state."""
    record = read_record(artifact.path)
    return bool(record and (record["retired"] or with_state and record.get("stateless")))


def lock(kind: str, fingerprint: str, *, wait: bool = True):
    """Hold the flock of a fingerprint (a context manager); see `files.flock`."""
    return flock(home() / "locks" / f"{kind}-{fingerprint}.lock", wait=wait)


def lease(kind: str, fingerprint: str, *, shared: bool = True, wait: bool = True):
    """Hold the flock under which an artifact is read (shared) or its files are removed (alone); see `files.flock`."""
    return flock(home() / "locks" / f"{kind}-{fingerprint}.lease", wait=wait, shared=shared)


def sweep() -> int:
    """Remove the unfinished directories of runs that died (their lock is free); returns how many."""
    removed = 0
    for folder in home().glob("artifacts/*/.tmp-*"):
        with lock(folder.parent.name, folder.name.split("-")[1], wait=False) as mine:
            if mine:
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
    return removed


def promised(path: Path, name: str) -> Path | None:
    """A file of an artifact's directory; None when it is not there and no record lists it.

    Raises: CorruptArtifact when the record lists it and it is not there.
    """
    if (path / name).exists():
        return path / name
    record = read_record(path)
    if record is None or name not in record["files"]:
        return None
    raise CorruptArtifact(f"{path / name} is not there, though {RECORD} lists it (retired: {record['retired']}): it "
                          "was removed before it was read. Run the same command again: what is needed is made again")


def model_folder(path: Path, folder: str = "model") -> Path:
    """Where the model of an artifact's directory lies: inside it, or where its `location.json` points.

    Raises: DataError when it has neither, which is so for a retired checkpoint.
    """
    record = read_record(path)          # none while it is being made
    if any((path / folder).glob("*")) if record is None else removable(path, record, (f"{folder}/*",)):
        return path / folder
    if (path / LOCATION).exists():
        return Path(json.loads((path / LOCATION).read_text())["path"])
    raise DataError(f"{path} has neither {folder}/ nor {LOCATION}; is it a checkpoint whose weights were retired?")


def fingerprint_of(path: Path) -> str:
    """The fingerprint of an artifact's directory, finished or in progress."""
    return path.name.split("-")[1] if path.name.startswith(".tmp-") else path.name
