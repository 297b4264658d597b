"""One MLflow run and the thread that ships to it what a flow has finished.

Timestamps are those of the files, and what was shipped is written down under `tracking/`, so that a resumed run
continues its MLflow run and a replay sends nothing. Where that is lost, the run is found by its tag and asked what it
holds. A replay of a finished run that has nothing to add leaves it as it is: its end, and its links to Prefect, are
those of the work. Whatever fails there gives one warning, and what was not sent is sent next time. Left out: points of
unfinished stages, which a stage made again would send twice.
"""
import contextlib
import math
import queue
import threading
import time
from dataclasses import asdict

from tasks.opd.core.addresses import masked
from tasks.opd.core.progress import print_line
from tasks.opd.store.artifacts import Artifact, home
from tasks.tracking import outages, states, view
from tasks.tracking.about import REPORT, RUNS_PAGE, About, author_tags, file_page, pages
from tasks.tracking.client import (
    KEY,
    SUPERSEDED,
    alone,
    client_at,
    entities,
    experiment_id,
    is_refusal,
    run_of,
    tracking_uri,
    under_home,
)
from tasks.tracking.machine import Machine
from tasks.tracking.params import free_name
from tasks.tracking.points import Note, Stages, keys_of, last_files, new_points, readable
from tasks.tracking.shipping import last_sample, missing, send_files, send_inputs, send_params, send_points
from tasks.tracking.shown import Shown

TICK_SECONDS, RETRY_SECONDS = 2, 15
END_SECONDS, KILLED_SECONDS = 30, 4     # that an end waits for MLflow; a server that is gone holds up no Ctrl-C
NOTE_CHARACTERS = 8000
FINISHED, KILLED = "FINISHED", "KILLED"


class Run:
    """One MLflow run and the thread that fills it. No method waits for MLflow but `close`, and that not for long."""

    def __init__(self, key: str, experiment: str, about: About, parent: "Run | None" = None):
        self.key, self.experiment, self.about, self.parent = key, experiment, about, parent
        self.file = home() / "tracking" / f"{key}.json"
        self.uri = tracking_uri()
        self.state = {"uri": under_home(self.uri), "run": None, "experiment": None, "sent": {}}
        self.cells: list[Run] = []      # of a suite, those that this process has begun
        self.notes: list[Note] = []
        self.files: dict[str, str] = {}
        self.shown: Shown | None = None
        self.table: tuple[Artifact, Artifact] | None = None
        self.warned, self.ensured, self.shared, self.machine = set(), False, "", Machine()
        self.files_due = 0.0            # when files that could not be put are tried again
        self.resting = False            # it had finished, and there is nothing new
        self.unsure_until = 0.0         # milliseconds: points of before may be there without being written down
        self.ended: tuple[str, int] | None = None   # how and when it had ended before
        self.worked = False             # whether this process has sent points, of a suite's run its cells too
        self.lock = threading.RLock()   # a suite's cells see to its run in their own threads
        self.wake, self.thread = queue.SimpleQueue(), threading.Thread(target=self._work, daemon=True, name="tracking")

    def show(self, texts: dict[str, str] | None = None, note: str = "", **shown) -> None:
        """Ship texts by path, and what stands on the run's page for that of before, see `shown.Shown`."""
        self.files.update(texts or {})
        self.shown = Shown(note=note[:NOTE_CHARACTERS], **shown)

    def sample(self, rollouts: Artifact, student: Artifact) -> None:
        """Ship a table of 50 of these rollouts with rewards, decoded by the student's tokenizer; once a run."""
        self.table = rollouts, student

    def close(self, status: str) -> None:
        """End the run; what could not be shipped in time is shipped when the recipe is run again."""
        hurried = status == KILLED and not self.uri.startswith("sqlite:")  # a file answers, on a busy machine late
        seconds = outages.patience(self.uri, KILLED_SECONDS if hurried else END_SECONDS)
        self.wake.put(status)
        self.thread.join(seconds)
        if self.thread.is_alive():
            outages.note_hang(self.uri)
            self._warn(f"is not reached (it did not answer in {seconds} s); {outages.LATER}")

    def url(self) -> str:
        """Where the run stands in MLflow's pages; of a local store, once `mlflow server` runs."""
        run = self.state["run"]
        return f"{pages()}/#/experiments/{self.state['experiment']}/runs/{run}{RUNS_PAGE}" if run else pages()

    def charts(self, base: str | None = None) -> str:
        """Where the suite's cells stand side by side as charts; without a suite, all runs of the experiment."""
        base = pages() if base is None else base
        return view.link(base, self.state["experiment"], self._view_key()) if self.state["run"] else base

    def links(self) -> dict[str, str]:
        """The addresses, as `publish` takes them."""
        report = file_page(self.state, REPORT) if REPORT in self.files else ""
        return {"url": self.url(), "charts": self.charts(), "report": report}

    def _work(self) -> None:
        status, pause = None, 0
        while status is None:
            with contextlib.suppress(queue.Empty):
                status = self.wake.get(timeout=pause)
            try:
                self._tend(client_at(self.uri), status)
                outages.note_answer(self.uri)
                pause = TICK_SECONDS
            except Exception as error:              # whatever the store does, the run goes on
                self._warn(outages.trouble(error))
                self.ensured, pause = False, RETRY_SECONDS  # who knows what of it has arrived

    def _tend(self, client, status: str | None) -> None:
        """Have the run there, and ship; once more where it was deleted since, in MLflow's pages."""
        try:
            self.ensure(client)
            if status == KILLED and not self.resting:   # first of all, there may be no time for the rest
                client.set_terminated(self.state["run"], status)
            self._ship(client, status)
        except Exception as error:
            if not is_refusal(error):
                raise
            self.ensured = False
            self.ensure(client)
            self._ship(client, status)

    def _warn(self, message: str) -> None:
        if message.partition("(")[0] not in self.warned:
            self.warned.add(message.partition("(")[0])
            print_line(masked(f"opd: MLflow at {self.uri} {message}"))

    def ensure(self, client) -> str:
        """The id of the run in MLflow: the one written down, else the one with this run's tag, else a new one."""
        with self.lock:
            if self.ensured:
                return self.state["run"]
            parent = {"mlflow.parentRunId": self.parent.ensure(client)} if self.parent else {}
            with alone():
                experiment, known = experiment_id(client, self.experiment), states.read(self.file) or {}
                key = f"{self.key}@{states.home_name()}"
                if run := run_of(client, known.get("run"), experiment, key):
                    self._continue(client, run, known, key)
                else:
                    self._create(client, experiment, {**parent, KEY: key})
            if not self.resting:            # outside `alone`, for which the suite's thread may wait with its own lock
                (self._resume if run else self._resume_parent)(client)
            self.ensured = True
            return self.state["run"]

    def _create(self, client, experiment: str, tags: dict[str, str]) -> None:
        name = free_name(client, experiment, self.about.name, self.about.tags, self.about.params)
        run = client.create_run(experiment, tags={**self.about.tags, **author_tags(), **tags}, run_name=name)
        self.state = {"uri": self.state["uri"], "run": run.info.run_id, "experiment": experiment, "sent": {}}
        self.resting, self.unsure_until, self.ended = False, 0.0, None
        states.write(self.file, self.state)

    def _continue(self, client, run, known: dict, key: str) -> None:
        """Go on with a run that is there; without its state, all that it holds is `unknown` until it has finished."""
        if known.get("run") != run.info.run_id:
            known = {"sent": {}, "samples": last_sample(client, run.info.run_id), "unknown": True}
        if run.info.status != "RUNNING" or run.info.run_id != self.state["run"]:
            self.ended = (run.info.status, run.info.end_time) if run.info.status != "RUNNING" else None
        self.state = {**known, "uri": self.state["uri"], "run": run.info.run_id, "experiment": run.info.experiment_id}
        self.resting = run.info.status == FINISHED
        self.unsure_until = math.inf if "unknown" in known else time.time() * 1000
        if run.data.tags.get(KEY) != key:
            client.set_tag(run.info.run_id, KEY, key)

    def _resume(self, client) -> None:
        """The run is at work again, for this process; so is its suite's, where that is open."""
        with self.lock:
            self._resume_parent(client)
            tags = [entities().RunTag(*item) for item in (self.about.tags | author_tags()).items()]
            client.log_batch(self.state["run"], tags=tags)
            client.update_run(self.state["run"], status="RUNNING")
            self.resting = False

    def _resume_parent(self, client) -> None:
        if self.parent and self.parent.thread.is_alive() and self.parent.resting:
            self.parent._resume(client)

    def _begin_anew(self, client) -> None:
        """Begin another MLflow run: a stage of this one was made anew, so its points would stand there twice."""
        client.set_tag(self.state["run"], SUPERSEDED, "true")
        if not self.resting:
            client.set_terminated(self.state["run"], *(self.ended or (KILLED, None)))
        self.file.unlink(missing_ok=True)
        self.ensured = False
        self.ensure(client)

    def _follow(self, client) -> None:
        """What other processes of this home have sent to the run, or to the one that took its place."""
        known = states.read(self.file)
        if known and known["run"] == self.state["run"]:
            self.state = known | {"uri": self.state["uri"]}
        elif known:
            self.ensured = False
            self.ensure(client)

    def _ship(self, client, status: str | None) -> None:
        """Send what is new, and how the run ended. Raises, at the run's end, the error of a stage that is damaged."""
        with self.lock, states.locked(self.file):
            self._follow(client)
            before, (stages, damage) = dict(self.state), readable(self.notes)
            while (points := self._unsent(client, stages)) is None:
                self._begin_anew(client)
            if self.resting and (points or self._shows_more(client)):
                self._resume(client)
            self._send(client, stages, points)
            self._send_files(client, status, stages)
            if status and not self.resting:
                at = self.ended[1] if self.ended and not self.worked else None  # None: now
                client.set_terminated(self.state["run"], status, at)
            if status == FINISHED and not damage:
                self.state.pop("unknown", None)
            if self.state != before:
                states.write(self.file, self.state)
        if damage and status:
            raise damage

    def _unsent(self, client, stages: Stages) -> list[dict] | None:
        """The points that the run lacks; None when it has others of the same stages, which were made anew since."""
        sent = self.state["sent"]
        if any(sent.get(name, key) != key for name, key in keys_of(stages).items()):
            return None
        points = new_points([*stages.values()], [name not in sent for name in stages])
        old = [point for point in points if point["timestamp"] <= self.unsure_until]
        lacking = missing(client, self.state["run"], old) if old else []
        return None if lacking is None else lacking + [p for p in points if p["timestamp"] > self.unsure_until]

    def _send(self, client, stages: Stages, points: list[dict]) -> None:
        """All but files: parameters, points, inputs, what `show` was given, the view."""
        run, sent = self.state["run"], self.state["sent"]
        if "about" not in sent:
            send_params(client, run, self.about.params)
        if not self.resting:
            send_points(client, run, points + self._sampled())
            for run_at_work in filter(None, (self, self.parent) if points else ()):
                run_at_work.worked = True
            send_inputs(client, run, [note for name, (note, _) in stages.items() if name not in sent])
            sent = sent | self._send_shown(client)
        self._share_view(client)
        self.state = self.state | {"sent": {**sent, **keys_of(stages), "about": True}}

    def _send_files(self, client, status: str | None, stages: Stages) -> None:
        """The run's files; where they cannot be put, that holds up nothing else."""
        if not status and time.monotonic() < self.files_due:
            return
        try:
            last = last_files(stages, self.state["sent"], self.table) if status else {}
            sent = send_files(client, self.state["run"], self.about.files | self.files | last,
                              self.state.get("files", {}))
            self.state = self.state | {"files": sent}
        except Exception as error:                  # a folder, a server's disk, another machine: anything but the store
            self._warn(outages.trouble_with_files(error))
            self.files_due = time.monotonic() + RETRY_SECONDS

    def _shows_more(self, client) -> bool:
        """Whether `show` was given anything that the run's page does not show."""
        known = self.state["sent"].get("shown", {})
        return self.shown is not None and self.shown.says_more(client, self.state["run"], known)

    def _send_shown(self, client) -> dict:
        """Send the description, and what `show` was given; what stands there now, as a state has it."""
        sent = self.state["sent"]
        shown = self.shown or Shown(**sent.get("shown", {}))
        self.worked = shown.send(client, self.state["run"], sent.get("shown", {})) or self.worked
        if (note := self._description(shown)) != sent.get("note"):
            client.set_tag(self.state["run"], view.NOTE, note)
        return {"shown": asdict(shown), "note": note}

    def _description(self, shown: Shown) -> str:
        """Markdown: the way to the charts, what is known from the start, and what `show` was given."""
        charts = "" if self.parent else f"[Charts of all runs, side by side]({self.charts(base='')})"
        return "\n\n".join(filter(None, (charts, self.about.note, shown.note)))[:NOTE_CHARACTERS]

    def _view_key(self) -> str:
        """Which of the experiment's views shows this run beside others."""
        return self.parent._view_key() if self.parent else "all" if self.about.params else self.file.stem[:12]

    def _sampled(self) -> list[dict]:
        """What the machine does now and then; a suite's cells have it, not its own run."""
        points = self.machine.points(self.state.get("samples", 0)) if self.about.params else []
        self.state = self.state | {"samples": points[0]["step"]} if points else self.state
        return points

    def _share_view(self, client) -> None:
        """Keep the view of `charts`: a suite's cells so far, or all runs of the experiment; a cell has its suite's."""
        shown = [cell for cell in self.cells if cell.state["run"]] or ([self] if self.about.params else [])
        if self.parent or not shown:
            return
        names = list(dict.fromkeys(name for run in shown for name in run.about.benchmarks))
        state = view.encoded(view.state_of(names, [run.state["run"] for run in shown] if self.cells else None))
        if state != self.shared:
            view.share(client, self.state["experiment"], self._view_key(), state)
            self.shared = state
