"""What the next tick trains on, and the recipe that it runs.

A tick's rows are those that earlier candidates took and no champion learnt, then new ones, then anchors, as many as the
recipe's rounds take. Its recipe holds the tick's number, the watermark's rows and the champion's folder, so that its
fingerprints and its MLflow run are its own.
"""
import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

from tasks.opd.data.sources import SOURCES
from tasks.opd.recipe import refreshes, validation
from tasks.opd.recipe.refreshes import PRODUCTION, Refresh
from tasks.opd.recipe.schema import Benchmark, Recipe, Sampling, Slot
from tasks.opd.refresh import journal
from tasks.opd.refresh.drift import Measure, champion_measures, prompt_measures
from tasks.opd.refresh.journal import HELD_OUT, TRAINED, Taken, Tick
from tasks.opd.refresh.rows import Row, chosen, normalised, question_of, read_rows, scan, source_of, watermark
from tasks.opd.store.artifacts import Artifact
from tasks.opd.store.fingerprints import canonical

COMPARED = 10_000                       # rows learnt that new ones are compared with, at most


def proposed(ask: Refresh, recipe: Recipe, taken: Taken, *, champion: str | None, folder: str
             ) -> tuple[Tick, list[Row], list[Row], dict[str, int]]:
    """The next tick from a champion (version and folder), its rows (old ones first), those held out, what was skipped.

    Writes nothing. Raises: DataError where the source cannot be read.
    """
    number, room = journal.last_number(journal.read(ask.name)) + 1, refreshes.capacity(recipe)
    anchors = chosen(taken.learnt, ask.prompts.anchors, "anchors", ask.name, number)
    waiting = chosen(taken.waiting, (room - len(anchors)) // 2, "waiting", ask.name)  # new ones have room too
    found = scan(ask.prompts.source, taken.seen, held_out_share=ask.prompts.held_out_share, asked=questions_of(recipe),
                 at_most=min(ask.prompts.at_most, room - len(anchors) - len(waiting)))
    if not found.new and not waiting:  # what drift of teacher or champion is worked off with
        anchors = chosen(taken.learnt, room, "anchors", ask.name, number)
    new, held_out = ([row.row_id for row in rows] for rows in (found.new, found.held_out))
    tick = Tick(name=ask.name, number=number, champion=champion, folder=folder, new=new, old=[*waiting, *anchors],
                held_out=held_out, watermark=watermark({*taken.seen, *new, *held_out}))
    return tick, [*taken.rows(ask.name, tick.old), *found.new], found.held_out, found.skipped


def propose(ask: Refresh, taken: Taken, *, champion: str | None, folder: str) -> Tick:
    """The next tick, its rows written down. Raises: DataError where the source cannot be read."""
    tick, rows, held_out, _ = proposed(ask, refreshes.recipe_of(ask), taken, champion=champion, folder=folder)
    return journal.propose(tick, rows, held_out or last_held_out(ask.name))


def questions_of(recipe: Recipe) -> set[str]:
    """The normalised questions of a recipe's benchmarks."""
    return {normalised(question_of(item)) for benchmark in recipe.benchmarks for item in SOURCES[benchmark.source.name](
        range(benchmark.first, benchmark.first + benchmark.count), **benchmark.source.params)}


def last_held_out(name: str) -> list[Row]:
    """The rows that the last tick which had any asked; none before."""
    for file in sorted((journal.folder(name) / "ticks").glob(f"[0-9]*/{HELD_OUT}"), reverse=True):
        if rows := list(read_rows(file).values()):
            return rows
    return []


def learnt(ask: Refresh, taken: Taken) -> list[Row]:
    """Rows that the champion learnt, with which new ones are compared."""
    return taken.rows(ask.name, chosen(taken.learnt, COMPARED, "compared", ask.name))


def measures_of(ask: Refresh, tick: Tick, taken: Taken, *, champion: dict[str, str] | None, teacher: str,
                score: float | None) -> list[Measure]:
    """What may have drifted; `champion` are its version's tags, `teacher` and `score` what was measured now."""
    history, rows = journal.refreshed(journal.read(ask.name)), read_rows(tick.path / TRAINED)
    age = champion and (datetime.now(UTC) - datetime.fromisoformat(champion["distilled_at"])).total_seconds() / 86400
    return [*prompt_measures(learnt(ask, taken), [rows[row_id] for row_id in tick.new], history, ask.drift),
            *champion_measures(teacher_changed=champion and champion["teacher"] != teacher, age_days=age, score=score,
                               history=history, limits=ask.drift)]


def recipe_of(ask: Refresh, tick: Tick) -> Recipe:
    """The recipe that a tick runs; for one without rows, which runs nothing, the refresh's own. Raises RecipeError."""
    base, rows = refreshes.recipe_of(ask), read_rows(tick.path / TRAINED)
    if not rows:
        return base
    slice_of = {"first": 0, "max_prompt_tokens": base.prompts.max_prompt_tokens,
                "grader": base.prompts.grader.model_dump(mode="json")}
    prompts = {"name": base.prompts.name, "source": source_of(tick.path / TRAINED, rows.values()), "count": len(rows)}
    overrides = [f"name={ask.name}-{tick.number:04d}", f"prompts={json.dumps(prompts | slice_of)}",
                 f"rollout.prompts_per_round={min(base.rollout.prompts_per_round, len(rows))}"]
    if tick.folder:
        overrides.append(f"pair.student={json.dumps({'name': 'folder', 'path': tick.folder})}")
    recipe = refreshes.recipe_of(ask, overrides)
    if held_out := read_rows(tick.path / HELD_OUT):
        recipe = recipe.model_copy(update={"benchmarks": [
            *recipe.benchmarks, production(recipe, tick.path / HELD_OUT, list(held_out.values()))]})
    return validation.completed(recipe)[0]


def identity_of(models: dict[str, Artifact]) -> str:
    """16 hex characters that name the teacher and all other models that stay as they are."""
    digests = {name: model.digest for name, model in models.items() if name != "student"}
    return hashlib.sha256(canonical(digests).encode()).hexdigest()[:16]


def production(recipe: Recipe, file: Path, rows: list[Row]) -> Benchmark:
    """The benchmark of prompts that came in: graded as the training prompts are, one greedy answer each."""
    sampling = Sampling(temperature=0.0, max_new_tokens=recipe.rollout.sampling.max_new_tokens)
    return Benchmark(name=PRODUCTION, source=Slot.model_validate(source_of(file, rows)), count=len(rows),
                     max_prompt_tokens=recipe.prompts.max_prompt_tokens, grader=recipe.prompts.grader,
                     sampling=sampling)
