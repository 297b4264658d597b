"""Passes over the whole vocabulary, [n, V], some rows at a time, with gradients that are made on the way.

A chunk's logits are a hundred megabytes, and autograd over them writes and reads as much at every operation. A block of
a few rows stays in the processor's cache, where its operations cost a fifth; of a chunk there are in whole the logits,
what each teacher says, and a gradient a term. Each row's value is a function of that row alone, so a block's gradient
is complete when the block is done.
"""
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CACHED = 1 << 18    # float32 values of a block on a CPU: a megabyte, of which some ten are alive at once
LAUNCHED = 1 << 24  # elsewhere: small against a chunk, large against the start of a kernel


def row_blocks(values: Tensor) -> Iterator[slice]:
    """Slices of the rows of [n, V], each of at least one row and as many as a block holds."""
    most = CACHED if values.device.type == "cpu" else LAUNCHED
    step = max(1, most // values.shape[1])
    return (slice(start, min(start + step, len(values))) for start in range(0, len(values), step))


@torch.no_grad()
def log_normaliser(logits: Tensor) -> Tensor:
    """logsumexp of each row, [n, V] -> [n, 1], without a graph."""
    found = logits.new_empty(len(logits), 1)
    for rows in row_blocks(logits):
        found[rows] = logits[rows].logsumexp(-1, keepdim=True)
    return found


@torch.no_grad()
def log_softmax_(logits: Tensor) -> Tensor:
    """Log-probabilities [n, V] in the place of logits [n, V]."""
    for rows in row_blocks(logits):
        logits[rows] -= logits[rows].logsumexp(-1, keepdim=True)
    return logits


class LogprobsAt(torch.autograd.Function):
    """Log-probabilities of logits [n, V] at ids [n, S], -inf at ids of -1, given the rows' normaliser [n, 1]: [n, S].

    The gradient of sum_s g_s logprob_s with respect to the logits is the g_s at their ids less sum_s g_s * softmax.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, ids: Tensor, normaliser: Tensor) -> Tensor:
        """Gathers; the softmax is left to the backward pass."""
        ctx.save_for_backward(logits, ids, normaliser)
        return torch.where(ids >= 0, logits.gather(1, ids.clamp(min=0)) - normaliser, -torch.inf)

    @staticmethod
    @once_differentiable
    def backward(ctx, slope: Tensor) -> tuple[Tensor, None, None]:
        """One exponential a logit."""
        logits, ids, normaliser = ctx.saved_tensors
        slope, gradient = torch.where(ids >= 0, slope, 0.0), torch.empty_like(logits)
        total = slope.sum(-1, keepdim=True)
        for rows in row_blocks(logits):
            torch.mul((logits[rows] - normaliser[rows]).exp_(), -total[rows], out=gradient[rows])
        return gradient.scatter_add_(1, ids.clamp(min=0), slope), None, None


class WithGradient(torch.autograd.Function):
    """Values [n], each of its own row of logits [n, V], whose gradient [n, V] is known already."""

    @staticmethod
    def forward(ctx, logits: Tensor, values: Tensor, gradient: Tensor) -> Tensor:
        """The values, with a graph."""
        ctx.gradient = gradient
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, slope: Tensor) -> tuple[Tensor, None, None]:
        """In the gradient's own place: it is handed over, and there is no second backward pass."""
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(slope[:, None]), None, None


@torch.no_grad()
def by_rows(logits: Tensor, normaliser: Tensor, function: Callable[[Tensor, slice], Tensor]) -> Tensor:
    """`function(log-probabilities [r, V], rows)` -> [r] of all rows, [n], with a graph to the logits [n, V].

    The function's own gradient, by autograd, is g with respect to log-probabilities; to the logits it is
    g - softmax * sum(g).
    """
    values, gradient = logits.new_empty(len(logits)), torch.empty_like(logits) if logits.requires_grad else None
    for rows in row_blocks(logits):
        live = logits.detach()[rows] - normaliser[rows]
        if gradient is None:
            values[rows] = function(live, rows)
            continue
        with torch.enable_grad():
            value = function(live.requires_grad_(), rows)
        slope, = torch.autograd.grad(value, live, torch.ones_like(value))
        values[rows] = value.detach()
        total = slope.sum(-1, keepdim=True)
        torch.addcmul(slope, live.detach().exp_(), total, value=-1, out=gradient[rows])
    if gradient is None:
        return values
    with torch.enable_grad():
        return WithGradient.apply(logits, values, gradient)
