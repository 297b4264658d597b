"""The weights of registered versions, where no run's end and no garbage collection removes them. No torch.

Files are hard links to an artifact's where the disk allows it: an artifact's file is never changed in place, only
replaced or removed, so a link costs nothing and stays what it was.
"""
import os
import shutil
from pathlib import Path

from tasks.opd.core.errors import CorruptArtifact
from tasks.opd.core.files import files_in, hash_file, room_to_write, sync
from tasks.opd.refresh.journal import folder
from tasks.opd.store.artifacts import Artifact, discard, model_folder, read_record
from tasks.opd.store.contents import READ, matches

MODEL = "model/"                        # of an artifact's files, those that are kept


def place(name: str, fingerprint: str) -> Path:
    """Where a refresh keeps the model of a checkpoint, there or not."""
    return folder(name) / "models" / fingerprint


def keep(name: str, checkpoint: Artifact) -> Path:
    """The folder with a checkpoint's model, made where it is not there yet. Raises DiskFull, DataError."""
    final, origin = place(name, checkpoint.fingerprint), model_folder(checkpoint.path)
    if final.exists():
        return final
    draft = final.with_name(f".{final.name}")
    with room_to_write(draft):
        discard(draft)
        draft.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(origin, draft, copy_function=link)
        os.rename(draft, final)
        sync(final.parent)
    return final


def link(source: str, target: str) -> None:
    """A hard link, or a copy where the disk has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
        sync(Path(target))


def differing(checkpoint: Artifact, kept: Path) -> list[str]:
    """The model's files that are not those which the checkpoint's record lists; others count where they may be read.

    Raises: CorruptArtifact without a record.
    """
    record = read_record(checkpoint.path)
    if record is None:
        raise CorruptArtifact(f"{checkpoint.path} is gone, and nothing says what its model was; refresh again")
    expected = {file.removeprefix(MODEL): entry["sha256"] for file, entry in record["files"].items()
                if file.startswith(MODEL)}
    there = {str(file.relative_to(kept)) for file in files_in(kept, "**/*") if matches(file.name, READ)}
    return sorted(name for name in expected.keys() | there if expected.get(name) != hash_file(kept / name))


def remove_others(name: str, fingerprints: set[str]) -> list[str]:
    """Remove the models of all versions but these; the fingerprints that went."""
    gone = [path for path in sorted((folder(name) / "models").glob("*")) if path.name not in fingerprints]
    for path in gone:
        discard(path)
    return [path.name for path in gone]
