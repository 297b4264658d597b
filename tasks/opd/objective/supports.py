"""Where teacher and student are compared: the token ids at each position, and what becomes of the mass elsewhere.

A support gives ids [n, S], -1 where there is no token, or None for the whole vocabulary. `renormalise` says what
happens off the support: `both` divides both distributions by their mass on it; `teacher` only the teacher, so that the
student's mass elsewhere is punished; `tail` appends one bucket that holds the rest, so that both sum to one on S + 1
outcomes and the divergence is at most the full one (data processing); `none` leaves both as they are, for advantages.
"""
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from tasks.opd.core.entries import Entry
from tasks.opd.engines.api import tail_of
from tasks.opd.models.heads import Head
from tasks.opd.objective.vocabulary import LogprobsAt, log_normaliser, log_softmax_


@dataclass(kw_only=True)
class TeacherTokens:
    """One model's signal at the n tokens of a chunk; None where it was not asked for."""
    sampled: Tensor | None = None       # [n] nats, of the token written
    ids: Tensor | None = None           # [n, K]
    logprobs: Tensor | None = None      # [n, K]
    hidden: Tensor | None = None        # [n, d]
    head: Head | None = None
    temperature: float = 1.0
    num_tokens: int = 0                 # n
    computed: Tensor | None = None      # [n, V] what `full` gives, once it has been asked

    def select(self, index: Tensor) -> "TeacherTokens":
        """The same signal at some of the tokens."""
        if index.numel() == self.num_tokens:
            return self
        part = {name: None if (value := getattr(self, name)) is None else value[index]
                for name in ("sampled", "ids", "logprobs", "hidden", "computed")}
        return TeacherTokens(**part, head=self.head, temperature=self.temperature, num_tokens=index.numel())

    def block(self, rows: slice) -> "TeacherTokens":
        """Some of the tokens with their full log-probabilities, which are views."""
        return TeacherTokens(num_tokens=rows.stop - rows.start, computed=self.full[rows])

    @property
    def full(self) -> Tensor:
        """Log-probabilities over the whole vocabulary, [n, V], from hidden states and head."""
        if self.computed is None:
            with torch.no_grad():
                self.computed = log_softmax_(self.head.logits(self.hidden, self.temperature))
        return self.computed

    def at(self, ids: Tensor | None, are_own: bool) -> Tensor:
        """Log-probabilities at `ids` [n, S]; `are_own`: the ids are the first S of this model's top-k."""
        if ids is None:
            return self.full
        if are_own and self.logprobs is not None:
            return self.logprobs[:, :ids.shape[1]]
        return gathered(self.full, ids)


@dataclass(kw_only=True)
class StudentTokens:
    """The student, live, at the n tokens of a chunk."""
    logits: Tensor                      # [n, V] divided by the loss temperature
    token_ids: Tensor                   # [n] the tokens written

    def select(self, index: Tensor) -> "StudentTokens":
        """The same student at some of the tokens."""
        if index.numel() == self.token_ids.numel():
            return self
        return StudentTokens(logits=self.logits.index_select(0, index), token_ids=self.token_ids[index])

    def detached(self) -> "StudentTokens":
        """The same student without a graph, for who only looks: what this one computes it keeps, with its graph."""
        return StudentTokens(logits=self.logits.detach(), token_ids=self.token_ids)

    @cached_property
    def normaliser(self) -> Tensor:
        """logsumexp of the logits, [n, 1], without a graph."""
        return log_normaliser(self.logits)

    @cached_property
    def full(self) -> Tensor:
        """Log-probabilities over the whole vocabulary, [n, V]."""
        return torch.log_softmax(self.logits, -1)

    @cached_property
    def sampled(self) -> Tensor:
        """Log-probabilities of the tokens written, [n]."""
        return self.at(self.token_ids[:, None])[:, 0]

    def at(self, ids: Tensor | None) -> Tensor:
        """Log-probabilities at `ids` [n, S], of the full softmax; -inf at ids of -1."""
        return self.full if ids is None else LogprobsAt.apply(self.logits, ids, self.normaliser)

    @cached_property
    def entropy(self) -> Tensor:
        """Entropy over the whole vocabulary, [n] nats."""
        return entropy_of(self.full)


def entropy_of(logprobs: Tensor) -> Tensor:
    """The entropy of distributions [n, V], [n] nats."""
    return -(logprobs.exp() * torch.where(logprobs > -torch.inf, logprobs, 0.0)).sum(-1)


def gathered(values: Tensor, ids: Tensor) -> Tensor:
    """Values [n, V] at ids [n, S], -inf at ids of -1."""
    found = values.gather(1, ids.clamp(min=0))
    return torch.where(ids >= 0, found, -torch.inf)


K = Annotated[int, Field(ge=1)]
Renormalise = Literal["both", "teacher", "tail", "none"]


def sampled(student: StudentTokens, teacher: TeacherTokens | None) -> Tensor:
    """The token written: ids [n, 1]."""
    return student.token_ids[:, None]


def full(student: StudentTokens, teacher: TeacherTokens | None) -> None:
    """The whole vocabulary."""
    return None


def teacher_top_k(student: StudentTokens, teacher: TeacherTokens, *, k: K = 32, renormalise: Renormalise = "both"
                  ) -> Tensor:
    """The teacher's k likeliest tokens: ids [n, k]. Source: arXiv:2603.25562 (k 32, both renormalised)."""
    return teacher.ids[:, :k]


def student_top_k(student: StudentTokens, teacher: TeacherTokens, *, k: K = 32, renormalise: Renormalise = "both"
                  ) -> Tensor:
    """The student's k likeliest tokens: ids [n, k]. Source: SDPO, arXiv:2601.20802 (k 100, tail)."""
    return student.logits.detach().topk(min(k, student.logits.shape[-1]), dim=-1).indices


def union(student: StudentTokens, teacher: TeacherTokens, *, k: K = 16, renormalise: Renormalise = "both") -> Tensor:
    """Tokens among the k likeliest of either: ids [n, 2k], -1 where both have the token. Source: arXiv:2604.13016."""
    ours, theirs = student_top_k(student, teacher, k=k), teacher.ids[:, :k]
    twice = (theirs[:, :, None] == ours[:, None, :]).any(-1)
    return torch.cat([ours, torch.where(twice, -1, theirs)], 1)


def intersection(student: StudentTokens, teacher: TeacherTokens, *, k: K = 16, renormalise: Renormalise = "both"
                 ) -> Tensor:
    """Tokens among the k likeliest of both: ids [n, k], -1 where the teacher lacks it. Source: arXiv:2604.13016."""
    ours, theirs = student_top_k(student, teacher, k=k), teacher.ids[:, :k]
    return torch.where((ours[:, :, None] == theirs[:, None, :]).any(-1), ours, -1)


def overlap(student: StudentTokens, teacher: TeacherTokens, k: int) -> Tensor:
    """The share of the student's k likeliest tokens that are among the teacher's k likeliest: [n] in [0, 1].

    Source: Rethinking OPD, arXiv:2604.13016.
    """
    return (intersection(student, teacher, k=k) >= 0).double().sum(-1) / k


def on_support(teacher: Tensor, student: Tensor, how: str) -> tuple[Tensor, Tensor]:
    """Both distributions' log-probabilities [n, S] as `renormalise` has them: [n, S], or [n, S + 1] with a tail."""
    if how == "none":
        return teacher, student
    return renormalised(teacher, "both" if how == "teacher" else how), \
        student if how == "teacher" else renormalised(student, how)


def renormalised(logprobs: Tensor, how: str) -> Tensor:
    """Log-probabilities on a support made to sum to one: [n, S] -> [n, S] (`both`) or [n, S + 1] (`tail`).

    Where the support is empty there is nothing to compare: -inf stays, and the tail is all.
    """
    empty = (logprobs == -torch.inf).all(-1, keepdim=True)
    some = torch.where(empty, 0.0, logprobs)  # a sum over nothing has no gradient
    if how == "both":
        return torch.where(empty, -torch.inf, torch.log_softmax(some, -1))
    return torch.cat([logprobs, torch.where(empty, 0.0, tail_of(some)[..., None])], -1)


SUPPORTS = {
    "sampled": Entry(sampled, covers="written", signal={"sampled": True}),
    "full": Entry(full, covers="full", signal={"hidden": True}),
    "teacher_top_k": Entry(teacher_top_k, signal=lambda params: {"top_k": params["k"]}, owns_ids=True),
    "student_top_k": Entry(student_top_k, signal={"hidden": True}),
    "union": Entry(union, signal=lambda params: {"hidden": True, "top_k": params["k"]}),
    "intersection": Entry(intersection, signal=lambda params: {"hidden": True, "top_k": params["k"]})}
