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

from tasks.opd.core.addresses import masked
from tasks.opd.core.errors import OpdError
from tasks.opd.core.progress import print_line
from tasks.opd.store import artifacts
from tasks.opd.store.artifacts import Artifact, home
from tasks.tracking import view
from tasks.tracking.client import (
    alone,
    client_at,
    datasets,
    entities,
    experiment_id,
    is_there,
    save_files,
    tracking_uri,
    under_home,
)
from tasks.tracking.machine import Machine
from tasks.tracking.params import free_name
from tasks.tracking.points import Note, dataset_of, log_key, new_points, sampled_rows

BATCH = 1000                            # metrics a request may carry; parameters and tags: 100
TICK_SECONDS, RETRY_SECONDS = 2, 15
END_SECONDS, KILLED_SECONDS = 30, 4     # that an end waits for MLflow; who stops a run wants it gone
TABLE = "rollouts.json"
RUNS_PAGE = "?workflowType=machine_learning"  # without it MLflow shows an empty page for traces of language models
NOTE, NOTE_CHARACTERS = "mlflow.note.content", 8000
KILLED = "KILLED"


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """How a run is presented."""
    name: str
    tags: dict[str, str]
    params: dict[str, str]              # empty for a suite's own run
    files: dict[str, str]               # path -> text
    note: str = ""                      # Markdown, the first of its description
    benchmarks: tuple[str, ...] = ()    # by name


class Run:
    """One MLflow run and the thread that fills it. No method waits for MLflow but `close`, and that not for long."""

    def __init__(self, key: str, experiment: str, about: About, parent: "Run | None" = None):
        self.experiment, self.about, self.parent = experiment, about, parent
        self.file = home() / "tracking" / f"{key}.json"
        self.uri = tracking_uri()
        self.state = {"uri": under_home(self.uri), "run": None, "experiment": None, "sent": {}}
        self.cells: list[Run] = []      # of a suite, those that this process has begun
        self.notes: list[Note] = []
        self.files, self.shown = {}, {}
        self.table: tuple[Artifact, Artifact] | None = None
        self.warned, self.ensured, self.shared, self.machine = False, False, "", Machine()
        self.wake, self.thread = queue.SimpleQueue(), threading.Thread(target=self._work, daemon=True, name="tracking")

    def show(self, texts: dict[str, str], note: str, numbers: dict[str, float]) -> None:
        """Ship texts by path; the note, in Markdown, and the numbers stand on the run's page, for those of before."""
        self.files.update(texts)
        self.shown = {"note": note[:NOTE_CHARACTERS], "numbers": numbers}

    def sample(self, rollouts: Artifact, student: Artifact) -> None:
        """Ship a table of 50 of these rollouts with rewards, decoded by the student's tokenizer; once a run."""
        self.table = rollouts, student

    def close(self, status: str) -> None:
        """End the run; what could not be shipped in time is shipped when the recipe is run again."""
        seconds = KILLED_SECONDS if status == KILLED else END_SECONDS
        self.wake.put(status)
        self.thread.join(seconds)
        if self.thread.is_alive():
            self._warn(f"is not reached (it did not answer in {seconds} s)")

    def url(self) -> str:
        """Where the run stands in MLflow's pages; of a local store, once `mlflow server` runs."""
        run = self.state["run"]
        return f"{pages()}/#/experiments/{self.state['experiment']}/runs/{run}{RUNS_PAGE}" if run else pages()

    def charts(self, base: str | None = None) -> str:
        """Where the suite's cells stand side by side as charts; without a suite, all runs of the experiment."""
        base = pages() if base is None else base
        return view.link(base, self.state["experiment"], self._view_key()) if self.state["run"] else base

    def links(self) -> dict[str, str]:
        """Both addresses, as `publish` takes them."""
        return {"url": self.url(), "charts": self.charts()}

    def _work(self) -> None:
        status, pause = None, 0
        while status is None:
            with contextlib.suppress(queue.Empty):
                status = self.wake.get(timeout=pause)
            try:
                client = self._client()
                if status == KILLED:                # first of all, there may be no time for the rest
                    client.set_terminated(self.state["run"], status)
                self._ship(client, status)
                pause = TICK_SECONDS
            except Exception as error:              # whatever the store does, the run goes on
                self._warn(trouble(error))
                pause = RETRY_SECONDS

    def _warn(self, message: str) -> None:
        if not self.warned:
            self.warned = True
            print_line(masked(f"opd: MLflow at {self.uri} {message}; the run goes on, and what is missing there is "
                              "sent when the recipe is run again"))

    def _client(self):
        client = client_at(self.uri)
        self.ensure(client)
        return client

    def ensure(self, client) -> str:
        """The id of the run in MLflow, which is created unless the one written down is still there."""
        if self.ensured:
            return self.state["run"]
        parent = {"mlflow.parentRunId": self.parent.ensure(client)} if self.parent else {}
        with alone():
            known = read_state(self.file)
            if known and is_there(client, known["run"]):  # one store may have two addresses: its file, a server
                self.state = known | {"uri": self.state["uri"]}
            else:
                experiment = experiment_id(client, self.experiment)
                name = free_name(client, experiment, self.about.name, self.about.tags, self.about.params)
                run = client.create_run(experiment, tags={**self.about.tags, **parent}, run_name=name)
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
        self.state, self.ensured = {**self.state, "run": None, "experiment": None, "sent": {}}, False
        self.ensure(client)
        return self.state["sent"]

    def _ship(self, client, status: str | None) -> None:
        notes, sent = list(self.notes), self.state["sent"]
        records = [artifacts.read_record(note.artifact.path) or {} for note in notes]
        made = [(f"{note.artifact.kind}/{note.name}", log_key(note, record)) for note, record in zip(notes, records)]
        if any(sent.get(name, known) != known for name, known in made):
            sent = self._begin_anew(client)
        files, new = dict(self.files), [name not in sent for name, _ in made]
        if "about" not in sent:
            files |= self.about.files
            for some in chunks(list(self.about.params.items()), 100):
                client.log_batch(self.state["run"], params=[entities().Param(*item) for item in some])
        if status:
            files |= self._last_files(dict(zip([name for name, _ in made], records)))
        self._send(client, new_points(notes, records, new) + self._sampled(), files)
        self._send_inputs(client, [note for note, is_new in zip(notes, new) if is_new])
        self._send_shown(client, sent)
        self._share_view(client)
        self.state["sent"] = {**sent, **dict(made), "about": True, "shown": self.shown or sent.get("shown", {}),
                              "note": self._description(sent)}
        if status:
            client.set_terminated(self.state["run"], status)
        write_state(self.file, self.state)

    def _last_files(self, records: dict[str, dict]) -> dict[str, str]:
        """What is written as the run ends: the record of every stage, and the table of rollouts."""
        for name, known in self.state["sent"].items():  # of runs before this one, too
            kind, slash, _ = name.partition("/")
            if slash and name not in records:
                records[name] = artifacts.read_record(artifacts.place(kind, known[0])) or {}
        lines = [json.dumps({"as": name, **record}) for name, record in records.items() if record]
        files = {"stages.json": "[\n" + ",\n".join(lines) + "\n]\n"} if lines else {}
        if self.table:
            columns = sampled_rows(*self.table)
            rows = [list(row) for row in zip(*columns.values())]
            files[TABLE] = json.dumps({"columns": list(columns), "data": rows})
        return files

    def _send(self, client, points: list[dict], files: dict[str, str]) -> None:
        for some in chunks(points, BATCH):
            client.log_batch(self.state["run"], metrics=[entities().Metric(**point) for point in some])
        if files:
            with tempfile.TemporaryDirectory() as folder:
                for name, text in files.items():
                    Path(folder, name).write_text(text, encoding="utf-8")
                save_files(client, self.state["run"], folder)
        if TABLE in files:                          # by this tag its page shows a table
            client.set_tag(self.state["run"], "mlflow.loggedArtifacts", json.dumps([{"path": TABLE, "type": "table"}]))

    def _send_inputs(self, client, new: list[Note]) -> None:
        """The prompts read, as MLflow's datasets, and which checkpoint is the latest, as tags."""
        if read := [note for note in new if note.artifact.kind == "prompts"]:
            client.log_inputs(self.state["run"], datasets=datasets([dataset_of(note) for note in read]))
        if trained := [note.artifact for note in new if note.artifact.kind == "checkpoint"]:
            last = {"path": str(trained[-1].path), "fingerprint": trained[-1].fingerprint, "digest": trained[-1].digest}
            client.log_batch(self.state["run"], tags=[entities().RunTag(f"checkpoint.{k}", v) for k, v in last.items()])

    def _send_shown(self, client, sent: dict) -> None:
        """The description, and what `show` was given; a number that stands there already is not sent again."""
        known, now = sent.get("shown", {}).get("numbers", {}), int(time.time() * 1000)
        new = {key: value for key, value in self.shown.get("numbers", {}).items() if known.get(key) != value}
        self._send(client, [{"key": key, "value": new[key], "step": 0, "timestamp": now} for key in new], {})
        if (note := self._description(sent)) != sent.get("note"):
            client.set_tag(self.state["run"], NOTE, note)

    def _description(self, sent: dict) -> str:
        """Markdown: the way to the charts, what is known from the start, and what `show` was given."""
        charts = "" if self.parent else f"[Charts of all runs, side by side]({self.charts(base='')})"
        parts = (charts, self.about.note, (self.shown or sent.get("shown", {})).get("note", ""))
        return "\n\n".join(filter(None, parts))[:NOTE_CHARACTERS]

    def _view_key(self) -> str:
        """Which of the experiment's views shows this run beside others."""
        return self.parent._view_key() if self.parent else "all" if self.about.params else self.file.stem[:12]

    def _sampled(self) -> list[dict]:
        """What the machine does now and then; a suite's cells have it, not its own run."""
        points = self.machine.points(self.state.get("samples", 0)) if self.about.params else []
        self.state["samples"] = max([point["step"] for point in points], default=self.state.get("samples", 0))
        return points

    def _share_view(self, client) -> None:
        """Keep the view of `charts`: a suite's cells so far, or all runs of the experiment; a cell has its suite's."""
        shown = [cell for cell in self.cells if cell.state["run"]] or ([self] if self.about.params else [])
        if self.parent or not shown:
            return
        names = list(dict.fromkeys(name for run in shown for name in run.about.benchmarks))
        state = view.encoded(view.state_of(names, [run.state["run"] for run in shown] if self.cells else None))
        if state != self.shared:
            experiment, link = self.state["experiment"], self.charts(base="")
            client.set_experiment_tag(experiment, f"{view.TAG}{self._view_key()}", state)
            text = f"Choose `Model training` at the top left, or [charts of the latest runs, side by side]({link})"
            client.set_experiment_tag(experiment, NOTE, text)
            self.shared = state


def pages() -> str:
    """The address of MLflow's pages; of a local store, the one that `mlflow server` has by itself."""
    return tracking_uri() if tracking_uri().startswith("http") else "http://127.0.0.1:5000"


def trouble(error: Exception) -> str:
    """What is wrong with MLflow, on a line: a file of the run that cannot be read is not the store's fault."""
    if isinstance(error, OpdError):
        return f"lacks a stage: {' '.join(str(error).split())}"
    reason = getattr(error.__cause__, "orig", None) or error  # what the database itself said
    lines = f"{type(reason).__name__}: {reason}".splitlines()
    return f"is not reached ({masked(lines[0])[:300]})"


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
