"""Intervals, several comparisons and what can be detected: values worked by hand, and 2,000 simulated suites each."""
import numpy as np
import pytest

from tasks.opd.evaluation.statistics import bootstrap, detectable, holm, paired_difference, reach_of

SUITES = 2000
ADDITIVE = np.array([[0.0, 1, 2], [1, 2, 3], [2, 3, 4]])          # 3 seeds, 3 prompts, mean 2


def test_seeds_and_prompts_add_up():
    found = paired_difference(ADDITIVE)
    # A = var(1 2 3) / 3 = 1/3, C = 1/3, E = 0: Var = 2/3, df = (2/3)^2 / (2 (1/9) / 2) = 4, t = 2 / 0.8165 = 2.4495;
    # t(4, 0.975) = 2.776445, and Student's law with 4 df beyond +-2.4495 holds 0.0705
    assert (found.difference, found.error, found.degrees) == pytest.approx((2, (2 / 3) ** 0.5, 4))
    assert found.interval == pytest.approx((2 - 2.266959, 2 + 2.266959), abs=1e-5)
    assert found.p == pytest.approx(0.0705, abs=1e-4) and found.seed_sd == pytest.approx(1)


def test_what_seeds_and_prompts_both_hold_of_the_rest_counts_once():
    found = paired_difference(ADDITIVE + np.array([[1, -1, 0], [-1, 1, 0], [0, 0, 0]]))
    # MS_E = 4 / 4, so E = 1/9; Var = 1/3 + 1/3 - 1/9 = 5/9; df = (25/81) / (1/18 + 1/18 + 1/324) = 100/37
    assert (found.error ** 2, found.degrees) == pytest.approx((5 / 9, 100 / 37))
    assert found.seed_sd == pytest.approx((2 / 3) ** 0.5)          # 3 (1/3 - 1/9)


def test_clusters_of_unequal_size_by_hand():
    found = paired_difference(np.array([[0.0, 2, 4, 6]]), ["a", "a", "b", "c"])
    # MS_between = (2 (1 - 3)^2 + (4 - 3)^2 + (6 - 3)^2) / 2 = 9, MS_within 2, n0 = (4 - 6/4) / 2 = 1.25, between = 5.6
    # Var = 5.6 (4 + 1 + 1) / 16 + 2 / 4 = 2.6; n v = 13.2 7.6 7.6: df = 18^2 / (289.76 - 232 + 10.4^2) = 1.95275
    assert (found.error ** 2, found.degrees) == pytest.approx((2.6, 1.95275), abs=1e-5)
    assert found.seed_sd is None


def test_alike_prompts_widen_the_interval_and_unlike_ones_pool():
    rng = np.random.default_rng(0)
    alike = np.repeat(rng.standard_normal((1, 40)), 5, axis=1)
    narrow, wide = paired_difference(alike), paired_difference(alike, np.repeat(np.arange(40), 5))
    assert wide.error == pytest.approx(narrow.error * (5 * 199 / 195) ** 0.5)  # 40 facts, not 200
    unlike = np.tile([1.0, -1.0], 20)[None]                         # both of a cluster's: its mean is always 0
    pooled = paired_difference(unlike, np.repeat(np.arange(20), 2))
    assert pooled.error == pytest.approx(paired_difference(unlike).error)


def test_two_seeds_cover_prompts_only():
    found = paired_difference(ADDITIVE[:2])                         # prompts' means 0.5 1.5 2.5
    assert found.seed_sd is None and (found.error ** 2, found.degrees) == pytest.approx((1 / 3, 2))


def test_one_cluster_says_nothing_and_no_variance_says_all():
    one = paired_difference(np.array([[0.0, 1.0]]), ["a", "a"])
    assert one.difference == 0.5 and one.interval is None and one.p is None
    same, none = paired_difference(np.full((3, 4), 0.1)), paired_difference(np.zeros((3, 4)))
    assert same.interval == pytest.approx((0.1, 0.1)) and same.p == 0 and none.p == 1 and none.interval == (0, 0)


def test_holm_by_hand():
    # 0.01 x 3 = 0.03; 0.03 x 2 = 0.06; 0.04 x 1 = 0.04, but not below the one before; what is None does not count
    assert holm([0.04, None, 0.01, 0.03]) == pytest.approx([0.06, None, 0.03, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == [] and holm([None]) == [None]


def test_what_can_be_detected_by_hand():
    # many prompts, nothing between seeds: se = sqrt(0.5^2 / 1e6) = 0.0005, times 1.959964 + 0.841621 = 2.801585
    many = {"num_seeds": 1, "num_prompts": 1_000_000, "seed_sd": 0.0, "prompt_sd": 0.5, "rest_sd": 0.0}
    assert detectable(**many) == pytest.approx(0.0014008, abs=1e-7)
    # Holm's first of ten steps: 2.807034 + 0.841621 = 3.648655
    assert detectable(**many, comparisons=10) == pytest.approx(0.0018243, abs=1e-7)
    # seeds alone, four of them: se = 0.1 / 2, 3 df, t(0.975) = 3.182; noncentrality 4.2559 for power 0.8
    seeds = {"num_seeds": 4, "num_prompts": 1000, "seed_sd": 0.1, "prompt_sd": 0.0, "rest_sd": 0.0}
    assert detectable(**seeds) == pytest.approx(0.2128, abs=1e-4)
    assert detectable(**{**seeds, "num_seeds": 2, "prompt_sd": 0.5}) < 0.05       # prompts only: 2.8 x 0.0158
    with pytest.raises(ValueError, match="two prompts"):
        detectable(**{**many, "num_prompts": 1})


def test_the_bound_of_p_by_hand():
    found = paired_difference(ADDITIVE)
    # A = C = 1/3, both of 2 degrees of freedom: 2^2 = 2/3 t^2, t = 2.44949; at 2 df 1 - t / sqrt(2 + t^2) = 0.133975
    assert found.p_bound == pytest.approx(0.133975, abs=1e-6) and found.p < found.p_bound
    # A = 0.01, C = 0.02 at 0.05: 4.302653^2 and 1.971957^2 of 199 df: 0.185128 + 0.077772 = 0.2629
    assert reach_of(0.05, [(0.01, 2), (0.02, 199)]) == pytest.approx(0.2629 ** 0.5, abs=1e-5)
    rng = np.random.default_rng(1)
    unlike = 0.1 + rng.normal(0, 0.3, (3, 50)) + rng.normal(0, 0.05, (3, 1))
    bound = paired_difference(unlike).p_bound                       # the level whose reach is the mean itself
    parts = [(unlike.mean(axis=1).var(ddof=1) / 3, 2), (unlike.mean(axis=0).var(ddof=1) / 50, 49)]
    assert reach_of(bound, parts) == pytest.approx(unlike.mean())
    two = paired_difference(unlike[:2])                             # prompts alone: nothing to bound
    assert two.p_bound == pytest.approx(two.p)


def test_bootstrap_has_the_width_of_the_normal_interval():
    differences = np.tile([0.0, 1.0], 200)  # mean 0.5, sd 0.5, n 400: 0.5 -+ 1.96 * 0.5 / 20 = 0.451, 0.549
    assert bootstrap(differences, seed=0) == pytest.approx((0.451, 0.549), abs=0.003)


def suites(seeds: int, sizes: list[int], seed_sd: float, cluster_sd: float = 0.0, *, mean: float = 0.0, count=SUITES):
    """Differences [S, P] of simulated suites around `mean`, and their prompts' clusters.

    What prompts add has a deviation of 0.35, with or without seeds; clusters do so half as much seed by seed.
    """
    rng, members = np.random.default_rng(len(sizes)), np.repeat(np.arange(len(sizes)), sizes)
    for _ in range(count):
        kin = rng.normal(0, cluster_sd, len(sizes)) + rng.normal(0, cluster_sd / 2, (seeds, len(sizes)))
        yield (mean + rng.normal(0, seed_sd, (seeds, 1)) + kin[:, members] + rng.normal(0, 0.35, len(members))
               + rng.normal(0, 0.35, (seeds, len(members)))), members


def share_covered(simulated, interval_of, truth: float = 0.0) -> float:
    """How often the interval holds the truth."""
    return float(np.mean([low <= truth <= high for low, high in
                          (interval_of(differences, members) for differences, members in simulated)]))


def ours(differences, members):
    return paired_difference(differences, members).interval


def naive(differences, members):
    return bootstrap(differences.mean(axis=0), seed=0, resamples=200)


# seeds, sizes of the prompts' clusters, deviation between seeds and between clusters
LAYOUTS = {"three_seeds": (3, [1] * 200, 0.03), "five_seeds": (5, [1] * 200, 0.05),
           "seeds_far_apart": (3, [1] * 100, 0.1), "no_seed_variance": (3, [1] * 200, 0.0),
           "three_seeds_far_apart_on_many_prompts": (3, [1] * 200, 0.1),
           "templates": (3, [5] * 20, 0.03, 0.2), "one_seed_templates": (1, [4] * 30, 0.0, 0.2),
           "templates_of_unequal_size": (4, [1] * 20 + [3] * 10 + [10] * 4 + [20], 0.02, 0.2)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_interval_covers_the_truth_as_often_as_it_says(layout):
    assert 0.92 <= share_covered(suites(*LAYOUTS[layout]), ours) <= 0.97


@pytest.mark.parametrize("layout", ["three_seeds", "five_seeds", "seeds_far_apart", "templates"])
def test_resampling_prompts_alone_covers_too_little_where_seeds_or_templates_matter(layout):
    assert share_covered(suites(*LAYOUTS[layout], count=500), naive) < 0.9


def test_the_interval_covers_the_truth_of_rewards_that_are_right_or_wrong():
    rng = np.random.default_rng(7)

    def simulated():
        for _ in range(SUITES):  # chances lie within (0, 1), so that the true difference is 0.1
            prompt, seed = rng.uniform(-0.3, 0.3, 200), rng.uniform(-0.08, 0.08, (3, 1))
            gain = rng.uniform(-0.05, 0.05, 200)
            after, start = rng.random((3, 200)) < 0.5 + prompt + seed + gain, rng.random(200) < 0.4 + prompt
            yield after.astype(float) - start, None
    assert 0.92 <= share_covered(simulated(), ours, truth=0.1) <= 0.97


@pytest.mark.parametrize("seeds, seed_sd, comparisons", [
    (3, 0.03, 1), (6, 0.05, 1), (1, 0.0, 1), (3, 0.03, 10), (6, 0.05, 86), (2, 0.0, 10)])
def test_what_is_said_to_be_detectable_is_detected_four_times_in_five(seeds, seed_sd, comparisons):
    told = detectable(num_seeds=seeds, num_prompts=200, seed_sd=seed_sd, prompt_sd=0.35, rest_sd=0.35,
                      comparisons=comparisons)
    found = [paired_difference(differences) for differences, _ in suites(seeds, [1] * 200, seed_sd, mean=told)]
    share = np.mean([(one.p if comparisons == 1 else one.p_bound) < 0.05 / comparisons for one in found])
    assert 0.75 <= share <= 0.85


@pytest.mark.parametrize("seed_sd", [0.0, 0.05, 0.1, 0.2])
@pytest.mark.parametrize("seeds, comparisons", [(3, 1), (3, 10), (3, 86), (5, 10), (5, 86)])
def test_the_bound_keeps_the_level_of_each_of_many_comparisons(seeds, comparisons, seed_sd):
    rng, count, prompts, level = np.random.default_rng(0), 1_000_000, 200, 0.05 / comparisons
    rest = 0.35 ** 2 / (seeds * prompts)                            # the moments of a suite as `suites` makes them
    expected = [(seed_sd ** 2 / seeds + rest, seeds - 1), (0.35 ** 2 / prompts + rest, prompts - 1)]
    means = rng.normal(0, (sum(variance for variance, _ in expected) - rest) ** 0.5, count)
    parts = [(variance * rng.chisquare(degrees, count) / degrees, degrees) for variance, degrees in expected]
    found = np.mean(np.abs(means) > reach_of(level, parts))
    assert found <= level + 3 * (level / count) ** 0.5
