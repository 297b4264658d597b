"""The comparison: pairing, intervals, verdicts, seeds and failures, on numbers worked by hand."""
import json

import numpy as np
import pytest

from tasks.opd.comparison import bootstrap, compare

ASKED = ("a", "b", "c", "d")


def cell(*rewards: float) -> dict[str, float]:
    """Rewards of prompts a, b, c, d."""
    return dict(zip(ASKED, rewards))


def row(comparison, variant):
    return next(r for r in comparison.rows if r.variant == variant)


def test_difference_is_the_mean_over_prompts_and_seeds_of_paired_differences():
    cells = {("sft", 0): cell(0, 0, 1, 1), ("sft", 1): cell(0, 0, 0, 1),
             ("gkd", 0): cell(1, 0, 1, 1), ("gkd", 1): cell(1, 1, 0, 1)}
    gkd = row(compare(cells, "sft"), "gkd")
    # seed 0: (1 0 0 0) -> 0.25; seed 1: (1 1 0 0) -> 0.5; together 0.375; means 0.75 and 0.75
    assert gkd.difference_by_seed == {0: 0.25, 1: 0.5}
    assert gkd.difference == 0.375 and gkd.mean == 0.75 and gkd.by_seed == {0: 0.75, 1: 0.75}


def test_prompts_are_paired_by_name_not_by_place():
    shuffled = {"d": 1.0, "c": 0.0, "b": 1.0, "a": 0.0}
    same = row(compare({("sft", 0): cell(0, 1, 0, 1), ("gkd", 0): shuffled}, "sft"), "gkd")
    assert same.difference == 0 and same.interval == (0, 0) and same.verdict == "not distinguishable"


def test_interval_is_a_point_where_every_prompt_differs_alike():
    cells = {("sft", 0): cell(0, 0.25, 0.5, 0), ("gkd", 0): cell(0.5, 0.75, 1, 0.5),
             ("sad", 0): cell(-0.5, -0.25, 0, -0.5)}
    found = compare(cells, "sft")
    assert row(found, "gkd").interval == (0.5, 0.5) and row(found, "gkd").verdict == "better"
    assert row(found, "sad").interval == (-0.5, -0.5) and row(found, "sad").verdict == "worse"
    assert row(found, "sft").verdict == "baseline"


def test_bootstrap_has_the_width_of_the_normal_interval():
    differences = np.tile([0.0, 1.0], 200)  # mean 0.5, sd 0.5, n 400: 0.5 -+ 1.96 * 0.5 / 20 = 0.451, 0.549
    assert bootstrap(differences, seed=0) == pytest.approx((0.451, 0.549), abs=0.003)


def test_one_prompt_in_four_is_not_distinguishable():
    # all four resampled prompts miss the one that differs with (3/4)^4 = 32 % > 2.5 %: the interval starts at 0
    found = row(compare({("sft", 0): cell(0, 0, 0, 0), ("gkd", 0): cell(1, 0, 0, 0)}, "sft"), "gkd")
    assert found.interval[0] == 0 and found.verdict == "not distinguishable"


def test_same_cells_give_the_same_interval():
    cells = {("sft", 0): cell(0, 0, 1, 1), ("gkd", 0): cell(1, 0, 1, 0)}
    assert compare(cells, "sft") == compare(cells, "sft")


def test_start_has_one_cell_for_all_seeds():
    cells = {("start", 0): cell(0, 0, 0, 1), ("gkd", 3): cell(1, 1, 1, 1), ("gkd", 4): cell(1, 1, 0, 1)}
    found = compare(cells, "start")
    assert row(found, "gkd").difference_by_seed == {3: 0.75, 4: 0.5}
    assert found.seeds == [3, 4]
    assert row(compare(cells, "gkd"), "start").difference_by_seed == {3: -0.75, 4: -0.5}


def test_a_failed_cell_is_shown_and_the_other_seed_still_counts():
    cells = {("sft", 0): cell(0, 0, 0, 0), ("sft", 1): cell(0, 0, 0, 0),
             ("gkd", 0): cell(1, 1, 1, 1), ("gkd", 1): "Traceback ...\nNonFinite: the loss is nan"}
    found = compare(cells, "sft")
    assert row(found, "gkd").difference == 1 and row(found, "gkd").by_seed == {0: 1.0, 1: None}
    for text in (found.to_text(), found.to_markdown()):
        assert "failed" in next(line for line in text.splitlines() if "gkd" in line)
        assert "gkd, seed 1: failed: NonFinite: the loss is nan" in text


def test_a_variant_or_baseline_that_failed_altogether_is_still_a_row():
    found = compare({("sft", 0): "died", ("gkd", 0): cell(1, 1, 1, 1)}, "sft")
    assert row(found, "sft").verdict == "failed" and row(found, "gkd").verdict == "no baseline"
    assert "100.0" in found.to_text()
    assert compare({("sft", 0): "died"}, "sft").to_text()


def test_tables_say_how_many_seeds_and_what_the_interval_covers():
    found = compare({("sft", 0): cell(0, 0, 0, 0), ("gkd", 0): cell(1, 1, 0, 1)}, "sft")
    for text in (found.to_text(), found.to_markdown()):
        assert "1 seed." in text and "4 prompts" in text and "not of seeds" in text and "+75.0" in text
    header, _, sft, gkd = found.to_text().splitlines()[:4]
    assert len(header) == len(sft) == max(len(header), len(gkd))  # columns are aligned
    assert json.loads(found.to_json())["rows"][1]["difference"] == 0.75


def test_other_prompts_or_an_unknown_baseline_are_refused():
    with pytest.raises(ValueError, match="asked other prompts"):
        compare({("sft", 0): cell(0, 0, 0, 0), ("gkd", 0): {"a": 1.0}}, "sft")
    with pytest.raises(ValueError, match="baseline is 'stf'"):
        compare({("sft", 0): cell(0, 0, 0, 0)}, "stf")
