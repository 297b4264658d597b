"""What rules find in a run's finished rounds: said on a line, kept with the run, in Prefect's and MLflow's pages."""
from dataclasses import asdict

from tasks.history import round_record
from tasks.opd.evaluation.findings import Finding, leaks, new_findings
from tasks.opd.recipe.schema import Recipe
from tasks.opd.store import run_records
from tasks.opd.store.artifacts import Artifact
from tasks.stage import log_line
from tasks.tracking import runs


def observe(recipe: Recipe, checkpoint: Artifact, history: list[dict], findings: list[Finding]) -> None:
    """Add a finished round's record to the history, and to the findings what is new in it."""
    history.append(round_record(checkpoint, history))
    report(findings, new_findings(recipe, history, findings))


def conclude(recipe: Recipe, history: list[dict], findings: list[Finding], start: dict[str, Artifact],
             end: dict[str, Artifact]) -> list[Finding]:
    """All findings of a run, with what its benchmarks' reports before and after say."""
    report(findings, leaks(recipe, len(history), start, end))
    return findings


def report(findings: list[Finding], new: list[Finding]) -> None:
    """Add findings, each said on a line and kept in the record of the run."""
    for finding in new:
        log_line(f"finding after round {finding.rounds}, {finding.rule}: {finding.text}")
        run_records.note({"finding": asdict(finding)})
    findings += new
    runs.log_findings(findings)
