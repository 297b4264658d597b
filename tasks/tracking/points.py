"""A finished stage as MLflow's points and tables: each number under one name, at the number of rounds finished.

Step 0 is the start. Step k is the k-th round: what its rollouts, grades, scores and training were, and what an
evaluation after it measured. So `round/trained_tokens` and `round/seconds`, which are there at every step, can be the
x-axis of any other metric.
"""
import json
import math
import re
import statistics
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime

from tasks.opd.core import metrics
from tasks.opd.core.costs import NAMES, TRAINED, summed
from tasks.opd.core.errors import CorruptArtifact, OpdError
from tasks.opd.core.records import Rollout, read_rows
from tasks.opd.evaluation.cell_costs import ROUND
from tasks.opd.store import artifacts
from tasks.opd.store.artifacts import Artifact
from tasks.tracking.client import under_home

PREFIXES = {"rollouts": "rollout", "grades": "grade", "refined": "refine", "scores": "score"}  # as stages log theirs
SETTLED = ("model", "prompts", "preflight")  # stages before the first round: their records say all, no curve does
SIZES = {"prompts", "samples", "rollouts", "tokens", "kept", "scored", "divergence_tokens", "tokens_seen", *NAMES}
BY_STEP = {"train/loss_nats", "train/grad_norm", "train/learning_rate"}  # shown by optimizer step, too
POSITION = "position"                   # position/<quantity>/<first position of a bucket>, see training.diagnostics
TABLE = "rollouts.json"
DIGEST_CHARACTERS = 36                  # of a dataset, at most


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """A finished stage to be shipped."""
    artifact: Artifact
    name: str                           # unique within its kind; in stages.json it is `as`: <kind>/<name>
    step: int                           # rounds finished: 0 at the start, k for all of the k-th round
    prefix: str                         # its counts become <prefix>/<count>, its own points <prefix>/<quantity>


Stages = dict[str, tuple[Note, dict]]   # by <kind>/<name>: a finished stage and its record


def keys_of(stages: Stages) -> dict[str, list]:
    """The key of every stage."""
    return {name: log_key(note, record) for name, (note, record) in stages.items()}


def log_key(note: Note, record: dict) -> list:
    """Tells an artifact from one that was made anew in its place, whose points have other timestamps."""
    points = record.get("files", {}).get(metrics.FILE, {}).get("sha256")
    return [note.artifact.fingerprint, record.get("created"), points]


def points_of(note: Note, record: dict, spent: dict[str, float]) -> list[dict]:
    """A stage's metrics as points: its own under the note's prefix, and those numeric counts that are not among them.

    For a checkpoint, what the run has `spent` up to it (tokens, seconds of making) stands under `round/` instead of its
    counts; they, and all of a report's own points, would be there twice.
    Raises: CorruptArtifact when the file of its points is gone.
    """
    kind, counts, prefix, stage = note.artifact.kind, record["counts"], note.prefix, note.prefix.partition("/")[0]
    file = artifacts.promised(note.artifact.path, metrics.FILE)
    own = [] if kind == "report" or file is None else metrics.read(file)
    own = [{**point, "key": re.sub(f"^{stage}/", f"{prefix}/", point["key"])} for point in own]  # two teachers: two
    if kind == "checkpoint":
        prefix, counts = "round", spent
    at, there = milliseconds(record), {point["key"] for point in own}
    values = {f"{prefix}/{name}": value for name, value in counts.items()
              if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)}
    points = own + [{"key": key, "value": value, "step": note.step, "timestamp": at}
                    for key, value in values.items() if key not in there]
    return [{**point, "key": re.sub(r"[^\w.\- :/]", "_at_", point["key"])} for point in points]


def readable(notes: list[Note]) -> tuple[Stages, OpdError | None]:
    """The stages up to the first whose record or points cannot be read, and why not: later sums have to count it."""
    stages = {}
    for note in notes:
        try:
            record = artifacts.read_record(note.artifact.path)
            if record is None:
                raise CorruptArtifact(f"{note.artifact.path} is gone")
            artifacts.promised(note.artifact.path, metrics.FILE)
        except OpdError as error:
            return stages, error
        stages[f"{note.artifact.kind}/{note.name}"] = note, record
    return stages, None


def new_points(stages: list[tuple[Note, dict]], new: list[bool]) -> list[dict]:
    """The points of those stages that are new; what the rounds have spent up to a checkpoint is summed over all.

    A report that stands for two evaluations, on the way and at the end, has its points once.
    """
    points, seconds, spent, logged, first = [], 0.0, [], set(), True
    for (note, record), is_new in zip(stages, new):
        artifact, place = note.artifact, (note.artifact.fingerprint, note.prefix, note.step)
        if artifact.kind in ROUND:
            seconds += record.get("seconds") or 0.0
            spent.append((artifact.kind, artifact.counts))
        if is_new and place not in logged:
            points += shipped_points(note, record, {**summed(spent), "seconds": seconds})
            points += start_points(record) if first and artifact.kind == "report" and note.step == 0 else []
        logged.add(place)
        first = first and artifact.kind != "report"
    return points


def shipped_points(note: Note, record: dict, spent: dict[str, float]) -> list[dict]:
    """What MLflow gets of a stage: of each of its metrics the mean, at the rounds finished, and what `optimizer_points`
    gives. The timestamp is that of the metric's last point.

    Left out: what comes before the first round, sizes that the recipe decides (costs stand under `round/`), counts of
    zero, and what is told by position: a dozen quantities in a dozen buckets each would fill the table of runs, and no
    chart over rounds shows a profile; `positions.json` has them. The stage's own `metrics.jsonl` and record have all.
    """
    if note.artifact.kind in SETTLED:
        return []
    by_key = defaultdict(list)
    for point in points_of(note, record, spent):
        if is_telling(point["key"], point["value"]):
            by_key[point["key"]].append(point)
    return [{"key": key, "value": statistics.fmean(point["value"] for point in some), "step": note.step,
             "timestamp": some[-1]["timestamp"]} for key, some in by_key.items()] + optimizer_points(by_key)


def optimizer_points(by_key: dict[str, list[dict]]) -> list[dict]:
    """Loss, gradient norm and learning rate by optimizer step, as `optimizer/..`, of a round that took several."""
    return [{**point, "key": key.replace("train/", "optimizer/", 1), "step": point["step"]}
            for key in BY_STEP & by_key.keys() if len(by_key[key]) > 1 for point in by_key[key]]


def is_telling(key: str, value: float) -> bool:
    """Whether a number is worth a chart: neither a size nor a count of nothing; costs so far are, where there are."""
    stage, _, name = key.partition("/")
    if stage == POSITION:
        return False
    if stage == "round":
        return name in (TRAINED, "seconds") or value != 0
    name = name.rpartition("/")[2]
    return not (name in SIZES or name.startswith("rollouts_") or isinstance(value, int) and value == 0)


def start_points(record: dict) -> list[dict]:
    """The start of the x-axes, as of the first evaluation, whose record this is: nothing trained, no seconds spent."""
    return [{"key": f"round/{name}", "value": 0.0, "step": 0, "timestamp": milliseconds(record)}
            for name in (TRAINED, "seconds")]


def milliseconds(record: dict) -> int:
    """When an artifact was made, as MLflow counts."""
    return int(datetime.fromisoformat(record["created"]).timestamp() * 1000)


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


def last_files(stages: Stages, sent: dict, table: tuple[Artifact, Artifact] | None) -> dict[str, str]:
    """What is written as a run ends: the record of every stage, those `sent` before included, and rollouts as a table.

    `table` is the rollouts and the student whose tokenizer decodes them.
    """
    records = {name: record for name, (_, record) in stages.items()}
    for name, known in sent.items():
        kind, slash, _ = name.partition("/")
        if slash and name not in records:
            records[name] = artifacts.read_record(artifacts.place(kind, known[0])) or {}
    lines = [json.dumps({"as": name, **record}) for name, record in records.items() if record]
    files = {"stages.json": "[\n" + ",\n".join(lines) + "\n]\n"} if lines else {}
    if profiles := [profile_of(record) for record in records.values() if record and record["kind"] == "checkpoint"]:
        files["positions.json"] = "[\n" + ",\n".join(map(json.dumps, profiles)) + "\n]\n"
    if table:
        columns = sampled_rows(*table)
        files[TABLE] = json.dumps({"columns": list(columns), "data": [list(row) for row in zip(*columns.values())]})
    return files


def profile_of(record: dict) -> dict:
    """A round's quantities by position: {round, quantity: {first position of a bucket: value}}."""
    found = defaultdict(dict)
    for point in metrics.read(artifacts.place(record["kind"], record["fingerprint"]) / metrics.FILE):
        stage, _, name = point["key"].partition("/")
        if stage == POSITION:
            quantity, _, bucket = name.rpartition("/")
            found[quantity][bucket] = point["value"]
    return {"round": record["spec"]["round"], **found}


def dataset_of(note: Note) -> dict[str, str]:
    """Prompts as a dataset of MLflow: their folder is the source, `train` or `test` the context."""
    use, _, name = note.name.partition("-")
    return {"name": name, "digest": note.artifact.digest[:DIGEST_CHARACTERS], "context": use,
            "source": under_home(str(note.artifact.path))}
