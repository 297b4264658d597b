"""What lies in a directory, compared with what was written there. No torch."""
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tasks.opd.core.errors import CorruptArtifact
from tasks.opd.core.files import damage_named, hash_file


def files_below(folder: Path) -> set[Path]:
    """The files below a directory, and links to anything; without what is hidden, or lies in a hidden directory."""
    return {path for path in folder.rglob("*") if (path.is_symlink() or not path.is_dir())
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)}


def refuse_foreign(there: set[Path], known: set[Path]) -> None:
    """Raise CorruptArtifact for a file that is there though nobody wrote it down."""
    if foreign := sorted(there - known):
        raise CorruptArtifact(f"{foreign[0]} is not among the files that were written")


def compare(expected: dict[Path, str]) -> None:
    """Raise CorruptArtifact for the first file whose SHA-256 is not the expected one."""
    with ThreadPoolExecutor() as pool:
        for (file, sha), actual in zip(expected.items(), pool.map(hash_readable, expected), strict=True):
            if actual != sha:
                raise CorruptArtifact(f"{file}: sha256 is {actual or 'that of no file: it is missing'}, expected {sha}")


def hash_readable(file: Path) -> str | None:
    """SHA-256 of a file, in hex; None when it is missing. Raises CorruptArtifact for a directory, say, in its place."""
    with damage_named(file):
        return hash_file(file)
