"""Prompts gained and lost, and answers side by side."""
from tasks.opd.evaluation.report import lineage, prompts
from tasks.opd.store import run_records
from tests.evaluation.report.made_runs import run


def ends(**options) -> lineage.Evaluation:
    return lineage.read(run_records.files_of(run(**options))[0]).ends("tiny")[1]


def test_a_prompt_is_gained_lost_right_with_both_or_with_neither():
    baseline = {"a": 1.0, "b": 1.0, "c": 0.0, "d": 0.0, "e": 0.0}
    found = prompts.flips_of("gkd", {"a": 1.0, "b": 0.25, "c": 0.5, "d": 1.0, "e": 0.0}, baseline)
    assert (found.gained, found.lost, found.both, found.neither) == (2, 1, 1, 1)
    assert sorted(found.dots) == [(0.0, 0.0, 1), (0.0, 0.5, 1), (0.0, 1.0, 1), (1.0, 0.25, 1), (1.0, 1.0, 1)]


def test_the_mean_over_seeds_is_taken_prompt_by_prompt():
    assert prompts.mean_over([{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 0.0}]) == {"a": 0.5, "b": 0.0}


def test_the_disputed_prompts_are_those_on_which_variants_differ_most():
    means = {"start": {"a": 0.0, "b": 0.0, "c": 1.0}, "gkd": {"a": 0.5, "b": 1.0, "c": 1.0}}
    assert prompts.disputed(means) == ["b", "a"] and prompts.disputed({}) == []


def test_answers_stand_side_by_side_and_long_ones_say_what_is_left_out():
    end = ends(texts=["<b>no</b>", "x" * 50])
    first, second = prompts.side_by_side({"left": end, "right": end}, ["p:0", "p:1"], 10)
    assert (first.text, first.truth) == ("what is 0?", "0")
    assert [(answer.by, answer.text) for answer in first.answers] == [("left", "<b>no</b>"), ("right", "<b>no</b>")]
    assert second.answers[0].text == "x" * 10 + " [40 characters more]"


def test_wrong_answers_are_counted_and_the_first_are_shown():
    count, shown = prompts.failed(ends(after=[0, 1, 0, 0.5]), "gkd", 2)
    assert count == 3 and [one.prompt_id for one in shown] == ["p:0", "p:2"]
