"""How far apart teacher and student are at a token, in nats.

Each function takes log-probabilities of both on one support, [..., S], and folds the entries of its sum over the last
axis. `fold` is where a term cuts entries off (see `losses`); left alone, it is the plain sum. Everything is safe at
-inf: an entry of probability zero contributes what the mathematics says (0 log 0 = 0), in value and in gradient.
"""
from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

Fold = Callable[[Tensor], Tensor]


def total(entries: Tensor) -> Tensor:
    """The sum over the support: [..., S] -> [...]."""
    return entries.sum(-1)


def relative(left: Tensor, right: Tensor) -> Tensor:
    """Entries of KL(left || right): exp(left) * (left - right), and 0 where left is -inf. [..., S] -> [..., S]."""
    there = left > -torch.inf
    left, right = torch.where(there, left, 0.0), torch.where(there, right, 0.0)
    return torch.where(there, left.exp() * (left - right), 0.0)


def forward_kl(teacher: Tensor, student: Tensor, fold: Fold = total) -> Tensor:
    """KL(teacher || student) at each token, in nats: [..., S] -> [...]. Covers the teacher's modes.

    Its gradient with respect to the student's logits is student - teacher.
    Source: word-level knowledge distillation, arXiv:1606.07947; GKD, arXiv:2306.13649.
    """
    return fold(relative(teacher, student))


def reverse_kl(teacher: Tensor, student: Tensor, fold: Fold = total) -> Tensor:
    """KL(student || teacher) at each token, in nats: [..., S] -> [...]. Seeks the teacher's modes.

    Its gradient with respect to the student's logits is student * (log student - log teacher - KL).
    Source: MiniLLM, arXiv:2306.08543; GKD, arXiv:2306.13649.
    """
    return fold(relative(student, teacher))


def jsd(teacher: Tensor, student: Tensor, fold: Fold = total, *,
        beta: Annotated[float, Field(gt=0, lt=1)] = 0.5) -> Tensor:
    """Generalised Jensen-Shannon divergence at each token, in nats: [..., S] -> [...].

    beta * KL(teacher || mix) + (1 - beta) * KL(student || mix), with mix = beta * teacher + (1 - beta) * student.
    Divided by beta it tends to the forward KL as beta goes to 0; divided by 1 - beta to the reverse KL as beta goes
    to 1.

    Source: GKD, arXiv:2306.13649, eq. 1.
    Raises: ValueError unless 0 < beta < 1; at the ends use forward_kl or reverse_kl.
    """
    if not 0 < beta < 1:
        raise ValueError(f"jsd: beta = {beta}, but it must lie between 0 and 1; at the ends use forward_kl or "
                         "reverse_kl")
    somewhere = (teacher > -torch.inf) | (student > -torch.inf)
    weights = torch.tensor([beta, 1 - beta], dtype=torch.float64).log().tolist()
    mix = torch.logaddexp(torch.where(somewhere, teacher, 0.0) + weights[0],
                          torch.where(somewhere, student, 0.0) + weights[1])
    return fold(beta * relative(teacher, mix) + (1 - beta) * relative(student, mix))


def nll(teacher: Tensor | None, student: Tensor, fold: Fold = total) -> Tensor:
    """-log student of the token written, in nats: [..., 1] -> [...]; the forward KL to a one-hot teacher.

    Its gradient with respect to the student's logits is student - onehot. `teacher` is not looked at.
    Source: maximum likelihood; sequence-level knowledge distillation, arXiv:1606.07947.
    """
    return fold(-student)


DIVERGENCES = {"forward_kl": forward_kl, "reverse_kl": reverse_kl, "jsd": jsd, "nll": nll}
WITHOUT_TEACHER = frozenset({"nll"})
