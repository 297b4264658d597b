"""How far apart teacher and student are at a token, in nats.

Each function takes log-probabilities of both on one support, [..., S], and folds the entries of its sum over the last
axis. `fold` is where a term cuts entries off (see `loss`); left alone, it is the plain sum. Everything is safe at
-inf on either side or both: an entry of probability zero contributes what the mathematics says (0 log 0 = 0), in value
and in gradient. A KL's entry that is truly infinite stays so; it is a constant and passes no gradient on.
"""
import math
from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from tasks.opd.core.entries import Entry

Fold = Callable[[Tensor], Tensor]
Share = Annotated[float, Field(gt=0, lt=1)]


def total(entries: Tensor) -> Tensor:
    """The sum over the support: [..., S] -> [...]."""
    return entries.sum(-1)


def relative(left: Tensor, right: Tensor) -> Tensor:
    """Entries of KL(left || right): exp(left) * (left - right); 0 where left is -inf, else inf where right is.

    [..., S] -> [..., S].
    """
    possible, covered = left != -torch.inf, right != -torch.inf
    both = possible & covered
    left, right = torch.where(both, left, 0.0), torch.where(both, right, 0.0)
    return (left.exp() * (left - right)).masked_fill(possible & ~covered, torch.inf)


def mixture(teacher_logprobs: Tensor, student_logprobs: Tensor, share: float) -> Tensor:
    """log(share * teacher + (1 - share) * student): [..., S] nats -> [..., S] nats.

    Raises: ValueError unless 0 < share < 1; a divergence from the teacher or the student alone is a plain KL.
    """
    if not 0 < share < 1:
        raise ValueError(f"a mixture with {share} of the teacher: the share must lie between 0 and 1; at the ends use "
                         "forward_kl or reverse_kl")
    somewhere = (teacher_logprobs != -torch.inf) | (student_logprobs != -torch.inf)
    # logaddexp of twice -inf has no gradient
    mix = torch.logaddexp(torch.where(somewhere, teacher_logprobs, 0.0) + math.log(share),
                          student_logprobs + math.log1p(-share))
    return torch.where(somewhere, mix, -torch.inf)


def forward_kl(teacher_logprobs: Tensor, student_logprobs: Tensor, fold: Fold = total) -> Tensor:
    """KL(teacher || student) at each token, in nats: [..., S] -> [...]. Covers the teacher's modes.

    Its gradient with respect to the student's logits is student - teacher.
    Source: word-level knowledge distillation, arXiv:1606.07947; GKD, arXiv:2306.13649.
    """
    return fold(relative(teacher_logprobs, student_logprobs))


def reverse_kl(teacher_logprobs: Tensor, student_logprobs: Tensor, fold: Fold = total) -> Tensor:
    """KL(student || teacher) at each token, in nats: [..., S] -> [...]. Seeks the teacher's modes.

    Its gradient with respect to the student's logits is student * (log student - log teacher - KL).
    Source: MiniLLM, arXiv:2306.08543; GKD, arXiv:2306.13649.
    """
    return fold(relative(student_logprobs, teacher_logprobs))


def jsd(teacher_logprobs: Tensor, student_logprobs: Tensor, fold: Fold = total, *, beta: Share = 0.5) -> Tensor:
    """Generalised Jensen-Shannon divergence at each token, in nats: [..., S] -> [...].

    beta * KL(teacher || mix) + (1 - beta) * KL(student || mix), with mix = beta * teacher + (1 - beta) * student.
    Divided by beta it tends to the forward KL as beta goes to 0; divided by 1 - beta to the reverse KL as beta goes
    to 1.

    Source: GKD, arXiv:2306.13649, eq. 1.
    Raises: ValueError unless 0 < beta < 1; at the ends use forward_kl or reverse_kl.
    """
    mix = mixture(teacher_logprobs, student_logprobs, beta)
    return fold(beta * relative(teacher_logprobs, mix) + (1 - beta) * relative(student_logprobs, mix))


def skew_kl(teacher_logprobs: Tensor, student_logprobs: Tensor, fold: Fold = total, *, alpha: Share = 0.1) -> Tensor:
    """KL(teacher || alpha * teacher + (1 - alpha) * student) at each token, in nats: [..., S] -> [...].

    At most -ln(alpha): where the student is zero, alpha of the teacher is left in the mixture.
    Source: DistiLLM, arXiv:2402.03898.
    Raises: ValueError unless 0 < alpha < 1; at 0 use forward_kl.
    """
    return fold(relative(teacher_logprobs, mixture(teacher_logprobs, student_logprobs, alpha)))


def skew_reverse_kl(teacher_logprobs: Tensor, student_logprobs: Tensor, fold: Fold = total, *,
                    alpha: Share = 0.1) -> Tensor:
    """KL(student || (1 - alpha) * teacher + alpha * student) at each token, in nats: [..., S] -> [...].

    At most -ln(alpha): where the teacher is zero, alpha of the student is left in the mixture.
    Source: DistiLLM, arXiv:2402.03898.
    Raises: ValueError unless 0 < alpha < 1; at 0 use reverse_kl.
    """
    return fold(relative(student_logprobs, mixture(teacher_logprobs, student_logprobs, 1 - alpha)))


def nll(teacher_logprobs: Tensor | None, student_logprobs: Tensor, fold: Fold = total) -> Tensor:
    """-log student of the token written, in nats: [..., 1] -> [...]; the forward KL to a one-hot teacher.

    Its gradient with respect to the student's logits is student - onehot. `teacher_logprobs` is not looked at.
    Source: maximum likelihood; sequence-level knowledge distillation, arXiv:1606.07947.
    """
    return fold(-student_logprobs)


DIVERGENCES = {"forward_kl": Entry(forward_kl, one_sided=True), "reverse_kl": Entry(reverse_kl), "jsd": Entry(jsd),
               "skew_kl": Entry(skew_kl), "skew_reverse_kl": Entry(skew_reverse_kl),
               "nll": Entry(nll, without_teacher=True)}
