"""Sequences of different lengths, read by a model in whole batches, whose ends may change after they were read.

A decoder that checks another's tokens must forget those it rejects. Here a token's slot in the cache is its position:
what is behind a row's end is masked, and overwritten when the row gets there again. So nothing is cropped or read
twice, and no holes are left between rows of different lengths.
"""
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from tasks.opd.core.errors import DataError

COPY_BELOW = 0.7  # share of rows under which their keys and values are copied, so that the others need not be read


class PlacedLayer(DynamicLayer):
    """A cache layer whose slot is the token's position: what was written there before is overwritten, never seen."""

    def __init__(self, place: "RollbackCache"):
        super().__init__()
        self.place = place

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Put keys and values [b, H, W, D] at the place's rows and slots; returns these rows' up to its end."""
        rows, slots, end = self.place.rows, self.place.slots, self.place.end
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            heads, width = key_states.shape[1], key_states.shape[-1]
            self.room = key_states.new_zeros(2, len(rows), heads, 0, width)  # what is masked must still be finite
        if end > self.room.shape[-2]:
            grown = self.room.new_zeros(*self.room.shape[:3], end + max(32, end // 2), self.room.shape[-1])
            grown[..., :self.room.shape[-2], :] = self.room
            self.room = grown
        for room, states in zip(self.room, (key_states, value_states)):
            room[rows[:, None], :, slots] = states.transpose(1, 2)
        seen = self.room[..., :end, :]
        self.keys, self.values = seen if len(rows) == seen.shape[1] else seen.index_select(1, rows)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows, or repeat them; where the last take the places of some, only they are copied."""
        count, moved = len(indices), torch.nonzero(indices != torch.arange(len(indices), device=indices.device))[:, 0]
        if count <= self.room.shape[1] and bool((indices[moved] >= count).all()):
            self.room[:, moved] = self.room[:, indices[moved]]
            self.room = self.room[:, :count]
        else:
            self.room = self.room.index_select(1, indices)


class RollbackCache:
    """A model's caches of sequences of different lengths, which it reads on, in whole batches, from where each stands.

    A sequence may change behind `filled`: what is read there anew takes the place of what was read before.
    """

    def __init__(self, model, prompts: list[list[int]]):
        """Reads all of each prompt but its last token, a prompt that stands there twice only once."""
        self.model, self.device, self.end = model, model.device, 0
        self.num_read = 0                         # tokens forwarded, padding apart
        self.cache = DynamicCache(config=model.config)
        self.windows = windows_of(model.config, self.cache)
        self.cache.layers = [PlacedLayer(self) for _ in self.cache.layers]
        unique = list(dict.fromkeys(map(tuple, prompts)))
        lengths = torch.tensor([len(p) for p in unique], device=self.device)
        ids = torch.tensor([[*p, *[0] * (int(lengths.max()) - len(p))] for p in unique], device=self.device)
        self.filled = torch.zeros_like(lengths)   # [B] tokens of each sequence that the cache holds
        self.read(ids, torch.arange(len(unique), device=self.device), (lengths - 1).clamp(min=1))
        self.filled = lengths - 1
        place = {prompt: i for i, prompt in enumerate(unique)}
        self.keep(torch.tensor([place[tuple(p)] for p in prompts], device=self.device))

    def read(self, ids: Tensor, rows: Tensor, ends: Tensor) -> Tensor:
        """Hidden states [b, W, d] of rows [b] at the tokens from `filled` to `ends` [b] of ids [B, L].

        A row with fewer tokens than the widest repeats its last; one with none reads its last again, and so do the
        others where the rows are most of all.
        """
        if COPY_BELOW * len(self.filled) < len(rows) < len(self.filled):
            every = torch.arange(len(self.filled), device=self.device)
            return self.read(ids, every, self.filled.index_put((rows,), ends))[rows]
        filled = self.filled[rows]
        new = (ends - filled).clamp(min=0)
        width, self.end, read = torch.stack([new.max(), ends.max(), new.sum()]).tolist()
        self.rows = rows
        steps = torch.arange(max(width, 1), device=self.device)
        self.slots = (filled[:, None] + steps).minimum(ends[:, None] - 1).clamp(min=0)
        out = self.model.base_model(input_ids=ids[rows].gather(-1, self.slots), attention_mask=self.bias(),
                                    position_ids=self.slots, past_key_values=self.cache, use_cache=True)
        self.num_read += read
        self.filled = self.filled.index_put((rows,), torch.maximum(filled, ends))
        return out.last_hidden_state

    def bias(self) -> Tensor | dict[str, Tensor]:
        """Added to attention scores [b, 1, W, end], by kind of layer: 0 where a token sees a slot, else -inf."""
        slots, query = torch.arange(self.end, device=self.device), self.slots[:, None, :, None]
        made = {}
        for kind, window in self.windows.items():
            seen = slots <= query if window is None else (slots <= query) & (slots > query - window)
            made[kind] = torch.zeros(seen.shape, dtype=self.model.dtype, device=self.device).masked_fill_(
                ~seen, -torch.inf)
        return made if len(made) > 1 else next(iter(made.values()))

    def forget(self, rows: Tensor, lengths: Tensor) -> None:
        """Of rows [b] only the first `lengths` [b] tokens count as read."""
        self.filled = self.filled.index_put((rows,), torch.minimum(self.filled[rows], lengths))

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only, in this order, or repeat them."""
        self.filled = self.filled[rows]
        for layer in self.cache.layers:
            layer.batch_select_indices(rows)


def windows_of(config, cache: DynamicCache) -> dict[str, int | None]:
    """Kind of layer -> how many tokens back it sees (None: all). Raises DataError at layers that are not attention."""
    kinds = set(getattr(config, "layer_types", None) or [])
    if kinds - {"full_attention", "sliding_attention"} or not cache.layers:
        raise DataError(f"{config.model_type} has layers of kind {', '.join(sorted(kinds)) or 'unknown'}: what they "
                        "have read cannot be taken back; choose models with attention layers alone")
    return {"sliding_attention" if layer.is_sliding else "full_attention":
            layer.sliding_window if layer.is_sliding else None for layer in cache.layers}
