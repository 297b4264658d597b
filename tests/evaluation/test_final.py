"""What a finished run reached and cost, in a dozen numbers worked by hand."""
from tasks.opd.core import metrics
from tasks.opd.evaluation.final import NAMES, final_numbers
from tasks.opd.store import artifacts
from tasks.opd.store.artifacts import Artifact


def made(kind: str, name: str, counts: dict, seconds: float = 2.0) -> Artifact:
    folder = artifacts.begin(kind, name)
    return artifacts.seal(folder, {"kind": kind, "fingerprint": name, "counts": counts, "inputs": {},
                                   "seconds": seconds})


def report(name: str, avg: float, **counts) -> Artifact:
    return made("report", name, {"avg": avg, "truncated_share": 0.25, "student_written_tokens": 4, **counts})


def result(**end: Artifact) -> dict:
    start = {name: report(f"start-{name}", 0.5) for name in end}
    return {"checkpoint": made("checkpoint", "c", {"trained_tokens": 20}), "start": start, "end": end,
            "evaluation": [*start.values(), *end.values()]}


def test_differences_are_to_the_start_and_costs_leave_out_the_evaluation(tmp_path, monkeypatch):
    monkeypatch.setenv("OPD_HOME", str(tmp_path))
    found = final_numbers(result(
        first=report("a", 0.75, divergence_tokens=9, reverse_kl_mean_nats=0.5), second=report("b", 0.25),
        third=report("c", 0.375)), 3)
    # the others lost 0.25 and 0.125: 0.1875 in the mean
    assert found == {"final/reward_mean": 0.75, "final/reward_difference": 0.25, "final/others_difference": -0.1875,
                     "final/reverse_kl_mean_nats": 0.5, "final/truncated_share": 0.25, "final/rounds": 3,
                     "final/student_written_tokens": 0, "final/teacher_written_tokens": 0,
                     "final/teacher_read_tokens": 0, "final/trained_tokens": 20, "final/seconds": 2.0}


def test_what_is_not_known_is_left_out_and_a_run_without_benchmarks_has_its_costs(tmp_path, monkeypatch):
    monkeypatch.setenv("OPD_HOME", str(tmp_path))
    assert {*NAMES} - final_numbers(result(first=report("a", 0.75)), 3).keys() == {
        "final/others_difference", "final/reverse_kl_mean_nats"}
    assert "final/reward_mean" not in (costs := final_numbers(result(), 1)) and costs["final/trained_tokens"] == 20


def test_there_are_at_most_a_dozen_names_and_they_read_as_metrics_do():
    assert len({*NAMES}) == len(NAMES) <= 12 and all(metrics.KEY.fullmatch(name) for name in NAMES)
