"""Which prompts of a benchmark are kin: made from one template or one source row, or the same question twice. No torch.

Kin are right or wrong together, so a hundred of them say less than a hundred others; intervals count clusters.
"""
import json

from tasks.opd.core.records import Prompt, read_rows
from tasks.opd.data.fields import all_said
from tasks.opd.store.artifacts import Artifact, read_record

STATED = "cluster"                # in a prompt's `entry`: what a row's author calls its template or source


def clusters_of(report: Artifact) -> dict[str, str]:
    """Cluster by prompt id, of the prompts that a report asked; empty where its record names none."""
    prompts = (read_record(report.path) or {"inputs": {}})["inputs"].get("prompts")
    return {prompt.prompt_id: cluster_of(prompt)
            for prompt in read_rows(Artifact.from_json(prompts).path / "prompts.parquet", Prompt)} if prompts else {}


def cluster_of(prompt: Prompt) -> str:
    """What a prompt's `entry` states under `cluster`; else the template of a generated question, else the question.

    `cluster: null` states nothing. reasoning-gym gives the variables of a template's question (in gsm_symbolic each of
    85 templates has names of its own); a question is compared without case and surplus spaces.
    """
    entry = json.loads(prompt.entry)
    if isinstance(entry, dict) and entry.get(STATED) is not None:
        return f"stated: {json.dumps(entry[STATED], sort_keys=True)}"
    metadata = entry.get("metadata") if isinstance(entry, dict) else None
    variables = metadata.get("variables") if isinstance(metadata, dict) else None
    if isinstance(variables, dict) and variables:
        return f"template: {entry.get('dataset')}: {', '.join(sorted(variables))}"
    return f"question: {' '.join(all_said(prompt.turns, prompt.text).lower().split())}"
