"""Finished directories: `artifact.json` with the SHA-256 of every file, written last, then one atomic rename. No torch.

No `artifact.json`, no artifact. Whoever makes one holds an flock on its fingerprint (the kernel frees it when a process
dies) and works in `.tmp-<fingerprint>-<uuid>` beside the place it will have. Left out: garbage collection of finished
artifacts; they are small next to the weights, which `retire` removes.
"""
import dataclasses
import hashlib
import json
import os
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tasks.opd.core.errors import CorruptArtifact, DataError
from tasks.opd.core.files import flock, hash_file, room_to_write, sync
from tasks.opd.core.metrics import FILE as METRICS
from tasks.opd.store.fingerprints import canonical

RECORD = "artifact.json"
LOCATION = "location.json"
WEIGHTS = ("model/*", "ema/*", "trainer.safetensors")  # what `retire` removes from a checkpoint
_verified: set[tuple[str, str]] = set()  # (path, digest) of what this process has verified or made


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """A reference to a finished directory; small, frozen, JSON-able."""
    kind: str                           # the stage that made it
    fingerprint: str                    # 32 hex characters: the hash of what made it
    digest: str                         # the hash of its bytes, metrics apart
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
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, UnicodeDecodeError) as error:
        raise CorruptArtifact(f"{file} is not JSON: {error}") from error
    expected = record.pop("sha256", None) if isinstance(record, dict) else None
    actual = hashlib.sha256(canonical(record).encode()).hexdigest()
    if actual != expected:
        raise CorruptArtifact(f"{file}: sha256 of its contents is {actual}, expected {expected}")
    return record


def find(kind: str, fingerprint: str) -> Artifact | None:
    """The artifact of that name; None when it was not made. Raises CorruptArtifact when its record was changed."""
    record = read_record(place(kind, fingerprint))
    return Artifact.from_json(record) if record else None


def verify(artifact: Artifact) -> None:
    """Compare every file with its recorded SHA-256, once a process; of a retired artifact, the files that remain.

    Files of a model that lies outside (`location.json`) are compared too.
    Raises: CorruptArtifact naming the file, the expected and the actual hash.
    """
    key = str(artifact.path), artifact.digest
    if key in _verified:
        return
    record = read_record(artifact.path)
    if record is None:
        raise CorruptArtifact(f"{artifact.path / RECORD} is missing")
    expected = {artifact.path / name: entry["sha256"] for name, entry in record["files"].items()}
    if record["retired"]:
        expected = {file: sha for file, sha in expected.items() if file.exists()}
    compare(expected)
    if (artifact.path / LOCATION).exists():
        location = json.loads((artifact.path / LOCATION).read_text())
        compare({Path(location["path"]) / name: sha for name, sha in location.get("files", {}).items()})
    _verified.add(key)


def compare(expected: dict[Path, str]) -> None:
    """Raise CorruptArtifact for the first file whose SHA-256 is not the expected one."""
    with ThreadPoolExecutor() as pool:
        for (file, sha), actual in zip(expected.items(), pool.map(hash_file, expected), strict=True):
            if actual != sha:
                raise CorruptArtifact(f"{file}: sha256 is {actual or 'that of no file: it is missing'}, expected {sha}")


def digest_of(files: dict[str, dict]) -> str:
    """The hash of a files table without its metrics, whose timestamps differ each time."""
    table = {name: entry["sha256"] for name, entry in files.items() if name != METRICS}
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

    record holds kind, fingerprint and whatever else `artifact.json` should say. What stood in its place is removed.
    """
    with room_to_write(folder):
        files = {}
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            sync(file)
            files[str(file.relative_to(folder))] = {"sha256": hash_file(file), "bytes": file.stat().st_size}
        record = {**record, "files": files, "digest": digest_of(files), "retired": False}
        write_record(folder, record)
        for path in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
            sync(path)
        final = place(record["kind"], record["fingerprint"])
        discard(final)
        os.rename(folder, final)
        sync(final.parent)
    artifact = Artifact.from_json(record)
    _verified.add((str(artifact.path), artifact.digest))
    return artifact


def write_record(folder: Path, record: dict) -> None:
    """Replace `artifact.json` in one step; it carries the hash of its own contents."""
    text = json.dumps({**record, "sha256": hashlib.sha256(canonical(record).encode()).hexdigest()}, indent=1)
    draft = folder / f".{RECORD}"
    draft.write_text(text, encoding="utf-8")
    sync(draft)
    os.replace(draft, folder / RECORD)


def discard(path: Path) -> None:
    """Remove a directory so that nobody ever sees half of it."""
    if path.exists():
        trash = path.with_name(f".tmp-{path.name}-{uuid.uuid4().hex[:8]}")
        os.rename(path, trash)
        shutil.rmtree(trash)


def set_aside(path: Path) -> Path:
    """Move a damaged artifact out of the way, kept for inspection; returns where it is now."""
    aside = path.with_name(f".corrupt-{path.name}-{uuid.uuid4().hex[:8]}")
    os.rename(path, aside)
    return aside


def retire(artifact: Artifact, patterns: tuple[str, ...] = WEIGHTS) -> None:
    """Remove an artifact's large files, keep its record: it can be passed on, and is remade when it has to be read."""
    with lock(artifact.kind, artifact.fingerprint):
        record = read_record(artifact.path)
        if record is None or record["retired"]:
            return
        write_record(artifact.path, {**record, "retired": True})
        for file in [file for pattern in patterns for file in artifact.path.glob(pattern)]:
            file.unlink()


def is_retired(artifact: Artifact) -> bool:
    """Whether its large files were removed."""
    record = read_record(artifact.path)
    return bool(record and record["retired"])


def lock(kind: str, fingerprint: str, *, wait: bool = True):
    """Hold the flock of a fingerprint (a context manager); see `files.flock`."""
    return flock(home() / "locks" / f"{kind}-{fingerprint}.lock", wait=wait)


def sweep() -> int:
    """Remove the unfinished directories of runs that died (their lock is free); returns how many."""
    removed = 0
    for folder in home().glob("artifacts/*/.tmp-*"):
        with lock(folder.parent.name, folder.name.split("-")[1], wait=False) as mine:
            if mine:
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
    return removed


def model_folder(path: Path, folder: str = "model") -> Path:
    """Where the model of an artifact's directory lies: inside it, or where its `location.json` points.

    Raises: DataError when it has neither, which is so for a retired checkpoint.
    """
    if (path / folder).is_dir():
        return path / folder
    if (path / LOCATION).exists():
        return Path(json.loads((path / LOCATION).read_text())["path"])
    raise DataError(f"{path} has neither {folder}/ nor {LOCATION}; is it a checkpoint whose weights were retired?")


def fingerprint_of(path: Path) -> str:
    """The fingerprint of an artifact's directory, finished or in progress."""
    return path.name.split("-")[1] if path.name.startswith(".tmp-") else path.name
