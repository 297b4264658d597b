"""What the terms of a recipe ask of which model, read off the recipe alone."""
from tasks.opd.recipe import loading, requirements
from tasks.opd.recipe.schema import Term

NOTHING = {"sampled": True, "top_k": 0, "entropy": False, "hidden": False}


def terms(*inside: str) -> str:
    return "terms=[" + ", ".join(f"{{{one}}}" for one in inside) + "]"


def recipe(*inside: str, overrides=()):
    return loading.load("opd_reverse_kl", [terms(*inside), *overrides])


def parts(recipe) -> list[tuple]:
    return [(p["models"], p["domain"], p["group"], p["coefficient"]) for p in requirements.terms_of(recipe)]


def term(**settings) -> Term:
    return Term(**settings)


def test_a_plain_term_has_one_part_with_the_teacher_and_a_term_without_one_has_no_model():
    got = recipe("advantage: teacher_gap, estimator: policy_gradient", "divergence: nll, coefficient: 0.5")
    assert parts(got) == [({"teacher": "teacher"}, "", "0", 1.0), ({}, "", "1", 0.5)]
    assert parts(loading.load("opsd")) == [({"teacher": "self"}, "", "0", 1.0)]


def test_a_routed_teacher_is_one_part_for_each_domain_under_the_terms_own_coefficient():
    assert parts(loading.load("exopd_experts", ["terms.0.coefficient=0.5"])) == [
        ({"teacher": "expert_four", "start": "start"}, "four", "0", 0.5),
        ({"teacher": "expert_five", "start": "start"}, "five", "0", 0.5)]


def test_a_mixed_teacher_is_one_part_for_each_model_which_share_the_coefficient():
    got = loading.load("mixed_teachers", ["terms.0.coefficient=3"])
    assert parts(got) == [({"teacher": "expert_four"}, "", "0", 1.5), ({"teacher": "expert_five"}, "", "0", 1.5)]
    same = loading.load("mixed_teachers", ["pair.experts={four: expert_four, five: expert_four, six: teacher}"])
    assert parts(same) == [({"teacher": "expert_four"}, "", "0", 0.5), ({"teacher": "teacher"}, "", "0", 0.5)]


def test_parts_of_a_mixed_teacher_count_a_token_once_together_and_those_of_a_routed_one_once_each():
    assert [p["share"] for p in requirements.terms_of(loading.load("mixed_teachers"))] == [0.5, 0.5]
    assert [p["share"] for p in requirements.terms_of(loading.load("routed_teachers"))] == [1.0, 1.0]
    assert [p["share"] for p in requirements.terms_of(loading.load("opd_reverse_kl"))] == [1.0]


def test_a_term_that_does_not_look_at_the_teacher_is_not_routed():
    got = recipe("advantage: teacher_gap, estimator: policy_gradient",
                 "divergence: reverse_kl, support: full, target: reference, coefficient: 0.1",
                 overrides=["teacher.model=routed"])
    assert parts(got)[2:] == [({"start": "start"}, "", "1", 0.1)]
    region = loading.load("sdpo_trust_region")
    assert parts(region) == [({"start": "start", "live": "live"}, "", "0", 1.0)]
    assert list(requirements.needs(region)) == ["start", "live"]


def test_a_model_named_by_a_target_scores_under_its_own_name():
    got = loading.load("exopd_corrected")
    assert parts(got) == [({"teacher": "teacher", "teacher_start": "teacher_start"}, "", "0", 1.0)]
    assert requirements.needs(got) == {"teacher": NOTHING, "teacher_start": NOTHING}


def test_each_model_gives_only_the_columns_that_its_terms_look_at():
    top = "divergence: forward_kl, support: {name: teacher_top_k, k: %d}"
    got = recipe(top % 8, top % 20, "divergence: reverse_kl, support: full, target: {name: reference, model: random}",
                 "divergence: nll, weights: [teacher_entropy_above]")
    assert requirements.needs(got) == {"teacher": NOTHING | {"top_k": 20, "entropy": True},
                                 "random": NOTHING | {"hidden": True}}
    both = recipe("divergence: reverse_kl, support: {name: union, k: 6}")
    assert requirements.needs(both) == {"teacher": NOTHING | {"top_k": 6, "hidden": True}}
    candidates = recipe("advantage: candidate_gap, estimator: candidate_policy_gradient, support: "
                        "{name: intersection, k: 5, renormalise: none}")
    assert requirements.needs(candidates) == {"teacher": NOTHING | {"top_k": 5, "hidden": True}}
    assert requirements.needs(loading.load("vopd")) == {"teacher": NOTHING | {"hidden": True}}


def test_what_a_weight_needs_follows_its_parameters():
    def needs(*weights):
        return requirements.needs(recipe(f"divergence: nll, weights: [{', '.join(weights)}]"))
    assert needs("perplexity") == {} == needs("{name: perplexity, power: -1.0}")
    assert needs("{name: perplexity, model: teacher}") == {"teacher": NOTHING}
    pruned = [f"{{name: prune_suffix, k: {k}}}" for k in (4, 9)]
    assert needs(*pruned) == {"teacher": NOTHING | {"top_k": 9}}
    assert requirements.part_of(recipe(f"divergence: nll, weights: [{', '.join(pruned)}]").terms[0])["needs"] == [
        "overlap:4", "overlap:9"]


def test_a_target_without_its_normaliser_needs_whole_distributions_on_any_support_but_the_token_written():
    assert requirements.needs(loading.load("exopd")) == {"teacher": NOTHING, "start": NOTHING}
    for support in ("full", "{name: student_top_k, k: 4}"):
        got = recipe(f"divergence: reverse_kl, support: {support}, target: {{name: extrapolated, scale: 1.25}}")
        assert requirements.needs(got) == dict.fromkeys(("teacher", "start"), NOTHING | {"hidden": True})
    for support in ("teacher_top_k", "union", "intersection"):         # whose ids are the teacher's
        got = recipe(f"divergence: forward_kl, support: {{name: {support}, k: 4}}, target: veto")
        assert requirements.needs(got) == {"teacher": NOTHING | {"hidden": True, "top_k": 4}}


def test_what_was_written_is_always_scored_where_a_teacher_is():
    for variant in ("opd_jsd", "fu_lsm", "mixed_teachers", "sdpo", "sdpo_trust_region", "tip"):
        assert all(want["sampled"] is True for want in requirements.needs(loading.load(variant)).values())
    assert requirements.needs(loading.load("sft")) == {}


def test_domains_restrict_only_a_model_that_every_term_routes():
    routed = loading.load("exopd_experts")
    assert requirements.domains_of(routed, "expert_four") == ["four"]
    assert requirements.domains_of(routed, "start") == ["five", "four"]
    assert requirements.domains_of(loading.load("mixed_teachers"), "expert_four") is None
    two = "advantage: teacher_gap, estimator: policy_gradient"
    other = recipe(two, "divergence: reverse_kl, support: full, target: {name: reference, model: expert_four}",
                   overrides=["teacher.model=routed"])
    assert requirements.domains_of(other, "expert_four") is None
    assert requirements.domains_of(other, "expert_five") == ["five"]
    one = loading.load("routed_teachers", ["pair.experts={four: expert_four, six: expert_four}"])
    assert requirements.domains_of(one, "expert_four") == ["four", "six"]


def test_a_teacher_is_needed_through_divergence_advantage_rows_or_weights():
    assert requirements.needs_teacher(term(divergence="forward_kl", support="full"))
    assert requirements.needs_teacher(term(advantage="teacher_gap"))
    assert not requirements.needs_teacher(term(divergence="nll"))
    assert not requirements.needs_teacher(term(advantage="grpo"))
    assert not requirements.needs_teacher(term(advantage="fixed"))
    assert not requirements.needs_teacher(term(divergence="nll", weights=["keep_entropy", "sampler_ratio"]))
    for weight in ("keep_confidently_wrong", "teacher_entropy_above", "importance_prefix", "fire"):
        assert requirements.needs_teacher(term(divergence="nll", weights=["uniform", weight])), weight
    assert requirements.needs_teacher(term(advantage="grpo", rows="likely_to_teacher"))
    weighed = recipe("divergence: nll, rows: all, weights: [{name: keep_confidently_wrong, share: 0.5, scope: batch}]")
    assert requirements.needs(weighed) == {"teacher": NOTHING | {"hidden": True}}
    assert parts(weighed) == [({"teacher": "teacher"}, "", "0", 1.0)]


def test_the_trainer_and_the_recipe_agree_on_who_needs_a_teacher():
    from tasks.opd.objective.terms import bind_terms
    for variant in ("tip", "grpo", "eopd", "fire_opd", "sft", "dasd", "vopd", "fixed_negative_advantage", "sdpo"):
        got = loading.load(variant)
        bound = bind_terms(requirements.terms_of(got))
        assert [t.needs_teacher for t in bound] == [bool(p["models"]) for p in requirements.terms_of(got)], variant
