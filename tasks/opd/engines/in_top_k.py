"""Whether tokens are among a model's likeliest k, exactly, for the price of a product in the model's own precision."""
import torch
from torch import Tensor

from tasks.opd.models.heads import Head

CHUNK_TOKENS = 512    # tokens whose logits over the vocabulary live at once
ROUNDING = 2 ** -7    # of a bfloat16 product, as a share of a row's largest logit: twice what it comes to


def in_top_k(head: Head, exact: Head, size: int, hidden: Tensor, tokens: Tensor, k: Tensor) -> Tensor:
    """Whether fewer than k [n] of the first `size` tokens are likelier than tokens [n], after hidden states [n, d].

    Equals of the k-th are among them. Most tokens are told by `head`, beyond its rounding, the others by `exact`, the
    same head in a precision that does not round. A token whose logit is NaN is not among them.
    """
    inside = []
    for part, written, most in zip(*(x.split(CHUNK_TOKENS) for x in (hidden, tokens, k))):
        known = written < size
        written, fewer, open_ = written.where(known, 0), torch.zeros_like(known), known
        if head.weight.dtype != exact.weight.dtype:
            least, at_most = likelier(head, size, part, written, ROUNDING)
            fewer, open_ = at_most < most, (least < most) & (most <= at_most)
        rows = torch.nonzero(open_)[:, 0]
        fewer[rows] = likelier(exact, size, part[rows], written[rows], 0.0)[1] < most[rows]
        inside.append(fewer & known)
    return torch.cat(inside)


def likelier(head: Head, size: int, hidden: Tensor, tokens: Tensor, rounding: float) -> tuple[Tensor, Tensor]:
    """How many tokens are likelier than tokens [n], at least and at most, after hidden states [n, d].

    The logits may be off by `rounding`, a share of the row's largest; those that are NaN may be anything.
    """
    logits = head.logits(hidden)[..., :size]
    own = logits.gather(-1, tokens[:, None])
    slack = 2 * rounding * torch.maximum(logits.amax(-1, keepdim=True), -logits.amin(-1, keepdim=True)) \
        if rounding else torch.zeros_like(own)
    least = logits.clone().gt_(own + slack).sum(-1)  # in place and as floats: counting booleans takes ten times as long
    return least, size - logits.le_(own - slack).sum(-1)
