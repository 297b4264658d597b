"""Whether a student speaks of what only its teacher saw: a solution, a sibling's answer, feedback.

A student that is taught under a richer prompt may learn to cite it ("according to the reference solution"), which is
nonsense where there is none. Source: SDFT, arXiv:2601.19897; OPSD, arXiv:2601.18734; the list of phrases is ours.
"""
import re

from tasks.opd.core.records import Prompt, Sample
from tasks.opd.data.fields import all_said

SHOWN = r"(?:solution|answer|demonstration|example|explanation|working)s?"
PHRASES = re.compile(
    rf"\b(?:reference|provided|given|worked|sample|model|expert|ground[- ]truth) {SHOWN}\b"
    rf"|\b{SHOWN} (?:above|provided|given|shown)\b"
    r"|\baccording to the (?:reference|solution|feedback|text|example|demonstration)\b"
    r"|\bbased on the (?:reference|solution|feedback|text|example|demonstration)\b"
    r"|\bthe (?:reference|feedback)\b|\b(?:my|your|the) first (?:try|attempt)\b", re.I)


def leaked(answer: str, question: str) -> str | None:
    """The first phrase of an answer that refers to more than the question; None without, or if the question has it."""
    asked = question.lower()
    return next((found[0] for found in PHRASES.finditer(answer) if found[0].lower() not in asked), None)


def leakage(samples: list[Sample], prompts: list[Prompt]) -> float:
    """The share of answers that refer to what was not in their prompt, in [0, 1]; 0 without answers."""
    asked = {prompt.prompt_id: all_said(prompt.turns, prompt.text) for prompt in prompts}
    return sum(leaked(sample.text, asked[sample.prompt_id]) is not None for sample in samples) / max(len(samples), 1)
