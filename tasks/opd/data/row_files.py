"""Rows of files as people bring them: JSON Lines or one JSON array, in UTF-8, plain or gzip.

What is wrong with one line is said in its place, under `invalid`; what is wrong with a whole file is a DataError.
"""
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tasks.opd.core.errors import DataError
from tasks.opd.core.files import files_in, hash_tree

PATTERNS = ("*.jsonl", "*.jsonl.gz")    # the files of a folder
HEAD_BYTES = 4096                       # of a file, by which its format is known
GZIP, BOM = b"\x1f\x8b", b"\xef\xbb\xbf"
FORMATS = {  # first bytes -> what a file is that cannot be read here; the longer before the shorter
    b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16",
    b"PK\x03\x04": "a zip archive", b"PAR1": "Parquet", b"ARROW1": "an Arrow file", b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ": "xz", b"BZh": "bzip2", b"SQLite format 3": "an SQLite database", b"\x89HDF": "HDF5",
    GZIP: "gzip twice"}


def numbered_rows(path: str) -> Iterator[tuple[str, dict]]:
    """Every row of a file, or of a folder's files in the order of their names, with its place as messages name it.

    Raises: DataError where nothing is, and for a file that is in another format, cut off or not to be read.
    """
    for file in files_at(Path(path).expanduser()):
        try:
            with opened(file) as content:
                yield from rows_in(file, content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{file} cannot be read: {error or type(error).__name__}") from error


def files_at(path: Path) -> list[Path]:
    """The file, or the *.jsonl and *.jsonl.gz of the folder. Raises DataError where neither is."""
    if path.is_dir():
        return files_in(path, *PATTERNS)
    if not path.is_file():
        raise DataError(f"prompts.source.path {path} is neither a file nor a folder; give the path of a .jsonl file, "
                        "or of a folder of such files")
    return [path]


def content_hash(params: dict) -> str | None:
    """SHA-256 of the files that a source with these parameters reads on this machine; None where it reads none.

    They are those of `path`, and all of `dataset` where that is a file or folder: an edited file is another source.
    """
    if "path" in params:
        return hash_tree(Path(params["path"]).expanduser(), *PATTERNS)
    return hash_tree(Path(params["dataset"]), "**/*") if "dataset" in params else None


def opened(file: Path) -> IO[bytes]:
    """The file's bytes, decompressed where they are gzip's, whatever its name."""
    with file.open("rb") as start:
        packed = start.read(len(GZIP)) == GZIP
    return gzip.open(file, "rb") if packed else file.open("rb")


def rows_in(file: Path, content: IO[bytes]) -> Iterator[tuple[str, dict]]:
    """The rows of one file. Raises DataError for another format than JSON in UTF-8."""
    head = content.read(HEAD_BYTES)
    content.seek(0)
    found = next((name for start, name in FORMATS.items() if head.startswith(start)), None)
    if found or b"\0" in head:
        raise DataError(f"{file} is {found or 'no text: it holds NUL bytes, as UTF-16 does'}; it must be JSON Lines or "
                        "a JSON array in UTF-8, plain or gzip: convert it")
    array = array_in(file, content.read()) if head.removeprefix(BOM).lstrip().startswith(b"[") else None
    if array is not None:
        for index, row in enumerate(array):
            yield f"{file}[{index}]", as_row(row, f"{file}[{index}]")
        return
    content.seek(0)
    # Bytes that are not UTF-8 become lone surrogates here, so that only their line is lost.
    for number, line in enumerate(io.TextIOWrapper(content, encoding="utf-8-sig", errors="surrogateescape"), 1):
        yield f"{file}:{number}", parsed(line, f"{file}:{number}")


def array_in(file: Path, content: bytes) -> list | None:
    """The elements of a file that is one JSON array; None where its first line is a value by itself.

    Raises: DataError when it is neither.
    """
    try:
        array = json.loads(content.removeprefix(BOM).decode("utf-8"))
        return array if isinstance(array, list) else None
    except (ValueError, RecursionError) as error:
        first = content.removeprefix(BOM).lstrip().partition(b"\n")[0].decode("utf-8", "surrogateescape")
        if isinstance(error, RecursionError) or "invalid" not in parsed(first, "", list):
            return None
        raise DataError(f"{file} begins as a JSON array and is none: {error}; give one array of objects, or one object "
                        "a line") from error


def parsed(line: str, where: str, wanted: type = dict) -> dict | list:
    """One JSON object (or another value that is `wanted`), or an object that holds only the reason why it is none."""
    try:
        line.encode("utf-8")
        return as_row(json.loads(line), where, wanted)
    except UnicodeEncodeError as error:
        byte = ord(line[error.start]) - 0xdc00
        return {"invalid": f"{where} is not UTF-8: byte {byte:#04x} at character {error.start + 1}; cp1252 perhaps"}
    except (ValueError, RecursionError) as error:
        return {"invalid": f"{where} is not JSON: {error}"}


def as_row(value, where: str, wanted: type = dict) -> dict | list:
    """A JSON value that is an object, or an object that holds only the reason why it is none."""
    return value if isinstance(value, wanted) else {"invalid": f"{where} is not a JSON object"}
