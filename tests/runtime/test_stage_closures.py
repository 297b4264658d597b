"""Every function that a stage runs lies in its closure, so that no edit which could change its result is overlooked.

Recipes that between them choose most entries of the tables are run for a tiny round, each stage under a trace.
"""
import functools
import inspect
import sys
import threading
from pathlib import Path

import peft  # noqa: F401  what is imported under a trace takes long, and makes constants that the stage may not read
import pytest
from transformers import AutoTokenizer, LlamaForCausalLM  # noqa: F401

import tasks.opd.makers.models  # noqa: F401  likewise
from tasks.opd.recipe import derivations, loading, slots
from tasks.opd.runtime.stages import entry_of
from tasks.opd.store import definitions
from tasks.opd.store.closures import closure
from tasks.workers import pools
from tests.one_round import TINY, one_round

ROOT = Path(slots.ROOT).parents[1]
# What runs beside a stage's own work and cannot change its result: `derivations.OUTSIDE`, the worker around it, and
# the engines of other stages that leave the device.
AROUND = {"tasks.opd.runtime.worker", "tasks.opd.runtime.stages", "tasks.opd.store.fingerprints"}
LEAVING = {"sleep", "close"}
LESSON = "pair.teacher={name: tiny_teacher, hidden: 32, steps: 2, evaluate_from: 1, problems: 2, at_least: 0.0}"
READER = ("{name: tiny_reader, hidden: 32, layers: 1, steps: 2, batch: 24, evaluate_from: 1, problems: 1, "
          "num_steps: 2, experience: Solve, first: {bare: 1, solution: 1, demonstration: 1, sibling: 1, feedback: 1, "
          "experience: 1, rewrite: 1, rewrite_shown: 1, lists: 1}, then: {bare: 1}, enough: {}, at_most: {}}")
RECIPES = {
    "opd_reverse_kl": [], "tip": [], "gkd": ["rollout.writers.0.n=2"], "fire_opd": [], "veto": [], "dasd": [],
    "rethinking_union": [], "zhu_topk": [], "exopd": [], "routed_teachers": ["pair.experts={four: random}"],
    "skd": [], "relay_opd": [], "trd_solution": ["pair.context_tokens=512"], "sdft": [], "sdpo_trust_region": [],
    "sdpo_feedback": [], "dapo": [], "opcd": [], "iw_opd": [], "dash": [], "reopold": [], "vopd": [],
    "opd_return_to_go": ["train.lora={rank: 2}", "rollout.filters=[malformed, duplicate]"],
    "sft": [f"pair.student={READER}", f"pair.teacher={READER}"],
    "scope": ["rollout.writers.0.n=2"], "srpo": ["rollout.writers.0.n=2"], "trrd": ["rollout.writers.0.n=2"],
    "luffy": ["rollout.writers.0.n=2"], "aopd": [], "top_d": [], "open_mopd": ["pair.experts={four: random}"],
    "trust_routed": ["rollout.writers.0.n=2"],
    "distillm_srkl": [LESSON, "pair.student={name: pruned, drop: [1]}", "refine=[{name: truncate, tokens: 5}]"],
}


@functools.cache
def recipe_of(variant: str):
    """A variant, tiny."""
    return loading.load(variant, [*TINY, *RECIPES[variant]])


class Traced(pools.InlinePool):
    """A pool that compares what each stage runs with its closure; `strangers` are (stage, module, function)."""

    def __init__(self):
        super().__init__()
        self.seen, self.strangers = {}, set()

    def make(self, stage, spec, inputs, out):
        ran: set[tuple[str, str]] = set()

        def trace(frame, event, argument):
            code = frame.f_code
            if code.co_flags & inspect.CO_OPTIMIZED and "/tasks/opd/" in code.co_filename:  # a function, no class body
                called = code.co_filename, code.co_qualname.split(".<locals>")[0]
                if called not in ran and not is_reporting(frame):
                    ran.add(called)
        before = sys.gettrace()
        threading.settrace(trace)
        sys.settrace(trace)
        try:
            return super().make(stage, spec, inputs, out)
        finally:
            sys.settrace(before)
            threading.settrace(before)
            self.compare(stage, spec, ran)

    def compare(self, stage, spec, ran):
        known, called = closure(*entry_of(stage), derivations.scope_of(spec)), {(module_of(f), name) for f, name in ran}
        called = {(module, name) for module, name in called
                  if module not in AROUND | derivations.OUTSIDE
                  and f"{module}:{name.split('.')[0]}" not in derivations.OUTSIDE
                  and not (module.startswith("tasks.opd.engines.") and name.split(".")[-1] in LEAVING)}
        self.seen.setdefault(stage, set()).update(called)
        self.strangers |= {(stage, module, name) for module, name in called if not covered(module, name, known)}


def is_reporting(frame) -> bool:
    """Whether a module of `derivations.OUTSIDE` called this, directly or not."""
    while frame := frame.f_back:
        file = frame.f_code.co_filename
        if "/tasks/opd/" in file and module_of(file) in derivations.OUTSIDE:
            return True
    return False


@functools.cache
def module_of(file: str) -> str:
    """The module of a source file of ours."""
    return ".".join(Path(file).relative_to(ROOT).with_suffix("").parts)


def covered(module: str, name: str, known) -> bool:
    """Whether a function, by its qualified name, is in a closure: as a unit, or inside that of its class."""
    units = definitions.source_of(module).units
    if name.startswith("<"):  # of a constant at the top
        return any(module == other for other, _ in known)
    return (module, name if name in units else name.split(".")[0]) in known


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One home, so that what recipes share is made once."""
    return tmp_path_factory.mktemp("home")


@pytest.mark.parametrize("variant", RECIPES)
def test_every_function_that_a_stage_runs_lies_in_its_closure(variant, shared, monkeypatch):
    monkeypatch.setenv("OPD_HOME", str(shared))
    recipe, pool = recipe_of(variant), Traced()
    try:
        one_round(recipe, pool)
    finally:
        pool.close(at_once=True)
    assert pool.strangers == set()
    assert {"preflight", "checkpoint", "report"} <= set(pool.seen)
    assert all((entry_of(stage)[0], entry_of(stage)[1]) in called for stage, called in pool.seen.items())


def test_the_recipes_choose_most_entries_of_the_tables():
    chosen: dict[str, set[str]] = {}
    for variant in RECIPES:
        for _, kind, slot in slots.found(recipe_of(variant).model_dump(mode="json")):
            chosen.setdefault(kind, set()).add(slot["name"])
    left = {kind: set(slots.names(kind)) - chosen.get(kind, set()) for kind in slots.TABLES}
    assert sum(map(len, left.values())) < sum(map(len, chosen.values())), left
