"""What is wrong with MLflow, in a sentence that says what becomes of the run and what a person can do."""
from tasks.opd.core.errors import OpdError

LATER = "the run goes on, and what is missing there is sent when the recipe is run again"
DAMAGED = ("file is not a database", "disk image is malformed", "malformed database schema")  # as SQLite says it


def trouble(error: Exception) -> str:
    """What is wrong with MLflow: a file of the run that cannot be read is not the store's fault."""
    if isinstance(error, OpdError):
        return f"lacks a stage: {' '.join(str(error).split())}; {LATER}"
    reason = getattr(error.__cause__, "orig", None) or error  # what the database itself said
    line = f"{type(reason).__name__}: {reason}".splitlines()[0][:300]
    if any(words in line for words in DAMAGED):
        return (f"has a damaged database ({line}); the run goes on. Restore the file or move it away: the next run of "
                "a recipe sends all of its points again, into a new database where there is none")
    return f"is not reached ({line}); {LATER}"


def trouble_with_files(error: Exception) -> str:
    """What is wrong where MLflow keeps the files of runs, which need not be where it keeps the points."""
    line = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    return f"takes no files ({line}); the points are there, and the files are sent when the recipe is run again"
