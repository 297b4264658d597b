"""A run's record as rounds and evaluations: of runs that ended, failed, are at work or were killed."""
from tasks.opd.evaluation.report import lineage
from tasks.opd.store import run_records
from tests.evaluation.report.made_runs import ROLLOUTS, run


def read(stem: str) -> lineage.Lineage:
    return lineage.read(run_records.files_of(stem)[0])


def test_a_run_that_ended_has_its_rounds_with_what_each_had_cost_so_far_and_its_evaluations():
    found = read(run(rounds=3, trained=70))
    assert (found.variant, found.seed, found.state, found.error) == ("gkd", 0, "done", "")
    assert [one.index for one in found.rounds] == [0, 1, 2]
    assert [(one.trained_tokens, one.seconds) for one in found.rounds] == [(70, 4), (140, 8), (210, 12)]
    assert [stage.kind for stage in found.rounds[1].stages] == ["checkpoint", "grades", "scores", "rollouts"]
    assert [(one.step, one.reverse_kl()) for one in found.on("tiny")] == [(0, 0.5), (3, 0.25)]
    before, after = found.ends("tiny")
    assert before.rewards()["p:1"] == 0 and after.rewards()["p:1"] == 1


def test_the_stages_of_a_round_end_where_the_round_before_begins():
    found = read(run(rounds=2, refined=ROLLOUTS))
    assert [one.last("refined", "grades").kind for one in found.rounds] == ["refined", "refined"]
    assert sum(stage.kind == "checkpoint" for stage in found.rounds[1].stages) == 1
    assert [*found.rounds[1].scores()] == ["teacher"]


def test_a_run_that_failed_says_why_and_has_what_it_had_made():
    found = read(run(error=ValueError("no more <tokens>")))
    assert (found.state, found.error) == ("failed", "ValueError: no more <tokens>")
    assert len(found.rounds) == 2 and found.ends("tiny")[1] is None


def test_what_rules_found_is_told():
    assert read(run(found=["half are cut off"])).findings == ["after round 1, loops: half are cut off"]


def test_a_run_that_was_taken_up_and_ended_is_not_failed_any_more():
    run(error=ValueError("first"))
    assert read(run()).state == "done"


def test_a_run_at_work_is_known_from_one_that_was_killed():
    about = {"suite": "", "recipe": {"name": "gkd", "seed": 0, "benchmarks": []}}
    with run_records.recorded("gkd-seed0", **about):
        [file] = run_records.files_of(run_records.stem_of("gkd-seed0", **about))
        assert lineage.read(file).state == "running"
        copy = file.with_name("killed.jsonl")
        copy.write_bytes(file.read_bytes() + b'{"kind": "model", "finger')   # a line that was cut off
    assert lineage.read(copy).state == "stopped"
