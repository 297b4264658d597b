"""What a report says of a student: its mean reward a prompt, its divergence to the teacher. No torch."""
import json

from tasks.opd.store.artifacts import Artifact


def rewards(report: Artifact) -> dict[str, float]:
    """Mean reward by prompt."""
    return json.loads((report.path / "report.json").read_text())["mean_reward"]


def divergence_of(report: Artifact) -> float | None:
    """Mean reverse KL to the teacher in nats a token of the answers; None where it was not measured."""
    return report.counts["reverse_kl_mean_nats"] if report.counts.get("divergence_tokens") else None
