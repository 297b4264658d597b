"""A round's trust diagnostics against the same numbers computed from both models' whole distributions."""
import math
from dataclasses import replace

import pytest
import torch

from tasks.opd.core.records import TEACHER
from tasks.opd.objective.supports import StudentTokens, TeacherTokens
from tasks.opd.objective.terms import largest_share
from tasks.opd.training.diagnostics import LEAST, MOST, Diagnostics, chosen_tokens, compared
from tests.tiny_models import random_rollouts, term, tiny_llama
from tests.training.test_round import LENGTHS, scored_by, scored_set, signal_of
from tests.training.test_training_metrics import trained

SAMPLED = term(advantage="teacher_gap", estimator="policy_gradient")
FULL = term(divergence="reverse_kl", support="full")


@pytest.fixture(scope="module")
def pair():
    return tiny_llama(1), tiny_llama(2)


def said(student, scored, terms, prefix, **train):
    """The metrics of one round whose key begins with a prefix, without it."""
    _, points, _ = trained(student, scored, terms, **train)
    values = [item for _, some in points for item in some.items() if item[0].startswith(prefix)]
    assert len(values) == len(dict(values)), "a quantity was logged twice"
    return {key.removeprefix(prefix): value for key, value in values}


def full_of(model, rollouts):
    """Log-probabilities [N, V] of a model at all tokens."""
    from tasks.opd.models.heads import head_of
    return head_of(model).logprobs(torch.cat([s.hidden for s in signal_of(model, rollouts)]))


@pytest.mark.parametrize("spec", [SAMPLED, FULL], ids=["sampled", "full"])
def test_the_gap_and_its_shares_are_those_of_both_models_whatever_the_term(pair, spec):
    student, teacher, rollouts = *pair, random_rollouts(LENGTHS)
    found = said(student, scored_by(teacher, rollouts), [spec], "trust/")
    ours, theirs = ([s.sampled for s in signal_of(model, rollouts)] for model in pair)
    gap = torch.cat(theirs) - torch.cat(ours)
    assert found["teacher_gap_mean_nats"] == pytest.approx(gap.mean().item())
    assert found["teacher_gap_std_nats"] == pytest.approx(gap.std(correction=0).item())
    assert found["teacher_gap_negative_share"] == pytest.approx((gap < 0).double().mean().item())
    assert found["teacher_gap_top1_share"] == pytest.approx((gap.abs().max() / gap.abs().sum()).item())  # 1 of 24
    assert found["teacher_perplexity"] == pytest.approx(sum(math.exp(-part.mean()) for part in theirs) / 5)


def test_whole_distributions_are_compared_where_the_teacher_gives_them(pair):
    student, teacher, rollouts = *pair, random_rollouts(LENGTHS)
    found = said(student, scored_by(teacher, rollouts), [FULL], "trust/")
    p, q = full_of(student, rollouts), full_of(teacher, rollouts)
    top = p.topk(16, -1).indices
    shared = [set(a) & set(b) for a, b in zip(top.tolist(), q.topk(16, -1).indices.tolist())]
    mass = sum(p[i, list(ids)].exp().sum().item() for i, ids in enumerate(shared)) / 24
    at_ours = q.gather(1, top)
    assert {name: found[name] for name in ("student_entropy_nats", "teacher_entropy_nats", "reverse_kl_nats",
                                           "overlap@16", "shared_mass@16", "margin_nats")} == pytest.approx({
        "student_entropy_nats": -(p.exp() * p).sum(-1).mean().item(),
        "teacher_entropy_nats": -(q.exp() * q).sum(-1).mean().item(),
        "reverse_kl_nats": (p.exp() * (p - q)).sum(-1).mean().item(),
        "overlap@16": sum(map(len, shared)) / 24 / 16, "shared_mass@16": mass,
        "margin_nats": (at_ours.max(-1).values - at_ours.mean(-1)).mean().item()})
    assert 0 < found["overlap@16"] < 1


def test_without_hidden_states_the_teachers_scored_entropy_stands_in_and_its_16_likeliest_overlap(pair):
    student, teacher, rollouts = *pair, random_rollouts(LENGTHS)
    whole = signal_of(teacher, rollouts, top_k=16)
    found = said(student, scored_set(rollouts, [replace(s, hidden=None) for s in whole], teacher), [SAMPLED], "trust/")
    assert found["teacher_entropy_nats"] == pytest.approx(torch.cat([s.entropy for s in whole]).mean().item())
    exact = said(student, scored_set(rollouts, whole, teacher), [FULL], "trust/")
    assert found["overlap@16"] == pytest.approx(exact["overlap@16"]) and "reverse_kl_nats" not in found
    few = said(student, scored_set(rollouts, [replace(s, hidden=None, ids=s.ids[:, :4], logprobs=s.logprobs[:, :4])
                                              for s in whole], teacher), [SAMPLED], "trust/")
    assert "overlap@16" not in few and few["student_entropy_nats"] == pytest.approx(exact["student_entropy_nats"])


def test_the_comparison_by_hand():
    # student (.5, .3, .2), teacher (.2, .7, .1): reverse KL 0.342585, entropies 1.029653 and 0.801819
    logits = torch.tensor([[0.5, 0.3, 0.2, 0.0]], dtype=torch.float64).log()
    teacher = TeacherTokens(hidden=torch.zeros(1, 1), num_tokens=1)
    teacher.computed = torch.tensor([[0.2, 0.7, 0.1, 0.0]], dtype=torch.float64).log()
    values = compared(StudentTokens(logits=logits, token_ids=torch.tensor([0])), teacher)
    found = {name: value.item() for name, value in values.items()}
    assert found.pop("margin_nats") == math.inf           # a token that the teacher excludes is among the student's 16
    assert found == pytest.approx({"student_entropy_nats": 1.029653, "teacher_entropy_nats": 0.801819,
                                   "reverse_kl_nats": 0.342585, "overlap@16": 1, "shared_mass@16": 1}, abs=1e-6)


def test_looking_changes_no_gradient(pair, monkeypatch):
    student, teacher, rollouts = *pair, random_rollouts(LENGTHS)
    scored, terms = scored_by(teacher, rollouts), [SAMPLED, FULL]   # the second needs what the first did not compute
    _, _, seen = trained(student, scored, terms)
    monkeypatch.setattr(Diagnostics, "look", lambda *_: None)
    _, _, unseen = trained(student, scored, terms)
    _, _, alone = trained(student, scored, [SAMPLED])
    weights = [torch.cat([p.flatten() for p in model.parameters()]) for model in (seen, unseen, alone)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_prompt_is_solved_by_what_the_student_wrote_not_by_a_worked_solution(pair):
    student, teacher, rollouts = *pair, random_rollouts(LENGTHS)
    given = [replace(r, reward=0.0) for r in rollouts]
    given[0] = replace(given[0], reward=1.0, author=[TEACHER] * len(given[0].token_ids))
    found = said(student, scored_by(teacher, given), [SAMPLED], "trust/")
    assert found["group_solved_share"] == 0
    given[1] = replace(given[1], reward=1.0)
    assert said(student, scored_by(teacher, given), [SAMPLED], "trust/")["group_solved_share"] > 0


def test_without_any_gradient_nobody_has_a_share_of_it(pair):
    student, teacher, rollouts = *pair, random_rollouts(LENGTHS)
    idle = term(advantage={"name": "fixed", "params": {"value": 0.0}}, estimator="policy_gradient")
    found = said(student, scored_by(teacher, rollouts), [idle], "position/")
    assert found and not any(name.startswith("gradient_share") for name in found)


def test_by_position_each_bucket_has_its_own_tokens_and_the_rollouts_that_are_that_long(pair):
    student, teacher, rollouts = *pair, random_rollouts([(2, 20), (3, 4), (1, 9)])
    found = said(student, scored_by(teacher, rollouts), [SAMPLED], "position/")
    gaps = [t.sampled - s.sampled for t, s in zip(signal_of(teacher, rollouts), signal_of(student, rollouts))]
    parts = {0: torch.cat([g[:8] for g in gaps]), 8: torch.cat([gaps[0][8:16], gaps[2][8:]]), 16: gaps[0][16:]}
    for first, part in parts.items():
        assert found[f"teacher_gap_nats/{first}"] == found[f"advantage/{first}"] == pytest.approx(part.mean().item())
        assert found[f"teacher_gap_std_nats/{first}"] == pytest.approx(part.std(correction=0).item())
        assert found[f"tokens/{first}"] == len(part)
    assert [found[f"rollouts/{first}"] for first in parts] == [3, 2, 1]
    assert sum(found[f"gradient_share/{first}"] for first in parts) == pytest.approx(1)
    assert {key.rpartition("/")[2] for key in found} == {"0", "8", "16"}
    theirs = signal_of(teacher, rollouts)[0].sampled[16:]
    assert found["teacher_perplexity/16"] == pytest.approx((-theirs.mean()).exp().item())


def test_what_is_said_does_not_depend_on_micro_batches_or_chunks_nor_on_later_passes(pair):
    student, teacher, rollouts = *pair, random_rollouts(LENGTHS)
    scored = scored_by(teacher, rollouts)
    whole = said(student, scored, [FULL], "trust/") | said(student, scored, [FULL], "position/")
    from tests import tiny_models
    with pytest.MonkeyPatch.context() as patch:
        spec = tiny_models.train_spec
        patch.setattr("tests.training.test_training_metrics.train_spec", lambda terms, **changed: spec(
            terms, **changed, effort={"micro_batch_tokens": 12, "chunk_tokens": 3}))
        parted = said(student, scored, [FULL], "trust/") | said(student, scored, [FULL], "position/")
    assert parted == pytest.approx(whole)
    twice = said(student, scored, [FULL], "trust/", epochs=2, learning_rate=0.1)
    assert {key: twice[key] for key in twice} == pytest.approx({key: whole[key] for key in twice})


def test_the_samplers_divergence_is_of_tokens_the_student_wrote_itself_before_the_first_step(pair):
    student, teacher, _ = *pair, None
    rollouts = random_rollouts(LENGTHS)
    own = [s.sampled for s in signal_of(student, rollouts)]
    shifted = [replace(r, logprobs=(lp + 0.5).tolist()) for r, lp in zip(rollouts, own)]
    # everywhere d = 0.5: exp(-0.5) - 1 + 0.5 = 0.106531
    found = said(student, scored_by(teacher, shifted), [SAMPLED], "trust/", epochs=2, batch_rollouts=0)
    assert found["sampler_kl_nats"] == pytest.approx(0.106531, abs=1e-6)
    refined = [replace(r, parent="before") for r in shifted]
    assert "sampler_kl_nats" not in said(student, scored_by(teacher, refined), [SAMPLED], "trust/")
    others = [replace(r, author=[TEACHER] * len(r.author)) for r in shifted]
    anybody = term(divergence="reverse_kl", support="full", rows="all")
    assert "sampler_kl_nats" not in said(student, scored_by(teacher, others), [anybody], "trust/")


def test_groups_are_counted_by_their_successes(pair):
    student, teacher, rollouts = *pair, random_rollouts(LENGTHS)
    groups, rewards = "aabbc", [1.0, 0.0, 1.0, 1.0, 0.0]
    graded = [replace(r, group_id=g, reward=x) for r, g, x in zip(rollouts, groups, rewards)]
    found = said(student, scored_by(teacher, graded), [SAMPLED], "trust/group_")
    assert found == pytest.approx({"solved_share": 2 / 3, "all_right_share": 1 / 3})
    ungraded = [replace(r, reward=None) for r in rollouts]
    assert said(student, scored_by(teacher, ungraded), [SAMPLED], "trust/group_") == {}


def test_a_term_without_a_teacher_says_what_needs_none(pair):
    student, teacher, rollouts = *pair, random_rollouts(LENGTHS)
    grpo = term(advantage="grpo", estimator="policy_gradient")
    found = said(student, scored_by(teacher, rollouts), [grpo], "trust/")
    assert {"student_entropy_nats", "group_solved_share"} <= found.keys()
    assert not any("teacher" in key or "overlap" in key for key in found)


def test_a_reference_term_does_not_take_the_teachers_place(pair):
    student, teacher, rollouts = *pair, random_rollouts(LENGTHS)
    alone = said(student, scored_by(teacher, rollouts), [SAMPLED], "trust/teacher_gap")
    both = said(student, scored_by(teacher, rollouts), [term(advantage="grpo", estimator="policy_gradient"), SAMPLED],
                "trust/teacher_gap")
    assert both == pytest.approx(alone)


def test_a_round_in_which_the_teacher_said_nothing_while_another_term_learnt_has_its_groups_alone(pair):
    student, teacher, rollouts = *pair, random_rollouts(LENGTHS)
    silent = scored_set(rollouts, [None] * 5, teacher)
    terms = [SAMPLED, term(divergence="nll", rows="succeeded")]
    assert said(student, silent, terms, "trust/") == pytest.approx({"group_solved_share": 0.4,
                                                                    "group_all_right_share": 0.4})
    assert said(student, silent, terms, "position/") == {}


def test_a_part_of_the_tokens_is_compared_closely_evenly_over_any_stretch():
    assert chosen_tokens(LEAST).all() and chosen_tokens(0).numel() == 0
    assert int(chosen_tokens(8 * 1000).sum()) == pytest.approx(1000, abs=10)
    many = chosen_tokens(1_000_000)
    assert int(many.sum()) == pytest.approx(MOST, rel=0.02)
    by_position = chosen_tokens(96 * 200).view(200, 96)[:, :32].view(200, 4, 8).sum((0, 2))   # all of one length
    assert by_position.min() > 0.8 * by_position.float().mean()


def test_the_share_of_the_largest_hundredth():
    assert largest_share(torch.tensor([1.0] * 99 + [-99.0])) == pytest.approx(0.5)
    assert largest_share(torch.zeros(5)) == 0 and largest_share(torch.ones(200)) == pytest.approx(0.01)
