"""One MLflow run and the thread that ships to it what a flow has finished.

Timestamps are those of the files, and what was shipped is written down under `tracking/`, so that a resumed run
continues its MLflow run and a replay sends identical points, which the store drops. Whatever fails there gives one
warning, and what was not sent is sent next time. Left out: points of unfinished stages, which a stage made again would
send twice.
"""
import contextlib
import getpass
import json
import os
import queue
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from tasks.opd.core.costs import summed
from tasks.opd.core.errors import OpdError
from tasks.opd.evaluation.cell_costs import ROUND
from tasks.opd.store import artifacts
from tasks.opd.store.artifacts import Artifact, home
from tasks.tracking.client import alone, client_at, entities, experiment_id, is_there, tracking_uri
from tasks.tracking.points import Note, log_key, points_of, sampled_rows

BATCH = 1000                            # metrics a request may carry; parameters and tags: 100
TICK_SECONDS, RETRY_SECONDS = 2, 15
RUNS_PAGE = "?workflowType=machine_learning"  # without it MLflow shows an empty page for traces of language models
NOTE, NOTE_CHARACTERS = "mlflow.note.content", 8000


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """How a run is presented."""
    name: str
    tags: dict[str, str]
    params: dict[str, str]
    files: dict[str, str]               # path -> text


class Run:
    """One MLflow run and the thread that fills it. No method waits for MLflow but `close`, and that not for long."""

    def __init__(self, key: str, experiment: str, about: About, parent: "Run | None" = None):
        self.experiment, self.about, self.parent = experiment, about, parent
        self.file = home() / "tracking" / f"{key}.json"
        self.state = {"uri": tracking_uri(), "run": None, "experiment": None, "sent": {}}
        self.notes: list[Note] = []
        self.files, self.shown = {}, {}
        self.table: tuple[Artifact, Artifact] | None = None
        self.status, self.warned, self.ensured = "RUNNING", False, False
        self.wake, self.thread = queue.SimpleQueue(), threading.Thread(target=self._work, daemon=True, name="tracking")

    def show(self, texts: dict[str, str], note: str, numbers: dict[str, float]) -> None:
        """Ship texts by path; the note, in Markdown, and the numbers stand on the run's page, for those of before."""
        self.files.update(texts)
        self.shown = {"note": note[:NOTE_CHARACTERS], "numbers": numbers}

    def sample(self, rollouts: Artifact, student: Artifact) -> None:
        """Ship a table of 50 of these rollouts with rewards, decoded by the student's tokenizer; once a run."""
        self.table = rollouts, student

    def close(self, status: str, timeout_seconds: float = 30) -> None:
        """End the run; what could not be shipped in time is shipped when the recipe is run again."""
        self.wake.put(status)
        self.thread.join(timeout_seconds)
        if self.thread.is_alive():
            self._warn(f"is not reached (it did not answer in {timeout_seconds} s)")

    def url(self) -> str:
        """Where the run stands in MLflow's pages; of a local store, once `mlflow ui` runs."""
        base = tracking_uri() if tracking_uri().startswith("http") else "http://127.0.0.1:5000"
        run = self.state["run"]
        return f"{base}/#/experiments/{self.state['experiment']}/runs/{run}{RUNS_PAGE}" if run else base

    def _work(self) -> None:
        status, pause = None, 0
        while status is None:
            with contextlib.suppress(queue.Empty):
                status = self.wake.get(timeout=pause)
            try:
                self._ship(self._client(), status)
                pause = TICK_SECONDS
            except Exception as error:              # whatever the store does, the run goes on
                self._warn(trouble(error))
                pause = RETRY_SECONDS

    def _warn(self, message: str) -> None:
        if not self.warned:
            self.warned = True
            print(f"opd: MLflow at {self.state['uri']} {message}; the run goes on, and what is missing there is sent "
                  "when the recipe is run again", file=sys.stderr)

    def _client(self):
        client = client_at(self.state["uri"])
        self.ensure(client)
        return client

    def ensure(self, client) -> str:
        """The id of the run in MLflow, which is created unless the one written down is still there."""
        if self.ensured:
            return self.state["run"]
        parent = {"mlflow.parentRunId": self.parent.ensure(client)} if self.parent else {}
        with alone():
            known = read_state(self.file)
            if known and known["uri"] == self.state["uri"] and is_there(client, known["run"]):
                self.state = known
            else:
                experiment = experiment_id(client, self.experiment)
                run = client.create_run(experiment, tags={**self.about.tags, **parent}, run_name=self.about.name)
                self.state.update(run=run.info.run_id, experiment=experiment, sent={})
                write_state(self.file, self.state)
        tags = [entities().RunTag(*item) for item in (self.about.tags | author_tags()).items()]
        client.log_batch(self.state["run"], tags=tags)
        client.update_run(self.state["run"], status="RUNNING")
        self.ensured = True
        return self.state["run"]

    def _begin_anew(self, client) -> dict:
        """Begin another MLflow run: a stage of this one was made anew, so its points would stand there twice."""
        client.set_tag(self.state["run"], "superseded", "true")
        self.file.unlink(missing_ok=True)
        self.state, self.ensured = {"uri": self.state["uri"], "run": None, "experiment": None, "sent": {}}, False
        self.ensure(client)
        return self.state["sent"]

    def _ship(self, client, status: str | None) -> None:
        notes, sent = list(self.notes), self.state["sent"]
        records = [artifacts.read_record(note.artifact.path) or {} for note in notes]
        made = [(f"{note.artifact.kind}/{note.name}", log_key(note, record)) for note, record in zip(notes, records)]
        if any(sent.get(name, known) != known for name, known in made):
            sent = self._begin_anew(client)
        points, files, seconds, stages = [], dict(self.files), 0.0, []
        if "about" not in sent:
            files |= self.about.files
            for some in chunks(list(self.about.params.items()), 100):
                client.log_batch(self.state["run"], params=[entities().Param(*item) for item in some])
        for note, record, (name, _) in zip(notes, records, made):
            seconds += record.get("seconds") or 0.0
            stages += [(note.artifact.kind, note.artifact.counts)] if note.artifact.kind in ROUND else []
            if name not in sent and record:
                points += points_of(note, record, {**summed(stages), "seconds": seconds})
                files[f"stages/{name}.json"] = json.dumps(record, indent=1)
        self._send(client, points, files)
        self._send_shown(client, sent.get("shown", {}))
        self.state["sent"] = {**sent, **dict(made), "about": True, "shown": self.shown or sent.get("shown", {})}
        if status and self.table and "table" not in self.state["sent"]:
            client.log_table(self.state["run"], data=sampled_rows(*self.table), artifact_file="rollouts.json")
            self.state["sent"]["table"] = True
        if status:
            client.set_terminated(self.state["run"], status)
        write_state(self.file, self.state)

    def _send(self, client, points: list[dict], files: dict[str, str]) -> None:
        for some in chunks(points, BATCH):
            client.log_batch(self.state["run"], metrics=[entities().Metric(**point) for point in some])
        if files:
            with tempfile.TemporaryDirectory() as folder:
                for name, text in files.items():
                    path = Path(folder, name)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(text, encoding="utf-8")
                client.log_artifacts(self.state["run"], folder)

    def _send_shown(self, client, before: dict) -> None:
        """What `show` was given; a number that stands there already is not sent again."""
        known, now = before.get("numbers", {}), int(time.time() * 1000)
        new = {key: value for key, value in self.shown.get("numbers", {}).items() if known.get(key) != value}
        self._send(client, [{"key": key, "value": new[key], "step": 0, "timestamp": now} for key in new], {})
        if self.shown and self.shown != before:
            client.set_tag(self.state["run"], NOTE, self.shown["note"])


def trouble(error: Exception) -> str:
    """What is wrong with MLflow, on a line: a file of the run that cannot be read is not the store's fault."""
    if isinstance(error, OpdError):
        return f"lacks a stage: {' '.join(str(error).split())}"
    reason = getattr(error.__cause__, "orig", None) or error  # what the database itself said
    lines = f"{type(reason).__name__}: {reason}".splitlines()
    return f"is not reached ({lines[0][:300]})"


def chunks(items: list, size: int) -> list[list]:
    return [items[i:i + size] for i in range(0, len(items), size)]


def read_state(file: Path) -> dict | None:
    """What was shipped; None when nothing was, or the file is damaged: a replay sends identical points."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def write_state(file: Path, state: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}")
    draft.write_text(json.dumps(state))
    os.replace(draft, file)


def author_tags() -> dict[str, str]:
    """Who made a run, by which command, as MLflow's own columns show it."""
    user = str(os.getuid())
    with contextlib.suppress(OSError, KeyError):    # a container's user may have no name
        user = getpass.getuser()
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]])  # opd compare; of more, what follows a slash is shown
    return {"mlflow.user": user, "mlflow.source.name": command, "mlflow.source.type": "LOCAL"}
