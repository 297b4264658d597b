"""A stage's metrics: one JSON object a line in `metrics.jsonl`, flushed as they come, shipped by others. No torch.

A point is {key, value, step, timestamp}. Its timestamp (milliseconds) is fixed when it is written, so that sending a
file twice sends identical points, which the store drops.
"""
import json
import math
import re
import time
from pathlib import Path

FILE = "metrics.jsonl"
KEY = re.compile(r"[A-Za-z0-9_.:@-]+(/[A-Za-z0-9_.:@-]+)+")


def append(path: Path, step: int, values: dict[str, float]) -> None:
    """Append one point a value; keys read `stage/quantity_unit`, for example `train/loss_nats`.

    A value that is not finite is counted instead of logged: `<key>_nonfinite_count` with value 1.
    Raises: ValueError for a key that is not of that form.
    """
    timestamp = time.time_ns() // 1_000_000
    lines = []
    for key, value in values.items():
        if not KEY.fullmatch(key):
            raise ValueError(f"metric key {key!r} is not of the form stage/quantity_unit, e.g. train/loss_nats")
        number = float(value)
        if not math.isfinite(number):
            key, number = f"{key}_nonfinite_count", 1.0
        lines.append(json.dumps({"key": key, "value": number, "step": int(step), "timestamp": timestamp}) + "\n")
    with open(path, "a", encoding="utf-8") as file:
        file.write("".join(lines))


def read(path: Path) -> list[dict]:
    """All whole points of a file, in the order written; a last line that is still being written is left out."""
    return read_from(path, 0)[0]


def read_from(path: Path, offset: int) -> tuple[list[dict], int]:
    """The whole points from byte `offset` on, and the offset to continue from; nothing while there is no file."""
    if not Path(path).exists():
        return [], offset
    with open(path, "rb") as file:
        file.seek(offset)
        whole, newline, _ = file.read().rpartition(b"\n")
    return [json.loads(line) for line in whole.splitlines()], offset + len(whole) + len(newline)
