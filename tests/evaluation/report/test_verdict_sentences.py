"""The first line of a page."""
from tasks.opd.evaluation.report.verdicts import of_run, of_suite, ranked


def row(variant: str, difference: float | None, verdict: str) -> dict:
    interval = None if difference is None else [difference - 0.1, difference + 0.1]
    return {"variant": variant, "difference": difference, "interval": interval, "verdict": verdict}


def test_the_best_variant_stands_first_then_how_many_are_better_or_not():
    rows = [row("start", None, "baseline"), row("b", 0.2, "better"), row("a", 0.5, "better"),
            row("c", 0.05, "not distinguishable"), row("d", -0.3, "worse"), row("e", None, "failed")]
    assert of_suite(rows, "start", "tiny", 1) == (
        "a is better than start on tiny: +50.0 points [+40.0, +60.0]. Of 4 variants, 2 better than start, "
        "1 not distinguishable from start, 1 worse than start. Failed: e. 1 cell has not been run.")


def test_without_a_better_variant_none_is_claimed():
    rows = [row("a", 0.05, "not distinguishable"), row("b", -0.3, "worse")]
    assert of_suite(rows, "start", "tiny").startswith(
        "No variant is better than start on tiny; a comes nearest with +5.0 points [-5.0, +15.0].")


def test_a_larger_difference_that_is_not_shown_does_not_stand_before_one_that_is():
    rows = [{"variant": "noisy", "difference": 0.2, "interval": [-0.05, 0.45], "verdict": "not distinguishable"},
            {"variant": "solid", "difference": 0.15, "interval": [0.1, 0.2], "verdict": "better"}]
    assert of_suite(rows, "start", "tiny").startswith(
        "solid is better than start on tiny: +15.0 points [+10.0, +20.0].")
    assert [row["variant"] for row in ranked(rows)] == ["solid", "noisy"]


def test_a_suite_that_has_compared_nothing_says_so():
    assert of_suite([], "start", "tiny", 4) == "No variant has been compared with start yet. 4 cells have not been run."


def test_the_untrained_start_is_no_variant_of_a_suite_with_another_baseline():
    rows = [row("start", -0.2, "worse"), row("gkd", None, "baseline"), row("sft", -0.1, "worse")]
    assert "comes nearest" in of_suite(rows, "gkd", "tiny") and "start comes" not in of_suite(rows, "gkd", "tiny")


def test_a_run_is_held_against_its_start():
    rows = {"tiny": row("gkd", 0.5, "better"), "other": row("gkd", 0.0, "not distinguishable")}
    assert of_run("gkd-seed0", rows) == ("gkd-seed0 is better than its start on tiny: +50.0 points [+40.0, +60.0]; "
                                         "not distinguishable from its start on other: +0.0 points [-10.0, +10.0].")
    assert of_run("gkd-seed0", {}) == "gkd-seed0: nothing has been compared with its start yet."
