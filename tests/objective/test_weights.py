"""Which tokens count, and how much: the papers' numbers, their limits, and that only the term's tokens matter."""
import dataclasses
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tasks.opd.objective.weights import WEIGHTS
from tasks.opd.recipe import slots
from tasks.opd.recipe.schema import Slot
from tests.column_fixtures import columns

NAN = math.nan
GRADED = [1.0, 0.0] * 50      # rewards of as many rollouts as there are
READ = ("sampler_logprobs", "old_logprobs", "teacher", "entropy", "teacher_entropy", "divergence", "forward_kl",
        "reverse_kl", "overlap:16", "reliability:16")
TIP = {"entropy": [0.1, 0.5, 0.9, 0.2], "divergence": [0.9, 0.1, 0.5, 0.05]}
GATES = {"teacher_entropy_above", "gap_size", "probability_gap", "reliable"}       # which may leave no token
NEW = sorted(set(WEIGHTS) - {"uniform", "skip_first", "special_token_mask"})


def weight_of(name):
    """The weight function of that name, without what it reports."""
    def function(given, **params):
        found = WEIGHTS[name](given, **params)
        return found[0] if isinstance(found, tuple) else found
    return function


def weigh(name, lengths, params=None, **given):
    """The weight as the trainer calls it, as a list."""
    out = weight_of(name)(columns(lengths, **given), **(params or {}))
    assert out.shape == (sum(lengths),) and out.is_floating_point()
    return out.tolist()


def near(values, tolerance=1e-6):
    return pytest.approx(values, abs=tolerance)


def random_columns(lengths, mask=None, seed=0, **given):
    """Every column filled with numbers as a trainer would have them."""
    generator = torch.Generator().manual_seed(seed)
    values = {name: torch.rand(sum(lengths), generator=generator, dtype=torch.float64) for name in READ}
    values |= {name: -3 * values[name] for name in ("sampler_logprobs", "old_logprobs", "teacher")}
    return columns(lengths, mask=mask, **{"reward": GRADED[:len(lengths)]} | values | given)


# TIP

def test_soft_or_keeps_the_unsure_and_the_distant_token():
    # h^ = (0, .5, 1, .125), d^ = (1, .058824, .529412, 0): s = (1, .529412, 1, .125)
    assert weigh("keep_soft_or", [4], {"share": 0.5}, **TIP) == [1, 0, 1, 0]
    assert weigh("keep_soft_or", [4], {"share": 0.75}, **TIP) == [1, 1, 1, 0]
    assert weigh("keep_soft_or", [4], {"share": 0.25}, **TIP) == [1, 0, 0, 0]   # both have s = 1: the earlier stays


def test_soft_or_without_divergence_is_entropy_alone():
    lengths, entropy = [7, 5, 30], random_columns([7, 5, 30]).entropy
    for scope in ("rollout", "batch"):
        params = {"share": 0.4, "scope": scope}
        both = weigh("keep_soft_or", lengths, params, entropy=entropy, divergence=[0.0] * 42)
        assert both == weigh("keep_entropy", lengths, params, entropy=entropy)


def test_confidently_wrong_is_wrong_but_not_unsure():
    # forward_kl * (1 - h^) = (.3, .45, 0, .35)
    given = {"entropy": TIP["entropy"], "forward_kl": [0.3, 0.9, 5.0, 0.4]}
    assert weigh("keep_confidently_wrong", [4], {"share": 0.25}, **given) == [0, 1, 0, 0]
    assert weigh("keep_confidently_wrong", [4], {"share": 0.5}, **given) == [0, 1, 0, 1]


def test_entropy_is_cut_off_at_its_98th_percentile_before_it_is_scaled():
    # of 101 entropies the 98th percentile is the third largest, .98, so 1 - h^ is 0 from there on; uncut, the token of
    # 50 nats would have 1 - h^ = .5 and score 500
    entropy = [i / 100 for i in range(99)] + [50.0, 100.0]
    kept = weigh("keep_confidently_wrong", [101], {"share": 0.01}, entropy=entropy,
                 forward_kl=[1.0] * 98 + [1000.0] * 3)
    assert kept == [1.0] + [0.0] * 100


@pytest.mark.parametrize("name", ["keep_soft_or", "keep_entropy", "keep_confidently_wrong"])
@pytest.mark.parametrize("scope", ["rollout", "batch"])
def test_share_one_keeps_all_and_a_small_share_at_least_one(name, scope):
    given = random_columns([3, 1, 6])
    assert weight_of(name)(given, share=1.0, scope=scope).tolist() == [1.0] * 10
    assert weight_of(name)(given, share=0.0, scope=scope).tolist() == [0.0] * 10
    least = given.per_rollout(weight_of(name)(given, share=0.01, scope=scope))
    assert least.tolist() == [1, 1, 1] if scope == "rollout" else least.sum() == 1


def test_share_is_of_each_rollout_or_of_the_batch():
    entropy = [5.0, 6.0, 7.0, 8.0, 1.0, 2.0]
    assert weigh("keep_entropy", [4, 2], {"share": 0.5}, entropy=entropy) == [0, 0, 1, 1, 0, 1]
    assert weigh("keep_entropy", [4, 2], {"share": 0.5, "scope": "batch"}, entropy=entropy) == [0, 1, 1, 1, 0, 0]


def test_share_is_rounded_down_but_not_by_rounding_errors():
    assert sum(weigh("keep_entropy", [5], entropy=[1.0] * 5)) == 2                        # floor(2.5)
    assert sum(weigh("keep_entropy", [100], {"share": 0.29}, entropy=[1.0] * 100)) == 29  # .29 * 100 is 28.999..96


def test_of_equal_scores_the_earlier_tokens_stay():
    same = {"entropy": [0.7] * 6, "divergence": [0.3] * 6, "forward_kl": [0.3] * 6}
    for name in ("keep_soft_or", "keep_entropy", "keep_confidently_wrong"):
        assert weigh(name, [4, 2], **same) == [1, 1, 0, 0, 1, 0]
    assert weigh("keep_entropy", [1000], entropy=[0.7] * 1000) == [1] * 500 + [0] * 500


# EOPD

def test_gate_opens_above_the_teachers_entropy():
    # H(.2, .7, .1) = .801819, ln 3 = 1.098612
    entropy = [0.801819, 1.098612, 0.8, 0.0]
    assert weigh("teacher_entropy_above", [4], teacher_entropy=entropy) == [1, 1, 0, 0]
    assert weigh("teacher_entropy_above", [4], {"nats": -1.0}, teacher_entropy=entropy) == [1, 1, 1, 1]
    assert weigh("teacher_entropy_above", [4], {"nats": 9.0}, teacher_entropy=entropy) == [0, 0, 0, 0]


# IW-OPD

def test_importance_of_a_prefix_falls_as_the_gap_is_used_up():
    gaps = [1.0, 1.0, 2.0, 0.0] + [0.5, -1.0, 0.25, 0.75]
    weight = weigh("importance_prefix", [4, 4], teacher=gaps, old_logprobs=[0.0] * 8)
    assert weight == near([1.5, 1.375, 1.25, 1.0] + [1.5, 1.4, 1.2, 1.15])
    assert weigh("importance_prefix", [4, 4], teacher=[0.0] * 8, old_logprobs=gaps) == near(weight)  # the sign is free


def test_importance_with_largest_one_is_one_and_without_gaps_largest():
    given = random_columns([5, 1, 9])
    assert weight_of("importance_prefix")(given, largest=1.0).tolist() == [1.0] * 15
    same = [-1.0, -2.0, -3.0, -4.0]
    assert weigh("importance_prefix", [3, 1], {"largest": 2.0}, teacher=same, old_logprobs=same) == [2, 2, 2, 2]


def test_importance_is_never_below_one_nor_above_largest():
    weight = weight_of("importance_prefix")(random_columns([1000, 1, 500], seed=3), largest=3.0)
    assert weight[[0, 1000, 1001]].tolist() == [3, 3, 3] and 1 <= weight.min() and weight.max() == 3


# PW-OPSD

def test_position_is_a_sigmoid_of_the_fraction_written():
    # T = 5: f = (.1, .3, .5, .7, .9), sigmoid((f - .3) / .1) = sigmoid(-2, 0, 2, 4, 6)
    assert weigh("position", [5]) == near([0.339402, 0.625, 0.910598, 0.986510, 0.998146])
    ends = weigh("position", [100_000])
    assert [ends[0], ends[-1]] == near([0.285569, 0.999317], 3e-6)   # f = 0 and 1 but for half a token
    assert weigh("position", [1]) == near([0.910598])                # f = .5


def test_position_with_lowest_one_is_one_and_starts_anew_in_each_rollout():
    assert weigh("position", [3, 4], {"lowest": 1.0}) == [1.0] * 7
    assert weigh("position", [3, 5, 3]) == weigh("position", [3]) + weigh("position", [5]) + weigh("position", [3])


# DASH

def lambdas(r, kappa):
    return torch.sigmoid(-kappa * (r - r.mean()))


def returns(r, kappa):
    """A_T = r_T, A_t = r_t + lambda_t * A_{t+1}, by the formula."""
    out = r.clone()
    for t in range(len(r) - 2, -1, -1):
        out[t] += lambdas(r, kappa)[t] * out[t + 1]
    return out


def test_dash_weights_have_the_returns_mean():
    r = torch.tensor([0.1, 0.3, 0.2], dtype=torch.float64)
    assert lambdas(r, 5).tolist() == near([0.622459, 0.377541, 0.5])
    assert returns(r, 5).tolist() == near([0.333739, 0.375508, 0.2])
    weight = weigh("dash", [3], divergence=r)
    assert weight == near([1, 1.622459, 1.612545])      # 1 + .377541 * 1.622459
    assert (torch.tensor(weight) * r).mean().item() == near(0.303082)   # (.333739 + .375508 + .2) / 3


@pytest.mark.parametrize("kappa", [0.0, 5.0, 1e6])
def test_dash_keeps_the_mean_of_the_return_in_every_rollout(kappa):
    lengths = [1, 2, 3, 64, 65, 300]
    given = random_columns(lengths)
    weighted = weight_of("dash")(given, kappa=kappa) * given.divergence
    expected = [returns(r, kappa).sum().item() for r in given.divergence.split(lengths)]
    assert given.per_rollout(weighted).tolist() == pytest.approx(expected)


def test_dash_is_one_where_nothing_is_handed_on():
    # lambda = 0 at all tokens but the last, which has nothing after it
    assert weigh("dash", [3], {"kappa": 1e6}, divergence=[0.3, 0.3, 0.1]) == [1, 1, 1]
    assert weigh("dash", [1, 1], divergence=[0.3, -0.2]) == [1, 1]
    assert weigh("dash", [4], {"kappa": 0.0}, divergence=[0.3, 0.1, 0.9, 0.5]) == [1, 1.5, 1.75, 1.875]   # all are .5


# FiRe-OPD

def test_fire_is_high_where_the_teacher_is_sure_and_the_student_is_not():
    # 2 * 2, 1.5 * 1.5, 1 * 1 over their mean 2.416667; a maximum is the batch's, so a scale does not matter
    given = {"teacher_entropy": [0.0, 0.5, 1.0], "entropy": [1.0, 0.5, 0.0]}
    assert weigh("fire", [3], **given) == near([1.655172, 0.931034, 0.413793])
    assert weigh("fire", [2, 1], **{k: [0.3 * x for x in v] for k, v in given.items()}) == near(
        [1.655172, 0.931034, 0.413793])
    assert weigh("fire", [3], {"student": 0.0}, **given) == near([4 / 3, 1, 2 / 3])
    assert weigh("fire", [3], {"student": 0.0, "teacher": 0.0}, **given) == [1, 1, 1]


def test_fire_without_any_entropy_is_one():
    assert weigh("fire", [3], teacher_entropy=[0.0] * 3, entropy=[0.0] * 3) == [1, 1, 1]
    assert weigh("fire", [1], teacher_entropy=[0.7], entropy=[0.2]) == [1]


# REOPOLD

def test_gap_above_floor_drops_what_the_teacher_finds_hopeless():
    # ln .1 / .9 = -2.558428
    gaps = [-2.5584, -2.5585, 0.0, -math.inf, 7.0]
    assert weigh("gap_above_floor", [5], teacher=gaps, old_logprobs=[0.0] * 5) == [1, 0, 1, 0, 1]
    assert weigh("gap_above_floor", [1], teacher=[math.log(0.1) / 0.9], old_logprobs=[0.0]) == [1]
    assert weigh("gap_above_floor", [3], {"share": 1e-9}, teacher=[-20, -21, 0], old_logprobs=[0.0] * 3) == [1, 0, 1]


def test_high_entropy_is_a_share_of_the_batch_with_ties():
    entropy = [0.1, 0.9, 0.3, 0.8, 0.5, 0.6]
    assert weigh("high_entropy", [2, 4], entropy=entropy) == [0, 1, 0, 1, 0, 0]   # the .8-quantile is .8
    assert weigh("high_entropy", [2, 4], {"share": 1.0}, entropy=entropy) == [1] * 6
    assert weigh("high_entropy", [2, 4], {"share": 0.0}, entropy=entropy) == [0, 1, 0, 0, 0, 0]
    assert weigh("high_entropy", [3], entropy=[0.4, 0.4, 0.4]) == [1, 1, 1]
    entropy = [float(i) for i in range(11)]     # (1 - .7) * 10 is 3.0000000000000004, and means 3
    assert weigh("high_entropy", [11], {"share": 0.7}, entropy=entropy) == [0, 0, 0] + [1] * 8


def test_high_entropy_reports_the_quantile_that_it_used():
    given = columns([2, 4], entropy=[0.1, 0.9, 0.3, 0.8, 0.5, 0.6])
    assert WEIGHTS["high_entropy"](given)[1] == {"threshold_nats": 0.8}


# perplexities

@pytest.mark.parametrize("model, column, power, values, expected", [  # rollouts' perplexities and weights in the paper
    ("teacher", "teacher", -1.0, [1.361, 1.755, 2.383], [0.426143, 0.330474, 0.243383]),
    ("teacher", "teacher", -2.0, [1.361, 1.755, 2.383], [0.518784, 0.311995, 0.169221]),
    ("teacher", "teacher", -0.5, [1.361, 1.755, 2.383], [0.379312, 0.334031, 0.286657]),
    ("student", "old_logprobs", 1.0, [1.2, 1.5, 2.0], [0.255319, 0.319149, 0.425532]),
    ("student", "old_logprobs", 0.0, [1.2, 1.5, 2.0], [1 / 3] * 3)])
def test_perplexity_shares_a_prompt_among_its_rollouts(model, column, power, values, expected):
    first, second, third = (-math.log(x) for x in values)
    # rollouts of 2, 1 and 3 tokens, whose means are these; a second prompt has one rollout, and a weight of 1
    logprobs = [first - 0.3, first + 0.3, second, third - 1, third, third + 1, -7.0, -9.0]
    given = columns([2, 1, 3, 2], group=[0, 0, 0, 1], **{column: logprobs})
    weight, found = WEIGHTS["perplexity"](given, model=model, power=power)
    a, b, c = expected
    assert weight.tolist() == near([a, a, b, c, c, c, 1, 1])
    assert found == {"of_rollouts": pytest.approx((sum(values) + math.exp(8)) / 4)}


def test_perplexity_sums_over_the_terms_rollouts_alone_and_overflows_at_no_power():
    given = columns([1, 1, 1, 1], group=[0] * 4, mask=[True, False, True, True],
                    old_logprobs=[-1.0, NAN, -900.0, -900.0])
    assert weight_of("perplexity")(given).tolist() == near([0, 0, 0.5, 0.5])
    assert weight_of("perplexity")(given, power=-3.0).tolist() == near([1, 0, 0, 0])


@pytest.mark.parametrize("model, needs", [("student", ("old_logprobs",)), ("teacher", ("teacher",))])
def test_perplexity_needs_the_column_of_the_model_it_is_told(model, needs):
    chosen = Slot(name="perplexity", params={"model": model})
    assert slots.entry_of(chosen, "weight").needs == WEIGHTS["perplexity"].at({"model": model}).needs == needs
    whole = random_columns([3, 2])
    alone = columns([3, 2], **{needs[0]: whole.named(needs[0])})
    assert torch.equal(weight_of("perplexity")(alone, model=model), weight_of("perplexity")(whole, model=model))
    other = columns([3, 2], **{c: whole.named(c) for c in READ if c not in needs})
    with pytest.raises(ValueError, match=f"reads {needs[0]}"):
        weight_of("perplexity")(other, model=model)


def test_prune_suffix_counts_low_overlaps_down_to_the_base_and_starts_anew_in_every_rollout():
    overlap = [0.9, 0.6, 0.5, 0.7, 0.1, 0.6, 1.0]      # low are the 2nd, 3rd and 5th of the first, 1st of the second
    weight, found = WEIGHTS["prune_suffix"](columns([5, 2], **{"overlap:4": overlap}), k=4, drop=0.25)
    assert weight.tolist() == near([1.5, 1.25, 1.0, 1.0, 0.75, 1.25, 1.25])
    assert found == {"low_share": pytest.approx(4 / 7), "effective_length_mean_tokens": 3.5, "reached_share": 1.0}
    weight, found = WEIGHTS["prune_suffix"](columns([5, 2], **{"overlap:4": overlap}), k=4, drop=0.5, base=0.0)
    assert weight.tolist() == near([1, 0.5, 0, 0, 0, 0.5, 0.5])
    assert (found["effective_length_mean_tokens"], found["reached_share"]) == (2, 0.5)


def test_prune_suffix_needs_the_overlap_at_its_own_k():
    for k in (1, 16, 40):
        assert slots.entry_of(Slot(name="prune_suffix", params={"k": k}), "weight").needs == (f"overlap:{k}",)
    with pytest.raises(ValueError, match="reads overlap:4"):
        WEIGHTS["prune_suffix"](columns([2], **{"overlap:16": [1.0, 1.0]}), k=4)


# the distribution sampled from

def test_sampler_ratio_is_capped_and_one_where_nobody_says_what_was_sampled_from():
    given = {"old_logprobs": [-1.0, -1.0, -1.0, -1.0, -900.0], "sampler_logprobs": [-1.0, -0.5, -9.0, NAN, 0.0]}
    assert weigh("sampler_ratio", [5], **given) == near([1, math.exp(-0.5), 2, 1, 0])
    assert weigh("sampler_ratio", [5], {"cap": 1.0}, **given) == near([1, math.exp(-0.5), 1, 1, 0])


# what holds for all

MASK = [True, True, False, True, False, False, True, True, False, False, True]
LENGTHS = [3, 2, 1, 5]      # the third rollout has no token in the term; the first ends, the last has gaps, outside it


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("outside", [NAN, math.inf, 1e9])
def test_what_stands_outside_the_mask_does_not_matter(name, outside):
    mask = torch.tensor(MASK)
    within = random_columns(LENGTHS)
    dirty = {c: torch.where(mask, within.named(c), outside) for c in READ}
    weight = weight_of(name)(random_columns(LENGTHS, mask=MASK, **dirty))
    alone = random_columns([2, 1, 3], **{c: within.named(c)[mask] for c in READ})
    assert weight[mask].tolist() == near(weight_of(name)(alone).tolist(), 1e-12)
    assert weight[~mask].tolist() == [0.0] * 5
    assert weight.isfinite().all()


@pytest.mark.parametrize("name", sorted(WEIGHTS))
def test_an_empty_mask_is_no_trouble(name):
    given = columns([2, 1], mask=[False] * 3)
    weight = weight_of(name)(given)
    assert weight.shape == (3,) and weight.isfinite().all()


@pytest.mark.parametrize("name", sorted(WEIGHTS))
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_equal_tokens_and_rollouts_of_one_token_give_finite_weights(name, value):
    weight = weight_of(name)(columns([1, 4, 1], group=[0] * 3, reward=GRADED[:3], **{c: [value] * 6 for c in READ}))
    assert weight.isfinite().all() and (weight >= 0).all() and (weight.sum() > 0 or name in GATES)


@pytest.mark.parametrize("name", sorted(WEIGHTS))
def test_float32_columns_are_weighed_like_float64(name):
    given = {c: random_columns([30, 10]).named(c).float() for c in READ}
    double = columns([30, 10], reward=[1.0, 0.0], **given)
    single = {"at_k": {name: given.pop(name) for name in list(given) if ":" in name}} | given
    assert weight_of(name)(dataclasses.replace(double, **single)).tolist() == weight_of(name)(double).tolist()


@pytest.mark.parametrize("name", sorted(WEIGHTS))
def test_needs_names_all_that_a_weight_reads_and_nothing_else(name):
    needs = slots.entry_of(Slot(name=name), "weight").needs
    whole = random_columns([3, 2])
    given = {column: whole.named(column) for column in needs}
    weight = weight_of(name)(columns([3, 2], reward=[1.0, 0.0], **given))
    assert weight.isfinite().all()
    for column in needs:
        with pytest.raises(ValueError, match=f"reads {column}, but it is not finite at 5 of the term's 5 tokens"):
            weight_of(name)(columns([3, 2], **{c: v for c, v in given.items() if c != column}))


@pytest.mark.parametrize("name", NEW)
def test_infinite_divergences_are_refused_and_not_spread(name):
    needs = slots.entry_of(Slot(name=name), "weight").needs
    for column in set(needs) - ({"teacher"} if name in GATES | {"gap_above_floor", "before_loop"} else set()):
        given = random_columns([3])
        given.named(column)[1] = math.inf
        with pytest.raises(ValueError, match=f"{column}.* 1 of the term's 3 tokens"):
            weight_of(name)(given)


@pytest.mark.parametrize("name, params, bad", [
    ("keep_soft_or", {"share": 0.5, "scope": "rollout"}, {"share": 1.1}),
    ("keep_entropy", {"share": 0.5, "scope": "rollout"}, {"scope": "group"}),
    ("keep_confidently_wrong", {"share": 0.5, "scope": "rollout"}, {"share": -0.1}),
    ("teacher_entropy_above", {"nats": 0.8}, {"nats": "high"}),
    ("importance_prefix", {"largest": 1.5}, {"largest": 0.9}),
    ("position", {"lowest": 0.25, "centre": 0.3, "width": 0.1}, {"width": 0.0}),
    ("dash", {"kappa": 5.0}, {"kappa": -1.0}), ("fire", {"student": 1.0, "teacher": 1.0}, {"student": -1.0}),
    ("gap_above_floor", {"share": 0.1}, {"share": 1.0}), ("high_entropy", {"share": 0.2}, {"share": 2.0}),
    ("perplexity", {"model": "student", "power": 1.0}, {"model": "reference"}),
    ("prune_suffix", {"k": 16, "threshold": 0.7, "drop": 0.01, "base": 0.5}, {"k": 0}),
    ("sampler_ratio", {"cap": 2.0}, {"cap": 0.0})])
def test_defaults_are_the_papers_and_bounds_are_checked_in_the_recipe(name, params, bad):
    assert slots.bind(Slot(name=name), "weight") == params
    assert slots.check(Slot(name=name, params=bad), "weight")[1]


class Operations(TorchDispatchMode):
    """How many operations torch ran."""
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", NEW)
def test_a_weight_takes_as_many_operations_for_a_hundred_rollouts_as_for_two(name):
    counts = []
    for lengths in ([5, 9], [5, 9] * 50):
        given = random_columns(lengths)
        with Operations() as ran:
            assert weight_of(name)(given).isfinite().all()
        counts.append(ran.count)
    assert counts[1] <= counts[0] + 5
