"""What can be said of a recipe without models: combinations that are silently wrong, what teachers must give, and
whether the engine can. No torch. Everything is data or a small rule; a rule names what is wrong and the way out.
"""
from collections.abc import Callable, Iterator
from typing import Any

from tasks.opd import slots
from tasks.opd.recipe import Recipe, Slot, Source, Term
from tasks.opd.slots import Problem

COLUMNS = ("sampled", "top_k", "entropy", "hidden")
ENGINES = {  # engine -> what it can score
    "torch": frozenset({"sampled", "top_k", "entropy", "hidden"}),
    "vllm": frozenset({"sampled", "top_k"}),
}
SUPPORT_NEEDS = {  # support -> columns of the teacher's signal ("k": its own parameter); not listed: hidden
    "sampled": {"sampled": True}, "teacher_top_k": {"top_k": "k"},
    "student_top_k": {"hidden": True}, "full": {"hidden": True},
}
WAY_OUT = {"hidden": "use engine.name=torch, or support teacher_top_k, which needs only the teacher's k likeliest",
           "entropy": "use engine.name=torch"}
IDENTITY = {  # source -> the parameters that say which items these are; a template or a seed does not make others
    "tiny": ("seed",), "reasoning_gym": ("dataset",), "jsonl": ("path",), "hub": ("dataset", "config", "split"),
}
SEED_SHIFTS = frozenset({"reasoning_gym"})  # item i of seed s is item i + s of seed 0
SOLVED = {  # source -> whether its items carry worked solutions; by the dataset, or by a parameter that names the field
    "tiny": lambda params: True,
    "reasoning_gym": lambda params: params.get("dataset") in {"gsm_symbolic"},
    "jsonl": lambda params: bool(params.get("solution")),
    "hub": lambda params: bool(params.get("solution")) or params.get("dataset") == "openai/gsm8k",
}
Found = Iterator[Problem]


def problems(recipe: Recipe) -> list[Problem]:
    """All that is wrong with how the recipe's settings go together."""
    found = [problem for rule in RULES for problem in rule(recipe)]
    for index, term in enumerate(recipe.terms):
        found += [problem for rule in TERM_RULES for problem in rule(recipe, term, f"terms.{index}")]
    return found


def needs(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """What each teacher must give, the union over the terms: model name -> {sampled, top_k, entropy, hidden}."""
    wants: dict[str, dict[str, Any]] = {}
    for term in recipe.terms:
        if not needs_teacher(term):
            continue
        want = wants.setdefault(recipe.teacher.model, {"sampled": False, "top_k": 0, "entropy": False, "hidden": False})
        for column, amount in SUPPORT_NEEDS.get(term.support.name, {"hidden": True}).items():
            amount = completed(term.support, "support").get("k") if amount == "k" else amount
            want[column] = max(want[column], amount or 0) if column == "top_k" else bool(amount) or want[column]
    return wants


def report(recipe: Recipe, provenance: dict[str, str] | None = None) -> dict[str, Any]:
    """What `opd check` shows, JSON-able: problems, what the teachers must give, what the engine can, files read."""
    read = {source.rsplit(":", 1)[0] for source in (provenance or {}).values() if not source.startswith("override ")}
    return {"name": recipe.name, "problems": [str(problem) for problem in problems(recipe)], "needs": needs(recipe),
            "engine": {"name": recipe.engine.name, "columns": [c for c in COLUMNS if c in ENGINES[recipe.engine.name]]},
            "files": sorted(read)}


def completed(slot: Slot, kind: str) -> dict[str, Any]:
    """A slot's parameters with defaults; what is wrong with them is reported elsewhere."""
    return slots.check(slot, kind)[0]


def needs_teacher(term: Term) -> bool:
    """Whether the term reads a teacher's signal."""
    kind, slot = ("divergence", term.divergence) if term.divergence else ("advantage", term.advantage)
    return slot.name not in slots.constant(kind, "WITHOUT_TEACHER", frozenset())


def on_tokens_written(term: Term) -> bool:
    """Whether the term judges only the tokens written, so that the law they were drawn from matters."""
    return term.support.name == "sampled" and (term.advantage is not None or needs_teacher(term))


def divergence_fits(recipe: Recipe, term: Term, key: str) -> Found:
    """A divergence has a support to sum over, and an estimator made for it."""
    if term.divergence is None:
        return
    name, support, estimator = term.divergence.name, term.support.name, term.estimator.name
    takes = slots.constant("estimator", "TAKES", {}).get(estimator)
    if takes == "advantage":
        way = ", or advantage: teacher_gap in place of the divergence" if needs_teacher(term) else ""
        message = f"needs an advantage, but the term has divergence {name}; use estimator: exact{way}"
        yield Problem(f"{key}.estimator", message, estimator)
    elif takes == "target" and (name != "reverse_kl" or support != "sampled"):
        message = f"estimates reverse_kl on support sampled, not {name} on {support}; use those, or estimator: exact"
        yield Problem(f"{key}.estimator", message, estimator)
    elif takes == "divergence" and support == "sampled" and needs_teacher(term):
        way = ", or estimator: k2 or k3, or advantage: teacher_gap" if name == "reverse_kl" else ""
        yield Problem(f"{key}.support", f"{name} with estimator {estimator} compares distributions, not one token; "
                      f"use support: full, teacher_top_k or student_top_k{way}", support)
    if not needs_teacher(term) and support != "sampled":
        yield Problem(f"{key}.support", f"{name} is of the tokens written; use support: sampled", support)


def advantage_fits(recipe: Recipe, term: Term, key: str) -> Found:
    """An advantage is of tokens written, goes into a policy gradient, and a group has at least two rollouts."""
    if term.advantage is None:
        return
    name = term.advantage.name
    if slots.constant("estimator", "TAKES", {}).get(term.estimator.name) != "advantage":
        yield Problem(f"{key}.estimator", f"advantage {name} needs estimator: policy_gradient", term.estimator.name)
    if term.support.name != "sampled":
        message = f"advantage {name} is of the tokens written; use support: sampled"
        yield Problem(f"{key}.support", message, term.support.name)
    if name == "grpo" and not any(writer.n >= 2 for writer in recipe.rollout.writers if writer.name == "student"):
        yield Problem("rollout.writers", f"{key} has advantage grpo, which compares the rollouts of a prompt; "
                      "give the writer student n: 2 or more")


def support_says_something(recipe: Recipe, term: Term, key: str) -> Found:
    """A support of one token is compared with its tail, not with itself."""
    params = completed(term.support, "support")
    if params.get("k") == 1 and params.get("renormalise") == "both":
        yield Problem(f"{key}.support.k", "one token renormalised has probability 1 on both sides: the loss is always "
                      "0; use renormalise: tail, or a larger k", 1)


def clip_has_a_sum(recipe: Recipe, term: Term, key: str) -> Found:
    """What is clipped is a sum over a support."""
    if term.clip.at != "none" and (term.divergence is None or term.support.name == "sampled"):
        yield Problem(f"{key}.clip.at", "cuts a divergence over a support; use a divergence on support full, "
                      "teacher_top_k or student_top_k, or clip.at: none", term.clip.at)


def law_is_whole(recipe: Recipe, term: Term, key: str) -> Found:
    """Terms on the tokens written need the law they assume: the one sampled from."""
    if not on_tokens_written(term) or "truncated_sampling" in recipe.accepts:
        return
    law, tau = recipe.rollout.sampling, recipe.loss.temperature
    odd = {"rollout.sampling.top_p": (law.top_p, law.top_p < 1), "rollout.sampling.top_k": (law.top_k, law.top_k > 0),
           "rollout.sampling.temperature": (law.temperature, law.temperature != tau)}
    for name, (value, bad) in odd.items():
        if bad and any(writer.name == "student" for writer in recipe.rollout.writers):
            yield Problem(name, f"{key} learns from tokens written, to be drawn from the student's own law: top_p 1, "
                          f"top_k 0, temperature {tau} (loss.temperature); or say accepts: [truncated_sampling]", value)


def rows_exist(recipe: Recipe, term: Term, key: str) -> Found:
    """Somebody writes the rollouts a term takes."""
    authors = {writer.name for writer in recipe.rollout.writers}
    if term.rows.name not in slots.constant("rows", "ANY_AUTHOR", frozenset()) and "student" not in authors:
        message = f"takes only the student's rollouts, but the writers are {', '.join(sorted(authors))}; use rows: all"
        yield Problem(f"{key}.rows", message, term.rows.name)


def teacher_is_there(recipe: Recipe) -> Found:
    """The teacher's name is a model of the pair, where a term needs it; only the student's own weights refresh."""
    teacher = recipe.teacher
    known = ["teacher", *recipe.pair.others, "self"]
    if any(map(needs_teacher, recipe.terms)) and teacher.model not in known:
        message = f"unknown model of pair {recipe.pair.name}; {slots.nearest(teacher.model, known)}"
        yield Problem("teacher.model", message, teacher.model)
    if teacher.refresh.name != "frozen" and teacher.model != "self":
        message = f"model {teacher.model} never changes; use refresh: frozen, or teacher.model: self"
        yield Problem("teacher.refresh", message, teacher.refresh.name)
    for name in {"student", "teacher", "self"} & set(recipe.pair.others):
        yield Problem(f"pair.others.{name}", "is taken; name it otherwise")


def solutions_exist(recipe: Recipe) -> Found:
    """Worked solutions are there for who copies or shows them."""
    source = recipe.prompts.source
    if SOLVED.get(source.name, lambda params: True)(completed(source, "source")):
        return
    way = "use a source with worked solutions (tiny, reasoning_gym gsm_symbolic, or name the field: `solution`)"
    if recipe.teacher.context.name == "solution" and any(map(needs_teacher, recipe.terms)):
        yield Problem("teacher.context", f"source {source.name} has no solutions; {way}", "solution")
    for index, writer in enumerate(recipe.rollout.writers):
        if writer.name == "dataset":
            message = f"source {source.name} has no solutions to copy; {way}"
            yield Problem(f"rollout.writers.{index}", message, "dataset")


def prompts_fit(recipe: Recipe) -> Found:
    """A prompt and its completion fill the context together; a round takes no more prompts than there are."""
    context = recipe.pair.context_tokens
    laws = {"prompts": (recipe.prompts, recipe.rollout.sampling)}
    laws |= {f"benchmarks.{i}": (b, b.sampling) for i, b in enumerate(recipe.benchmarks)}
    for key, (source, law) in laws.items():
        if source.max_prompt_tokens + law.max_new_tokens > context:
            message = f"with max_new_tokens {law.max_new_tokens} exceeds pair.context_tokens {context}; " \
                      f"use at most {max(0, context - law.max_new_tokens)}"
            yield Problem(f"{key}.max_prompt_tokens", message, source.max_prompt_tokens)
    if recipe.rollout.prompts_per_round > recipe.prompts.count:
        yield Problem("rollout.prompts_per_round", f"exceeds prompts.count {recipe.prompts.count}",
                      recipe.rollout.prompts_per_round)


def items(source: Source) -> tuple[tuple, range]:
    """Which items of which data a source takes: (identity, indices shifted by the seed where it only shifts)."""
    params, name = completed(source.source, "source"), source.source.name
    shift = params.get("seed") if name in SEED_SHIFTS else 0
    first = source.first + (shift if isinstance(shift, int) else 0)
    keys = IDENTITY.get(name, sorted(params))
    return (name, *(str(params.get(key)) for key in keys)), range(first, first + source.count)


def splits_are_disjoint(recipe: Recipe) -> Found:
    """No benchmark item is a training item."""
    data, train = items(recipe.prompts)
    for index, benchmark in enumerate(recipe.benchmarks):
        other, held_out = items(benchmark)
        if data == other and max(train.start, held_out.start) < min(train.stop, held_out.stop):
            clear = max(0, benchmark.first + train.stop - held_out.start)
            message = f"items {held_out.start} to {held_out.stop - 1} overlap the training prompts, items " \
                      f"{train.start} to {train.stop - 1}; start at {clear}"
            yield Problem(f"benchmarks.{index}.first", message, benchmark.first)


def engine_can(recipe: Recipe) -> Found:
    """The engine gives every column the terms need."""
    for model, want in needs(recipe).items():
        for column in (c for c in COLUMNS if want[c] and c not in ENGINES[recipe.engine.name]):
            asking = [f"terms.{i}.support {t.support.name}" for i, t in enumerate(recipe.terms)
                      if needs_teacher(t) and column in SUPPORT_NEEDS.get(t.support.name, {"hidden": True})]
            yield Problem("engine.name", f"cannot give {column} of model {model}, which {', '.join(asking)} needs; "
                          f"{WAY_OUT.get(column, 'use engine.name=torch')}", recipe.engine.name)


RULES: list[Callable[[Recipe], Found]] = [
    teacher_is_there, solutions_exist, prompts_fit, splits_are_disjoint, engine_can]
TERM_RULES: list[Callable[[Recipe, Term, str], Found]] = [
    divergence_fits, advantage_fits, support_says_something, clip_has_a_sum, law_is_whole, rows_exist]
