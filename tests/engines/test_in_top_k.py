"""Whether tokens are among the likeliest k: exact, for few products in full precision."""
import math

import torch

from tasks.opd.engines import in_top_k as module
from tasks.opd.engines.in_top_k import in_top_k
from tasks.opd.models.heads import Head


def test_the_exact_head_is_asked_for_few_and_the_answer_is_exact(monkeypatch):
    """Over 5,000 ids, tokens at every rank near the k-th; logits are NaN after one state."""
    generator, asked = torch.Generator().manual_seed(0), []
    draw = lambda *shape: torch.randn(*shape, generator=generator).bfloat16()  # noqa: E731
    head = Head(weight=draw(5000, 64), bias=None, scale=1.0, softcap=None, num_valid=5000)
    exact, hidden = head.to(torch.float32), draw(600, 64)
    order = exact.logits(hidden).argsort(-1, descending=True)
    places = torch.arange(600) % 60
    tokens, k = order[torch.arange(600), places], torch.full((600,), 25)
    hidden[7] = math.nan
    sound = module.likelier
    monkeypatch.setattr(module, "likelier", lambda head, size, hidden, *rest: (
        asked.append((head is exact, len(hidden))), sound(head, size, hidden, *rest))[1])
    inside = in_top_k(head, exact, 5000, hidden, tokens, k)
    assert inside.tolist() == [int(place) < 25 and i != 7 for i, place in enumerate(places)]
    assert sum(count for precise, count in asked if precise) < 200 and len(asked) == 4
