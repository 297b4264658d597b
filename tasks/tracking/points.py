"""A finished stage as MLflow's points and tables: each number under one name."""
import json
import math
import re
from dataclasses import dataclass
from datetime import datetime

from tasks.opd.core import metrics
from tasks.opd.core.records import Rollout, read_rows
from tasks.opd.store import artifacts
from tasks.opd.store.artifacts import Artifact

PREFIXES = {"rollouts": "rollout", "grades": "grade", "refined": "refine", "scores": "score"}  # as stages log theirs


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """A finished stage to be shipped."""
    artifact: Artifact
    name: str                           # it becomes stages/<kind>/<name>.json
    step: int                           # the round
    prefix: str                         # its counts become <prefix>/<count>, its own points <prefix>/<quantity>


def log_key(note: Note, record: dict) -> list:
    """Tells an artifact from one that was made anew in its place, whose points have other timestamps."""
    points = record.get("files", {}).get(metrics.FILE, {}).get("sha256")
    return [note.artifact.fingerprint, record.get("created"), points]


def points_of(note: Note, record: dict, spent: dict[str, float]) -> list[dict]:
    """A stage's metrics as points: its own under the note's prefix, and those numeric counts that are not among them.

    For a checkpoint, what the run has `spent` up to it (tokens, seconds of making) stands under `round/` instead of its
    counts; they, and all of a report's own points, would be there twice.
    """
    kind, counts, prefix, stage = note.artifact.kind, record["counts"], note.prefix, note.prefix.partition("/")[0]
    own = [] if kind == "report" else metrics.read(note.artifact.path / metrics.FILE)
    own = [{**point, "key": re.sub(f"^{stage}/", f"{prefix}/", point["key"])} for point in own]  # two teachers: two
    if kind == "checkpoint":
        prefix, counts = "round", spent
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
