"""What the terms of a recipe ask of its models: which of them score, which columns, over which rollouts. No torch.

Everything is read off the recipe and the entries of its slots (`core.entries`), so that it is known before anything is
loaded. A teacher that stands for several models is resolved here.
"""
from typing import Any

from tasks.opd.core.entries import Entry
from tasks.opd.recipe import slots
from tasks.opd.recipe.schema import Recipe, Slot, Term

COLUMNS = ("sampled", "top_k", "entropy", "hidden")
COLUMN_NEEDS = {  # column that a slot reads -> columns of the teacher's signal
    "teacher": {"sampled": True}, "teacher_entropy": {"entropy": True},
    "forward_kl": {"hidden": True}, "reverse_kl": {"hidden": True}, "reliability": {"hidden": True},
}
OF_STUDENT = frozenset({"self", "start", "live"})   # models that are versions of the student
OF_EXPERTS = frozenset({"routed", "mixed"})         # stand for the pair's experts


def terms_of(recipe: Recipe) -> list[dict[str, Any]]:
    """The recipe's terms as the trainer takes them (`part_of`).

    A term of a routed or mixed teacher becomes one part for each expert, whose weights and statistics are its own. The
    parts of one term (`group`) have its denominator in common, to which the parts of a mixed one, who look at the same
    tokens, add a `share` each.
    """
    parts, experts = [], recipe.pair.experts
    for index, term in enumerate(recipe.terms):
        part, mixed = part_of(term, recipe.teacher.model) | {"group": str(index)}, recipe.teacher.model == "mixed"
        if part["models"].get("teacher") not in OF_EXPERTS:
            parts.append(part)
            continue
        of_domains = {domain: model for domain, model in experts.items() if not term.domains or domain in term.domains}
        chosen = [("", model) for model in dict.fromkeys(experts.values())] if mixed else list(of_domains.items())
        share = 1 / max(1, len(chosen)) if mixed else 1.0
        parts += [part | {"models": part["models"] | {"teacher": model}, "domain": domain, "share": share,
                          "coefficient": term.coefficient * share} for domain, model in chosen]
    return parts


def part_of(term: Term, teacher: str = "teacher") -> dict[str, Any]:
    """A term as plain data, with what is known of it before anything is loaded.

    `models` maps what its target calls a model to the name under which it scores, the main one first; `needs` are the
    columns that it reads, of the student or of models.
    """
    main = {"teacher": teacher} if "teacher" in main_models(term) else {}
    models = main | {name: name for name in models_named(term)} if needs_teacher(term) else {}
    return term.model_dump(mode="json") | {
        "models": models, "domain": "", "group": "", "share": 1.0, "needs": sorted(columns_read(term)),
        "compares": compares(term), "needs_teacher": needs_teacher(term)}


def main_models(term: Term) -> tuple[str, ...]:
    """What the term's target calls the model it is about: `teacher`, unless it does not look at the teacher."""
    return () if slots.entry_of(term.target, "target").without_teacher else ("teacher",)


def models_named(term: Term) -> list[str]:
    """The further models that the term's target names, in its parameters or by itself."""
    return list(slots.entry_of(term.target, "target").models)


def columns_read(term: Term) -> set[str]:
    """The columns that the term's rows, weights, advantage and estimator read."""
    chosen = [("rows", term.rows), *(("weight", weight) for weight in term.weights), ("estimator", term.estimator)]
    chosen += [("advantage", term.advantage)] if term.advantage else []
    return set().union(*(slots.entry_of(slot, kind).needs for kind, slot in chosen))


def signal_of(column: str) -> dict[str, Any]:
    """What a column that a slot reads takes of the teacher's signal: {column: True or k}; `overlap:16` its top 16."""
    name, _, k = column.partition(":")
    return {"top_k": int(k)} if name == "overlap" else COLUMN_NEEDS.get(name, {})


def term_requirements(term: Term) -> dict[str, Any]:
    """What the term asks of each of its models: {sampled, top_k, entropy, hidden}, absent ones not."""
    read, support, want = columns_read(term), slots.entry_of(term.support, "support"), {}
    unnormalised, written = slots.entry_of(term.target, "target").unnormalised, support.covers == "written"
    asked = [signal_of(column) for column in read]
    if compares(term) or "candidates" in read or (term.advantage and written and "teacher" not in read):
        asked.append((support.signal or {}) | ({"hidden": True} if unnormalised and not written else {}))
    for column, amount in (item for need in asked for item in need.items()):
        want[column] = max(want.get(column, 0), amount or 0) if column == "top_k" else True
    return want


def needs(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """What each model must give, the union over the terms: its name -> {sampled, top_k, entropy, hidden}.

    What it thinks of the tokens written is always among it: that costs nothing and is reported.
    """
    wants: dict[str, dict[str, Any]] = {}
    for part in terms_of(recipe):
        asked = term_requirements(recipe.terms[int(part["group"])]) if part["models"] else {}
        for name in part["models"].values():
            want = wants.setdefault(name, {"sampled": True, "top_k": 0, "entropy": False, "hidden": False})
            want |= {column: max(want[column], amount) for column, amount in asked.items()}
    return wants


def share_scores(one: Recipe, other: Recipe, model: str) -> bool:
    """Whether two recipes, each as it is in one round, may ask a model for the same scores of the same rollouts.

    Settings of the engine are not compared: recipes that differ in them alone are said to share.
    """
    def asked(recipe: Recipe) -> list:
        return [recipe.seed, recipe.pair, recipe.training_sources(), recipe.rollout, recipe.refine,
                recipe.teacher.context, recipe.loss.temperature, needs(recipe).get(model), domains_of(recipe, model)]
    return asked(one) == asked(other)


def domains_of(recipe: Recipe, model: str) -> list[str] | None:
    """The domains of the rollouts that a model has to score; None: all."""
    asked = [[part["domain"]] if part["domain"] else part["domains"]
             for part in terms_of(recipe) if model in part["models"].values()]
    return sorted(set().union(*asked)) if all(asked) else None


def completed(slot: Slot, kind: str) -> dict[str, Any]:
    """A slot's parameters with defaults; what is wrong with them is reported elsewhere."""
    return slots.check(slot, kind)[0]


def needs_teacher(term: Term) -> bool:
    """Whether the term reads a teacher's signal: in its divergence, or in rows, weights and advantage."""
    return compares(term) or any(column == "candidates" or signal_of(column) for column in columns_read(term))


def on_tokens_written(term: Term) -> bool:
    """Whether the term judges only the tokens written, so that the distribution they were drawn from matters."""
    written = slots.entry_of(term.support, "support").covers == "written"
    return written and (term.advantage is not None or compares(term))


def compares(term: Term) -> bool:
    """Whether the term's divergence looks at a target."""
    return term.divergence is not None and not slots.entry_of(term.divergence, "divergence").without_teacher


def writers_of(recipe: Recipe) -> list[Entry]:
    """The entries of the recipe's writers."""
    return [slots.entry_of(writer, "writer") for writer in recipe.rollout.writers]


def refiners_of(recipe: Recipe) -> list[Entry]:
    """The entries of the recipe's refiners."""
    return [slots.entry_of(slot, "refiner") for slot in recipe.refine]
