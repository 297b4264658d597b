"""What lies in a directory, compared with what was written there. No torch."""
import fnmatch
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tasks.opd.core.errors import CorruptArtifact, DataError
from tasks.opd.core.files import damage_named, files_in, hash_file
from tasks.opd.core.progress import print_line

READ = (  # names by which transformers, vLLM or our own code would find a file that nobody wrote
    "*.json", "*.jsonl", "*.jinja", "*.txt", "*.model", "*.model.v*", "*.tiktoken", "*.py", "*.parquet",
    "*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
READ_OUTSIDE = ("*.jinja", "*token*.json", "generation_config.json", "*.safetensors")  # of a model folder, if there
COPIES = "consolidated*.safetensors"    # the same weights as Mistral's own library reads them: nobody's here


def files_below(folder: Path) -> set[Path]:
    """The files below a directory, and links to anything; without what is hidden, or lies in a hidden directory."""
    return {path for path in folder.rglob("*") if (path.is_symlink() or not path.is_dir())
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)}


def refuse_added(folder: Path, known: set[Path]) -> None:
    """Refuse a file that came to an artifact later where something would read it by its name; of another say so.

    What was written is whole, so nothing is made again for it, which may take days: it is for a person to move it away.
    A link to a folder is refused whatever its name, for what lies behind it is found by names of its own.
    Raises: DataError naming the file and what to do.
    """
    for file in sorted(files_below(folder) - known):
        if file.is_dir() or matches(file.name, READ):
            raise DataError(f"{file} is not among the files that were written, and what reads {folder.name} may take it"
                            " for one of them: move it away, and run the same command again")
        print_line(f"opd: {file} is not among the files that were written; nothing reads it, and it goes when "
                   f"{folder.name} goes: move it away if it is needed")


def compare(expected: dict[Path, str]) -> None:
    """Raise CorruptArtifact for the first file whose SHA-256 is not the expected one."""
    with ThreadPoolExecutor() as pool:
        for (file, sha), actual in zip(expected.items(), pool.map(hash_readable, expected), strict=True):
            if actual != sha:
                raise CorruptArtifact(f"{file}: sha256 is {actual or 'that of no file: it is missing'}, expected {sha}")


def compare_outside(location: dict) -> None:
    """Compare the files of a model that lies outside; of those READ_OUTSIDE there may be no other, hidden ones apart.

    Such a folder is somebody's to change, and what points at it is made again in no time.
    Raises: CorruptArtifact.
    """
    folder, files = Path(location["path"]), location.get("files", {})
    compare({folder / name: sha for name, sha in files.items()})
    foreign = [file for file in files_in(folder, *READ_OUTSIDE)
               if file.name not in files and not matches(file.name, (COPIES,))]
    if files and foreign:
        raise CorruptArtifact(f"{foreign[0]} is not among the files that were written")


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a name, or a path's text, matches any of the patterns; a `*` takes a slash too."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def hash_readable(file: Path) -> str | None:
    """SHA-256 of a file, in hex; None when it is missing. Raises CorruptArtifact for a directory, say, in its place."""
    with damage_named(file):
        return hash_file(file)
