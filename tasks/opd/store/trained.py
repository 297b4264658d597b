"""What a checkpoint was trained on, read from the records of its rounds."""
from tasks.opd.store.artifacts import Artifact, read_record


def trained_on(student: Artifact) -> dict[str, Artifact]:
    """The rollouts of every round behind a checkpoint, as `rollouts:<round>`, and their `prompts`.

    Rounds whose rollouts are gone are left out; a model that no round has trained has nothing.
    """
    found, record = {}, read_record(student.path)
    while record and record["kind"] == "checkpoint":
        rollouts = Artifact.from_json(record["inputs"]["rollouts"])
        if prompts := prompts_behind(rollouts):
            found |= {f"rollouts:{record['spec']['round']}": rollouts, "prompts": prompts}
        record = read_record(Artifact.from_json(record["inputs"]["student"]).path)
    return found


def prompts_behind(rollouts: Artifact) -> Artifact | None:
    """The prompts that rollouts answer, graded and refined or not; None where they or the rollouts are gone."""
    record = read_record(rollouts.path)
    inputs = record["inputs"] if record else {}
    if "rollouts" in inputs:
        return prompts_behind(Artifact.from_json(inputs["rollouts"]))
    prompts = Artifact.from_json(inputs["prompts"]) if "prompts" in inputs else None
    return prompts if prompts and read_record(prompts.path) else None
