"""The variants' files keep to what the zoo promises, and their tables say what stands in them."""
import argparse
import re

import pytest
import yaml

from flows.cli import main as cli
from tasks.opd.recipe import catalogue, loading

FOLDER = loading.CONFIGS / "variants"
FILES = {file.stem: file.read_text() for file in sorted(FOLDER.glob("*.yaml"))}
CONTROLS = {"fixed_negative_advantage", "shuffled_teacher", "self_as_teacher", "random_teacher", "shifted_teacher"}
METHODS = set("""
    sft seqkd supervised_kd imitkd gkd opd_reverse_kl opd_reverse_kl_full opd_forward_kl opd_jsd distillm_skl
    distillm_srkl grpo dr_grpo dapo ppo_clip opd_return_to_go opd_discounted vopd opsd opsd_position_clip opsd_no_clip
    sdft sdpo sdpo_feedback sdpo_trust_region opcd pw_opsd dash gopd exopd exopd_corrected veto routed_teachers
    exopd_experts mixed_teachers tip tip_entropy tip_q3 eopd dasd iw_opd fire_opd reopold fu_lsm fu_lsm_masked zhu_topk
    rethinking_only_student rethinking_only_teacher rethinking_intersection rethinking_union stable_opd esr_100 fast_opd
    popd scope kdrl kdrl_masked kdrl_annealed srpo hdpo rlsd trrd mopd_reward opd_then_rl sft_then_opd luffy aopd tropd
    top_d opsa paced minillm prune_opd short_to_long open_mopd trust_routed""".split())
FINDINGS = {"constant_advantage", "identity", "shift", "truncated_sampling"}  # that a variant may intend


@pytest.fixture(scope="module")
def listed() -> tuple[list[dict], str]:
    """What `opd variants` lists, and what it prints with --markdown."""
    result, text = cli.variants(argparse.Namespace(markdown=True))
    return result["variants"], text


def test_the_zoo_is_there():
    assert METHODS | CONTROLS <= set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_variants_file_is_short_and_bears_its_name(name):
    assert len(FILES[name].splitlines()) <= 25
    assert yaml.safe_load(FILES[name])["name"] == name


@pytest.mark.parametrize("name", FILES)
def test_a_variant_says_what_it_costs_and_which_control_it_must_beat(name):
    about = yaml.safe_load(FILES[name])["about"]
    assert about["cost"] and about["idea"] and "\n" not in about["cost"] + about["idea"]
    assert (about["paper"] == "control") == (name in CONTROLS)
    assert about.get("placebo") in ({None} if name in CONTROLS else CONTROLS)


@pytest.mark.parametrize("name", FILES)
def test_a_reconstruction_says_of_what(name):
    said = re.search(r"^# Reconstruction: |reconstruction: true +# ", FILES[name], re.MULTILINE)
    assert bool(said) == yaml.safe_load(FILES[name])["about"].get("reconstruction", False)


@pytest.mark.parametrize("name", FILES)
def test_what_a_variant_accepts_has_a_name_and_a_reason(name):
    accepts = yaml.safe_load(FILES[name]).get("accepts", {})
    assert set(accepts) <= FINDINGS and all(len(reason.split()) > 5 for reason in accepts.values())


@pytest.mark.parametrize("name", FILES)
def test_a_round_of_every_variant_has_as_many_rollouts_on_the_tiny_pair(name):
    rollout = loading.load(name, ["pair=tiny"]).rollout
    assert rollout.prompts_per_round * sum(w.n * w.fraction for w in rollout.writers) == pytest.approx(128)


def test_the_table_fits_160_columns_and_has_every_variant(listed):
    lines = catalogue.text(listed[0]).splitlines()
    assert max(map(len, lines)) <= 160
    assert set(FILES) <= {line.split()[0] for line in lines if line.strip()}
    assert "    support full; divergence jsd(beta 0.5); estimator exact" in lines        # below opd_jsd


def test_idea_cost_placebo_and_slots_are_listed(listed):
    found = {variant["name"]: variant for variant in listed[0]}
    assert set(found) == set(FILES)
    one = found["sdpo"]
    assert (one["arxiv"], one["placebo"], one["reconstruction"]) == ("2601.20802", "self_as_teacher", False)
    assert one["slots"]["terms.0.support"] == {"name": "student_top_k", "k": 100, "renormalise": "tail"}
    assert found["opd_reverse_kl"]["differs"] == []


def test_sizes_are_those_of_the_papers_not_of_the_tiny_pair(listed):
    assert not any("prompts_per_round" in part for v in listed[0] for part in v["differs"])


def test_the_readme_is_what_the_command_prints(listed):
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert readme == listed[1] + "\n", "run: opd variants --markdown > configs/variants/README.md"


def term(**changes) -> dict:
    plain = {"support": {"name": "sampled", "params": {}}, "divergence": None, "clip": {"at": "none", "limit": 1.0},
             "weights": [{"name": "uniform", "params": {}}]}
    return plain | changes


def recipe(*terms: dict, **changes) -> dict:
    return {"name": "x", "rounds": 1, "loss": {"temperature": 1.0}, "terms": list(terms), "schedule": []} | changes


def test_only_what_differs_is_told():
    jsd = {"name": "jsd", "params": {"beta": 0.5, "other": None}}
    clipped = term(divergence=jsd, clip={"at": "entry", "limit": 1.0})
    later = [{"round": 3, "set": {"terms.0.weights": [{"name": "fire", "params": {"student": 1}}], "train.epochs": 2}}]
    assert catalogue.differs(recipe(term(), rounds=9), recipe(term())) == []
    assert catalogue.differs(recipe(clipped, loss={"temperature": 1.1}, schedule=later), recipe(term())) == [
        "loss.temperature 1.1", "divergence jsd(beta 0.5)", "clip.at entry",
        "from round 3: terms.0.weights fire(student 1), train.epochs 2"]


def test_several_terms_are_numbered():
    weights = [{"name": "a", "params": {}}, {"name": "b", "params": {}}]
    full = term(support={"name": "full", "params": {}}, weights=weights)
    assert catalogue.differs(recipe(full, full), recipe(term())) == [
        "term 1: support full, weights a + b", "term 2: support full, weights a + b"]


def test_a_writer_is_told_without_its_defaults():
    writer = {"name": "student", "params": {}, "n": 8, "fraction": 1.0, "when": "always"}
    assert catalogue.shown([writer, writer | {"n": 1}]) == "student(n 8) + student"
