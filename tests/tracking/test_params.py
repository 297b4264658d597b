"""Params: few, readable, and enough to tell two runs apart."""
from types import SimpleNamespace

import pytest

from tasks.opd.recipe import loading
from tasks.tracking.params import difference, flat, free_name, params_of


def params(variant: str, *overrides) -> dict[str, str]:
    return params_of(loading.load(variant, overrides).model_dump(mode="json"))


def test_a_slot_is_one_param_and_settings_are_short_and_flat():
    jsd = {"name": "jsd", "params": {"beta": 0.5}}
    writers = [{"name": "student", "params": {}, "n": 4, "fraction": 1.0, "when": "always"}]
    assert flat({"a": {"b": [1, {"c": "x"}]}, "d": [], "e@": None, "f": "y" * 600, "g": jsd, "h": writers}) == {
        "a.b.0": "1", "a.b.1.c": "x", "d": "[]", "e_": "null", "f": "y" * 500, "g": "jsd(beta 0.5)",
        "h": "student(n 4)"}


def test_params_are_what_papers_differ_in_and_what_is_not_as_in_base_yaml():
    plain, other = params("gkd"), params("gkd", "engine.dtype=bfloat16", "prompts.count=640")
    assert plain["slot.divergence"] == "jsd(beta 0.5)" and plain["train.learning_rate"] == "0.0005"
    assert other.items() - plain.items() == {("engine.dtype", "bfloat16"), ("prompts.count", "640")}
    assert not any(key.startswith(("about", "pair.others", "accepts", "train.beta")) for key in plain)
    assert len(plain) < 45


def test_variants_have_the_same_slots_whatever_they_use_and_two_differ_in_few():
    found = {name: params(name) for name in ("gkd", "opd_reverse_kl", "scope", "sdpo", "trd", "veto")}
    slots = {name: {key for key in one if key.startswith("slot.")} for name, one in found.items()}
    assert all(some == slots["gkd"] for some in slots.values())
    one, other = found["opd_reverse_kl"], found["gkd"]
    assert {key for key in one if one[key] != other[key]} == {
        "name", "slot.writers", "slot.rows", "slot.support", "slot.divergence", "slot.advantage", "slot.estimator",
        "slot.reduction"}


def test_what_terms_agree_in_is_said_once_and_what_is_not_there_is_none():
    two = params("scope", "schedule=[{round: 1, set: {train.learning_rate: 1e-6}}]", "rounds=2")
    assert two["slot.estimator"] == "policy_gradient" and two["slot.refine"] == two["slot.divergence"] == "none"
    assert two["slot.rows"] == "failed(threshold 1.0) | succeeded(threshold 1.0)"
    assert two["slot.schedule"] == "from round 1: train.learning_rate 1e-06"
    assert params("gkd", "terms.0.clip={at: entry, limit: 0.05}")["slot.clip"] == "entry 0.05"


@pytest.mark.parametrize("params, others, words", [
    ({"a": "1"}, {"a": "1"}, ""), ({"a": "2", "b": "1"}, {"a": "1", "b": "1"}, "a=2"),
    ({}, {"engine.dtype": "bfloat16"}, "engine.dtype=base"),
    (dict.fromkeys("abcde", "1"), {}, "a=1 b=1 c=1 +2")])
def test_what_differs_is_said_in_a_few_words(params, others, words):
    assert difference(params, others) == words


class There:
    """MLflow's answer: the runs of a variant and seed, from old to new."""

    def __init__(self, *found):
        self.found = [SimpleNamespace(info=SimpleNamespace(run_name=name),
                                      data=SimpleNamespace(params=params, tags=tags)) for name, params, tags in found]

    def search_runs(self, experiments, filter_string, order_by):
        assert experiments == ["1"] and filter_string == "tags.variant = 'gkd' and tags.seed = '0'"
        return self.found


@pytest.mark.parametrize("there, name", [
    ([], "gkd-seed0"),
    ([("gkd-seed0", {"rounds": "45"}, {})], "gkd-seed0 rounds=4"),
    ([("gkd-seed0", {"rounds": "4"}, {})], "gkd-seed0 abcdef"),                     # what is no param differs
    ([("gkd-seed0", {"rounds": "45"}, {}), ("gkd-seed0 rounds=4", {}, {})], "gkd-seed0 rounds=4 abcdef"),
    ([("gkd-seed0", {"rounds": "45"}, {"superseded": "true"})], "gkd-seed0")])      # it takes the place of that one
def test_a_run_of_other_settings_has_another_name(there, name):
    tags = {"variant": "gkd", "seed": "0", "config.sha256": "abcdef01"}
    assert free_name(There(*there), "1", "gkd-seed0", tags, {"rounds": "4"}) == name
