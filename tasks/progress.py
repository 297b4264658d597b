"""Progress in Prefect: how far the work is, as one progress artifact a flow run in Prefect."""
import contextvars
import re
import threading

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.runtime import flow_run

from tasks.opd.core.progress import described, percent_of
from tasks.workers.pools import Listener

EVERY_SECONDS = 5  # between two updates


class Page(Listener):
    """Shows the latest progress from a thread of its own: the run neither waits for Prefect nor fails with it."""

    def __init__(self):
        self.latest, self.shown, self.artifact, self.ended = None, None, None, threading.Event()
        self.key = "progress-" + re.sub(r"[^a-z0-9]+", "-", flow_run.name.lower()).strip("-")
        self.thread = threading.Thread(target=contextvars.copy_context().run, args=(self.work,), daemon=True)

    def stage_progress(self, progress: dict) -> None:
        self.latest = progress

    def work(self) -> None:
        """Show what is new every few seconds and at the end; what Prefect does not take now is shown next time."""
        running = True
        while running:
            running, latest = not self.ended.wait(EVERY_SECONDS), self.latest
            if latest is None or latest is self.shown:
                continue
            try:
                if self.artifact is None:
                    self.artifact = create_progress_artifact(percent_of(latest), self.key, described(latest))
                else:
                    update_progress_artifact(self.artifact, percent_of(latest), described(latest))
                self.shown = latest
            except Exception:  # noqa: S112  whatever the server does, the run goes on
                continue
