"""How a triggered run ends: the state's message is the verdict, or the cause with what to change; so is its summary's
first line.
"""
import traceback
from collections.abc import Callable

from prefect.runtime import deployment
from prefect.states import Completed, Failed, State

from tasks.check import check
from tasks.opd.core.errors import OpdError
from tasks.opd.evaluation.comparison import VERDICTS, Comparison, Row
from tasks.opd.recipe.schema import Recipe
from tasks.stage import log_line
from tasks.summary import Summary
from tasks.tracking.runs import annotated
from tasks.workers.launchers import end_with_parent

SHOWN = 5                       # variants of one verdict that a suite's message names
Ending = tuple[str, list[str]]  # the verdict, and Markdown sections that back it


def ended(load: Callable[[], list[Recipe]], work: Callable[[list[Recipe]], Ending], note: str) -> State:
    """Check what `load` loads and have `work` done with it: Completed with its verdict, or Failed with the cause."""
    summary = None
    if deployment.id:
        end_with_parent()  # a run whose worker is gone could not be cancelled any more
    try:
        recipes, text = check(load)
        summary = Summary(text, note)
        with annotated(note):
            verdict, sections = work(recipes)
    except Exception as error:  # whatever it is, the run's state says it
        if not isinstance(error, OpdError):
            log_line(traceback.format_exc(), to_person=False)
        if summary:
            summary.show(cause(error))
        return Failed(message=cause(error))
    summary.show(verdict, *sections)
    return Completed(message=verdict)


def cause(error: Exception) -> str:
    """What an error says; of one that nobody foresaw its class too."""
    return str(error) if isinstance(error, OpdError) else f"{type(error).__name__}: {error}"


def of_seeds(name: str, tables: dict[str, Comparison], failed: dict[int, Exception]) -> str:
    """A variant's verdict over the seeds that finished. Raises the error of a seed, which says those of the others."""
    told = of_variant(name, tables) if tables else ""
    if not failed:
        return told
    first = next(iter(failed.values()))
    causes = [f"seed {seed}: {cause(error)}" for seed, error in failed.items()]
    kind = type(first) if isinstance(first, OpdError) else OpdError
    raise kind("\n".join([*causes, *filter(None, [told])])) from first


def of_variant(name: str, tables: dict[str, Comparison]) -> str:
    """A variant against its baseline, a clause a benchmark; `tables` by benchmark."""
    rows = [(row, table.baseline, benchmark) for benchmark, table in tables.items()
            for row in table.rows if row.variant == name and row.interval]
    clauses = [f"{against(row.verdict, baseline)}: {points(row)} points on {benchmark}"
               for row, baseline, benchmark in rows]
    return f"{name} {'; '.join(clauses)}" if clauses else f"{name} is trained; no benchmark was asked"


def points(row: Row) -> str:
    """`+32.0 [+25.1, +38.9]`: the difference to the baseline in percentage points, with its interval."""
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * value for value in (row.difference, *row.interval)))


def against(verdict: str, baseline: str) -> str:
    """`better than start`, `not distinguishable from start`."""
    return f"{verdict} {'from' if verdict == VERDICTS[1] else 'than'} {baseline}"


def of_suite(table: dict, benchmark: str) -> str:
    """A suite's table, as `compare` returns it: which variants are better, which not, which failed."""
    parts = []
    for verdict in (*VERDICTS[::-1], "failed"):
        rows = [row for row in table["rows"] if row["verdict"] == verdict]
        rows.sort(key=lambda row: -(row["difference"] or 0))
        names = [row["variant"] + (f" {100 * row['difference']:+.1f}" if row["interval"] else "") for row in rows]
        more = f" and {len(names) - SHOWN} more" if names[SHOWN:] else ""
        head = verdict if verdict == "failed" else against(verdict, table["baseline"])
        parts += [f"{head}: {', '.join(names[:SHOWN])}{more}"] if names else []
    return f"{'; '.join(parts) or 'nothing was compared'} (points on {benchmark})"
