"""pass@k over k against the baseline, and who answers more often at the price of answering fewer questions. No torch.

The chance of a right answer can rise while fewer questions have one at all: pass@1 up, pass@k down. Every k is compared
as rewards are, paired over prompts and seeds.
"""
from collections import defaultdict

from tasks.opd.core.records import Sample, read_rows
from tasks.opd.core.tables import Table, percent, points
from tasks.opd.evaluation.benchmarks import pass_at
from tasks.opd.evaluation.comparison import Comparison, PassAt, compare
from tasks.opd.store.artifacts import Artifact

NOTE = ("pass@k: share of questions that k answers hold a right one of, with differences to the baseline and their 95% "
        "intervals, not adjusted.")


def by_prompt(report: Artifact) -> dict[int, dict[str, float]]:
    """pass@k of every prompt, by each k of the benchmark; an answer is right when its reward is at least 1."""
    rewards = defaultdict(list)
    for sample in read_rows(report.path / "samples.parquet", Sample):
        rewards[sample.prompt_id].append(sample.reward)
    return {k: {prompt: pass_at(len(r), sum(x >= 1 for x in r), k) for prompt, r in rewards.items()}
            for k in ks_of(report)}


def ks_of(report: Artifact) -> list[int]:
    """The values of k that the report counts pass@k of."""
    return sorted(int(name.removeprefix("pass@")) for name in report.counts if name.startswith("pass@"))


def curves_of(reports: dict[tuple[str, int], Artifact], baseline: str, clusters: dict[str, str],
              pooled: bool = False) -> dict[str, list[PassAt]]:
    """Every variant's curve over k; nothing where a benchmark asks for no k above 1, or the baseline has no report."""
    if max(ks_of(next(iter(reports.values()))), default=1) < 2 or baseline not in {variant for variant, _ in reports}:
        return {}
    found = {cell: by_prompt(report) for cell, report in reports.items()}
    compared = {k: compare({cell: values[k] for cell, values in found.items()}, baseline, clusters=clusters,
                           pooled=pooled)
                for k in next(iter(found.values()))}
    curves = defaultdict(list)
    for k, comparison in compared.items():
        for row in comparison.rows:
            curves[row.variant].append(PassAt(k=k, mean=row.mean, difference=row.difference, interval=row.interval))
    return dict(curves)


def curve_table(found: Comparison) -> Table:
    """Header and lines, as text, in percent and points; empty without curves."""
    if not found.pass_at:
        return []
    ks = [point.k for point in next(iter(found.pass_at.values()))]
    header = ["pass@k", *(name for k in ks for name in (f"pass@{k}", f"@{k} vs {found.baseline}"))]
    rows = [row.variant for row in found.rows if row.variant in found.pass_at]
    return [header, *([variant, *(cell for point in found.pass_at[variant]
                                  for cell in (percent(point.mean), points(point.difference, point.interval)))]
                      for variant in rows)]


def narrowed(found: Comparison) -> list[str]:
    """One line a variant whose pass@k is above the baseline's at the least k and below it at a greater one.

    Both intervals must leave out 0: a fall that is not told from none is no fall.
    """
    said = []
    for variant, curve in found.pass_at.items():
        first, *others = sorted(curve, key=lambda point: point.k)
        below = [point for point in others if point.interval and point.interval[1] < 0]
        if below and first.interval and first.interval[0] > 0:
            last = below[-1]
            rise, fall = (points(point.difference, point.interval) for point in (first, last))
            said.append(f"{variant}: pass@{first.k} rose, {rise}, while pass@{last.k} fell, {fall}: it is right more "
                        "often, on fewer questions")
    return said
