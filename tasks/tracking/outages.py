"""What is wrong with MLflow, in a sentence that says what becomes of the run; and which store hangs."""
import time

from tasks.opd.core.addresses import masked
from tasks.opd.core.errors import OpdError

LATER = "the run goes on, and what is missing there is sent when the recipe is run again"
DAMAGED = ("file is not a database", "disk image is malformed", "malformed database schema")  # as SQLite says it

HURRIED_SECONDS = 1                     # that an end waits for a store which hangs
AGAIN_SECONDS = 300                     # after which it is waited for in full again
_hung: dict[str, float] = {}            # address -> when it was last waited for in vain


def patience(uri: str, seconds: float) -> float:
    """Seconds to wait for a store: `seconds`, or few where any run of this process has waited in vain just before."""
    return HURRIED_SECONDS if time.monotonic() - _hung.get(uri, -AGAIN_SECONDS) < AGAIN_SECONDS else seconds


def note_hang(uri: str) -> None:
    """A store was waited for in vain; it is not waited for as long again until it answers, or for AGAIN_SECONDS."""
    if patience(uri, AGAIN_SECONDS) == AGAIN_SECONDS:   # a hurried wait says nothing
        _hung[uri] = time.monotonic()


def note_answer(uri: str) -> None:
    """A store answers."""
    _hung.pop(uri, None)


def trouble(error: Exception) -> str:
    """What is wrong with MLflow: a file of the run that cannot be read is not the store's fault."""
    if isinstance(error, OpdError):
        return f"lacks a stage: {' '.join(str(error).split())}; {LATER}"
    reason = getattr(error.__cause__, "orig", None) or error  # what the database itself said
    line = masked(f"{type(reason).__name__}: {reason}".splitlines()[0])[:300]
    if any(words in line for words in DAMAGED):
        return (f"has a damaged database ({line}); the run goes on. Restore the file or move it away: the next run of "
                "a recipe sends all of its points again, into a new database where there is none")
    return f"is not reached ({line}); {LATER}"


def trouble_with_files(error: Exception) -> str:
    """What is wrong where MLflow keeps the files of runs, which need not be where it keeps the points."""
    if isinstance(error, OpdError):
        return trouble(error)
    line = masked(f"{type(error).__name__}: {error}".splitlines()[0])[:300]
    return f"takes no files ({line}); the points are there, and the files are sent when the recipe is run again"
