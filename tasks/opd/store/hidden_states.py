"""Hidden states of scores, which are removed after their round, and made again without the rest. No torch.

They are files like others, listed with their SHA-256, but the artifact's digest does not cover them: what was trained
on the first ones stays valid when a second recipe needs them again, with another batch size perhaps.
"""
import os
import shutil
from pathlib import Path

from tasks.opd.core.files import room_to_write, sync
from tasks.opd.store import artifacts
from tasks.opd.store.artifacts import HIDDEN, Artifact


def are_all_that_lacks(path: Path, record: dict) -> bool:
    """Whether of an artifact at `path` nothing but hidden states was removed."""
    return all((path / name).exists() for name in record["files"] if name != HIDDEN)


def restore(artifact: Artifact, folder: Path) -> Artifact:
    """Put the hidden states in `folder` into a retired artifact, whose other files and digest stay; remove `folder`.

    Whoever asks holds the artifact's lock.
    """
    with room_to_write(folder):
        record = artifacts.read_record(artifact.path) | {"retired": False}
        if (folder / HIDDEN).exists():
            record["files"] = record["files"] | {HIDDEN: artifacts.entry_of_file(folder / HIDDEN)}
            os.replace(folder / HIDDEN, artifact.path / HIDDEN)
        artifacts.write_record(artifact.path, record)
        sync(artifact.path)
        shutil.rmtree(folder)
    return artifact
