"""What a cell cost: which artifacts are in it, on records made by hand; its tables."""
import shutil

import pytest

from tasks.opd.core.costs import READ, TRAINED, WRITTEN, counted
from tasks.opd.core.records import DATASET, STUDENT, TEACHER
from tasks.opd.evaluation.cell_costs import Costs, cost_tables, costs_of, mean_of
from tasks.opd.evaluation.spending import is_cut, spending_of, training_budget
from tasks.opd.recipe import loading
from tasks.opd.store import artifacts
from tasks.opd.store.artifacts import Artifact

DECADE = {kind: 10.0 ** i for i, kind in enumerate(("rollouts", "grades", "refined", "scores", "checkpoint", "report",
                                                    "divergence"))}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("OPD_HOME", str(tmp_path))


def made(kind: str, name: str, counts: dict | None = None, **inputs: Artifact) -> Artifact:
    """An artifact of one file of 100 bytes; a stage takes a power of ten of seconds, and a model a million."""
    folder = artifacts.begin(kind, name)
    (folder / "file").write_bytes(name.encode().ljust(100))
    given = {key: {"kind": one.kind, "fingerprint": one.fingerprint, "digest": one.digest}
             for key, one in inputs.items()}
    return artifacts.seal(folder, {"kind": kind, "fingerprint": name, "counts": counts or {}, "inputs": given,
                                   "spec": {}, "seconds": DECADE.get(kind, 1e6)})


def round_of(name: str, student: Artifact, rollouts: Artifact | None = None, trained: int = 40) -> Artifact:
    """The checkpoint of a round whose student wrote 50 tokens, 30 of them replaced by 35 of the teacher's."""
    rollouts = rollouts or made("rollouts", f"r{name}", counted("rollouts", {WRITTEN[STUDENT]: 50}), student=student)
    refined = made("refined", f"f{name}", counted("refined", {WRITTEN[TEACHER]: 35, READ: 50}),
                   rollouts=made("grades", f"g{name}", rollouts=rollouts), student=student)
    graded = made("grades", f"h{name}", {"dropped": 3}, rollouts=refined)
    scores = made("scores", f"s{name}", counted("scores", {READ: 45}), rollouts=graded, model=student)
    return made("checkpoint", f"c{name}", {TRAINED: trained, "tokens_seen": 999}, rollouts=graded, student=student,
                scores=scores)


def evaluation(name: str, wrote: int, read: int) -> list[Artifact]:
    written = made("report", name, counted("report", {WRITTEN[STUDENT]: wrote}))
    return [written, made("divergence", name, counted("divergence", {READ: read}), report=written)]


def test_a_cells_costs_are_those_of_all_its_rounds_with_what_was_discarded_and_evaluation_apart():
    start = made("model", "m", {TRAINED: 10**6, WRITTEN[STUDENT]: 10**6})
    last = round_of("1", round_of("0", start), trained=30)
    artifacts.retire(artifacts.find("checkpoint", "c0"), ("file",))   # a retired checkpoint is still a link
    found = costs_of(last, [*evaluation("before", 11, 7), *evaluation("after", 13, 8)])
    assert found.tokens == {WRITTEN[STUDENT]: 100, WRITTEN[TEACHER]: 70, WRITTEN[DATASET]: 0, READ: 2 * (50 + 45),
                            TRAINED: 70}
    assert (found.evaluation_tokens[WRITTEN[STUDENT]], found.evaluation_tokens[READ]) == (24, 15)
    assert found.seconds == {"rollouts": 2, "grades": 40, "refined": 200, "scores": 2000, "checkpoint": 20000,
                             "report": 200000, "divergence": 2000000}
    assert found.size == {"bytes": 100 * (2 * 6 + 4)}


def test_two_cells_pay_for_what_they_share_in_full_and_a_cell_pays_once_for_what_it_reads_twice():
    start = made("model", "m")
    shared = made("rollouts", "shared", counted("rollouts", {WRITTEN[STUDENT]: 50}), student=start)
    one, other = (costs_of(round_of(name, start, shared), []) for name in ("a", "b"))
    assert one == other and one.tokens[WRITTEN[STUDENT]] == 50 and one.seconds["rollouts"] == 1
    before = evaluation("before", 11, 7)
    assert costs_of(round_of("d", start), [*before, *before]).evaluation_tokens[READ] == 7


def test_what_old_artifacts_did_not_count_or_are_gone_with_is_not_known():
    start = made("model", "m")
    uncounted = made("rollouts", "old", {"rollouts": 8}, student=start)
    last = round_of("1", round_of("0", start, uncounted))
    assert costs_of(last, []).tokens == {TRAINED: 80}      # what was written and read in round 0 is not known
    shutil.rmtree(uncounted.path)
    gone = costs_of(last, evaluation("after", 13, 8))
    assert gone.tokens == {} and gone.seconds == {"report": 100000, "divergence": 1000000}
    assert gone.evaluation_tokens[READ] == 8
    assert costs_of(start, []) == Costs(tokens={}, evaluation_tokens={}, seconds={}, size={})


def costs(tokens: dict, seconds: dict) -> Costs:
    return Costs(tokens=tokens, evaluation_tokens={}, seconds=seconds, size={"bytes": 2_500_000} if seconds else {})


def test_a_variants_costs_are_means_over_the_cells_that_know_them():
    found = mean_of([costs({READ: 1000, TRAINED: 10}, {"scores": 1.0}), costs({TRAINED: 20}, {"scores": 2.0})])
    assert found == costs({READ: 1000, TRAINED: 15}, {"scores": 1.5})


def test_tables_tell_not_known_from_no_such_stage_and_leave_out_what_nobody_fills():
    nobody, sft = costs({}, {}), costs({TRAINED: 2000, READ: 0}, {"rollouts": 3.0, "checkpoint": 4.0, "report": 9.0})
    skd = costs({TRAINED: 1000}, {"rollouts": 1.0, "refined": 2.0, "checkpoint": 4.0})
    tokens, seconds = cost_tables([("start", "22.5", nobody), ("sft", "50.0", sft), ("skd", "", skd)])
    assert tokens == [["1,000 tokens", "mean", "teacher read", "trained"], ["start", "22.5", "-", "-"],
                      ["sft", "50.0", "0.0", "2.0"], ["skd", "", "-", "1.0"]]
    assert seconds == [["seconds", "rollouts", "refined", "checkpoint", "all rounds", "evaluation", "MB"],
                       ["start", "-", "-", "-", "-", "-", "-"],
                       ["sft", "3.0", "", "4.0", "7.0", "9.0", "2.5"], ["skd", "1.0", "2.0", "4.0", "7.0", "-", "2.5"]]
    assert cost_tables([("start", "22.5", nobody)]) == []


def test_a_rounds_spending_adds_to_that_of_the_rounds_before_and_is_cut_where_all_that_was_left_is_written():
    start = made("model", "m")
    cut = made("rollouts", "r", counted("rollouts", {WRITTEN[STUDENT]: 50}), student=start)
    first, second = round_of("0", start), round_of("1", start, rollouts=cut, trained=30)
    before = spending_of(first, [])
    assert before["spent"] == {WRITTEN[STUDENT]: 50, WRITTEN[TEACHER]: 35, WRITTEN[DATASET]: 0, READ: 95, TRAINED: 40,
                               "seconds": 11121.0}
    after = spending_of(second, [before])
    assert after["spent"] == {name: amount * 2 - (10 if name == TRAINED else 0)
                              for name, amount in before["spent"].items()}
    assert [is_cut({"spec": {"most": {"tokens": tokens, "of": [WRITTEN[STUDENT]]}}, "counts": {WRITTEN[STUDENT]: 50}})
            for tokens in (51, 50)] == [False, True] and not is_cut({"spec": {}, "counts": {}})


def test_training_is_told_of_a_budget_what_its_learning_rate_depends_on():
    rollouts = made("rollouts", "r", counted("rollouts", {WRITTEN[STUDENT]: 50}))
    scores = made("scores", "s", counted("scores", {READ: 45}), rollouts=rollouts)
    past = [{"spent": {WRITTEN[STUDENT]: 100, READ: 180, "seconds": 5.0}, "cut": False}]

    def told(*overrides: str) -> dict:
        recipe = loading.load("opd_reverse_kl", overrides)
        return training_budget(recipe, past, [rollouts, scores])
    linear = "train.schedule=linear"
    assert told(linear) == {} and told("budget.trained_tokens=9") == {"trained_tokens": 9}
    assert told("budget.teacher_read_tokens=200") == {}                     # a constant rate depends on nothing
    assert told(linear, "budget.student_written_tokens=400") == {"behind": [0.25, 0.375]}       # 100, 150 of 400
    assert told(linear, "budget.teacher_read_tokens=200") == {"behind": [0.9, 1.0]}             # 180, 225 of 200
    assert told(linear, "budget.seconds=4000")["behind"] == pytest.approx([5 / 4000, 1006 / 4000])  # and 1 + 1000 s
