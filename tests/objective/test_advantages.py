"""What a token is worth: the papers' numbers, and gradients by enumeration of a vocabulary of three."""
import math

import pytest
import torch

from tasks.opd.objective.advantages import (
    ADVANTAGES,
    candidate_gap,
    centred_gap,
    direction,
    fixed,
    floored_gap,
    grpo,
    return_to_go,
    shifted_gap,
    shuffled_gap,
    teacher_gap,
)
from tasks.opd.objective.columns import Candidates
from tests.column_fixtures import columns

STUDENT = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
TEACHER = torch.tensor([0.2, 0.7, 0.1], dtype=torch.float64)
REVERSE_KL = float((STUDENT * (STUDENT / TEACHER).log()).sum())       # 0.342585
GRADIENT = [0.286853, -0.356965, 0.070112]                            # the reverse KL's, by the student's logits
NAN = math.nan
ENTROPY, BAR = [0.1, 0.2, 0.3, 1.4], [2.0, -1.0, 0.0, 1.0]            # DASD's example: the gap is its own normal form
PULL, GATE = [0.890062, 0.833655, 0.752102, -0.898940], [0.731059, 0.5, 0.268941, 0.5]


def candidates(ids, student=STUDENT, target=TEACHER):
    """The support of one token; ids of -1 are no candidates."""
    there, ids = torch.tensor(ids) >= 0, torch.tensor(ids)
    student, target = (torch.where(there, p.log()[ids.clamp(min=0)], -math.inf) for p in (student, target))
    return Candidates(ids=ids[None], student=student[None], target=target[None])


def candidate_gradient(ids, advantage):
    """By the student's logits, of -sum_v A_v exp(live_v - old_v) at live = old."""
    logits = STUDENT.log().requires_grad_()
    live = logits.log_softmax(-1)[torch.tensor(ids)]
    (-(advantage[0] * (live - live.detach()).exp()).sum()).backward()
    return logits.grad.tolist()


def vocabulary_columns(**values):
    """Three rollouts of one token: every token of the vocabulary written once."""
    return columns([1, 1, 1], old_logprobs=STUDENT.log(), teacher=TEACHER.log(), **values)


def mean_gradient(advantage):
    """E over tokens written of the gradient of -A log p, by the student's logits."""
    logits = STUDENT.log().requires_grad_()
    (-(STUDENT * advantage * logits.log_softmax(-1)).sum()).backward()
    return logits.grad.tolist()


def test_teacher_gap_is_the_toys_and_its_mean_gradient_the_reverse_kls():
    gap = teacher_gap(vocabulary_columns())
    assert gap.tolist() == pytest.approx([-0.916291, 0.847298, -0.693147], abs=1e-6)
    assert mean_gradient(gap) == pytest.approx(GRADIENT, abs=1e-6)


def test_centred_gap_has_mean_zero_and_the_reverse_kls_gradient():
    advantage = centred_gap(vocabulary_columns(reverse_kl=[REVERSE_KL] * 3))
    assert advantage.tolist() == pytest.approx([-0.573706, 1.189883, -0.350562], abs=1e-6)
    assert float((STUDENT * advantage).sum()) == pytest.approx(0, abs=1e-15)
    assert mean_gradient(advantage) == pytest.approx(GRADIENT, abs=1e-6)


def test_a_wrong_gap_would_not_have_that_gradient():
    assert mean_gradient(fixed(vocabulary_columns())) == pytest.approx([0, 0, 0], abs=1e-15)
    assert mean_gradient(shifted_gap(vocabulary_columns())) == pytest.approx(GRADIENT, abs=1e-6)  # one token: no shift
    assert mean_gradient(-teacher_gap(vocabulary_columns())) == pytest.approx([-g for g in GRADIENT], abs=1e-6)


def test_floored_gap_lets_no_token_fall_below_its_floor():
    row = columns([3], old_logprobs=[0.0, 0.0, 0.0], teacher=[-9.0, -2.5, 1.0])
    assert floored_gap(row).tolist() == pytest.approx([math.log(0.1) / 0.9, -2.5, 1.0])       # -2.558
    assert floored_gap(row)[0].item() == pytest.approx(-2.558, abs=5e-4)
    assert floored_gap(row, share=0.5).tolist() == pytest.approx([-2 * math.log(2), -2 * math.log(2), 1.0])


def test_return_to_go_with_discount_a_half_by_hand():
    gaps = columns([3, 1], old_logprobs=[0.0] * 4, teacher=[1.0, -2.0, 0.5, 9.0])
    assert return_to_go(gaps, discount=0.5).tolist() == [0.125, -1.75, 0.5, 9]
    assert return_to_go(gaps, discount=0.0).tolist() == [1, -2, 0.5, 9]
    assert return_to_go(gaps, discount=1.0).tolist() == [-0.5, -1.5, 0.5, 9]


def test_return_to_go_steps_over_tokens_that_are_not_the_terms():
    gaps = columns([4], old_logprobs=[0.0] * 4, teacher=[1.0, NAN, 2.0, NAN], mask=[True, False, True, False])
    assert return_to_go(gaps, discount=0.5)[[0, 2]].tolist() == [1 + 0.25 * 2, 2]


def test_shifted_gap_rotates_over_the_terms_tokens_of_each_completion():
    row = columns([4, 2], old_logprobs=[0.0] * 6, teacher=[1.0, NAN, 2.0, 3.0, 7.0, 8.0],
                  mask=[True, False, True, True, True, True])
    assert shifted_gap(row)[row.mask].tolist() == [3, 1, 2, 8, 7]
    alone = columns([3], old_logprobs=[0.0] * 3, teacher=[1.0, 2.0, 3.0])
    assert shifted_gap(alone).tolist() == [3, 1, 2]


def test_shuffled_gap_keeps_the_numbers_and_moves_them_among_the_terms_tokens():
    torch.manual_seed(0)
    inside = [True] * 3 + [False] * 2 + [True] * 5
    row = columns([5, 5], old_logprobs=torch.zeros(10), teacher=torch.arange(10.0), mask=inside)
    before = torch.random.get_rng_state()
    shuffled, gap, own = shuffled_gap(row), teacher_gap(row), torch.tensor(inside)
    assert sorted(shuffled[own].tolist()) == sorted(gap[own].tolist())
    assert shuffled[own].tolist() != gap[own].tolist()
    assert shuffled_gap(row).tolist() == shuffled.tolist()
    assert shuffled_gap(row, seed=1)[own].tolist() != shuffled[own].tolist()
    assert torch.equal(before, torch.random.get_rng_state())


def test_fixed_is_the_same_everywhere():
    assert fixed(columns([2, 1])).tolist() == [-1, -1, -1]
    assert fixed(columns([2, 1]), value=2.5).tolist() == [2.5, 2.5, 2.5]


def direction_columns(**values):
    return columns([4, 4], **{"old_logprobs": [0.0] * 8, "teacher": BAR + [2 * b for b in BAR], "entropy": ENTROPY * 2,
                              "group": [0, 0], "reward": [1.0, 1.0], **values})


def test_direction_is_dasds_example_in_every_completion_and_the_gaps_size_falls_out():
    got = direction(direction_columns(), beta=1.0)                    # equal rewards: grpo is 0
    expected = [pull * gate * bar for pull, gate, bar in zip(PULL, GATE, BAR)]
    assert got.tolist() == pytest.approx(expected * 2, abs=2e-6)
    assert expected[0] > 0 > expected[3]           # sure: towards what the teacher likes more; unsure: away from it


def test_direction_has_the_mean_absolute_deviation_and_quantile_of_the_example():
    # deviations from .5: (.4, .3, .2, .9), mean .45; the .8-quantile lies .4 of the way from .3 to 1.4: .74
    gate = [1 / (1 + math.exp(1 - abs(b))) for b in BAR]
    by_hand = [math.tanh((0.74 - h) / 0.45) * g * b for h, g, b in zip(ENTROPY, gate, BAR)]
    assert direction(direction_columns(), beta=1.0)[:4].tolist() == pytest.approx(by_hand, abs=1e-7)
    # side bottom: the .2-quantile lies .6 of the way from .1 to .2: .16, so only the first is pulled
    by_hand = [math.tanh((0.16 - h) / 0.45) * g * b for h, g, b in zip(ENTROPY, gate, BAR)]
    got = direction(direction_columns(), beta=1.0, side="bottom")[:4].tolist()
    assert got == pytest.approx(by_hand, abs=1e-7) and got[0] > 0 and got[1] > 0 and got[3] < 0


def test_direction_cuts_the_gap_at_its_largest():
    row = direction_columns(teacher=[8.0, 0.0, 0.0, 0.0] * 2)         # 4 times the mean
    whole, cut = (direction(row, beta=1.0, largest=x)[0].item() for x in (5.0, 2.0))
    assert whole == pytest.approx(PULL[0] * 4 / (1 + math.exp(-3)), abs=1e-5)
    assert cut == pytest.approx(PULL[0] * 2 / (1 + math.exp(-1)), abs=1e-5)


def test_direction_with_beta_zero_is_grpo_exactly_and_beta_adds_to_it():
    row = direction_columns(reward=[1.0, 0.0])
    assert torch.equal(direction(row, beta=0.0), grpo(row))
    assert float(grpo(row)[0]) == pytest.approx(0.5 / (math.sqrt(0.5) + 1e-4))
    added = (direction(row, beta=0.2) - grpo(row)).tolist()
    assert added == pytest.approx([0.2 * x for x in direction(direction_columns(), beta=1.0).tolist()])


def test_direction_is_grpo_where_all_entropies_are_equal_or_there_is_one_token():
    row = columns([3, 1], old_logprobs=[0.0] * 4, teacher=[1.0, 2.0, 3.0, 4.0], entropy=[0.1, 0.1, 0.1, 7.0],
                  group=[0, 0], reward=[1.0, 0.0])
    assert torch.equal(direction(row, beta=1.0), grpo(row))


def test_direction_takes_its_statistics_from_the_terms_tokens_of_each_completion():
    inside = [True, False, True, True, False, True]
    mixed = columns([6, 4], old_logprobs=[0.0] * 10, teacher=[2.0, NAN, -1.0, 0.0, NAN, 1.0, 40.0, 3.0, 2.0, 1.0],
                    entropy=[0.1, NAN, 0.2, 0.3, NAN, 1.4, 9.0, 8.0, 3.0, 4.0], mask=inside + [True] * 4,
                    group=[0, 0], reward=[1.0, 1.0])
    plain = direction(direction_columns(), beta=1.0)[:4]
    assert direction(mixed, beta=1.0)[:6][torch.tensor(inside)].tolist() == pytest.approx(plain.tolist(), abs=1e-12)


def test_grpo_compares_all_graded_rollouts_of_a_group_whichever_the_term_learns_from():
    only_failed = columns([1, 1, 1], group=[0, 0, 0], reward=[1.0, 0.0, NAN], mask=[False, True, False])
    assert grpo(only_failed, scale=False)[1].item() == -0.5
    with pytest.raises(ValueError, match="grader"):
        grpo(columns([1, 1], group=[0, 0], reward=[1.0, NAN]))


def test_candidate_gap_over_the_vocabulary_gives_the_reverse_kls_gradient_without_sampling():
    for ids in ([0, 1, 2], [2, 0, 1]):
        advantage = candidate_gap(columns([1], candidates=candidates(ids)))
        assert candidate_gradient(ids, advantage) == pytest.approx(GRADIENT, abs=1e-6)
        assert float(advantage.sum()) == pytest.approx(-REVERSE_KL)


def test_candidate_gap_of_the_top_two_has_the_numbers_of_the_stop_gradient_top_k():
    row = columns([1], candidates=candidates([0, 1]))
    advantage = candidate_gap(row, normalise=False)
    assert candidate_gradient([0, 1], advantage) == pytest.approx([0.356167, -0.315376, -0.040791], abs=1e-6)
    assert candidate_gap(row).tolist()[0] == pytest.approx((advantage / 0.8).tolist()[0])     # the student's mass there


@pytest.mark.parametrize("weigh_by, weights", [
    ("student", [0.5, 0.3]), ("teacher", [0.2, 0.7]), ("none", [1.0, 1.0])])
def test_candidate_gap_weighs_by_student_teacher_or_nothing(weigh_by, weights):
    row, gaps = columns([1], candidates=candidates([0, -1, 1])), [-0.916291, 0.847298]
    raw = candidate_gap(row, weigh_by=weigh_by, normalise=False)[0].tolist()
    assert raw == pytest.approx([gaps[0] * weights[0], 0, gaps[1] * weights[1]], abs=1e-6)
    whole = candidate_gap(row, weigh_by=weigh_by)[0].tolist()
    assert whole == pytest.approx([x / sum(weights) for x in raw])


def test_candidate_gap_of_an_empty_support_is_zero_and_far_candidates_keep_their_share():
    assert candidate_gap(columns([1], candidates=candidates([-1, -1]))).tolist() == [[0, 0]]
    far = Candidates(ids=torch.tensor([[0, 1]]), student=torch.tensor([[-200.0, -200.0]]),
                     target=torch.tensor([[-1.0, -2.0]]))             # exp(-200) is 0 in float32
    assert candidate_gap(columns([1], candidates=far)).tolist() == [[99.5, 99.0]]


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
def test_what_stands_outside_the_mask_reaches_no_token_inside(name):
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([True, False, True, True, False, False, False, True, True])           # rollout 1 is all outside
    values = {key: torch.randn(9, generator=generator, dtype=torch.float64) for key in ADVANTAGES[name].needs
              if key != "candidates"}
    pair = Candidates(ids=torch.tensor([[0, 1]] * 9), student=torch.randn(9, 2, generator=generator),
                      target=torch.randn(9, 2, generator=generator))
    dirty = Candidates(ids=pair.ids, student=torch.where(mask[:, None], pair.student, NAN),
                       target=torch.where(mask[:, None], pair.target, NAN))
    common = {"mask": mask.tolist(), "group": [0, 0, 0]}
    clean = columns([4, 2, 3], reward=[1.0, 0.0, 0.0], candidates=pair, **common, **values)
    spoilt = columns([4, 2, 3], reward=[1.0, 0.0, 0.0], candidates=dirty, **common,
                     **{key: torch.where(mask, value, NAN) for key, value in values.items()})
    assert torch.equal(ADVANTAGES[name](clean)[mask], ADVANTAGES[name](spoilt)[mask])
    assert torch.isfinite(ADVANTAGES[name](spoilt)[mask]).all()


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
def test_an_advantage_reads_what_it_says_it_needs_and_no_more(name):
    given = {key: torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
             for key in ("old_logprobs", "teacher", "entropy", "teacher_entropy", "divergence", "forward_kl",
                         "reverse_kl")}
    pair = Candidates(ids=torch.tensor([[0, 1]] * 6), student=torch.zeros(6, 2), target=torch.ones(6, 2))
    setting = {"group": [0, 0], "reward": [1.0, 0.0]}
    needed = ADVANTAGES[name].needs
    row = columns([3, 3], **setting, candidates=pair if "candidates" in needed else None,
                  **{key: given[key] for key in needed if key != "candidates"})
    assert torch.equal(ADVANTAGES[name](row), ADVANTAGES[name](columns([3, 3], **setting, candidates=pair, **given)))
    for key in set(needed) - {"candidates"}:
        lacking = columns([3, 3], **setting, **{other: given[other] for other in needed if other != key})
        assert not torch.isfinite(ADVANTAGES[name](lacking)).all()


def test_grouped_advantages_are_those_that_change_with_the_rewards_of_others():
    values = {key: torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
              for key in ("old_logprobs", "teacher", "entropy", "reverse_kl")}
    pair = Candidates(ids=torch.tensor([[0, 1]] * 6), student=torch.zeros(6, 2), target=torch.ones(6, 2))
    one, other = (columns([3, 3], group=[0, 0], reward=[1.0, reward], candidates=pair, **values) for reward in (0., 1.))
    changing = {name for name, worth in ADVANTAGES.items() if not torch.equal(worth(one)[:3], worth(other)[:3])}
    grouped = {name for name, entry in ADVANTAGES.items() if entry.grouped}
    assert changing == grouped == {"grpo", "direction", "mixed", "modulated"}


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
def test_a_term_without_tokens_has_advantages_that_nobody_reads(name):
    assert len(ADVANTAGES[name](columns([2, 1], mask=[False] * 3))) == 3
