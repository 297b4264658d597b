"""How much of the disk artifacts take, and when that is too much. No torch."""
from collections.abc import Callable
from pathlib import Path

from tasks.opd.core.files import free_bytes
from tasks.opd.store.artifacts import home
from tasks.opd.store.garbage import readable_size, size_of

MOST_SHARE = 1 / 3                      # of what artifacts take and what is free together


def folder() -> Path:
    """Where artifacts lie: home(), or the folder, perhaps of another disk, that a link in their place leads to."""
    place = home() / "artifacts"
    return place.resolve() if place.is_symlink() else home()


def kept_bytes() -> int:
    """Bytes of all artifacts, damaged and unfinished ones included."""
    place = (home() / "artifacts").resolve()
    return size_of(place) if place.is_dir() else 0


def described(kept: int) -> str:
    """So many bytes of artifacts in words, where they lie, and what is free there."""
    return f"{readable_size(kept)} in {folder()}, {readable_size(free_bytes(folder()))} free there"


def warning() -> str:
    """What to do before the disk is half full of artifacts; empty while they take no more than MOST_SHARE."""
    kept = kept_bytes()
    if kept <= MOST_SHARE * (kept + free_bytes(folder())):
        return ""
    return f"artifacts fill the disk: {described(kept)}. opd gc lists what no run needs, opd gc --delete removes it, " \
           "and --forget RUN gives up a run's too"


def warn(say: Callable[[str], None]) -> str:
    """Say the warning, if there is one; it."""
    if text := warning():
        say(text)
    return text
