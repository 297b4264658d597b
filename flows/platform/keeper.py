"""`python -m flows.platform.keeper`: restarts servers and worker that died or hang, and reconciles, every few seconds.

It waits while `opd up` or `opd down` are at work. Nobody keeps the keeper: `opd up` starts another.
"""
import signal
import sys
import threading
import time

from flows.platform import api, children, servers
from flows.platform import settings as settings_of
from flows.platform.reconcile import Slots, end_orphans, tidy
from flows.platform.settings import Settings
from tasks.opd.core.files import flock
from tasks.opd.core.streams import keep_printing

PERIOD_SECONDS = 3
RECONCILE_SECONDS = 12
SILENT_SECONDS = 60                     # that a server may be without an answer before it is ended
LONGEST_PAUSE_SECONDS = 60              # between two starts of a child that dies again and again
STEADY_SECONDS = 120                    # alive for so long, a child's next death counts as its first


class Watch:
    """What the keeper knows of one child."""

    def __init__(self, name: str):
        self.name, self.deaths, self.next_start, self.answered = name, 0, 0.0, time.monotonic()

    def look(self, settings: Settings) -> None:
        """Start the child again when it is dead, or end it when it is a server that does not answer."""
        child, now = children.living(self.name), time.monotonic()
        if child is None:
            if now >= self.next_start:
                self.restart(settings)
            return
        if time.time() - child.since > STEADY_SECONDS:
            self.deaths = 0
        if self.name == "worker" or servers.is_well(self.name, settings):
            self.answered = now
        elif now - self.answered > SILENT_SECONDS:
            say(f"{self.name} lives but has not answered for {SILENT_SECONDS} s")
            self.restart(settings)

    def restart(self, settings: Settings) -> None:
        """End what the child left, and start it; the pause before the next time doubles."""
        record = children.read(self.name)
        children.stop(self.name)
        child = launch(self.name, settings)
        say(f"{self.name} was dead (pid {record.pid if record else '-'}); started again as pid {child.pid}")
        self.deaths, self.answered = self.deaths + 1, time.monotonic()
        self.next_start = time.monotonic() + min(LONGEST_PAUSE_SECONDS, 2 ** self.deaths)


def launch(name: str, settings: Settings) -> children.Child:
    """Start a child by name."""
    match name:
        case "prefect":
            return children.start(name, servers.prefect_command(settings), servers.prefect_environment(settings),
                                  settings.prefect_port)
        case "mlflow":
            return children.start(name, servers.mlflow_command(settings), servers.mlflow_environment(settings),
                                  settings.mlflow_port)
        case "worker":
            return children.start(name, servers.worker_command(settings), servers.worker_environment(settings))
        case "keeper":
            return children.start(name, [sys.executable, "-m", "flows.platform.keeper"], servers.environment(settings))
    raise ValueError(f"{name} is none of {', '.join(children.NAMES)}")


def say(*lines: str) -> None:
    """Lines of the keeper's log."""
    for line in lines:
        print(time.strftime("%Y-%m-%d %H:%M:%S"), line, file=sys.stderr, flush=True)


def main() -> None:
    """Keep the platform until a SIGTERM, or until its settings are gone; with a log that can be written or without."""
    keep_printing()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    watches, slots, due = [Watch(name) for name in ("prefect", "mlflow", "worker")], Slots(), 0.0
    while not ended.wait(PERIOD_SECONDS) and (settings := settings_of.read()):
        with flock(settings_of.folder() / settings_of.LOCK, wait=False) as mine:
            for watch in watches if mine else []:
                watch.look(settings)
            if mine and (number := end_orphans()):
                say(f"ended {number} processes that a dead worker or run left")
            if mine and time.monotonic() > due:
                due = time.monotonic() + RECONCILE_SECONDS
                say(*tidy(api.prefect(settings), api.mlflow(settings), slots))


if __name__ == "__main__":
    main()
