"""System metrics: MLflow's names, a sample now and then, a step each."""
import psutil

from tasks.tracking import machine
from tasks.tracking.machine import Machine


def test_a_sample_has_cpu_and_memory_under_mlflows_names(monkeypatch):
    monkeypatch.setattr(machine, "FIRST_SECONDS", 0)
    points = {point["key"]: point for point in Machine().points(samples=4)}
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= points.keys()
    memory = points["system/system_memory_usage_megabytes"]
    assert 0 < memory["value"] < psutil.virtual_memory().total / 1e6
    assert {point["step"] for point in points.values()} == {5}


def test_there_is_one_sample_an_interval_and_none_before_time_has_passed(monkeypatch):
    assert Machine().points(samples=0) == []    # a share of the CPU's time since the look before
    monkeypatch.setattr(machine, "FIRST_SECONDS", 0)
    sampled = Machine()
    assert sampled.points(samples=0) and sampled.points(samples=1) == []
