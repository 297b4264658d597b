"""Points, parameters, inputs and files, sent in portions that MLflow takes; and which of them a run holds already."""
import hashlib
import json
import tempfile
from pathlib import Path

from tasks.tracking.client import datasets, entities, save_files, under_home
from tasks.tracking.points import TABLE, Note, dataset_of

BATCH, FEW = 1000, 100                  # metrics a request may carry; parameters and tags
SAMPLE = "system/cpu_utilization_percentage"    # in every sample of the machine


def chunks(items: list, size: int) -> list[list]:
    return [items[i:i + size] for i in range(0, len(items), size)]


def send_points(client, run: str, points: list[dict]) -> None:
    """Log points, each {key, value, step, timestamp}."""
    for some in chunks(points, BATCH):
        client.log_batch(run, metrics=[entities().Metric(**point) for point in some])


def send_params(client, run: str, params: dict[str, str]) -> None:
    """Log the parameters that a run does not have; those that it has cannot be changed."""
    there = client.get_run(run).data.params
    for some in chunks([item for item in params.items() if item[0] not in there], FEW):
        client.log_batch(run, params=[entities().Param(*item) for item in some])


def send_inputs(client, run: str, new: list[Note]) -> None:
    """The prompts read, as MLflow's datasets, and which checkpoint is the latest, as tags."""
    if read := [note for note in new if note.artifact.kind == "prompts"]:
        client.log_inputs(run, datasets=datasets([dataset_of(note) for note in read]))
    if trained := [note.artifact for note in new if note.artifact.kind == "checkpoint"]:
        last = {"path": under_home(str(trained[-1].path)), "fingerprint": trained[-1].fingerprint,
                "digest": trained[-1].digest}
        client.log_batch(run, tags=[entities().RunTag(f"checkpoint.{name}", text) for name, text in last.items()])


def missing(client, run: str, points: list[dict]) -> list[dict] | None:
    """Those of the points that a run does not hold; None when it has another point at the key and step of one of them.

    A database drops a point that is sent twice; a store of files keeps both.
    """
    there = {}
    for key in {point["key"] for point in points} & client.get_run(run).data.metrics.keys():
        there[key] = {(held.step, held.timestamp, held.value) for held in client.get_metric_history(run, key)}
    left = [point for point in points
            if (point["step"], point["timestamp"], point["value"]) not in there.get(point["key"], ())]
    taken = {(key, step) for key, held in there.items() for step, _, _ in held}
    return None if any((point["key"], point["step"]) in taken for point in left) else left


def last_sample(client, run: str) -> int:
    """The step of a run's last sample of the machine; 0 without one."""
    return max((point.step for point in client.get_metric_history(run, SAMPLE)), default=0)


def send_files(client, run: str, texts: dict[str, str], sent: dict[str, str]) -> dict[str, str]:
    """Put texts, by path, among a run's artifacts, but for those whose SHA-256 is in `sent`; path -> SHA-256 of all."""
    hashes = {path: hashlib.sha256(text.encode()).hexdigest() for path, text in texts.items()}
    new = {path: text for path, text in texts.items() if sent.get(path) != hashes[path]}
    if new:
        with tempfile.TemporaryDirectory() as folder:
            for path, text in new.items():
                Path(folder, path).write_text(text, encoding="utf-8")
            save_files(client, run, folder)
    if TABLE in new:                    # by this tag its page shows a table
        client.set_tag(run, "mlflow.loggedArtifacts", json.dumps([{"path": TABLE, "type": "table"}]))
    return sent | hashes
