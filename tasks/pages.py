"""Pages of runs, written as they end; one that cannot be made is a warning: it can be made again, a run's hours not."""
import contextlib
from collections.abc import Iterator
from pathlib import Path

from tasks.opd.evaluation.report import lineage, runs
from tasks.opd.recipe.schema import Recipe
from tasks.opd.store import run_records
from tasks.stage import log_line
from tasks.tracking.runs import attach_report


@contextlib.contextmanager
def recorded_run(recipe: Recipe, suite: str) -> Iterator[Path]:
    """The record of a run, and its page once it has ended or failed; yields where that lies. None of one stopped."""
    about = {"suite": suite, "recipe": recipe.model_dump(mode="json")}
    stem = run_records.stem_of(name := f"{recipe.name}-seed{recipe.seed}", **about)
    try:
        with run_records.recorded(name, **about):
            yield run_records.page_of(stem)
    except Exception:
        show_run(stem)
        raise
    show_run(stem)


def show_run(stem: str) -> None:
    """Write a run's page, and have its run in MLflow hold it."""
    with only_warned(stem):
        html = runs.html_of(lineage.read(run_records.files_of(stem)[0]))
        attach_report(runs.write(run_records.page_of(stem), html))


@contextlib.contextmanager
def only_warned(name: str) -> Iterator[None]:
    """Whatever goes wrong inside is said, and that is all."""
    try:
        yield
    except Exception as error:
        log_line(f"no report of {name}: {type(error).__name__}: {error}; opd report {name} tries again")
