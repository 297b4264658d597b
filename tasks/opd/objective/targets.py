"""Which distribution is aimed at: log-probabilities by model name, [n, S] each, to log-probabilities [n, S].

`teacher` is the model that the recipe's `teacher` means, `start` the student as it was before training, `live` the
student as the round begins, `student` the student as it is now; other names are models of the pair. All of them see the
teacher's context. A weighted geometric mean comes out without its normaliser: over the whole vocabulary the caller adds
it, at the token written it would be a constant of the prefix, which moves no gradient in the mean.
"""
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from tasks.opd.core.entries import Entry

Models = dict[str, Tensor]


def geometric(parts: list[tuple[Tensor, float]]) -> Tensor:
    """Sum of exponent * log-probabilities; -inf where that is undefined. An exponent of 1 alone changes no bit."""
    total = sum(logprobs * exponent for logprobs, exponent in parts if exponent != 0)
    return torch.where(torch.isnan(total), -torch.inf, total)


def teacher(models: Models) -> Tensor:
    """The teacher's own distribution. [n, S] nats."""
    return models["teacher"]


def reference(models: Models, *, model: str = "start") -> Tensor:
    """Another model's distribution, for example to stay near the start. [n, S] nats."""
    return models[model]


def extrapolated(models: Models, *, scale: Annotated[float, Field(ge=0)], reference: str = "start") -> Tensor:
    """teacher^scale * reference^(1 - scale): beyond the teacher, seen from the reference, for scale > 1. [n, S] nats.

    At the token written less the student it is the advantage gap + (scale - 1) * (log teacher - log reference).
    Source: G-OPD, arXiv:2602.12125 (scale 1.25; the reference is the student's start, or the teacher's own).
    """
    return geometric([(models["teacher"], scale), (models[reference], 1 - scale)])


def trust_region(models: Models, *, share: Annotated[float, Field(ge=0, le=1)] = 0.05) -> Tensor:
    """start^(1 - share) * live^share: a self-teacher that follows the student on a leash. [n, S] nats.

    Mixing logits gives the same after the softmax. Source: SDPO, arXiv:2601.20802 (share 0.05).
    """
    return geometric([(models["start"], 1 - share), (models["live"], share)])


def veto(models: Models, *, beta: Annotated[float, Field(ge=0, lt=1)] = 0.5) -> Tensor:
    """teacher * student^beta: tokens the student itself finds unlikely are vetoed. [n, S] nats.

    Its fixed point is teacher^(1 / (1 - beta)), a sharper teacher. Source: Veto, arXiv:2601.07155.
    """
    return geometric([(models["teacher"], 1.0), (models["student"], beta)])


TARGETS = {
    "teacher": Entry(teacher),
    "reference": Entry(reference, without_teacher=True, models=lambda params: (params["model"],)),
    "extrapolated": Entry(extrapolated, models=lambda params: (params["reference"],), unnormalised=True),
    "trust_region": Entry(trust_region, without_teacher=True, models=("start", "live"), unnormalised=True),
    "veto": Entry(veto, unnormalised=True, sees_student=True)}
