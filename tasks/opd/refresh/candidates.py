"""What became of a tick: the candidate's weights where nothing removes them, its gate's table and its lineage."""
import json
import re
from datetime import UTC, datetime

from tasks.opd.core.tables import in_markdown
from tasks.opd.recipe.refreshes import PRODUCTION, Refresh
from tasks.opd.refresh import evidence, gate, journal, models, planning
from tasks.opd.refresh.failpoints import failpoint
from tasks.opd.refresh.journal import CONTAMINATED, TRAINED, Tick
from tasks.opd.refresh.rows import read_rows
from tasks.opd.store.artifacts import Artifact, model_folder, read_record

RUN = re.compile(r"/runs/(\w+)")        # in the address of a run's page


def described(ask: Refresh, tick: Tick, result: dict) -> tuple[dict[str, str], str, str | None]:
    """Tags and description (Markdown) of the version to be registered, and the id of its MLflow run.

    `result` is what `distill` returned for the tick. Raises: DataError, CorruptArtifact where something is gone.
    """
    checkpoint = result["checkpoint"]
    kept = models.keep(ask.name, checkpoint)
    failpoint("kept")
    found = evidence.gathered(
        start=result["start"], end=result["end"], champion=model_folder(student_of(result).path), checkpoint=checkpoint,
        kept=kept, rows=read_rows(tick.path / TRAINED), frozen={*result["end"]} - {PRODUCTION}, ngram=ask.gate.ngram,
        place=tick.path)
    journal.replace(tick.path / CONTAMINATED, json.dumps(sorted(found.contaminated)))
    checks, decision = gate.checks_of(found, ask.gate), journal.decision_of(tick)
    run = RUN.search(result["mlflow_page"])
    tags = {"tick": str(tick.number), "fingerprint": checkpoint.fingerprint, "digest": checkpoint.digest,
            "folder": str(kept), "parent": tick.champion or "", "parent_digest": student_of(result).digest,
            "watermark": tick.watermark, "teacher": decision["teacher"], "refreshed_because": decision["reason"],
            "recipe": json.dumps(planning.recipe_of(ask, tick).model_dump(mode="json")),
            "distilled_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "gate": gate.PASSED if gate.passed(checks) else gate.REFUSED, "table": gate.to_json(checks)}
    return tags, markdown(tags), run[1] if run else None


def student_of(result: dict) -> Artifact:
    """The model that a distillation started from: the one that answered its first reports."""
    report = next(iter(result["start"].values()))
    return Artifact.from_json(read_record(report.path)["inputs"]["student"])


def markdown(tags: dict[str, str]) -> str:
    """A version's verdict, table and lineage."""
    checks = gate.from_json(tags["table"])
    verdict = "The gate passed." if tags["gate"] == gate.PASSED else f"Refused: {gate.failures(checks)}."
    lineage = [["from", "is"], *([key, tags[key]] for key in ("tick", "refreshed_because", "parent", "watermark",
                                                             "teacher", "digest", "folder"))]
    return "\n".join([verdict, "", gate.to_markdown(checks), "", *in_markdown(lineage)])
