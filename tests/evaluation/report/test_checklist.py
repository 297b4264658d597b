"""What a run's lineage answers of the questions that every result is asked."""
import pytest

from tasks.opd.core.records import DATASET, TEACHER
from tasks.opd.evaluation.report import lineage, runs
from tasks.opd.evaluation.report.checklist import checklist
from tasks.opd.store import run_records
from tests.evaluation.report import made_runs
from tests.evaluation.report.made_runs import made, round_of, run


def items(stem: str) -> dict:
    found = lineage.read(run_records.files_of(stem)[0])
    listed = checklist(found, runs.verdict_of(found, runs.comparisons(found)), runs.wrong_of(found))
    return {one.question: one for one in listed}


def test_a_run_that_ended_is_known_in_every_point():
    found = items(run(after=[1, 1, 1, 1]))
    assert [*found] == ["Teacher version", "Prompt schema", "Rollout policy", "Filters and what they dropped",
                        "Checkpoint", "Freshness", "Held-out improvement", "Failure cases inspected"]
    assert "teacher: model teacher" in found["Teacher version"].answer
    assert "2 of 2 rounds, 200 trained tokens" in found["Checkpoint"].answer
    assert found["Freshness"].state == "fine" and "the very student" in found["Freshness"].answer
    assert found["Failure cases inspected"].state == "fine"
    assert "gkd-seed0 is" in found["Held-out improvement"].answer


def test_what_was_dropped_is_counted_by_stage_and_shown():
    found = items(run(rounds=2))
    filters, prompts = found["Filters and what they dropped"], found["Prompt schema"]
    assert filters.state == "look" and "Of 6 rollouts dropped: 2 at grades" in filters.answer
    assert filters.examples == ["round 1: 0:x: duplicate: again & again", "round 2: 1:x: duplicate: again & again"]
    assert prompts.state == "look" and "1 were unfit" in prompts.answer
    assert prompts.examples == ["q:0: too long: long <b>"]
    assert "1 of 4 first answers on tiny are wrong" in found["Failure cases inspected"].answer


def test_a_run_that_failed_says_what_is_not_known():
    found = items(run(made_rounds=0, error=ValueError("at once")))
    assert [one.state for one in found.values()] == ["missing", "look", "fine", "fine", "missing", "missing", "missing",
                                                     "missing"]


def test_rollouts_of_another_version_of_the_student_are_not_fresh():
    stem = run(rounds=1)
    early, asked = made("model", "early"), made_runs.prompts("train", 3)
    stale = round_of("stale", 1, early, asked, made("model", "teacher"))
    trained = made("checkpoint", "late", spec={"round": 1}, student=made("model", "another"),
                   rollouts=made("grades", "gstale"), counts={"steps": 3})
    with open(run_records.files_of(stem)[0], "a") as file:
        file.write(f'{{"kind": "checkpoint", "fingerprint": "{trained.fingerprint}"}}\n')
    found = items(stem)
    assert stale.kind == "checkpoint" and found["Freshness"].state == "look"
    assert "another version than the round's own student in rounds 2; at most 3" in found["Freshness"].answer


@pytest.mark.parametrize(("wrote", "who"), [({TEACHER: 9}, "the teacher"), ({DATASET: 4}, "the dataset"),
                                            ({TEACHER: 9, DATASET: 4}, "the teacher and the dataset")], ids=str)
def test_rollouts_that_no_student_wrote_are_said_to_be_others(wrote, who):
    found = items(run(rounds=2, wrote=wrote, asked_of=made("model", "student")))["Freshness"]
    assert found.state == "fine" and "another version" not in found.answer and "very student" not in found.answer
    assert found.answer == (f"Off policy: {who} wrote in rounds 1, 2, the student nothing; at most 1 optimizer step on "
                            "one round's rollouts.")


def test_of_a_run_that_goes_on_policy_the_rounds_before_are_told_apart():
    stem, start = run(rounds=1, wrote={TEACHER: 9}), made("model", "student")
    second = round_of("own", 1, start, made_runs.prompts("train", 3), made("model", "teacher"))
    with open(run_records.files_of(stem)[0], "a") as file:
        file.write(f'{{"kind": "checkpoint", "fingerprint": "{second.fingerprint}"}}\n')
    answer = items(stem)["Freshness"].answer
    assert "the very student" in answer and "off policy: the teacher wrote in rounds 1, the student nothing" in answer
