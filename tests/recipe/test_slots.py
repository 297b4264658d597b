"""Names and parameters of slots are checked against source that is read, not imported."""
import dataclasses
import importlib
import subprocess
import sys

import pytest

from tasks.opd.core.entries import Entry
from tasks.opd.core.errors import RecipeError
from tasks.opd.recipe import slots
from tasks.opd.recipe.schema import Slot

SOURCE = '''
from typing import Annotated, Literal
from pydantic import Field
raise RuntimeError("imported")
Share = Annotated[float, Field(ge=0, le=1)]
TOKENS = 3

def plain(columns):
    pass

def rich(columns, *, beta: Annotated[float, Field(gt=0, lt=1)] = 0.5, k: int, mode: Literal["both", "tail"] = "both",
         share: Share = 0.25, tokens: int = TOKENS, drop: list[int] | None = None):
    pass

WEIGHTS = {"uniform": Entry(plain, constant=True),
           "rich": Entry(rich, needs=lambda params: ("old_logprobs",) if params["mode"] == "tail"
                         else ("teacher",) * TOKENS)}
'''


@pytest.fixture
def weights(tmp_path, monkeypatch):
    (tmp_path / "objective").mkdir()
    (tmp_path / "objective/weights.py").write_text(SOURCE)
    monkeypatch.setattr(slots, "ROOT", tmp_path)


def problems(**params):
    return [str(problem) for problem in slots.check(Slot(name="rich", params=params), "weight")[1]]


def test_defaults_are_filled_in_from_the_signature_without_importing(weights):
    assert slots.bind(Slot(name="rich", params={"k": 4, "beta": 0.1}), "weight") == {
        "k": 4, "beta": 0.1, "mode": "both", "share": 0.25, "tokens": 3, "drop": None}
    assert slots.bind(Slot(name="uniform"), "weight") == {}


def test_all_that_is_wrong_with_parameters_is_said_at_once(weights):
    assert problems(beat=0.5, beta=2, mode="tial", share=-1, tokens="3", drop=["x"]) == [
        "beat = 0.5: unknown parameter of rich; did you mean beta? known: beta, k, mode, share, tokens, drop",
        "beta = 2: must be less than 1",
        "k: missing; rich needs it",
        "mode = \"tial\": must be 'both' or 'tail'",
        "share = -1: must be greater than or equal to 0",
        "tokens = \"3\": must be a valid integer",
        "drop.0 = \"x\": must be a valid integer"]


def test_types_are_strict_but_an_integer_is_a_float(weights):
    assert slots.bind(Slot(name="rich", params={"k": 1, "share": 1}), "weight")["share"] == 1
    assert problems(k=True) == ["k = true: must be a valid integer"]
    assert problems(k=1.0) == ["k = 1.0: must be a valid integer"]


def test_an_unknown_name_gets_the_nearest_known_one(weights):
    with pytest.raises(RecipeError, match='"unifrom": unknown weight; did you mean uniform. known: uniform, rich'):
        slots.bind(Slot(name="unifrom"), "weight")


def test_a_table_may_name_functions_of_another_module_or_lie_in_a_package(tmp_path, monkeypatch):
    (tmp_path / "objective/weights").mkdir(parents=True)
    (tmp_path / "objective/weights/__init__.py").write_text(
        "from tasks.opd.objective.weights.tokens import first as begin\nWEIGHTS = {'first': Entry(begin)}\n")
    (tmp_path / "objective/weights/tokens.py").write_text("def first(columns, *, n: int = 7):\n    pass\n")
    monkeypatch.setattr(slots, "ROOT", tmp_path)
    assert slots.bind(Slot(name="first"), "weight") == {"n": 7}


def test_facts_are_read_without_importing_and_may_depend_on_parameters(weights):
    def needs(**params):
        return slots.entry_of(Slot(name="rich", params=params), "weight").needs
    assert needs(k=1) == ("teacher", "teacher", "teacher") and needs(k=1, mode="tail") == ("old_logprobs",)
    assert slots.entry_of(Slot(name="uniform"), "weight") == Entry(None, constant=True)
    assert slots.entry_of(Slot(name="unifrom"), "weight") == Entry(None)       # reported where names are checked
    assert slots.functions("weight")["rich"] == (slots.ROOT / "objective/weights.py", "rich")


@pytest.mark.parametrize("table", ["{'f': f}", "{'f': Entry(f), 'g': f}", "dict(f=Entry(f))"])
def test_a_table_holds_entries(tmp_path, monkeypatch, table):
    (tmp_path / "objective").mkdir()
    (tmp_path / "objective/weights.py").write_text(f"def f(columns):\n    pass\n\nWEIGHTS = {table}\n")
    monkeypatch.setattr(slots, "ROOT", tmp_path)
    with pytest.raises(AssertionError, match="must hold WEIGHTS as a dict of names and entries"):
        slots.names("weight")


@pytest.mark.parametrize("kind", slots.TABLES)
def test_facts_can_be_read_where_parameters_are_missing_or_wrong(kind):
    for name in slots.names(kind):
        wrong = dict.fromkeys(slots.signature(kind, name), {"no": "value"})
        assert all(isinstance(slots.entry_of(Slot(name=name, params=given), kind), Entry) for given in ({}, wrong))


def test_annotations_cannot_call_anything(tmp_path, monkeypatch):
    (tmp_path / "objective").mkdir()
    (tmp_path / "objective/weights.py").write_text(
        "def f(columns, *, n: __import__('os').getpid() = 1):\n    pass\n\nWEIGHTS = {'f': Entry(f)}\n")
    monkeypatch.setattr(slots, "ROOT", tmp_path)
    with pytest.raises(KeyError, match="__import__"):
        slots.bind(Slot(name="f"), "weight")


@pytest.mark.parametrize("kind", slots.TABLES)
def test_every_entry_of_every_table_can_be_read(kind):
    assert slots.names(kind)
    for name in slots.names(kind):
        assert all(isinstance(key, str) for key in slots.signature(kind, name))


@pytest.mark.parametrize("kind", slots.TABLES)
def test_the_table_read_is_the_table_imported(kind):
    module, name = slots.TABLES[kind]
    table = getattr(importlib.import_module(f"tasks.opd.{module}"), name)
    assert list(table) == slots.names(kind)
    for name, entry in table.items():
        parameters = slots.signature(kind, name)
        assert list(entry.function.__kwdefaults__ or {}) == [
            key for key, p in parameters.items() if p.default is not slots.UNSET]
        needed = {key: next(value for value in ("x", 1, ["x"], [1], {}) if not slots.fit(p.annotation, value)[1])
                  for key, p in parameters.items() if p.default is slots.UNSET}
        slot = Slot(name=name, params=needed)
        assert slots.entry_of(slot, kind) == dataclasses.replace(entry.at(slots.bind(slot, kind)), function=None)


def test_checking_a_recipe_imports_no_torch():
    code = ("import sys; from tasks.opd.recipe import loading; loading.load('gkd'); "
            "sys.exit(bool({'torch', 'transformers', 'mlflow', 'datasets', 'prefect'} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
