"""What distillations returned, as tables: a suite's, or one run's against its own start."""
from collections.abc import Iterable
from dataclasses import replace

from tasks.opd.core.costs import TRAINED
from tasks.opd.evaluation import cell_costs, comparison, final, findings
from tasks.opd.evaluation.clusters import clusters_of
from tasks.opd.evaluation.comparison_tables import to_markdown
from tasks.opd.evaluation.pass_curves import curves_of
from tasks.opd.evaluation.reports import divergence_line, divergence_of, overlap_line, rewards
from tasks.opd.evaluation.tuned import Tuned
from tasks.opd.recipe import budgets
from tasks.opd.recipe.schema import Recipe


def of_run(result: dict) -> dict[str, comparison.Comparison]:
    """A run's student against the one it started from, by benchmark."""
    return {name: table_of({(result["recipe"], result["seed"]): result}, {}, name, comparison.START)
            for name in result["end"]}


def numbers_of_run(result: dict, num_rounds: int) -> dict[str, float]:
    """What a run reached and cost, under names that all variants share."""
    return final.final_numbers(result, num_rounds)


def markdown_of_run(result: dict) -> str:
    """A run's tables, each with its divergence and overlap, a section a benchmark; then what rules found."""
    parts = [(f"### {name}", to_markdown(table), divergence_line(result["start"][name], result["end"][name]),
              overlap_line(result["end"][name]))
             for name, table in of_run(result).items()]
    texts = [text for part in parts for text in part] + [findings.to_markdown(result.get("findings", []))]
    return "\n\n".join(filter(None, texts))


def table_of(done: dict[tuple[str, int], dict], failed: dict[tuple[str, int], Exception], benchmark: str,
             baseline: str, cells: list[tuple[str, int, Recipe]] = (),
             tuning: dict[str, Tuned] | None = None, pooled: bool = False) -> comparison.Comparison:
    """What `distill` returned for cells, and the errors of others, on one benchmark; a suite's stand in its order."""
    start = next(iter(done.values()))["start"][benchmark]
    errors = {cell: f"{type(error).__name__}: {' '.join(str(error).split())}"[:300] for cell, error in failed.items()}
    reports = {(comparison.START, 0): start, **{cell: result["end"][benchmark] for cell, result in done.items()}}
    clusters = clusters_of(start)
    apart = {cell: divergence_of(report) for cell, report in reports.items()}
    order = dict.fromkeys((variant, seed) for variant, seed, _ in cells)
    finished = {cell: rewards(report) for cell, report in reports.items()}
    found = comparison.compare(
        {(comparison.START, 0): None, **order, **errors, **finished}, baseline,
        spent={cell: cell_costs.costs_of(result["checkpoint"], result["evaluation"])
               for cell, result in done.items()},
        divergences={cell: value for cell, value in apart.items() if value is not None},
        placebos={variant: recipe.about.placebo for variant, _, recipe in cells}, clusters=clusters,
        currency=currency_of(recipe for _, _, recipe in cells), pooled=pooled)
    return replace(found, tuning=tuning or {}, pass_at=curves_of(reports, baseline, clusters, pooled))


def currency_of(recipes: Iterable[Recipe]) -> str:
    """The currency of the first recipe's budget, which a suite's have in common; trained tokens without one."""
    return next((budget[0] for recipe in recipes if (budget := budgets.given(recipe))), TRAINED)
