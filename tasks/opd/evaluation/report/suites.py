"""What a suite's page shows: the comparison as the suite's flow wrote it down, and what its runs left in the store."""
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from tasks.opd.core.errors import DataError
from tasks.opd.evaluation import cell_costs, comparison_tables
from tasks.opd.evaluation.comparison import START, Comparison
from tasks.opd.evaluation.report import checklist, curves, lineage, prompts, recipes, runs, verdicts
from tasks.opd.evaluation.report.lineage import Evaluation, Lineage
from tasks.opd.evaluation.report.page import Line, Page, Table, fitting
from tasks.opd.store import run_records
from tasks.opd.store.artifacts import home

STATE, PAGE = "state.json", "report.html"
POINTS, MAP_CELLS, ANSWER_CHARACTERS = 8000, 40_000, 500_000     # of a whole page, all variants together

Key = tuple[str, int]                       # variant, seed
Runs = dict[Key, Lineage]


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """A suite as its flow has it, at work or ended."""
    suite: str
    benchmark: str
    baseline: str
    facts: dict[str, str]                   # what made it, see `comparison_tables.provenance`
    cells: list[tuple[str, int, str]]       # variant, seed, how its run's files are called
    failed: list[tuple[str, int, str]]      # variant, seed, why
    num_left: int                           # cells that have not been run
    rows: list[dict[str, Any]]              # the comparison's; none while it cannot be made
    tables: list[list[list[str]]]           # as the terminal shows them, the comparison first
    costs: list[list[list[str]]]
    notes: list[str]
    cost_notes: list[str]


def folder_of(suite: str) -> Path:
    """Where a suite's files lie."""
    return home() / "suites" / suite


def file_of(suite: str) -> Path:
    """Where a suite's page lies."""
    return folder_of(suite) / PAGE


def state_of(suite: str, benchmark: str, baseline: str, facts: dict[str, str], cells: list[tuple[str, int, str]],
             failed: dict[Key, str], num_left: int, table: Comparison | None) -> State:
    """A suite's state with its table, if there is one yet."""
    on_costs = {cell_costs.NOTE, *comparison_tables.spent_note(table)} if table else set()
    notes = comparison_tables.note(table) if table else []
    costs = comparison_tables.costs_of(table) if table else []
    return State(suite=suite, benchmark=benchmark, baseline=baseline, facts=facts, cells=cells, num_left=num_left,
                 failed=[(*key, text) for key, text in failed.items()],
                 rows=json.loads(table.to_json())["rows"] if table else [],
                 tables=[one for one in comparison_tables.tables(table) if one not in costs] if table else [],
                 costs=costs,
                 notes=[note for note in notes if note not in on_costs],
                 cost_notes=[note for note in notes if note in on_costs])


def write_state(state: State) -> None:
    """Keep a suite's state, from which its page can be made again."""
    runs.write(folder_of(state.suite) / STATE, json.dumps(asdict(state), ensure_ascii=False))


def read_state(suite: str) -> State | None:
    """The state of a suite; None where it was not run here. Raises DataError for one that is damaged, or of another
    version.
    """
    file = folder_of(suite) / STATE
    if not file.exists():
        return None
    way_out = f"opd compare {suite} writes it anew, and reuses what was made"
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} cannot be read: {error}; {way_out}") from error
    if not isinstance(given, dict) or given.keys() != {field.name for field in fields(State)}:
        raise DataError(f"{file} is of another version of opdlab; {way_out}")
    return State(**given)


def html_of(state: State) -> str:
    """The page of a suite, as small as it has to be."""
    return fitting(pages_of(state))


def pages_of(state: State) -> Iterator[Page]:
    """The page with ever fewer answers."""
    whole = page_of(state, runs_of(state))
    return (replace(whole, questions=whole.questions[:count]) for count in (prompts.ASKED, 4, 0))


def runs_of(state: State) -> Runs:
    """What the cells' runs left, those that have begun."""
    found = {(variant, seed): run_records.files_of(stem) for variant, seed, stem in state.cells}
    return {key: lineage.read(files[0]) for key, files in found.items() if files}


def page_of(state: State, found: Runs) -> Page:
    """The page with as many answers as any shows."""
    ends = {key: end for key, run in found.items() if (end := run.ends(state.benchmark)[1])}
    start = next((first for run in found.values() if (first := run.ends(state.benchmark)[0])), None)
    means = {variant: prompts.mean_over([end.rewards() for (name, _), end in ends.items() if name == variant])
             for variant in dict.fromkeys(name for name, _ in ends)} | ({START: start.rewards()} if start else {})
    best = best_of(state, found)
    chosen = {variant: found[variant, seed].recipe for variant, seed in firsts(found)}
    return Page(
        title=state.suite, subject="suite", command=f"opd report {state.suite}", benchmark=state.benchmark,
        baseline=state.baseline, facts=state.facts,
        verdict=verdicts.of_suite(state.rows, state.baseline, state.benchmark, state.num_left),
        tables=[Table(title="", rows=rows) for rows in state.tables], notes=state.notes,
        costs=[Table(title="", rows=rows) for rows in state.costs], cost_notes=state.cost_notes,
        failures=[f"{variant}, seed {seed}: {text}" for variant, seed, text in state.failed],
        findings=[f"{run.name}, {told}" for run in found.values() for told in run.findings],
        forest=sorted((row for row in state.rows if row["interval"]), key=lambda row: -row["difference"]),
        lines=lines_of(state, found), pareto=pareto_of(state.rows), maps=maps_of(found),
        flips=[prompts.flips_of(variant, own, means[state.baseline]) for variant, own in means.items()
               if state.baseline in means and variant not in (state.baseline, START)],
        questions=answers_of(ends, start, means), retention=runs.retention(found, state.benchmark),
        pass_at=[{"variant": variant, "points": points} for variant, end in
                 {START: start, **{name: end for (name, _), end in reversed(ends.items())}}.items()
                 if end and (points := runs.pass_curve(end))],
        differences=recipes.differences(chosen) if len(chosen) > 1 else None,
        checklist=checklist.checklist(best, runs.verdict_of(best, runs.comparisons(best)), runs.wrong_of(best))
        if best else [],
        checklist_of=best.name if best else "")


def firsts(found: Runs) -> list[Key]:
    """The first seed of every variant."""
    return [*{variant: (variant, seed) for variant, seed in reversed(found)}.values()][::-1]


def best_of(state: State, found: Runs) -> Lineage | None:
    """The first run of the best variant; without a comparison, of the first that has any."""
    first = {variant: found[variant, seed] for variant, seed in firsts(found)}
    ranked = (first[row["variant"]] for row in verdicts.ranked(state.rows) if row["variant"] in first)
    return next(ranked, next(iter(first.values()), None))


def lines_of(state: State, found: Runs) -> list[Line]:
    """The learning curves of every cell that has any, thinned where there are many."""
    lines = [Line(variant=variant, seed=seed, curves=made)
             for (variant, seed), run in found.items() if (made := curves.curves_of(run, state.benchmark))]
    most = POINTS // max(sum(len(line.curves) for line in lines), 1)
    return [Line(variant=line.variant, seed=line.seed,
                 curves={name: curves.thinned(points, most) for name, points in line.curves.items()}) for line in lines]


def pareto_of(rows: list[dict]) -> list[dict[str, Any]]:
    """What every variant reached, and what that cost by name: tokens, and seconds of all rounds."""
    found = []
    for row in (row for row in rows if row["mean"] is not None and row["variant"] != START):
        costs = {header: row["costs"]["tokens"][name] for header, name in cell_costs.TOKENS.items()
                 if row["costs"]["tokens"].get(name)}
        seconds = cell_costs.total(row["costs"]["seconds"], cell_costs.ROUND)
        costs |= {"seconds": round(seconds, 1)} if seconds is not None else {}
        found += [{"variant": row["variant"], "mean": row["mean"], "costs": costs}] if costs else []
    return found


def maps_of(found: Runs) -> dict[str, list[curves.Map]]:
    """The first seed's maps of every variant that has any, thinned where there are many."""
    maps = {key[0]: made for key in firsts(found) if (made := curves.maps_of(found[key]))}
    columns = sum(len(one.buckets) for some in maps.values() for one in some)
    return {variant: [curves.thin_map(one, MAP_CELLS // columns) for one in some] for variant, some in maps.items()}


def answers_of(ends: dict[Key, Evaluation], start: Evaluation | None,
               means: dict[str, prompts.Rewards]) -> list[prompts.Question]:
    """The disputed questions with the answers of every variant's first seed, and of the start."""
    first = {variant: ends[variant, seed] for variant, seed in firsts(ends)}
    asked = {**({START: start} if start else {}), **first}
    characters = ANSWER_CHARACTERS // max(len(asked) * prompts.ASKED, 1)
    return prompts.side_by_side(asked, prompts.disputed(means), characters)
