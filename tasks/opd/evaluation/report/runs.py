"""What a run's page shows."""
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tasks.opd.core.errors import DataError
from tasks.opd.core.files import room_to_write
from tasks.opd.evaluation import cell_costs, comparison_tables
from tasks.opd.evaluation.clusters import clusters_of
from tasks.opd.evaluation.comparison import START, Comparison, compare
from tasks.opd.evaluation.report import checklist, curves, lineage, prompts, recipes, tokens, verdicts
from tasks.opd.evaluation.report.lineage import DONE, Evaluation, Lineage
from tasks.opd.evaluation.report.page import Line, Page, Table, fitting
from tasks.opd.store import run_records
from tasks.opd.store.artifacts import home

SHARES = ((1024, 5), (512, 5), (1024, 0), (256, 3), (512, 0), (256, 0), (64, 0))   # tokens of a rollout, likeliest ones
WRONG = 10                                  # answers of a benchmark that are shown
STATES = {lineage.DONE: "ended well", lineage.FAILED: "failed", lineage.RUNNING: "is at work",
          lineage.STOPPED: "was stopped; the same command goes on from there"}


def write(file: Path, text: str) -> str:
    """Put a page in its place, in one step: it may be read meanwhile, or its writer be killed. Returns the text."""
    with room_to_write(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f".{file.name}")
        draft.write_text(text, encoding="utf-8")
        draft.replace(file)
    return text


def html_of(run: Lineage, rounds: list[int] | None = None) -> str:
    """The page of a run, as small as it has to be; with rollouts of these rounds, counted from 1, or of three."""
    return fitting(pages_of(run, rounds))


def pages_of(run: Lineage, rounds: list[int] | None) -> Iterator[Page]:
    """The page with ever less of its rollouts: tokens of each, and the teacher's likeliest beside them."""
    whole = page_of(run, rounds)
    return (replace(whole, rollouts=[tokens.trimmed(one, *share) for one in whole.rollouts]) for share in SHARES)


def page_of(run: Lineage, wanted: list[int] | None = None) -> Page:
    """The page with as much of its rollouts as any shows."""
    rounds, names = tokens.chosen_rounds(run.rounds, wanted), run.benchmarks()
    pieces = tokens.Pieces(decode=tokens.decoder(tokens.prompts_of(rounds[0])) if rounds else "".join)
    shown = tokens.shown_of(rounds, pieces, *SHARES[0]) if rounds else []
    tables = comparisons(run)
    verdict = verdict_of(run, tables)
    main = names[0] if names else ""
    return Page(
        title=run.name, subject="run", command="opd report " + "/".join(filter(None, (run.suite, run.name))),
        benchmark=main, baseline=START, verdict=verdict, facts=facts_of(run),
        tables=[Table(title=name if len(tables) > 1 else "", rows=comparison_tables.cells(table))
                for name, table in tables.items()],
        notes=comparison_tables.note(tables[main])[:2] if main in tables else [], findings=run.findings,
        failures=[run.error] if run.error else [],
        costs=[Table(title="", rows=rows) for table in [*tables.values()][:1]
               for rows in comparison_tables.costs_of(table)],
        lines=[Line(variant=run.variant, seed=run.seed, curves=made)] if (made := curves.curves_of(run, main)) else [],
        maps={run.variant: made} if (made := curves.maps_of(run)) else {}, rollouts=shown, pieces=pieces.texts,
        wrong=[question for name in names if (end := run.ends(name)[1])
               for question in prompts.failed(end, run.name, WRONG)[1]],
        pass_at=[{"variant": when, "points": points} for when, end in zip((START, run.variant), run.ends(main))
                 if end and (points := pass_curve(end))],
        retention=retention({(run.variant, run.seed): run}, main), checklist_of=run.name,
        checklist=checklist.checklist(run, verdict, wrong_of(run)),
        recipe=[*recipes.flattened(run.recipe)])


def facts_of(run: Lineage) -> dict[str, str]:
    """What a run is, in a few words each."""
    about = run.recipe["about"]
    source = ", ".join(filter(None, (about["paper"], f"arXiv:{about['arxiv']}" if about["arxiv"] else "")))
    facts = {"state": STATES[run.state], "suite": run.suite, "source": source, "idea": about["idea"],
             "pair": run.recipe["pair"]["name"], "seed": str(run.seed),
             "rounds": f"{len(run.rounds)} of {run.recipe['rounds']}"}
    return {name: fact for name, fact in facts.items() if fact}


def comparisons(run: Lineage) -> dict[str, Comparison]:
    """The student against the one it started from, by benchmark; those that were asked at both ends."""
    found = {}
    for name in run.benchmarks():
        start, end = run.ends(name)
        if not (start and end):
            continue
        key = run.variant, run.seed
        apart = {(START, 0): start.reverse_kl(), key: end.reverse_kl()}
        evaluation = [stage.artifact for one in run.evaluations for stage in (one.report, one.divergence) if stage]
        found[name] = compare(
            {(START, 0): start.rewards(), key: end.rewards()}, START,
            spent={key: cell_costs.costs_of(run.rounds[-1].checkpoint.artifact, evaluation)},
            divergences={cell: value for cell, value in apart.items() if value is not None},
            clusters=clusters_of(start.report.artifact))
    return found


def verdict_of(run: Lineage, tables: dict[str, Comparison]) -> str:
    """The first line: the verdict, and before that how the run ended where it did not end well."""
    rows = {name: row_of(table, run.variant) for name, table in tables.items()}
    told = verdicts.of_run(run.name, rows)
    return told if run.state == DONE else f"The run {STATES[run.state]}. {told}"


def row_of(table: Comparison, variant: str) -> dict:
    """A variant's verdict, difference and interval."""
    row = next(row for row in table.rows if row.variant == variant)
    return {"verdict": row.verdict, "difference": row.difference, "interval": row.interval}


def wrong_of(run: Lineage) -> dict[str, tuple[int, int]]:
    """How many first answers are wrong at the end, and how many there are, by benchmark."""
    ends = {name: end for name in run.benchmarks() if (end := run.ends(name)[1])}
    return {name: (prompts.failed(end, run.name, 0)[0], end.report.record["counts"]["prompts"])
            for name, end in ends.items()}


def pass_curve(end: Evaluation) -> list[tuple[int, float]]:
    """pass@k by k; none where fewer than two ks were asked."""
    found = sorted((int(name.removeprefix("pass@")), value) for name, value in end.report.record["counts"].items()
                   if name.startswith("pass@"))
    return found if len(found) > 1 else []


def retention(found: dict[tuple[str, int], Lineage], benchmark: str) -> Table | None:
    """Mean reward before and after on every benchmark but this one; None where there are no others."""
    rows = [["variant", "seed", "benchmark", "before", "after", "change"]]
    for (variant, seed), run in found.items():
        for name in (name for name in run.benchmarks() if name != benchmark and all(run.ends(name))):
            before, after = (end.report.record["counts"]["avg"] for end in run.ends(name))
            rows.append([variant, str(seed), name, f"{100 * before:.1f}", f"{100 * after:.1f}",
                         f"{100 * (after - before):+.1f}"])
    return Table(title="", rows=rows) if rows[1:] else None


def named(name: str) -> Path:
    """The record of the run last begun of a name, `gkd-seed0` or `demo/gkd-seed0` in a suite. Raises DataError.

    Only what follows a recipe is a run here.
    """
    suite, _, run = name.rpartition("/")
    recorded = [one for one in run_records.read_all() if one.has_recipe]
    records = [one for one in recorded if one.name == run and (not suite or one.suite == suite)]
    if not records:
        known = sorted({f"{one.suite}/{one.name}".strip("/") for one in recorded})
        raise DataError(f"no run or suite {name} in {home()}; there are {', '.join(known[:20]) or 'none'}")
    return max(records, key=lambda one: one.path.stat().st_mtime_ns).path
