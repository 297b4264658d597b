"""What can be said of models behind servers before any is asked: what they give, and how they are named. No torch."""
import re
from collections.abc import Iterator

from tasks.opd.recipe import slots
from tasks.opd.recipe.requirements import COLUMNS, completed, needs, term_requirements
from tasks.opd.recipe.schema import Recipe
from tasks.opd.recipe.slots import Problem

GIVEN = frozenset({"sampled", "top_k"})


def served(recipe: Recipe) -> set[str]:
    """The models of the pair that are behind a server."""
    makers = {"teacher": recipe.pair.teacher, **recipe.pair.others}
    return {name for name, maker in makers.items() if slots.entry_of(maker, "maker").remote}


def servers_can(recipe: Recipe) -> Iterator[Problem]:
    """A server gives every column asked of its model, at temperature 1."""
    way = "or give the pair its folder ({name: folder, path: ...})"
    for model, want in needs(recipe).items():
        if model not in served(recipe):
            continue
        requiring = [f"terms.{i}" for i, term in enumerate(recipe.terms)
                     if {"hidden", "entropy"} & set(term_requirements(term))]
        for column in (c for c in COLUMNS if want[c] and c not in GIVEN):
            out = f"use support teacher_top_k, {way}" if column == "hidden" else way.removeprefix("or ")
            yield Problem(key_of(model), f"a server cannot give {column}, which {', '.join(requiring)} needs; {out}")
        if recipe.loss.temperature != 1:
            yield Problem("loss.temperature", f"model {model} is behind a server, which scores at temperature 1; use "
                          f"loss.temperature=1, {way}", recipe.loss.temperature)


def servers_are_named(recipe: Recipe) -> Iterator[Problem]:
    """A server is named without secrets, has no weights to start from, and is not trained."""
    makers = {"teacher": recipe.pair.teacher, **recipe.pair.others}
    if slots.entry_of(recipe.pair.student, "maker").remote:
        yield Problem("pair.student", "a model behind a server cannot be trained; give its folder "
                      "({name: folder, path: ...})", recipe.pair.student.name)
    made = {"student", *needs(recipe)}  # a pair may name models that this recipe does not ask for
    for name, maker in {"student": recipe.pair.student, **makers}.items():
        if name in made and maker.params.get("of") in served(recipe):
            yield Problem(f"{key_of(name)}.of", "is behind a server and has no weights here; name another model",
                          maker.params["of"])
    for name in sorted(served(recipe)):
        params, spelling = completed(makers[name], "maker"), slots.entry_of(makers[name], "maker").spelling
        if not re.fullmatch(spelling["key"], params.get("key") or ""):  # its value is never shown
            yield Problem(f"{key_of(name)}.key", "must be the name of an environment variable that holds the server's "
                          "key, begins with OPD_ and ends in _KEY, _TOKEN or _SECRET, such as OPD_TEACHER_KEY: no "
                          "other variable is sent to a server. Never the key itself, which would be kept with the "
                          "recipe")
        if not all(re.fullmatch(spelling["urls"], url) for url in params.get("urls") or []):
            yield Problem(f"{key_of(name)}.urls", "must be like http://host:8000, without user, password or query; "
                          "a key goes into an environment variable that `key` names")


def key_of(model: str) -> str:
    """Where a recipe names a model of the pair."""
    return f"pair.{model}" if model in ("student", "teacher") else f"pair.others.{model}"
