"""What is known of an entry is read from the entry: every fact changes what is done, and nobody asks for names."""
import ast
import dataclasses
import importlib
from pathlib import Path

import pytest
import torch

from tasks.bootstrap import models_needed
from tasks.opd.core.entries import Entry
from tasks.opd.objective.loss import target_logprobs
from tasks.opd.objective.supports import TeacherTokens
from tasks.opd.objective.terms import bind_terms, prepare
from tasks.opd.recipe import loading, requirements, slots
from tasks.opd.recipe.checks import recipes, schedules
from tasks.opd.recipe.schedule import set_dotted
from tasks.opd.recipe.schema import Recipe, Term
from tasks.opd.training.preflight import check_stops
from tests.column_fixtures import columns
from tests.tiny_models import prepared, rollout, term, with_teacher

ROOT = Path(__file__).resolve().parents[2]
FULL = {"divergence": "reverse_kl", "support": "full"}
TOP = {"divergence": "reverse_kl", "support": {"name": "teacher_top_k", "k": 2}}
BASE = loading.load("opd_reverse_kl")                        # one student writes, its teacher gap is the advantage


def recipe(**changes) -> Recipe:
    """The vanilla recipe with dotted keys set (`__` for the dot), not yet checked."""
    data = BASE.model_dump(mode="json")
    for key, value in changes.items():
        set_dotted(data, key.replace("__", "."), value)
    return Recipe.model_validate(data)


def refused(words: str, **changes):
    """Whether the checks say so of a recipe: a function to be asked before and after."""
    return lambda: words in "\n".join(map(str, recipes.problems(recipe(**changes))))


def reported() -> set[str]:
    """The metrics of a term with the weight skip_first."""
    bound = bind_terms([term(divergence="nll", weights=["skip_first"])])[0]
    return {name for name in prepared(bound, with_teacher([rollout(0, [1], [2, 3, 4, 5])])).report if "mean" in name}


def tokens_of_a_teacher(bound, ids):
    """Where the target of a term finds log-probabilities: in the teacher's top-k, or nowhere without a head."""
    teacher = TeacherTokens(ids=ids, logprobs=torch.full(ids.shape, -1.0), num_tokens=len(ids))
    try:
        return target_logprobs(bound, ids, None, {"teacher": teacher}).tolist()
    except AttributeError:
        return "no head"


def compared_with() -> list[float]:
    """What the ratio of a policy gradient is to where the student said -1 and the teacher -3."""
    bound = bind_terms([term(advantage="teacher_gap", estimator="policy_gradient")])[0]
    return prepare(bound, columns([1], old_logprobs=[-1.0], teacher=[-3.0])).old_logprobs.tolist()


def sees_student() -> str:
    """What a target that reads the student misses when it is not given it."""
    class Full:
        full = torch.zeros(1, 3)
    try:
        target_logprobs(bind_terms([term(target="veto", **FULL)])[0], None, Full, {"teacher": Full})
        return "given"
    except KeyError as error:
        return f"no {error}"


SERVER = {"name": "server", "params": {"urls": ["http://a:1"], "model": "m", "tokenizer": "t", "key": "OPD_KEY"}}
NO_SOLUTIONS = {"name": "jsonl", "params": {"path": "questions.jsonl"}}
CUT_TWICE = [{"name": "truncate", "params": {"tokens": 5}}] * 2
OTHER = {"name": "reference", "params": {"model": "random"}}
FACTS = {  # fact -> (kind, entry, value, what is looked at, before, after)
    "needs": ("rows", "sampled", ("entropy",), lambda: requirements.columns_read(Term(**FULL)), set(), {"entropy"}),
    "grouped": ("rows", "sampled", True, refused("which compares the rollouts of a prompt"), False, True),
    "any_author": ("rows", "sampled", True, refused("takes only the student's", rollout__writers=["teacher"]),
                   True, False),
    "ignores_token": ("advantage", "teacher_gap", True, refused("is the same whichever token was written"),
                      False, True),
    "disjoint": ("rows", "failed", (), lambda: len(recipes.uneven_teachers(recipe(terms=[
        FULL | {"rows": "succeeded"}, FULL | {"rows": "failed", "target": OTHER}]))), 0, 1),
    "constant": ("weight", "skip_first", True, reported, {"skip_first_mean"}, set()),
    "masks_special": ("weight", "uniform", True, lambda: check_stops({1}, {2}, [term(**FULL)]).status, "red", "green"),
    "without_teacher": ("target", "teacher", True, lambda: requirements.main_models(Term(**FULL)), ("teacher",), ()),
    "models": ("target", "teacher", ("start",), lambda: requirements.models_named(Term(**FULL)), [], ["start"]),
    "unnormalised": ("target", "teacher", True, lambda: requirements.term_requirements(Term(**TOP)),
                     {"top_k": 2}, {"top_k": 2, "hidden": True}),
    "sees_student": ("target", "veto", False, sees_student, "given", "no 'student'"),
    "covers": ("support", "teacher_top_k", "written", lambda: requirements.on_tokens_written(Term(**TOP)), False, True),
    "signal": ("support", "full", {"entropy": True}, lambda: requirements.term_requirements(Term(**FULL)),
               {"hidden": True}, {"entropy": True}),
    "owns_ids": ("support", "teacher_top_k", False, lambda: tokens_of_a_teacher(
        bind_terms([term(**TOP)])[0], torch.tensor([[3, 4]])), [[-1.0, -1.0]], "no head"),
    "one_sided": ("divergence", "reverse_kl", True, refused("only the teacher renormalised is for", terms=[
        TOP | {"support": {"name": "teacher_top_k", "renormalise": "teacher"}}]), True, False),
    "takes": ("estimator", "exact", "advantage", refused("needs an advantage, but", terms=[FULL]), False, True),
    "estimates": ("estimator", "k2", ("jsd", "teacher"), refused("estimates jsd to target teacher", terms=[
        {"divergence": "reverse_kl", "estimator": "k2"}]), False, True),
    "old_share": ("estimator", "policy_gradient", 0.25, compared_with, [-1.0], [-2.5]),
    "authors": ("writer", "student", (), refused("takes only the student's"), False, True),
    "on_policy": ("writer", "student", False, refused("learns from tokens written", rollout__sampling__top_p=0.5),
                  True, False),
    "asks_teacher": ("writer", "student", True, lambda: models_needed(recipe(terms=[{"divergence": "nll"}])),
                     {"student"}, {"student", "teacher"}),
    "interleaved": ("refiner", "truncate", True, refused("that the teacher finds likely", refine=CUT_TWICE),
                    False, True),
    "reads_rewards": ("refiner", "truncate", True, refused("reads rewards, which truncate", refine=CUT_TWICE),
                      False, True),
    "drops_student": ("refiner", "truncate", True, refused("truncate before it leaves none", refine=[
        *CUT_TWICE, {"name": "skd"}]), False, True),
    "shows_solution": ("writer", "student", True, refused("has no solutions to copy", prompts__source=NO_SOLUTIONS),
                       False, True),
    "moves": ("refresh", "frozen", True, refused("model teacher never changes"), False, True),
    "averages": ("refresh", "frozen", True, lambda: len(list(schedules.average_is_kept(
        [(at, recipe(teacher__model="self", teacher__refresh=name)) for at, name in enumerate(("frozen", "live"))]))),
                 0, 1),
    "remote": ("maker", "tiny_student", True, refused("behind a server cannot be trained"), False, True),
    "spelling": ("maker", "server", {"key": "KEY", "urls": ".*"}, refused(
        "must be the name of an environment variable", pair__teacher=SERVER), False, True),
    "solved": ("source", "tiny", False, refused("has no solutions to copy", rollout__writers=["dataset"]), False, True),
    "identity": ("source", "tiny", (), lambda: recipes.items(recipe().prompts)[0], ("tiny", "0", "0", "59", "9"),
                 ("tiny",)),
    "seed_shifts": ("source", "tiny", True, lambda: recipes.items(
        recipe(prompts__source={"name": "tiny", "params": {"seed": 5}}).prompts)[1].start, 0, 5)}
ELSEWHERE = {"own_prompt": "tests/scoring/test_score.py", "system": "tests/scoring/test_contexts.py"}


@pytest.mark.parametrize("fact", FACTS)
def test_a_fact_is_read_from_the_entry(monkeypatch, fact):
    kind, name, value, look, before, after = FACTS[fact]
    module, table = slots.TABLES[kind]
    entries, read = getattr(importlib.import_module(f"tasks.opd.{module}"), table), slots.entry_of
    assert look() == before
    monkeypatch.setitem(entries, name, dataclasses.replace(entries[name], **{fact: value}))
    monkeypatch.setattr(slots, "entry_of", lambda slot, of: dataclasses.replace(
        read(slot, of), **({fact: value} if (of, slot.name) == (kind, name) else {})))
    assert look() == after


def test_every_fact_has_such_a_test():
    assert {field.name for field in dataclasses.fields(Entry)} == {"function", *FACTS, *ELSEWHERE}
    assert all(f"{fact}=" in (ROOT / file).read_text() for fact, file in ELSEWHERE.items())


def test_a_fact_may_depend_on_the_parameters_and_an_entry_is_called_as_its_function():
    entry = Entry(lambda x, *, model: (x, model), needs=lambda params: (params["model"],), grouped=True)
    assert entry(1, model="a") == (1, "a")
    assert entry.at({"model": "b"}).needs == ("b",) and entry.at({"model": "b"}).grouped is True
    with pytest.raises(TypeError, match="neads"):
        Entry(print, neads=())


# questions by name

ENTRIES = {name for kind in slots.TABLES for name in slots.names(kind)}
TABLES = {table for _, table in slots.TABLES.values()}


def is_name(node: ast.AST) -> bool:
    """`term.support.name` or `slot["name"]`; an engine's is no slot's."""
    named = isinstance(node, ast.Attribute) and node.attr == "name" or \
        isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and node.slice.value == "name"
    return named and "engine" not in ast.unparse(node)


def names_held(function: ast.AST) -> set[str]:
    """The variables of a function that hold a slot's name: `name, k = slot["name"], 4`."""
    held = set()
    for node in (n for n in ast.walk(function) if isinstance(n, ast.Assign)):
        for target in node.targets:
            several = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
            pairs = zip(target.elts, node.value.elts) if several else [(target, node.value)]
            held |= {left.id for left, right in pairs if isinstance(left, ast.Name) and is_name(right)}
    return held


def asked_of(node: ast.AST) -> list[ast.AST]:
    """What a comparison with an entry's name, a match, or a look-up in a constant that is no table asks about."""
    if isinstance(node, ast.Compare):
        parts = [node.left, *node.comparators]
        literal = any(isinstance(p, ast.Constant) and p.value in ENTRIES for part in parts for p in ast.walk(part))
        return parts if literal or any(isinstance(part, ast.Name) and part.id.isupper() for part in parts) else []
    if isinstance(node, ast.Match):
        return [node.subject] if any(isinstance(case.pattern, ast.MatchValue) for case in node.cases) else []
    if isinstance(node, ast.Subscript):
        return [node.slice] if is_constant(node.value) else []
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
        return node.args if is_constant(node.func.value) else []
    return []


def is_constant(node: ast.AST) -> bool:
    """A module's constant that is not the table of a slot."""
    return isinstance(node, ast.Name) and node.id.isupper() and node.id not in TABLES


def questions(source: str) -> list[str]:
    """Where code asks for a slot's entry by its name, or looks the name up in a constant that is no table of slots."""
    found = set()
    for function in (n for n in ast.walk(ast.parse(source)) if isinstance(n, (ast.FunctionDef, ast.Module))):
        held = names_held(function) if isinstance(function, ast.FunctionDef) else set()
        for node in ast.walk(function):
            if any(is_name(part) or isinstance(part, ast.Name) and part.id in held for part in asked_of(node)):
                found.add(f"line {node.lineno}: {ast.unparse(node)[:100]}")
    return sorted(found)


@pytest.mark.parametrize("asking", [
    'if term.support.name == "sampled": pass', 'x = slot["name"] in ("sampled", "full")', 'x = slot.name in ANY_AUTHOR',
    'x = "grpo" != term.advantage.name', 'x = SOLVED[source.name]', 'x = SOLVED.get(slot["name"], 1)',
    'def f(slot):\n    name, k = slot.name, 4\n    return name == "trd"',
    'match slot.name:\n    case "trd": pass'])
def test_a_question_by_name_is_found(asking):
    assert questions(asking)


@pytest.mark.parametrize("sound", [
    'x = WRITERS[slot["name"]](prompts)', 'x = entry.covers == "written"', 'x = recipe.engine.name == "server"',
    'x = slot.name not in known', 'x = params["model"] == "teacher"'])
def test_what_is_no_question_by_name_is_not_found(sound):
    assert questions(sound) == []


def test_nobody_asks_for_an_entry_by_its_name():
    files = [file for folder in ("flows", "tasks") for file in sorted((ROOT / folder).rglob("*.py"))
             if "engines" not in file.parts]                 # whose names are those of engines
    asking = [f"{file.relative_to(ROOT)} {found}" for file in files for found in questions(file.read_text())]
    assert len(files) > 50 and asking == [], "\n".join(asking)
