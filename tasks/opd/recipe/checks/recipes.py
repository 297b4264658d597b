"""What can be said of a recipe without models: combinations that are silently wrong, what teachers must give, and
whether the engine can. No torch. Everything is data or a small rule; a rule names what is wrong and the way out.
"""
import itertools
from collections.abc import Callable
from typing import Any

from tasks.opd.recipe import slots
from tasks.opd.recipe.checks import schedules
from tasks.opd.recipe.checks.folders import templates_missing
from tasks.opd.recipe.checks.servers import served, servers_are_named, servers_can
from tasks.opd.recipe.checks.terms import TERM_RULES, Found
from tasks.opd.recipe.requirements import (
    COLUMNS,
    OF_EXPERTS,
    OF_STUDENT,
    completed,
    main_models,
    models_named,
    needs,
    needs_teacher,
    refiners_of,
    term_requirements,
    terms_of,
    writers_of,
)
from tasks.opd.recipe.schema import Recipe, Source
from tasks.opd.recipe.slots import Problem

ENGINES = {  # engine -> what it can score
    "torch": frozenset({"sampled", "top_k", "entropy", "hidden"}),
    "vllm": frozenset({"sampled", "top_k"}),
}
WAY_OUT = {"hidden": "use engine.scores=torch, or support teacher_top_k, which needs only the teacher's k likeliest"}


def problems(recipe: Recipe) -> list[Problem]:
    """All that is wrong with how the recipe's settings go together."""
    found = [problem for rule in RULES for problem in rule(recipe)]
    for index, term in enumerate(recipe.terms):
        found += [problem for rule in TERM_RULES for problem in rule(recipe, term, f"terms.{index}")]
    return found


def notes(recipe: Recipe, num_rounds: int) -> list[str]:
    """What is sound and yet may not be meant, in a run of so many rounds."""
    return schedules.never_held(recipe, num_rounds) + uneven_teachers(recipe)


def uneven_teachers(recipe: Recipe) -> list[str]:
    """Pairs of terms with different teachers that only some rollouts have in common, a note each.

    Where the rows are neither the same nor disjoint, a rollout that both take has the sum of two gradients. A term
    that holds the student near a version of itself is no further teacher.
    """
    anchors, teachers = OF_STUDENT - {recipe.teacher.model}, {}
    for part in terms_of(recipe):
        if main := next(iter(part["models"].values()), None):
            teachers.setdefault(int(part["group"]), set()).add(main)
    teachers = {index: some for index, some in teachers.items() if not some <= anchors}
    found = []
    for one, other in itertools.combinations(teachers, 2):
        rows = [recipe.terms[index].rows for index in (one, other)]
        apart = any(other.name in slots.entry_of(slot, "rows").disjoint for slot, other in (rows, rows[::-1]))
        if teachers[one] != teachers[other] and rows[0] != rows[1] and not apart:
            found.append(f"terms.{one} (rows {rows[0].name}) and terms.{other} (rows {rows[1].name}) have different "
                         "teachers: rollouts that both take weigh as much as both coefficients together "
                         f"({recipe.terms[one].coefficient:g} + {recipe.terms[other].coefficient:g}), others as one; "
                         "give both the same rows and coefficients that sum to 1, or disjoint rows")
    return found


def report(recipe: Recipe, provenance: dict[str, str] | None = None) -> dict[str, Any]:
    """What `opd check` shows, JSON-able: problems, notes, what changes as it goes, what teachers must give, what
    the engine can, files read."""
    read = {source.rsplit(":", 1)[0] for source in (provenance or {}).values() if not source.startswith("override ")}
    columns = [column for column in COLUMNS if column in ENGINES[recipe.engine_for("score")["name"]]]
    return {"name": recipe.name, "problems": [str(problem) for problem in problems(recipe)],
            "notes": notes(recipe, recipe.rounds) + templates_missing(recipe),
            "changes": schedules.changes(recipe), "needs": needs(recipe),
            "engine": {"name": recipe.engine.name, "columns": columns}, "files": sorted(read)}


def refiners_fit(recipe: Recipe) -> Found:
    """Who asks a teacher has one; a rewrite can be kept, reads rewards that are there, and some term learns from it."""
    for index, (slot, entry) in enumerate(zip(recipe.refine, refiners_of(recipe))):
        key = f"refine.{index}"
        if entry.asks_teacher and recipe.teacher.model in OF_EXPERTS:
            yield Problem("teacher.model", f"stands for several, but {key} {slot.name} asks one; use a model of the "
                          "pair by its name, or self", recipe.teacher.model)
        if entry.reads_rewards:
            yield from rewriting_fits(recipe, index, completed(slot, "refiner"))
        if entry.interleaved:
            yield from interleaving_fits(recipe, index)


def rewriting_fits(recipe: Recipe, index: int, params: dict[str, Any]) -> Found:
    """What `refiners_fit` says of a refiner by rewards, which has the teacher rewrite rollouts."""
    key, name = f"refine.{index}", recipe.refine[index].name
    if index:
        yield Problem(key, f"reads rewards, which {recipe.refine[index - 1].name} before it takes from what it "
                      f"changes; put {name} first", name)
    if params.get("which") == "succeeded" and params.get("keep") == "repaired":
        yield Problem(f"{key}.keep", "a success cannot be repaired; use keep: all, or which: failed", "repaired")
    authors = refiners_of(recipe)[index].authors
    if "student" not in authors and not any(slots.entry_of(term.rows, "rows").any_author for term in recipe.terms):
        yield Problem("terms.0.rows", f"takes only the student's rollouts, but {key} {name} has the teacher write "
                      "them; use rows: all", recipe.terms[0].rows.name)


def interleaving_fits(recipe: Recipe, index: int) -> Found:
    """What `refiners_fit` says of refiners that let student and teacher take turns."""
    key, name = f"refine.{index}", recipe.refine[index].name
    for before in (slot.name for slot, entry in zip(recipe.refine[:index], refiners_of(recipe)) if entry.drops_student):
        yield Problem(key, f"works on the student's rollouts, and {before} before it leaves none; let {before} keep "
                      f"others and rewrite or keep fewer (others: keep, which: failed), or take {name} out", name)
    if not any("student" in writer.authors for writer in writers_of(recipe)):
        authors = ", ".join(sorted({writer.name for writer in recipe.rollout.writers}))
        yield Problem(key, f"works on the student's rollouts, but the writers are {authors}; add the writer "
                      "student, or take `refine` out", name)
    if recipe.teacher.model in served(recipe):
        yield Problem("teacher.model", f"{key} {name} needs the teacher's caches, and a teacher behind a server lends "
                      "none; give teacher.model a model of the pair that lies in a folder, or take `refine` out",
                      recipe.teacher.model)


def teacher_is_there(recipe: Recipe) -> Found:
    """Models that terms look at are models of the pair; only the student's own weights refresh."""
    teacher, pair = recipe.teacher, recipe.pair
    known = ["teacher", *pair.others, *sorted(OF_STUDENT)]
    teaching = [*known, *sorted(OF_EXPERTS)]
    refining = any(refiner.asks_teacher for refiner in refiners_of(recipe))
    if refining or any(needs_teacher(term) and "teacher" in main_models(term) for term in recipe.terms):
        if teacher.model not in teaching:
            message = f"unknown model of pair {pair.name}; {slots.nearest(teacher.model, teaching)}"
            yield Problem("teacher.model", message, teacher.model)
        if teacher.model in OF_EXPERTS and not pair.experts:
            yield Problem("teacher.model", f"pair {pair.name} has no experts; name a model for each domain: "
                          "pair.experts: {domain: model}", teacher.model)
    for domain, model in pair.experts.items():
        if model not in ("teacher", *pair.others):
            message = f"unknown model of pair {pair.name}; {slots.nearest(model, ['teacher', *pair.others])}"
            yield Problem(f"pair.experts.{domain}", message, model)
    for index, term in enumerate(recipe.terms):
        if "teacher" in models_named(term) and teacher.model != "teacher":
            message = f"`teacher` means the recipe's teacher, which is {teacher.model}; give the pair's another name " \
                      "too, in pair.others"
            yield Problem(f"terms.{index}.target", message, "teacher")
        for name in (name for name in models_named(term) if name not in known):
            message = f"unknown model of pair {pair.name}; {slots.nearest(name, known)}; name it in pair.others"
            yield Problem(f"terms.{index}.target", message, name)
    if slots.entry_of(teacher.refresh, "refresh").moves and teacher.model != "self":
        message = f"model {teacher.model} never changes; use refresh: frozen, or teacher.model: self"
        yield Problem("teacher.refresh", message, teacher.refresh.name)
    for name in ({"student", "teacher"} | OF_STUDENT | OF_EXPERTS) & set(pair.others):
        yield Problem(f"pair.others.{name}", "is taken; name it otherwise")


def solutions_exist(recipe: Recipe) -> Found:
    """Worked solutions are there for who copies or shows them."""
    sources, context = list(recipe.training_sources().values()), recipe.teacher.context
    unsolved = [some for some in sources if not slots.entry_of(some.source, "source").solved]
    if not unsolved:
        return
    source = unsolved[0].source
    way = "use a source with worked solutions (tiny, reasoning_gym gsm_symbolic, or name the field: `solution`)"
    every = len(unsolved) == len(sources)
    if every and slots.entry_of(context, "context").shows_solution and any(map(needs_teacher, recipe.terms)):
        yield Problem("teacher.context", f"source {source.name} has no solutions; {way}", context.name)
    for index, refiner in enumerate(refiners_of(recipe)):
        if every and refiner.shows_solution:
            message = f"source {source.name} has no solutions; {way}; or solution: false"
            yield Problem(f"refine.{index}.solution", message, True)
    for index, (writer, entry) in enumerate(zip(recipe.rollout.writers, writers_of(recipe))):
        asked = [some for some in sources if not {some.domain}.isdisjoint(writer.domains)] or sources
        if entry.shows_solution and all(some in unsolved for some in asked):
            message = f"source {source.name} has no solutions to copy; {way}"
            yield Problem(f"rollout.writers.{index}", message, writer.name)


def prompts_fit(recipe: Recipe) -> Found:
    """A prompt and its completion fill the context together; a round takes no more prompts than there are."""
    context = recipe.pair.context_tokens
    training = recipe.training_sources()
    samplings = {key: (source, recipe.rollout.sampling) for key, source in training.items()}
    samplings |= {f"benchmarks.{i}": (b, b.sampling) for i, b in enumerate(recipe.benchmarks)}
    for key, (source, sampling) in samplings.items():
        if source.max_prompt_tokens + sampling.max_new_tokens > context:
            message = f"with max_new_tokens {sampling.max_new_tokens} exceeds pair.context_tokens {context}; " \
                      f"use at most {max(0, context - sampling.max_new_tokens)}"
            yield Problem(f"{key}.max_prompt_tokens", message, source.max_prompt_tokens)
    for key, source, number in zip(training, training.values(), recipe.prompts_per_round().values()):
        if number > source.count:
            setting = "rollout.prompts_per_round" if source is recipe.prompts else f"{key}.per_round"
            yield Problem(setting, f"exceeds {key}.count {source.count}", number)


def domains_are_known(recipe: Recipe) -> Found:
    """A writer's and a term's domains are those of some prompts, where all sources say theirs."""
    known = {source.domain for source in recipe.training_sources().values()}
    if "" in known:
        return
    given = {f"rollout.writers.{i}.domains": writer.domains for i, writer in enumerate(recipe.rollout.writers)}
    given |= {f"terms.{i}.domains": term.domains for i, term in enumerate(recipe.terms)}
    for key, domains in given.items():
        for name in (name for name in domains if name not in known):
            yield Problem(key, f"no prompts are of this domain; {slots.nearest(name, sorted(known))}", name)


def divergence_has_room(recipe: Recipe) -> Found:
    """The divergence to the teacher is computed over whole answers: one of any length must fit."""
    for index, benchmark in enumerate(recipe.benchmarks):
        limit, longest = benchmark.divergence_max_tokens, benchmark.sampling.max_new_tokens
        if 0 < limit < longest:
            yield Problem(f"benchmarks.{index}.divergence_max_tokens", f"an answer may have {longest} tokens "
                          "(sampling.max_new_tokens), and only whole ones are taken; use at least that, or 0 for all "
                          "answers", limit)


def items(source: Source) -> tuple[tuple, range]:
    """Which items of which data a source takes: (identity, indices shifted by the seed where it only shifts)."""
    name, params = source.source.name, completed(source.source, "source")
    entry = slots.entry_of(source.source, "source")
    shift = params.get("seed") if entry.seed_shifts else 0
    first = source.first + (shift if isinstance(shift, int) else 0)
    keys = sorted(params) if entry.identity is None else entry.identity
    return (name, *(str(params.get(key)) for key in keys)), range(first, first + source.count)


def splits_are_disjoint(recipe: Recipe) -> Found:
    """No benchmark item is a training item."""
    for (index, benchmark), source in itertools.product(enumerate(recipe.benchmarks),
                                                        recipe.training_sources().values()):
        (data, train), (other, held_out) = items(source), items(benchmark)
        if data == other and max(train.start, held_out.start) < min(train.stop, held_out.stop):
            clear = max(0, benchmark.first + train.stop - held_out.start)
            message = f"items {held_out.start} to {held_out.stop - 1} overlap the training prompts, items " \
                      f"{train.start} to {train.stop - 1}; start at {clear}"
            yield Problem(f"benchmarks.{index}.first", message, benchmark.first)


def engine_can(recipe: Recipe) -> Found:
    """The engine that scores gives every column the terms need, at their temperature."""
    scoring = recipe.engine_for("score")["name"]
    wants = {model: want for model, want in needs(recipe).items() if model not in served(recipe)}
    for model, want in wants.items():
        for column in (c for c in COLUMNS if want[c] and c not in ENGINES[scoring]):
            requiring = [f"terms.{i}" for i, term in enumerate(recipe.terms) if column in term_requirements(term)]
            yield Problem("engine.name", f"cannot give {column} of model {model}, which {', '.join(requiring)} needs; "
                          f"{WAY_OUT.get(column, 'use engine.scores=torch')}", recipe.engine.name)
    if scoring == "vllm" and recipe.loss.temperature != 1 and wants:
        yield Problem("loss.temperature", "vllm scores at temperature 1 only; use engine.scores=torch",
                      recipe.loss.temperature)


def vllm_can(recipe: Recipe) -> Found:
    """What vLLM refuses when it starts or samples, said before it is started."""
    if recipe.engine.name != "vllm":
        return
    if recipe.engine.dtype == "float64":
        yield Problem("engine.dtype", "vllm computes in float32 or bfloat16", "float64")
    samplings = {"rollout.sampling": recipe.rollout.sampling}
    samplings |= {f"benchmarks.{i}.sampling": benchmark.sampling for i, benchmark in enumerate(recipe.benchmarks)}
    for key, sampling in samplings.items():
        if sampling.temperature > 2:
            yield Problem(f"{key}.temperature", "vllm samples at temperatures up to 2", sampling.temperature)


RULES: list[Callable[[Recipe], Found]] = [
    teacher_is_there, refiners_fit, solutions_exist, prompts_fit, domains_are_known, divergence_has_room,
    splits_are_disjoint, schedules.budget_problems, engine_can, vllm_can, servers_can, servers_are_named]
