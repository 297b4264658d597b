"""The variance between seeds that variants share: by hand, what it covers in simulated suites, where it misleads."""
import json

import numpy as np
import pytest

from tasks.opd.core.errors import RecipeError
from tasks.opd.evaluation import power
from tasks.opd.evaluation.comparison import compare
from tasks.opd.evaluation.comparison_tables import note, pooling
from tasks.opd.evaluation.seed_pools import SeedPool, seed_pool
from tasks.opd.evaluation.statistics import detectable, paired_difference
from tasks.opd.recipe import loading

SUITES, VARIANTS, SEEDS, PROMPTS = 1000, 6, 3, 100


def test_squares_and_degrees_add_up_by_hand():
    # squares 8 and 6 over 2 degrees each: 14 / 4. Without the seeds' means (1.5, 2.5, 5, less 3) and the variants'
    # (4, 2) remain -0.5, 0.5, 0 and the opposite: 1 over (2 - 1)(3 - 1) degrees
    found = seed_pool([{0: 2.0, 1: 4.0, 2: 6.0}, {0: 1.0, 1: 1.0, 2: 4.0}])
    assert (found.variants, found.alone, found.alone_degrees, found.apart, found.apart_degrees) == pytest.approx(
        (2, 3.5, 4, 0.5, 2))
    assert found.of_difference(1) == (found.alone, 4) and found.of_difference(2) == (2 * found.apart, 2)
    # of variances 4 and 3: (4 ln 3.5 - 2 ln 4 - 2 ln 3) / 1.25 = 0.03299 of chi-squared with one degree
    assert found.p_equal == pytest.approx(0.8559, abs=1e-4)


def test_a_seed_that_failed_counts_where_it_is_there_and_one_variant_is_no_pool():
    found = seed_pool([{0: 2.0, 1: 4.0, 2: 6.0}, {0: 1.0, 2: 4.0}, {0: 1.0}])
    assert (found.variants, found.alone_degrees, found.apart_degrees) == (2, 3, 1)
    assert seed_pool([{0: 1.0, 1: 2.0}, {0: 1.0}]) is None
    apart = seed_pool([{0: 2.0, 1: 4.0}, {2: 1.0, 3: 4.0}])
    assert apart.alone_degrees == 2 and apart.of_difference(2) is None      # no seed in common
    assert seed_pool([{0: 1.0, 1: 1.0}, {0: 1.0, 1: 2.0}]).p_equal is None


def simulated(seed_sds: list[float], common_sd: float = 0.0):
    """Rewards [V, S, P] of suites whose true means are 0, what all variants' seeds have in common included."""
    rng = np.random.default_rng(1)
    for _ in range(SUITES):
        shape = (len(seed_sds), SEEDS, PROMPTS)
        yield (rng.normal(0, 1, shape[:2] + (1,)) * np.array(seed_sds)[:, None, None]
               + rng.normal(0, common_sd, (1, SEEDS, 1)) + rng.normal(0, 0.2, (shape[0], 1, PROMPTS))
               + rng.normal(0, 0.2, shape))


def pool_of(rewards: np.ndarray) -> SeedPool:
    return seed_pool([dict(enumerate(row)) for row in rewards.mean(axis=2).tolist()])


def share_covered(suites, sides: int, chosen: list[int], pooled: bool = True) -> float:
    """How often an interval of these variants holds 0: to a start of 0, or to the first variant where `sides` is 2."""
    inside = []
    for rewards in suites:
        pool = pool_of(rewards).of_difference(sides) if pooled else None
        for variant in chosen:
            low, high = paired_difference(rewards[variant] - (rewards[0] if sides == 2 else 0), None, pool).interval
            inside.append(low <= 0 <= high)
    return float(np.mean(inside))


@pytest.mark.parametrize(("sides", "common_sd", "seed_sd"), [(1, 0.0, 0.05), (1, 0.0, 0.0), (2, 0.0, 0.05),
                                                             (2, 0.1, 0.05)])
def test_where_variants_are_equally_stable_the_interval_covers_as_often_as_it_says(sides, common_sd, seed_sd):
    assert 0.93 <= share_covered(simulated([seed_sd] * VARIANTS, common_sd), sides, [1, 2]) <= 0.97


def test_a_variant_four_times_as_variable_is_covered_too_seldom_the_others_too_often_and_the_test_sees_it():
    suites = [*simulated([0.05] * (VARIANTS - 1) + [0.2])]
    assert share_covered(suites, 1, [VARIANTS - 1]) < 0.8
    assert share_covered(suites, 1, [0]) > 0.99
    assert share_covered(suites, 1, [VARIANTS - 1], pooled=False) > 0.92
    told = np.mean([pool_of(rewards).p_equal < 0.05 for rewards in suites])
    wrongly = np.mean([pool_of(rewards).p_equal < 0.05 for rewards in simulated([0.05] * VARIANTS)])
    assert 0.3 <= told <= 0.7 and 0.03 <= wrongly <= 0.07      # with three seeds many such suites pass the test


def test_a_common_effect_of_seeds_is_no_part_of_a_difference_of_two_variants_and_breaks_that_to_start():
    suites = [*simulated([0.02] * VARIANTS, common_sd=0.1)]
    assert share_covered(suites, 2, [1]) > 0.93 and share_covered(suites, 1, [1]) < 0.93


def cells() -> dict:
    """A suite in which three seeds of their own distinguish nothing of what seeds pooled do."""
    rng = np.random.default_rng(3)
    found = {("start", 0): dict(enumerate(rng.normal(0, 0.2, PROMPTS)))}
    for i in range(5):
        base = rng.normal(0.12, 0.1, PROMPTS)
        found |= {(f"v{i}", seed): dict(enumerate(base + rng.normal(0, 0.03))) for seed in range(SEEDS)}
    return found


def test_a_pooled_comparison_has_more_verdicts_and_says_what_it_assumes():
    own, pooled = compare(cells(), "start"), compare(cells(), "start", pooled=True)
    better = [sum(row.verdict == "better" for row in one.rows) for one in (own, pooled)]
    assert better[0] < better[1] == 5 and own.seed_pool is None
    assert pooled.seed_pool.alone_degrees == 10
    said = " ".join(note(pooled))
    assert ("pooled over 5 variants (10 degrees of freedom): assumes that all variants are equally stable over seeds "
            "(Bartlett's test of that: p = ") in said and "that no seed is lucky for all of them" in said
    assert "pooled" not in " ".join(note(own))
    assert json.loads(pooled.to_json())["seed_pool"]["alone_degrees"] == 10


def test_a_suite_whose_variants_differ_in_stability_is_told_to_take_its_own_variances():
    wild = cells() | {("v0", seed): dict.fromkeys(range(PROMPTS), value) for seed, value in enumerate((0.0, 2.0, 9.0))}
    assert "so it does not hold here: take seed_variance: own" in " ".join(note(compare(wild, "start", pooled=True)))


def test_two_seeds_are_enough_where_they_are_pooled():
    two = {key: cell for key, cell in cells().items() if key[1] < 2}
    assert not any(row.seeds_covered for row in compare(two, "start").rows)
    assert all(row.seeds_covered for row in compare(two, "start", pooled=True).rows if row.variant != "start")


def test_the_note_counts_what_a_difference_between_two_variants_has_and_says_where_there_is_none():
    rows = [{0: 0.1, 1: 0.2, 2: 0.4}, {0: 0.3, 1: 0.1, 2: 0.2}]
    assert "(4 degrees of freedom)" in pooling(seed_pool(rows), "start")
    assert "(2 degrees of freedom)" in pooling(seed_pool(rows), "gkd")
    apart = [{0: 0.1, 1: 0.2}, {1: 0.3, 2: 0.1}]
    assert "could not be pooled" in pooling(seed_pool(apart), "gkd")
    assert "(2 degrees" in pooling(seed_pool(apart), "start")


def planned(*overrides: str) -> float:
    plan, cells = loading.load_suite("demo", ["seeds=[0,1,2]", *overrides])
    return power.detectable_by(plan, power.benchmark_of(plan, cells))


def test_the_forecast_pools_as_the_table_does():
    pooled = "seed_variance=pooled"
    assert planned(pooled) < planned() and planned("baseline=sft", pooled) < planned("baseline=sft")
    assert planned("variants=[gkd]", pooled) == planned("variants=[gkd]")           # nothing to pool with
    plan, cells = loading.load_suite("demo", ["seeds=[0,1,2]", pooled])
    assert "3 points between seeds, which all variants share (6 degrees of freedom)" in power.described(plan, cells)
    with pytest.raises(RecipeError, match="seed_variance"):
        loading.load_suite("demo", ["seed_variance=both"])


def test_what_is_said_to_be_detectable_with_a_pool_is_detected_four_times_in_five():
    degrees = VARIANTS * (SEEDS - 1)
    told = detectable(num_seeds=SEEDS, num_prompts=PROMPTS, seed_sd=0.05, prompt_sd=0.2, rest_sd=0.2,
                      comparisons=VARIANTS, seed_degrees=degrees)
    found = [paired_difference(rewards[0] + told, None, pool_of(rewards).of_difference(1)).p_bound
             for rewards in simulated([0.05] * VARIANTS)]
    assert 0.75 <= np.mean([p < 0.05 / VARIANTS for p in found]) <= 0.85
