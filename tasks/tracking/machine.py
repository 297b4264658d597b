"""CPU, memory and GPU of this machine, sampled by whoever asks now and then: no thread of its own.

MLflow's own monitors under MLflow's own names, so that its page of system metrics shows them. The samples are of the
moment: what an outage keeps back is not sent later.
"""
import time

from tasks.tracking.client import machine_monitors

EVERY_SECONDS, FIRST_SECONDS = 10, 2    # between samples; a share of the CPU's time wants some time behind it


class Machine:
    """The monitors, and when the next sample is due."""

    def __init__(self):
        self.monitors, self.due = [], 0.0

    def points(self, samples: int) -> list[dict]:
        """A sample as points, if one is due: step `samples` + 1, where so many were taken before."""
        if not self.monitors:
            self.monitors = machine_monitors()
            self.collected()
            self.due = time.monotonic() + FIRST_SECONDS
        if time.monotonic() < self.due:
            return []
        self.due, now = time.monotonic() + EVERY_SECONDS, time.time_ns() // 1_000_000
        return [{"key": f"system/{name}", "value": float(value), "step": samples + 1, "timestamp": now}
                for name, value in self.collected().items()]

    def collected(self) -> dict[str, float]:
        """What all monitors say now, by MLflow's names."""
        values = {}
        for monitor in self.monitors:
            monitor.collect_metrics()
            values |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        return values
