"""What a report says of a student, in numbers and sentences: rewards, divergence, overlap with training. No torch."""
import json

from tasks.opd.store.artifacts import Artifact


def rewards(report: Artifact) -> dict[str, float]:
    """Mean reward by prompt."""
    return json.loads((report.path / "report.json").read_text(encoding="utf-8"))["mean_reward"]


def divergence_of(report: Artifact) -> float | None:
    """Mean reverse KL to the teacher in nats a token of the answers; None where it was not measured."""
    return report.counts["reverse_kl_mean_nats"] if report.counts.get("divergence_tokens") else None


def divergence_line(start: Artifact, end: Artifact) -> str:
    """How far a run's student is from its teacher on a benchmark's answers; empty where that was not measured."""
    def described(report: Artifact) -> str:
        return f"{report.counts['reverse_kl_mean_nats']:.3f} over {report.counts['divergence_tokens']:,} tokens"
    if not (start.counts.get("divergence_tokens") and end.counts.get("divergence_tokens")):
        return ""
    return f"Mean reverse KL to the teacher in nats a token, on the student's answers: {described(end)}; " \
           f"start {described(start)}."


def overlap_line(report: Artifact) -> str:
    """What a benchmark's questions share with prompts, solutions and rollouts trained on; empty where nobody looked."""
    told = [(report.counts[f"{prefix}overlapping_share"], report.counts[f"{prefix}contaminated_share"], what)
            for prefix, what in (("", "a prompt trained on or its solution"), ("trained_", "these or any rollout"))
            if f"{prefix}contaminated_share" in report.counts]
    return " ".join(f"{some:.1%} of the questions share 13 words in a row with {what}, {most:.1%} most of their words."
                    for some, most, what in told)
