"""Writing to a disk that may be full, read-only or shared: what an OSError means, fsync, SHA-256, flock. No torch."""
import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import sys
from pathlib import Path
from typing import IO

from tasks.opd.core.errors import CorruptArtifact, DiskFull

NOT_PERMITTED = {errno.EROFS, errno.EACCES, errno.EPERM}
NO_ROOM = NOT_PERMITTED | {errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR}
DAMAGE = {errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EIO}  # what the system says of a file that is none any more
FULL_BYTES = 1 << 20  # with less than this free, a worker that died without a word found the disk full


@contextlib.contextmanager
def room_to_write(path: Path):
    """Turn "no space" and "not permitted" below `path` into DiskFull."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise disk_full(path, error) from error
        raise


def make_private(folder: Path) -> None:
    """Make a folder that only its owner enters; one that is there and ours becomes so.

    One in which its group may write was shared with it on purpose: it stays so, and is closed to all others.
    Raises: DiskFull.
    """
    with room_to_write(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        kept = stat.S_IMODE(found.st_mode) & ~(0o007 if found.st_mode & stat.S_IWGRP else 0o077)
        if found.st_uid == os.getuid() and kept != stat.S_IMODE(found.st_mode):
            folder.chmod(kept)


def try_writing(folder: Path) -> None:
    """Write into a folder, which is made, for its owner only, where there is none; one that is there stays as it is.

    Raises: DiskFull for whatever the system says to that.
    """
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe.write_bytes(bytes(4096))
        probe.unlink()
    except OSError as error:
        with contextlib.suppress(OSError):
            probe.unlink()
        raise disk_full(folder, error) from error


def disk_full(path: Path, error: BaseException) -> DiskFull:
    """What is wrong, where, how many bytes are free, and the way out."""
    return DiskFull(f"cannot write {path}: {error}; {free_bytes(path):,} bytes are free there. "
                    "Free space or point OPD_HOME to a writable directory, then run again: finished stages are kept")


def free_bytes(path: Path) -> int:
    """Bytes free for us on the file system of `path` or, where it is not there, of its nearest parent."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def disk_error(error: BaseException | None, out: Path) -> DiskFull | None:
    """The DiskFull that lies behind any error of a stage writing to `out`; None when it has another cause.

    Libraries say it in their own ways: an OSError with ENOSPC, its text (safetensors, datasets), or a failed write and
    no reason (torch's zip writer, which fails for nothing else).
    """
    if isinstance(error, DiskFull) or error is None:
        return error
    return disk_full(out, error) if says_full(error) else disk_error(error.__cause__ or error.__context__, out)


def says_full(error: BaseException) -> bool:
    """Whether an error itself says that a disk takes no more."""
    full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
    silent = "PytorchStreamWriter failed writing" in str(error) or "inline_container.cc" in str(error)
    return full or silent or any(text in str(error) for text in ("No space left on device", "Not enough disk space"))


def cache_error(error: BaseException | None, cache: Path, what: str) -> DiskFull | None:
    """The DiskFull behind any error of a library that keeps `what` in a Hugging Face cache; None for another cause."""
    if error is None:
        return None
    denied = isinstance(error, OSError) and error.errno in NO_ROOM and (
        error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(cache))
    if denied or says_full(error):
        return DiskFull(f"{what} cannot be kept in {cache}: {error}; free space there, or point HF_HOME to a writable "
                        "directory")
    return cache_error(error.__cause__ or error.__context__, cache, what)


@contextlib.contextmanager
def damage_named(file: Path):
    """Turn what damage makes of reading a file of JSON inside into CorruptArtifact."""
    try:
        yield
    except (ValueError, RecursionError) as error:  # cut off, not UTF-8, a NaN, nested too deep
        raise CorruptArtifact(f"{file} is not JSON: {error}") from error
    except OSError as error:
        if error.errno not in DAMAGE:
            raise
        raise CorruptArtifact(f"{file} is no file that can be read: {error.strerror}") from error


def hash_file(path: Path) -> str | None:
    """SHA-256 of a file, in hex; None when it is missing."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def files_in(folder: Path, *patterns: str) -> list[Path]:
    """A folder's files that match any of the patterns, in the order of their names.

    Without what is hidden, or lies in a hidden folder: .DS_Store, ._name of macOS and .git are nobody's content.
    """
    found = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    return sorted(file for file in found if not any(part.startswith(".") for part in file.relative_to(folder).parts))


def hash_tree(path: Path, *patterns: str) -> str | None:
    """SHA-256 of a file, or of the names and hashes of a folder's `files_in`; None when it is missing."""
    if not path.is_dir():
        return hash_file(path)
    listed = "".join(f"{file.relative_to(path)} {hash_file(file)}\n" for file in files_in(path, *patterns))
    return hashlib.sha256(listed.encode()).hexdigest()


def sync(path: Path) -> None:
    """fsync a file or directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def flock(path: Path, *, wait: bool = True, shared: bool = False):
    """Hold a lock that the kernel frees when this process ends; yields whether it was obtained (always, if waiting).

    A shared lock stands beside other shared ones. Where nobody can write, nobody can remove what it protects either:
    there a shared lock is one in name only.
    """
    file = acquired(path, wait=wait, shared=shared)
    if file is None:
        yield shared and wait
        return
    with file:
        try:
            yield True
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # a forked process may hold a copy of the descriptor


def acquired(path: Path, *, wait: bool, shared: bool) -> IO | None:
    """The locked file; None when others hold it and nobody waits, or where a shared lock cannot be written."""
    operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        file = open_lock(path, shared)
        if file is None:
            return None
        try:
            fcntl.flock(file, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                file.close()
                return None
            print(f"opd: another run holds {path.stem}; waiting for it", file=sys.stderr)
            fcntl.flock(file, operation)
        if is_at(file, path):
            return file
        file.close()  # whoever held it before removed it: others lock another file


def is_locked(path: Path) -> bool:
    """Whether somebody holds the flock of a file, which need not be there; writes nothing."""
    try:
        file = open(path, "rb")
    except FileNotFoundError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(file, fcntl.LOCK_UN)
    return False


def open_lock(path: Path, shared: bool) -> IO | None:
    """A lock's file, made where there is none; None for a shared lock where nothing may be written. Raises DiskFull."""
    try:
        with room_to_write(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            return open(path, "ab")
    except DiskFull as error:
        if not shared or error.__cause__.errno not in NOT_PERMITTED:
            raise
    with contextlib.suppress(OSError):
        return open(path, "rb")
    return None


def is_at(file: IO, path: Path) -> bool:
    """Whether an open file is the one that lies at a path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def socket_address(path: Path):
    """An address of the Unix socket at `path`, while this is open: one may have 107 bytes, a path in $TMPDIR more."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def folder_version(folder: Path) -> tuple:
    """Tells a folder from another, and from one that was remade at the same path."""
    stat = os.stat(folder)
    return str(Path(folder).resolve()), stat.st_ino, stat.st_mtime_ns
