"""How far a stage is: a bar at the terminal, and the same numbers for whoever else watches. No torch at import."""
import contextlib
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta

DELAY_SECONDS = 2   # what is done before that has no bar
REPORT_SECONDS = 1  # between two reports, and before the first


def print_line(text: str) -> None:
    """One line to the person at the terminal; when nobody reads there any more, that is no error of the run's."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


class Progress:
    """A bar with rate and ETA on stderr; use it with `with`, and call `.update(n)` as units get done.

    Where tokens are counted too, the bar shows tokens/s beside its own unit. `report` gets {label, done, total, unit,
    seconds, tokens} about once a second, and at the end what the last one lacked. An update is a sign of life.
    """

    def __init__(self, total: int | None, label: str, unit: str, report: Callable[[dict], None] | None = None):
        from tqdm import tqdm
        columns = int(os.environ.get("COLUMNS") or 0)  # set by the flow when a person is watching
        self.every = 0.5 if columns else 10
        self.bar = tqdm(total=total, desc=label, unit=f" {unit}", file=sys.stderr, delay=DELAY_SECONDS, leave=False,
                        disable=os.environ.get("OPD_PROGRESS") == "0", ncols=columns or 100, ascii=not columns,
                        mininterval=self.every, smoothing=0)  # the mean rate: work ends in bursts, a batch at a time
        self.label, self.total, self.unit, self.report = label, total, unit, report
        self.done = self.tokens = 0
        self.started = time.monotonic()
        self.shown, self.reported, self.last_report = self.started + DELAY_SECONDS, self.started, None

    def update(self, n: int = 1, tokens: int = 0) -> None:
        """`n` more units are done, and `tokens` more tokens, of units done or not."""
        self.done, self.tokens = self.done + n, self.tokens + tokens
        self.bar.update(n)
        now = time.monotonic()
        if self.tokens and now - self.shown >= self.every:
            self.shown = now
            self.bar.set_postfix_str(f"{self.tokens / (now - self.started):,.0f} tokens/s")
        if now - self.reported >= REPORT_SECONDS:
            self._send(now)

    def _send(self, now: float) -> None:
        self.reported, self.last_report = now, (self.done, self.tokens)
        if self.report is not None:
            self.report({"label": self.label, "done": self.done, "total": self.total, "unit": self.unit,
                         "seconds": round(now - self.started, 3), "tokens": self.tokens})

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()
        if self.last_report not in (None, (self.done, self.tokens)):
            self._send(time.monotonic())


def percent_of(progress: dict) -> float:
    """Of a report, 0 to 100; 0 where nobody knows the total."""
    return 100 * progress["done"] / progress["total"] if progress["total"] else 0.0


def described(progress: dict) -> str:
    """A report in words: label, done / total, rates, and the time that is left at the mean rate."""
    done, total, unit, seconds = progress["done"], progress["total"], progress["unit"], max(progress["seconds"], 1e-9)
    parts = [f"{progress['label']}: {done:,}{f' / {total:,}' if total else ''} {unit}"]
    if done:
        parts.append(f"{done / seconds:,.3g} {unit}/s")
    if progress["tokens"]:
        parts.append(f"{progress['tokens'] / seconds:,.0f} tokens/s")
    if total and 0 < done < total:
        parts.append(f"ETA {timedelta(seconds=round(seconds / done * (total - done)))}")
    return ", ".join(parts)
