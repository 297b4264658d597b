"""metrics.jsonl: whole points, finite values, offsets."""
import json

import pytest

from tasks.opd.core import metrics


def test_points_are_read_in_the_order_they_were_appended(tmp_path):
    file = tmp_path / "metrics.jsonl"
    metrics.append(file, 0, {"train/loss_nats": 0.5, "train/tokens_seen": 128})
    metrics.append(file, 1, {"train/loss_nats": 0.25})
    points = metrics.read(file)
    assert [(p["key"], p["value"], p["step"]) for p in points] == [
        ("train/loss_nats", 0.5, 0), ("train/tokens_seen", 128.0, 0), ("train/loss_nats", 0.25, 1)]
    assert all(isinstance(p["timestamp"], int) for p in points)
    assert points[0]["timestamp"] == points[1]["timestamp"]


def test_values_that_are_not_finite_are_counted_not_logged(tmp_path):
    file = tmp_path / "metrics.jsonl"
    metrics.append(file, 3, {"train/loss_nats": float("nan"), "train/grad_norm": float("inf"), "train/rate": 1.0})
    assert {p["key"]: p["value"] for p in metrics.read(file)} == {
        "train/loss_nats_nonfinite_count": 1.0, "train/grad_norm_nonfinite_count": 1.0, "train/rate": 1.0}
    json.loads(file.read_text().splitlines()[0], parse_constant=pytest.fail)  # strict JSON: no NaN


def test_a_torn_last_line_waits_until_it_is_whole(tmp_path):
    file = tmp_path / "metrics.jsonl"
    metrics.append(file, 0, {"a/b": 1.0})
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:10])
    points, offset = metrics.read_from(file, 0)
    assert len(points) == 1 and offset == len(whole)
    file.write_bytes(whole + whole)
    assert len(metrics.read_from(file, offset)[0]) == 1


def test_no_file_yet_is_no_points(tmp_path):
    assert metrics.read_from(tmp_path / "none", 0) == ([], 0)


def test_a_key_without_a_stage_is_refused(tmp_path):
    with pytest.raises(ValueError, match="stage/quantity_unit"):
        metrics.append(tmp_path / "m", 0, {"loss": 1.0})
