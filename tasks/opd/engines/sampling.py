"""Writing completions with a transformers model: a distribution to draw from, a growing cache, one decode loop.

Why not `model.generate`: it has one random stream for the whole batch, so a completion would depend on its neighbours.
Here each sample brings its own uniforms, one a token: inverse transform sampling.
Left out: beam search, penalties, grammars, refilling the batch while it runs. Finished rows are dropped as it runs.
"""
from typing import Protocol

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from tasks.opd.engines.api import Completion

COMPACT_BELOW = 0.75  # share of unfinished rows under which the finished ones leave the cache
NUCLEUS = 1024        # likeliest tokens ordered first: sorting a whole vocabulary costs ten times the rest


def sampling_logprobs(logits: Tensor, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0) -> Tensor:
    """Log-probabilities [B, V] that tokens are drawn from, given logits [B, V]; what the distribution excludes is -inf.

    Order: temperature, then the top_k likeliest (ties with the last are kept), then the smallest set of likeliest
    tokens whose mass within those reaches top_p. Temperature 0 is the point mass at the largest logit, so log 1 = 0.
    """
    if temperature == 0:
        point, best = torch.full_like(logits, -torch.inf), logits.max(-1, keepdim=True)
        return point.scatter_(-1, best.indices, best.values * 0 + 0)  # 0, not -0; a NaN stays one
    logits = logits / temperature if temperature != 1.0 else logits
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[..., -1:], -torch.inf)
    if top_p < 1.0:
        logits = nucleus(logits, top_p)
    return logits - logits.logsumexp(-1, keepdim=True)


def nucleus(logits: Tensor, top_p: float, first: int = NUCLEUS) -> Tensor:
    """Logits [B, V], -inf outside the smallest set of likeliest tokens with mass `top_p`; of equals the lower id stays.

    The `first` likeliest tokens are ordered alone; only where they are too few is all of the vocabulary.
    """
    largest, whole = logits.amax(-1, keepdim=True), first >= logits.shape[-1]
    total = (logits - largest).exp().sum(-1, keepdim=True)
    best = torch.arange(logits.shape[-1], device=logits.device).expand_as(logits) if whole else \
        logits.topk(first).indices.sort(-1).values  # by id, so that a stable sort tells equals apart
    ordered, order = logits.gather(-1, best).sort(descending=True, stable=True)
    mass = (ordered - largest).exp() / total
    before = mass.cumsum(-1) - mass
    if not whole and bool((before.masked_fill(ordered > ordered[..., -1:], torch.inf).amin(-1) < top_p).any()):
        return nucleus(logits, top_p, logits.shape[-1])  # equals of the last may be missing from the first
    kept = ordered.masked_fill(before >= top_p, -torch.inf)  # the mass before it is enough: the token is not needed
    return torch.full_like(logits, -torch.inf).scatter(-1, best.gather(-1, order), kept)


def draw(logprobs: Tensor, uniforms: Tensor) -> Tensor:
    """The first token [B] at which the cumulative probability of `logprobs` [B, V] exceeds `uniforms` [B] in [0, 1)."""
    cumulative = logprobs.exp().cumsum(-1)
    total = cumulative[..., -1:]
    wanted = uniforms.to(total.dtype)[:, None] * total
    wanted = torch.minimum(wanted, torch.nextafter(total, torch.zeros_like(total)))  # rounding must not reach the end
    drawn = torch.searchsorted(cumulative, wanted, right=True)[:, 0]
    return drawn.clamp(max=logprobs.shape[-1] - 1)  # NaN lies behind the last


def uniforms_of(seeds: list[int], num_tokens: int) -> Tensor:
    """Uniforms [B, num_tokens] in [0, 1): row i depends on seeds[i] alone, and a longer row begins with a shorter."""
    generator = torch.Generator()
    return torch.stack([torch.rand(num_tokens, generator=generator.manual_seed(seed), dtype=torch.float64)
                        for seed in seeds])


class GrowingLayer(DynamicLayer):
    """A cache layer with room to write into; DynamicLayer copies all keys and values at every token."""

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, H, L, D]; returns all of them, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.room = key_states.new_empty(2, *key_states.shape[:2], 0, key_states.shape[-1])
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if end > self.room.shape[-2]:
            grown = self.room.new_empty(*self.room.shape[:3], end + max(32, end // 2), self.room.shape[-1])
            if start:
                grown[..., :start, :] = self.room[..., :start, :]
            self.room = grown
        self.room[0, :, :, start:end] = key_states
        self.room[1, :, :, start:end] = value_states
        self.keys, self.values = self.room[..., :end, :]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows, or repeat them."""
        length = self.get_seq_length()
        self.room = self.room[..., :length, :].index_select(1, indices)
        self.keys, self.values = self.room


def new_cache(config) -> tuple[DynamicCache, bool]:
    """An empty cache, and whether every layer sees every token (then a mask of ours serves all layers)."""
    cache = DynamicCache(config=config)
    plain = bool(cache.layers) and all(type(layer) is DynamicLayer for layer in cache.layers)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache, plain


class Batch:
    """Prompts being continued together: tokens, cache and mask of the rows that are not finished yet.

    `size`: only the first ids of the vocabulary are drawn; all where it is None.
    """

    def __init__(self, model, head, prompts: list[list[int]], sampling: dict, size: int | None = None):
        self.model, self.head, self.sampling, self.size = model, head, sampling, size
        self.device = head.weight.device
        num_new = sampling["max_new_tokens"]
        self.cache, self.plain = new_cache(model.config)
        unique = list(dict.fromkeys(map(tuple, prompts)))
        width = max(map(len, unique))
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in unique], device=self.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * (len(p) + num_new) for p in unique], device=self.device)
        place = {prompt: i for i, prompt in enumerate(unique)}
        rows = torch.tensor([place[tuple(p)] for p in prompts], device=self.device)
        hidden = self.forward(ids, mask[:, :width], (mask[:, :width].cumsum(-1) - 1).clamp(min=0))
        self.padded = bool((mask[:, 0] == 0).any())
        self.width, self.mask, self.hidden = width, mask, hidden
        self.keep(rows)

    def forward(self, ids: Tensor, mask: Tensor | None, positions: Tensor) -> Tensor:
        """Hidden states [B, d] of the last position."""
        out = self.model.base_model(input_ids=ids, attention_mask=mask, position_ids=positions,
                                    past_key_values=self.cache, use_cache=True)
        return out.last_hidden_state[:, -1]

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only (or, from unique prompts, with as many copies as there are samples)."""
        self.mask, self.hidden = self.mask[rows], self.hidden[rows]
        for layer in self.cache.layers:
            layer.batch_select_indices(rows)
        self.bias = torch.zeros(self.mask.shape, dtype=self.hidden.dtype, device=self.device)
        self.bias = self.bias.masked_fill_(self.mask == 0, -torch.inf)[:, None, None]
        self.positions = self.mask[:, :self.width].sum(-1, keepdim=True)

    def next_logprobs(self) -> Tensor:
        """Log-probabilities [B, V] that the next tokens are drawn from; what the sampling excludes is -inf."""
        sampling = self.sampling
        return sampling_logprobs(self.head.logits(self.hidden)[..., :self.size], sampling["temperature"],
                                 sampling["top_p"], sampling["top_k"])

    def append(self, tokens: Tensor) -> None:
        """Continue every row by its token [B]."""
        self.width += 1
        mask = self.mask[:, :self.width]
        if self.plain:  # spares transformers the making of a mask at every token
            mask = self.bias[..., :self.width] if self.padded else None
        self.hidden = self.forward(tokens[:, None], mask, self.positions)
        self.positions = self.positions + 1


class Continued(Protocol):
    """Rows that `decode` continues token by token: one model's (`Batch`), or a mixture's (`mixture.MixedBatch`)."""
    device: torch.device

    def next_logprobs(self) -> Tensor:
        """Log-probabilities [B, V] that the next tokens are drawn from."""

    def append(self, tokens: Tensor) -> None:
        """Continue every row by its token [B]."""

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""


def decode(batch: Continued, num_new: int, seeds: list[int], eos_ids: set[int], progress=None) -> list[Completion]:
    """Continue each row of a batch until an EOS id or `num_new` tokens, row i by the uniforms of seeds[i].

    A completion's log-probabilities are those of `next_logprobs`. `progress` counts rows.
    """
    device, rows = batch.device, torch.arange(len(seeds), device=batch.device)
    uniforms = uniforms_of(seeds, num_new).to(device)
    eos = torch.tensor(sorted(eos_ids), dtype=torch.long, device=device)
    tokens = torch.zeros(len(seeds), num_new, dtype=torch.long, device=device)
    logprobs = torch.zeros(len(seeds), num_new, dtype=torch.float64, device=device)
    ended = torch.zeros(len(seeds), dtype=torch.bool, device=device)
    check_every = 8 if device.type == "cuda" else 1  # asking a GPU whether rows have ended stalls it
    for step in range(num_new):
        lp = batch.next_logprobs()
        chosen = draw(lp, uniforms[rows, step])
        tokens[rows, step] = chosen
        logprobs[rows, step] = lp.gather(-1, chosen[:, None])[:, 0].double()
        ended |= torch.isin(chosen, eos)
        if step + 1 == num_new:
            break
        if progress is not None and (step + 1) % check_every == 0:
            progress.update(0, tokens=len(rows) * check_every)
        if (step + 1) % check_every == 0 and (alive := int((~ended).sum())) <= COMPACT_BELOW * len(rows):
            if not alive:
                break
            left = torch.nonzero(~ended)[:, 0]
            if progress is not None:
                progress.update(len(rows) - alive)
            rows, chosen, ended = rows[left], chosen[left], ended[left]
            batch.keep(left)
        batch.append(chosen)
    if progress is not None:
        progress.update(len(rows))
    return [cut(t, lp, eos_ids) for t, lp in zip(tokens[:, :step + 1].tolist(), logprobs[:, :step + 1].tolist())]


def cut(tokens: list[int], logprobs: list[float], eos_ids: set[int]) -> Completion:
    """The completion up to and with its first EOS."""
    for i, token in enumerate(tokens):
        if token in eos_ids:
            return Completion(token_ids=tokens[:i + 1], logprobs=logprobs[:i + 1], finish_reason="stop")
    return Completion(token_ids=tokens, logprobs=logprobs, finish_reason="length")
