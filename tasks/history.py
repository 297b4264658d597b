"""Finished rounds: their records, which a schedule over tokens and controllers read."""
from collections import defaultdict
from collections.abc import Sequence

from tasks.opd.evaluation.spending import spending_of
from tasks.opd.store.artifacts import Artifact, read_record
from tasks.tracking.points import PREFIXES, Note, points_of


def round_record(checkpoint: Artifact, before: Sequence[dict] = ()) -> dict:
    """A finished round by its checkpoint: {round, set, counts, metrics, spent, cut}, plain data.

    `set` is what controllers had set in the round, `counts` the checkpoint's, `metrics` the mean over the round of
    every metric of its rollouts, grades, scores and training, under the names that MLflow shows. Not what tells of
    seconds, which no result may depend on. Of rollouts graded twice the later grades count.
    `spent` is what all rounds up to its end spent, by currency, given the records `before` it (seconds, too, on which a
    result depends under a budget of seconds only); `cut` is whether its rollouts were cut to fit into the budget.
    """
    record, found = read_record(checkpoint.path), {}
    waiting = [(checkpoint, record, "train")]
    for artifact, made, prefix in waiting:  # grows as it goes: from the checkpoint back to the rollouts
        values = defaultdict(list)
        for point in points_of(Note(artifact=artifact, name="", step=0, prefix=prefix), made, made["counts"]):
            values[point["key"]].append(point["value"])
        found = {key: sum(some) / len(some) for key, some in values.items() if "second" not in key} | found
        for name, entry in made["inputs"].items():
            if entry["kind"] in PREFIXES:
                source = Artifact.from_json(entry)
                behind = read_record(source.path)
                of = [PREFIXES[source.kind], *name.split(":")[1:]]  # `scores:teacher` logs as score/teacher
                waiting.append((Artifact.from_json(behind), behind, "/".join(of)))
    return {"round": record["spec"]["round"], "set": record["spec"]["controlled"], "counts": checkpoint.counts,
            "metrics": found, **spending_of(checkpoint, before)}
