"""MLflow: one run a (variant, seed) under one parent a suite. The only file that imports mlflow, in its own thread.

A finished stage is noted; a background thread ships its `metrics.jsonl`, counts and `artifact.json`. Timestamps are
those of the files, and what was shipped is written down under `tracking/`, so that a resumed run continues its MLflow
run and a replay sends identical points, which the store drops. Whatever fails there gives one warning, and what was
not sent is sent next time. Left out: points of unfinished stages, which a stage made again would send twice.
"""
import contextlib
import fcntl
import functools
import getpass
import hashlib
import json
import logging
import math
import os
import queue
import re
import sys
import tempfile
import threading
import time
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tasks.opd.core import metrics
from tasks.opd.core.records import Rollout, read_rows
from tasks.opd.recipe.schema import Recipe
from tasks.opd.store import artifacts
from tasks.opd.store.artifacts import Artifact, home
from tasks.opd.store.fingerprints import canonical

BATCH = 1000                            # metrics a request may carry; parameters and tags: 100
TICK_SECONDS, RETRY_SECONDS = 2, 15
QUICK = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "CRITICAL", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
         "MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
PREFIXES = {"rollouts": "rollout", "grades": "grade", "refined": "refine", "scores": "score"}  # as stages log theirs
SPENT = ("tokens_seen", "teacher_tokens", "sampled_tokens")  # so far, by round: a checkpoint's other counts are train/
RUNS_PAGE = "?workflowType=machine_learning"  # without it MLflow shows an empty page for traces of language models
NOTE, NOTE_CHARACTERS = "mlflow.note.content", 8000
_current: ContextVar["Run | None"] = ContextVar("tracking_run", default=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """A finished stage to be shipped."""
    artifact: Artifact
    name: str                           # it becomes stages/<kind>/<name>.json
    step: int                           # the round
    prefix: str                         # its counts become <prefix>/<count>, its own points <prefix>/<quantity>


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """How a run is presented."""
    name: str
    tags: dict[str, str]
    params: dict[str, str]
    files: dict[str, str]               # path -> text


def tracking_uri() -> str:
    """$MLFLOW_TRACKING_URI, else a SQLite file under home()."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


def ui_command() -> str:
    """The one command, or the address, that opens what was tracked."""
    uri = tracking_uri()
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"


def noted(artifact: Artifact, name: str, *, step: int = 0, prefix: str = "") -> Artifact:
    """The artifact; the open run, if any, is told of it. Numeric counts become metrics `<prefix or kind>/<count>`."""
    run, (stage, _, rest) = _current.get(), (prefix or artifact.kind).partition("/")
    if run is not None:
        prefix = "/".join(filter(None, [PREFIXES.get(stage, stage), rest]))
        run.notes.append(Note(artifact=artifact, name=name, step=step, prefix=prefix))
    return artifact


@contextlib.contextmanager
def run_for(recipe: Recipe, suite: str | None = None):
    """Track what is noted inside as the run of (suite, recipe), created once and then continued. Yields the Run."""
    import yaml
    resolved, note = recipe.model_dump(mode="json"), note_of(recipe)
    about = About(name=f"{recipe.name}-seed{recipe.seed}", params=flat(resolved),
                  files={"recipe.yaml": yaml.safe_dump(resolved, sort_keys=False)},
                  tags={"variant": recipe.name, "seed": str(recipe.seed), "pair": recipe.pair.name,
                        "config.sha256": hashlib.sha256(canonical(resolved).encode()).hexdigest(), **prefect_tags(),
                        **({NOTE: note} if note else {})})
    parent = suite_run(suite) if suite else None
    with opened(Run(key_of(suite or "", resolved), suite or "opd", about, parent)) as run:
        yield run


@contextlib.contextmanager
def suite_for(suite: str):
    """The parent run of a suite's runs. Yields the Run."""
    with opened(suite_run(suite, prefect_tags())) as run:
        yield run


def suite_run(suite: str, tags: dict[str, str] | None = None) -> "Run":
    return Run(key_of(suite), suite, About(name=suite, tags={"suite": suite, **(tags or {})}, params={}, files={}))


@contextlib.contextmanager
def opened(run: "Run"):
    """Make a run the one that notes go to; it ends FINISHED, FAILED, or KILLED when interrupted."""
    token, status = _current.set(run), "FINISHED"
    run.thread.start()
    try:
        yield run
    except Exception:
        status = "FAILED"
        raise
    except BaseException:
        status = "KILLED"
        raise
    finally:
        _current.reset(token)
        run.close(status)


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
            self._warn(f"it did not answer in {timeout_seconds} s")

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
                reason = getattr(error.__cause__, "orig", None) or error  # what the database itself said
                self._warn(f"{type(reason).__name__}: {reason}")
                pause = RETRY_SECONDS

    def _warn(self, message: str) -> None:
        if not self.warned:
            self.warned, lines = True, message.splitlines() or [""]
            print(f"opd: MLflow at {self.state['uri']} is not reached ({lines[0][:300]}); the run goes on, and what is "
                  "missing there is sent when the recipe is run again", file=sys.stderr)

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
        made = [(f"{note.artifact.kind}/{note.name}", identity(note, record)) for note, record in zip(notes, records)]
        if any(sent.get(name, known) != known for name, known in made):
            sent = self._begin_anew(client)
        points, files, seconds = [], dict(self.files), 0.0
        if "about" not in sent:
            files |= self.about.files
            for some in chunks(list(self.about.params.items()), 100):
                client.log_batch(self.state["run"], params=[entities().Param(*item) for item in some])
        for note, record, (name, _) in zip(notes, records, made):
            seconds += record.get("seconds") or 0.0
            if name not in sent and record:
                points += points_of(note, record, seconds)
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


def identity(note: Note, record: dict) -> list:
    """Tells an artifact from one that was made anew in its place, whose points have other timestamps."""
    points = record.get("files", {}).get(metrics.FILE, {}).get("sha256")
    return [note.artifact.fingerprint, record.get("created"), points]


def points_of(note: Note, record: dict, seconds: float) -> list[dict]:
    """A stage's metrics as points: its own under the note's prefix, and those numeric counts that are not among them.

    Of a checkpoint's counts only how far the run is (tokens, seconds of making) stands under `round/`; the others, and
    all of a report's own points, would be there twice.
    """
    kind, counts, prefix, stage = note.artifact.kind, record["counts"], note.prefix, note.prefix.partition("/")[0]
    own = [] if kind == "report" else metrics.read(note.artifact.path / metrics.FILE)
    own = [{**point, "key": re.sub(f"^{stage}/", f"{prefix}/", point["key"])} for point in own]  # two teachers: two
    if kind == "checkpoint":
        prefix, counts = "round", {name: counts[name] for name in SPENT if name in counts} | {"seconds": seconds}
        own = [point for point in own if point["key"] != "train/teacher_tokens"]  # one a round
    at, there = int(datetime.fromisoformat(record["created"]).timestamp() * 1000), {point["key"] for point in own}
    values = {f"{prefix}/{name}": value for name, value in counts.items()
              if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)}
    points = own + [{"key": key, "value": value, "step": note.step, "timestamp": at}
                    for key, value in values.items() if key not in there]
    return [{**point, "key": re.sub(r"[^\w.\- :/]", "_at_", point["key"])} for point in points]


def sampled_rows(rollouts: Artifact, student: Artifact, count: int = 50) -> dict[str, list]:
    """Columns of `count` rollouts, evenly spaced over the file, as text with their rewards."""
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(str(artifacts.model_folder(student.path) / "tokenizer.json"))
    rows = read_rows(rollouts.path / "rollouts.parquet", Rollout)
    rows = [rows[i * len(rows) // count] for i in range(count)] if len(rows) > count else rows
    return {"rollout_id": [r.rollout_id for r in rows], "origin": [r.origin for r in rows],
            "prompt": [tokenizer.decode(r.prompt_token_ids, skip_special_tokens=False) for r in rows],
            "completion": [tokenizer.decode(r.token_ids, skip_special_tokens=False) for r in rows],
            "tokens": [len(r.token_ids) for r in rows], "finish_reason": [r.finish_reason for r in rows],
            "reward": [r.reward for r in rows], "feedback": [r.feedback for r in rows]}


def flat(value, prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted keys and short texts: a parameter may have 250 characters of key and 500 of value."""
    nested = dict(enumerate(value)) if isinstance(value, list) else value
    if not nested or not isinstance(nested, dict):
        text = value if isinstance(value, str) else json.dumps(value)
        return {re.sub(r"[^\w.\- /]", "_", prefix)[:250]: text[:500]}
    parts = [flat(item, f"{prefix}.{name}".lstrip(".")) for name, item in nested.items()]
    return {key: text for part in parts for key, text in part.items()}


def key_of(suite: str, resolved: dict | None = None) -> str:
    return hashlib.sha256(canonical([suite, resolved]).encode()).hexdigest()[:32]


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


def note_of(recipe: Recipe) -> str:
    """Markdown: the variant's paper, its arXiv id with a link, and its idea; empty when none is said."""
    about = recipe.about
    arxiv = f"[arXiv:{about.arxiv}](https://arxiv.org/abs/{about.arxiv})" if about.arxiv else ""
    return "\n\n".join(filter(None, (", ".join(filter(None, (about.paper, arxiv))), about.idea)))


def author_tags() -> dict[str, str]:
    """Who made a run, by which command, as MLflow's own columns show it."""
    user = str(os.getuid())
    with contextlib.suppress(OSError, KeyError):    # a container's user may have no name
        user = getpass.getuser()
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]])  # opd compare; of more, what follows a slash is shown
    return {"mlflow.user": user, "mlflow.source.name": command, "mlflow.source.type": "LOCAL"}


def prefect_tags() -> dict[str, str]:
    from prefect.runtime import flow_run
    return {"prefect.flow_run_id": str(flow_run.id)} if flow_run.id else {}


@contextlib.contextmanager
def alone():
    """While one creates tables, experiments or runs, all others of this home wait."""
    (home() / "tracking").mkdir(parents=True, exist_ok=True)
    with open(home() / "tracking" / ".lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@functools.lru_cache(maxsize=4)
def client_at(uri: str):
    """A client of a store, whose tables are made by one process at a time."""
    for name, value in QUICK.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient
    for name in ("mlflow", "sqlalchemy", "alembic"):  # what they have to say is said in one warning
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with alone():
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    return client


def experiment_id(client, name: str) -> str:
    """The experiment of that name, created when there is none; artifacts of a SQLite store lie under home()."""
    found = client.get_experiment_by_name(name)
    if found:
        return found.experiment_id
    local = (home() / "mlartifacts").as_uri() if tracking_uri().startswith("sqlite") else None  # else ./mlruns
    return client.create_experiment(name, artifact_location=local)


def is_there(client, run: str | None) -> bool:
    """Whether a run is in the store and was not deleted. Raises when the store cannot be asked."""
    from mlflow.exceptions import MlflowException
    try:
        return bool(run) and client.get_run(run).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def entities():
    """MLflow's Metric, Param and RunTag, imported when first used."""
    from mlflow import entities
    return entities
