"""Whether a teacher's signal stands at the tokens it is about, looked for where it shows: on its own completions.

A teacher gives the tokens that it wrote itself far more probability at their own place than its distributions one token
before or after do (E[log p - log q] = KL(p || q) >= 0 for tokens drawn from p). How far the student is from it has no
part in that: a student that has lost layers is about as far from an aligned teacher as from a shifted one.
"""
from typing import NamedTuple

import torch
from torch import Tensor

from tasks.opd.engines.api import Signal, Want
from tasks.opd.models.heads import wide

ASKED_BESIDE = 16           # tokens of a completion asked for beside their place, where each costs a sequence
DRAWN = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}  # the teacher's own distribution, whole


class Alignment(NamedTuple):
    """Log-probabilities of the teacher's own tokens, nats: at their place, and one token too early or too late."""
    aligned: list[Tensor]       # [T] each
    early: list[Tensor]         # [T] under the distribution of the token before; NaN where it was not asked
    late: list[Tensor]          # [T] under the distribution of the token after; NaN where it was not asked

    def margins(self) -> tuple[float, float]:
        """How much the tokens are likelier at their place than too early, and than too late: means, nats a token.

        NaN where no completion has two tokens.
        """
        aligned = torch.cat(self.aligned).double()
        return tuple(float((aligned - torch.cat(moved).double()).nanmean()) for moved in (self.early, self.late))


def measure_alignment(engine, prompts: list[list[int]], max_new_tokens: int, seeds: list[int]) -> Alignment:
    """Have a teacher write after prompts and score what it wrote, at its place and one token beside it."""
    written = engine.generate(prompts, {**DRAWN, "max_new_tokens": max_new_tokens}, seeds)
    completions, whole = [c.token_ids for c in written], "hidden" in engine.capabilities().columns
    signals = engine.score(prompts, completions, Want(hidden=whole))
    beside = asked_whole(engine, completions, signals) if whole else asked_singly(engine, prompts, completions)
    return Alignment([signal.sampled for signal in signals], *beside)


@torch.no_grad()
def asked_whole(engine, completions: list[list[int]], signals: list[Signal]) -> tuple[list[Tensor], list[Tensor]]:
    """Log-probabilities [T] of each token under the distributions of the token before and of the one after."""
    head, early, late = wide(engine.head), [], []
    for completion, signal in zip(completions, signals):
        full = head.logprobs(signal.hidden.to(head.weight)).cpu()
        ids, blank = torch.tensor(completion)[:, None], full.new_full((1,), torch.nan)
        early.append(torch.cat([blank, full[:-1].gather(1, ids[1:])[:, 0]]))
        late.append(torch.cat([full[1:].gather(1, ids[:-1])[:, 0], blank]))
    return early, late


def asked_singly(engine, prompts: list[list[int]], completions: list[list[int]]) -> tuple[list[Tensor], list[Tensor]]:
    """As `asked_whole`, of an engine without hidden states: each of the first tokens is the end of a sequence."""
    asked, where = [], []
    for row, (prompt, completion) in enumerate(zip(prompts, completions)):
        for t in range(min(ASKED_BESIDE, len(completion))):
            beside = {"early": completion[:t - 1]} if t else {}  # the distribution of token t - 1, or of t + 1
            beside |= {"late": completion[:t + 1]} if t + 1 < len(completion) else {}
            for side, before in beside.items():
                asked.append((prompt, [*before, completion[t]]))
                where.append((side, row, t))
    found = {side: [torch.full((len(c),), torch.nan) for c in completions] for side in ("early", "late")}
    scored = engine.score([p for p, _ in asked], [c for _, c in asked], Want())
    for (side, row, t), signal in zip(where, scored):
        found[side][row][t] = signal.sampled[-1]
    return found["early"], found["late"]
