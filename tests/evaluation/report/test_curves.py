"""Learning curves over rounds and every currency, and maps of position by round."""
from tasks.opd.core import metrics
from tasks.opd.evaluation.report import curves, lineage
from tasks.opd.store import artifacts, run_records
from tests.evaluation.report.made_runs import run


def read(**options) -> lineage.Lineage:
    return lineage.read(run_records.files_of(run(**options))[0])


def test_curves_stand_at_the_rounds_finished_with_what_was_spent_up_to_there():
    values = {"train/teacher_gap/teacher_gap_mean_nats": -0.25}
    found = curves.curves_of(read(rounds=2, trained=30, values=values), "tiny")
    # a round of four stages takes 4 s; its student writes nine tokens, the teacher reads eleven
    assert found["reward"] == [(0, 0, 0, 0.25, 0, 0, 0), (2, 60, 8, 0.75, 18, 0, 22)]
    assert found["reverse KL"] == [(0, 0, 0, 0.5, 0, 0, 0), (2, 60, 8, 0.25, 18, 0, 22)]
    assert found["loss"] == [(1, 30, 4, 1.0, 9, 0, 11), (2, 60, 8, 0.5, 18, 0, 22)]
    assert [point.value for point in found["teacher gap"]] == [-0.25, -0.25]


def test_what_was_not_measured_has_no_curve():
    found = curves.curves_of(read(error=ValueError()), "another")
    assert [*found] == ["loss"]


def test_whatever_was_logged_by_position_becomes_a_map():
    values = {"position/reverse_kl/0": 1.0, "position/reverse_kl/16": 3.0, "train/position/student_entropy/8": 2.0,
              "train/grad_norm": 9.0}
    found = {one.quantity: one for one in curves.maps_of(read(rounds=2, values=values))}
    assert [*found] == ["reverse kl", "student entropy"]
    assert (found["reverse kl"].rounds, found["reverse kl"].buckets) == ([1, 2], [0, 16])
    assert found["reverse kl"].values == [[1.0, 3.0], [1.0, 3.0]]
    assert found["student entropy"].buckets == [8]


def test_a_run_that_logs_nothing_by_position_has_no_maps():
    assert curves.maps_of(read()) == []


def test_a_bucket_that_a_round_did_not_reach_is_empty_there():
    assert curves.map_of("x", {(1, 0): [1.0], (2, 0): [2.0, 4.0], (2, 16): [5.0]}).values == [[1.0, None], [3.0, 5.0]]


def test_a_file_of_metrics_is_read_once_however_often_a_page_is_made(monkeypatch):
    run_, read_files = read(rounds=3, values={"position/reverse_kl/0": 1.0}), []
    monkeypatch.setattr(metrics, "read", lambda path, read=metrics.read: read_files.append(path) or read(path))
    curves.values_of.cache_clear()
    whole = [(curves.curves_of(run_, "tiny"), curves.maps_of(run_)) for _ in range(2)]
    assert whole[0] == whole[1] and sorted(read_files) == sorted(one.checkpoint.path / metrics.FILE
                                                                 for one in run_.rounds)


def test_metrics_that_were_made_again_are_read_again():
    before = curves.curves_of(read(rounds=1), "tiny")["loss"][0].value
    [found] = read(rounds=1).rounds
    record, folder = found.checkpoint.record, artifacts.begin("checkpoint", "cgkd00")
    metrics.append(folder / metrics.FILE, 1, {"train/loss_nats": 9.0})
    artifacts.seal(folder, record)                           # which makes the table of files anew
    lineage.read_version.cache_clear()
    assert (before, curves.curves_of(read(rounds=1), "tiny")["loss"][0].value) == (1.0, 9.0)


def test_thinning_keeps_both_ends():
    assert curves.thinned([*range(11)], 3) == [0, 5, 10]
    assert curves.thinned([1, 2, 3], 3) == [1, 2, 3] and curves.thinned([1, 2, 3], 0) == [1, 3]
    whole = curves.map_of("x", {(i, 0): [float(i)] for i in range(1, 8)})
    assert (curves.thin_map(whole, 3).rounds, curves.thin_map(whole, 3).values) == ([1, 4, 7], [[1.0], [4.0], [7.0]])
