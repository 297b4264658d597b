"""Points: one name and one step for all that a round is, and only numbers that tell something."""
import json

import pytest

from tasks.opd.core import metrics
from tasks.opd.store import artifacts
from tasks.tracking.points import Note, last_files, new_points, points_of, shipped_points

CREATED = "2026-01-01T00:00:00+00:00"
AT = 1_767_225_600_000                  # that, in milliseconds


def note_of(kind: str, prefix: str, counts: dict, own: list[dict] = (), step: int = 1, name: str = "0000") -> Note:
    """A finished stage whose metrics.jsonl holds `own`, one append each, at steps 3, 4, .."""
    made = artifacts.Artifact(kind=kind, fingerprint=f"{name}{step}", digest="", counts=counts)
    made.path.mkdir(parents=True)
    for at, values in enumerate(own, 3):
        metrics.append(made.path / metrics.FILE, at, values)
    return Note(artifact=made, name=name, step=step, prefix=prefix)


def record_of(note: Note, seconds: float = 1.0) -> dict:
    """What its artifact.json says."""
    return {"counts": note.artifact.counts, "created": CREATED, "seconds": seconds}


def shipped(note: Note, spent: dict) -> dict:
    """(key, step) -> value of what MLflow gets."""
    return {(p["key"], p["step"]): p["value"] for p in shipped_points(note, record_of(note), spent)}


@pytest.mark.parametrize("kind, prefix, counts, own, expected", [
    ("checkpoint", "checkpoint", {"tokens_seen": 7, "trained_tokens": 3, "loss": 0.1, "steps": 1},
     {"train/tokens_seen": 7}, {"train/tokens_seen": 7, "round/trained_tokens": 7, "round/seconds": 2.5}),
    ("rollouts", "rollout", {"rollouts": 8, "truncated_share": 0.5}, {"rollout/truncated_share": 0.5},
     {"rollout/truncated_share": 0.5, "rollout/rollouts": 8}),
    ("scores", "score/teacher", {"scored": 8}, {"score/tokens_per_second": 3},
     {"score/teacher/tokens_per_second": 3, "score/teacher/scored": 8}),
    ("report", "eval/tiny", {"avg": 1, "pass@1": 1}, {"evaluate/tiny_avg": 1},
     {"eval/tiny/avg": 1, "eval/tiny/pass_at_1": 1})])
def test_a_number_stands_under_one_name(kind, prefix, counts, own, expected):
    note = note_of(kind, prefix, counts, [own])
    points = points_of(note, record_of(note), {"trained_tokens": 7, "seconds": 2.5})
    assert sorted((point["key"], point["value"]) for point in points) == sorted(expected.items())


def test_all_of_a_round_stands_at_its_number_by_the_mean_and_its_optimizer_steps_beside_it():
    own = [{"train/loss_nats": 4.0, "train/clip_share": 1.0}, {"train/loss_nats": 2.0, "train/clip_share": 0.0}]
    note = note_of("checkpoint", "checkpoint", {"tokens_seen": 7}, own, step=2)
    assert shipped(note, {"trained_tokens": 7, "seconds": 2.5}) == {
        ("train/loss_nats", 2): 3.0, ("train/clip_share", 2): 0.5, ("round/trained_tokens", 2): 7,
        ("round/seconds", 2): 2.5, ("optimizer/loss_nats", 3): 4.0, ("optimizer/loss_nats", 4): 2.0}


def test_a_round_of_one_optimizer_step_has_no_curve_of_its_own():
    note = note_of("checkpoint", "checkpoint", {}, [{"train/loss_nats": 4.0}])
    assert shipped(note, {}) == {("train/loss_nats", 1): 4.0}


def test_sizes_and_counts_of_nothing_are_left_out_and_what_went_wrong_is_not():
    note = note_of("rollouts", "rollout", {"prompts": 8, "rollouts": 8, "rollouts_student": 8, "tokens": 90,
                                           "teacher_written_tokens": 5, "quarantined": 2, "dropped": 0,
                                           "truncated_share": 0.0})
    assert shipped(note, {}) == {("rollout/quarantined", 1): 2, ("rollout/truncated_share", 1): 0.0}
    for kind in ("model", "prompts", "preflight"):
        assert shipped(note_of(kind, kind, {"parameters": 5, "length_max_tokens": 9}), {}) == {}


def test_costs_so_far_are_there_where_there_are_any_and_the_two_axes_always():
    note = note_of("checkpoint", "checkpoint", {})
    spent = {"teacher_written_tokens": 0, "student_written_tokens": 4, "trained_tokens": 0, "seconds": 0.0}
    assert {key for key, _ in shipped(note, spent)} == {
        "round/student_written_tokens", "round/trained_tokens", "round/seconds"}


def test_the_axes_begin_at_the_first_evaluation_and_count_the_rounds_alone():
    notes = [note_of("model", "model/student", {}), note_of("report", "eval/a", {"avg": 0.5}, step=0, name="a"),
             note_of("report", "eval/b", {"avg": 0.25}, step=0, name="b"),
             note_of("rollouts", "rollout", {"student_written_tokens": 6}, name="0000"),
             note_of("checkpoint", "checkpoint", {"trained_tokens": 4}, name="0001"),
             note_of("report", "eval/a", {"avg": 0.75}, name="c")]
    records = [record_of(note, seconds) for note, seconds in zip(notes, (100.0, 20.0, 20.0, 1.0, 2.0, 20.0))]
    points = new_points([*zip(notes, records)], [True] * 6)
    curve = {key: sorted((p["step"], p["value"]) for p in points if p["key"] == key)
             for key in ("round/trained_tokens", "round/seconds", "eval/a/avg")}
    assert curve == {"round/trained_tokens": [(0, 0.0), (1, 4)], "round/seconds": [(0, 0.0), (1, 3.0)],
                     "eval/a/avg": [(0, 0.5), (1, 0.75)]}
    assert {p["timestamp"] for p in points} == {AT}
    again = new_points([*zip(notes, records)], [False, True, True, *3 * [False]])     # what went before is sent already
    assert {(p["key"], p["step"]) for p in again} == {
        ("eval/a/avg", 0), ("eval/b/avg", 0), ("round/trained_tokens", 0), ("round/seconds", 0)}


def test_what_is_told_by_position_is_a_file_and_no_metric():
    own = [{"position/teacher_gap_nats/8": -0.5, "position/tokens/8": 3.0, "trust/overlap@16": 0.75}]
    note = note_of("checkpoint", "checkpoint", {}, own, step=2)
    record = record_of(note) | {"kind": "checkpoint", "fingerprint": note.artifact.fingerprint, "spec": {"round": 1}}
    assert shipped(note, {}) == {("trust/overlap_at_16", 2): 0.75}
    [profile] = json.loads(last_files({"checkpoint/0001": (note, record)}, {}, None)["positions.json"])
    assert profile == {"round": 1, "teacher_gap_nats": {"8": -0.5}, "tokens": {"8": 3.0}}
    assert "positions.json" not in last_files({"rollouts/0001": (note, record | {"kind": "rollouts"})}, {}, None)
