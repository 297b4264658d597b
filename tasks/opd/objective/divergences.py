"""How far apart teacher and student are at a token, in nats.

Each function takes log-probabilities of both on one support, [..., S], and folds the entries of its sum over the last
axis. `fold` is where a term cuts entries off (see `loss`); left alone, it is the plain sum. Everything is safe at
-inf on either side or both: an entry of probability zero contributes what the mathematics says (0 log 0 = 0), in value
and in gradient. A KL's entry that is truly infinite stays so; it is a constant and passes no gradient on.

Each is written twice: as a definition, which autograd differentiates, and as its entries with their slopes, which takes
a third of the passes over memory and holds where nothing is -inf. A new divergence may be written once, as
`fold(entries)`: it is slower and no less right.
"""
import math
from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.autograd.function import once_differentiable

from tasks.opd.core.entries import Entry

Fold = Callable[[Tensor], Tensor]
Sides = tuple[Tensor, Tensor]           # log-probabilities [..., S] of teacher and student
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


def checked(share: float) -> float:
    """A share of a mixture. Raises: ValueError unless it lies between 0 and 1."""
    if not 0 < share < 1:
        raise ValueError(f"a mixture with {share} of the teacher: the share must lie between 0 and 1; at the ends use "
                         "forward_kl or reverse_kl")
    return share


def mixture(teacher_logprobs: Tensor, student_logprobs: Tensor, share: float) -> Tensor:
    """log(share * teacher + (1 - share) * student): [..., S] nats -> [..., S] nats.

    Raises: ValueError unless 0 < share < 1; a divergence from the teacher or the student alone is a plain KL.
    """
    checked(share)
    somewhere = (teacher_logprobs != -torch.inf) | (student_logprobs != -torch.inf)
    # logaddexp of twice -inf has no gradient
    mix = torch.logaddexp(torch.where(somewhere, teacher_logprobs, 0.0) + math.log(share),
                          student_logprobs + math.log1p(-share))
    return torch.where(somewhere, mix, -torch.inf)


class WithSlope(torch.autograd.Function):
    """Entries [..., S] whose slopes [..., S] with respect to the student's log-probabilities are known already."""

    @staticmethod
    def forward(ctx, student_logprobs: Tensor, entries: Tensor, slopes: Tensor) -> Tensor:
        """The entries, with a graph."""
        ctx.save_for_backward(slopes)
        return entries

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        """An entry depends on its own log-probability alone."""
        return gradient * ctx.saved_tensors[0], None, None


def entries_of(teacher_logprobs: Tensor, student_logprobs: Tensor, definition: Callable[[Tensor, Tensor], Tensor],
               closed_form: Callable[[Tensor, Tensor], Sides]) -> Tensor:
    """The entries [..., S] of a divergence's sum, with a graph to the student.

    By `closed_form`, which gives entries and slopes, where all log-probabilities are finite; else by `definition`.
    """
    sides = teacher_logprobs, student_logprobs
    if not all(side.numel() and bool(side.detach().amin() > -torch.inf) for side in sides):
        return definition(*sides)
    with torch.no_grad():
        entries, slopes = closed_form(*sides)
    return WithSlope.apply(student_logprobs, entries, slopes)


def relative_to_student(teacher: Tensor, student: Tensor) -> Sides:
    """p (log p - log q) with slope -p."""
    p = teacher.exp()
    return (teacher - student).mul_(p), p.neg_()


def relative_to_teacher(teacher: Tensor, student: Tensor) -> Sides:
    """q (log q - log p) with slope q (log q - log p) + q."""
    q = student.exp()
    entries = (student - teacher).mul_(q)
    return entries, q.add_(entries)


def probabilities(left: Tensor, right: Tensor, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """share * exp(left), (1 - share) * exp(right), and their sum, at least the smallest number for its logarithm."""
    p, q = left.exp().mul_(share), right.exp().mul_(1 - share)
    return p, q, (p + q).clamp_(min=torch.finfo(p.dtype).tiny)


def forward_kl(teacher_logprobs: Tensor, student_logprobs: Tensor, fold: Fold = total) -> Tensor:
    """KL(teacher || student) at each token, in nats: [..., S] -> [...]. Covers the teacher's modes.

    Its gradient with respect to the student's logits is student - teacher.
    Source: word-level knowledge distillation, arXiv:1606.07947; GKD, arXiv:2306.13649.
    """
    return fold(entries_of(teacher_logprobs, student_logprobs, relative, relative_to_student))


def reverse_kl(teacher_logprobs: Tensor, student_logprobs: Tensor, fold: Fold = total) -> Tensor:
    """KL(student || teacher) at each token, in nats: [..., S] -> [...]. Seeks the teacher's modes.

    Its gradient with respect to the student's logits is student * (log student - log teacher - KL).
    Source: MiniLLM, arXiv:2306.08543; GKD, arXiv:2306.13649.
    """
    return fold(entries_of(teacher_logprobs, student_logprobs, lambda t, s: relative(s, t), relative_to_teacher))


def jsd(teacher_logprobs: Tensor, student_logprobs: Tensor, fold: Fold = total, *, beta: Share = 0.5) -> Tensor:
    """Generalised Jensen-Shannon divergence at each token, in nats: [..., S] -> [...].

    beta * KL(teacher || mix) + (1 - beta) * KL(student || mix), with mix = beta * teacher + (1 - beta) * student.
    Divided by beta it tends to the forward KL as beta goes to 0; divided by 1 - beta to the reverse KL as beta goes
    to 1.

    Source: GKD, arXiv:2306.13649, eq. 1.
    Raises: ValueError unless 0 < beta < 1; at the ends use forward_kl or reverse_kl.
    """
    def definition(teacher: Tensor, student: Tensor) -> Tensor:
        mix = mixture(teacher, student, beta)
        return beta * relative(teacher, mix) + (1 - beta) * relative(student, mix)

    def closed_form(teacher: Tensor, student: Tensor) -> Sides:
        p, q, m = probabilities(teacher, student, checked(beta))
        mix = m.log_()
        slopes = (student - mix).mul_(q)                                 # the other parts of the slope cancel
        return (teacher - mix).mul_(p).add_(slopes), slopes
    return fold(entries_of(teacher_logprobs, student_logprobs, definition, closed_form))


def skew_kl(teacher_logprobs: Tensor, student_logprobs: Tensor, fold: Fold = total, *, alpha: Share = 0.1) -> Tensor:
    """KL(teacher || alpha * teacher + (1 - alpha) * student) at each token, in nats: [..., S] -> [...].

    At most -ln(alpha): where the student is zero, alpha of the teacher is left in the mixture.
    Source: DistiLLM, arXiv:2402.03898.
    Raises: ValueError unless 0 < alpha < 1; at 0 use forward_kl.
    """
    def definition(teacher: Tensor, student: Tensor) -> Tensor:
        return relative(teacher, mixture(teacher, student, alpha))

    def closed_form(teacher: Tensor, student: Tensor) -> Sides:
        p, q, m = probabilities(teacher, student, checked(alpha))
        slopes = q.div_(m).mul_(p).mul_(-1 / alpha)
        return (teacher - m.log_()).mul_(p.div_(alpha)), slopes
    return fold(entries_of(teacher_logprobs, student_logprobs, definition, closed_form))


def skew_reverse_kl(teacher_logprobs: Tensor, student_logprobs: Tensor, fold: Fold = total, *,
                    alpha: Share = 0.1) -> Tensor:
    """KL(student || (1 - alpha) * teacher + alpha * student) at each token, in nats: [..., S] -> [...].

    At most -ln(alpha): where the teacher is zero, alpha of the student is left in the mixture.
    Source: DistiLLM, arXiv:2402.03898.
    Raises: ValueError unless 0 < alpha < 1; at 0 use reverse_kl.
    """
    def definition(teacher: Tensor, student: Tensor) -> Tensor:
        return relative(student, mixture(teacher, student, 1 - alpha))

    def closed_form(teacher: Tensor, student: Tensor) -> Sides:
        q, p, m = probabilities(student, teacher, checked(alpha))
        entries = (student - m.log()).mul_(q).div_(alpha)
        return entries, p.div_(m).mul_(q).div_(alpha).add_(entries)     # q - q * q / m = q * p / m
    return fold(entries_of(teacher_logprobs, student_logprobs, definition, closed_form))


def nll(teacher_logprobs: Tensor | None, student_logprobs: Tensor, fold: Fold = total) -> Tensor:
    """-log student of the token written, in nats: [..., 1] -> [...]; the forward KL to a one-hot teacher.

    Its gradient with respect to the student's logits is student - onehot. `teacher_logprobs` is not looked at.
    Source: maximum likelihood; sequence-level knowledge distillation, arXiv:1606.07947.
    """
    return fold(-student_logprobs)


DIVERGENCES = {"forward_kl": Entry(forward_kl, one_sided=True), "reverse_kl": Entry(reverse_kl), "jsd": Entry(jsd),
               "skew_kl": Entry(skew_kl), "skew_reverse_kl": Entry(skew_reverse_kl),
               "nll": Entry(nll, without_teacher=True)}
