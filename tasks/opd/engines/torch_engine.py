"""A transformers model in this process as an engine (see `api`): it writes and scores.

Its batches are sorted by length and bounded by the tokens that are computed; neither changes results beyond rounding.
"""
import copy
import math
import weakref
from pathlib import Path

import torch
from torch import Tensor

from tasks.opd.core.batches import chunk_tokens, padded_batches
from tasks.opd.core.errors import EngineError, NonFinite
from tasks.opd.engines.api import Capabilities, Completion, Signal, Want, tail_of
from tasks.opd.engines.sampling import Batch, decode
from tasks.opd.models import lora
from tasks.opd.models.attention import group_heads
from tasks.opd.models.digests import digests_of
from tasks.opd.models.folders import architecture, base_version, eos_ids_of, vocabulary_size
from tasks.opd.models.heads import Head, head_of, load_model
from tasks.opd.models.packing import Packed, batches_of, body_states, can_share, pack
from tasks.opd.models.weights import load_tensors


@torch.no_grad()
def copy_weights(folder: Path, model) -> bool:
    """Copy a folder's weights into the model's tensors; False, and nothing changed, if names or shapes differ."""
    new, own = load_tensors(folder), model.state_dict()
    covered = {own[name].data_ptr() for name in new if name in own}  # tied tensors are stored once
    fits = all(name in own and own[name].shape == tensor.shape for name, tensor in new.items())
    if not fits or any(tensor.data_ptr() not in covered for tensor in own.values()):
        return False
    for name, tensor in new.items():
        own[name].copy_(tensor)
    return True


def columns(head: Head, hidden: Tensor, ids: Tensor, want: Want, temperature: float) -> dict[str, Tensor]:
    """The columns of n tokens from their hidden states [n, d] and ids [n]; an id outside the vocabulary is -inf."""
    out: dict[str, Tensor] = {}
    if not (want.sampled or want.top_k or want.entropy):
        return out
    logprobs = head.logprobs(hidden, temperature)
    if want.sampled:
        inside = ids < head.num_valid
        picked = logprobs.gather(-1, ids.clamp(max=head.num_valid - 1)[:, None])[:, 0]
        out["sampled"] = picked.masked_fill(~inside, -torch.inf)
    if want.top_k:
        out["logprobs"], out["ids"] = logprobs.topk(min(want.top_k, head.num_valid))
        out["tail"] = tail_of(out["logprobs"])
    if want.entropy:
        out["entropy"] = torch.special.entr(logprobs.exp()).sum(-1)
    return out


class TorchEngine:
    """A transformers model in this process. Scoring takes the head in float32 at least: bfloat16 hurts there most.

    Engines may share the tensors of a base model (`share_base`), each with an adapter of its own or none; they sleep
    and wake together. Whoever takes `model` or `head` of one that sleeps wakes it. With `share_prompts` completions
    scored behind one prompt compute it once, where the model can.
    """

    def __init__(self, folder: Path, dtype: str = "float32", batch_tokens: int = 65536,
                 device: str | torch.device | None = None):
        self.dtype, self.batch_tokens, self.share_prompts = getattr(torch, dtype), batch_tokens, True
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._build(Path(folder))

    @property
    def model(self):
        """The transformers model, on the engine's device."""
        self._wake()
        return self._model

    @property
    def head(self) -> Head:
        """The model's head, on the engine's device."""
        self._wake()
        return self._head

    def _build(self, folder: Path) -> None:
        self.sharers, self.asleep = weakref.WeakSet([self]), False
        self._model, self.shared = load_model(folder, self.dtype, self.device), False
        group_heads(self.model)
        self._adopt(folder)

    def _adopt(self, folder: Path) -> None:
        """What goes with the weights of a folder."""
        self.folder, self.base = folder, base_version(folder)
        self.architecture, self.eos_ids = architecture(folder), eos_ids_of(folder, self.model)
        num_valid = vocabulary_size(folder) if (folder / "tokenizer.json").exists() else None
        self._head = head_of(self.model, num_valid)
        self.vocabulary = self.head.num_valid
        self.scoring_head: Head | None = None

    def share_base(self, folder: Path) -> "TorchEngine | None":
        """Another engine, on the tensors that this one holds of the base model; None for a folder on another base."""
        if self.base != base_version(folder):
            return None
        other, self.shared = copy.copy(self), True
        other.shared, other._model = True, lora.without(self.model)
        self.sharers.add(other)
        other._dress(folder)
        return other

    def _dress(self, folder: Path) -> None:
        """Take a folder's adapter, or put off the one there is; the base stays."""
        self._model = lora.load(self.model, folder) if lora.is_adapter(folder) else lora.without(self.model)
        self._adopt(folder)

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], sampling: dict, seeds: list[int], *,
                 progress=None) -> list[Completion]:
        """See Engine. `progress.update(n)` counts completions. Raises ValueError at an empty prompt."""
        if len(prompts) != len(seeds) or not all(prompts):
            raise ValueError(f"{len(prompts)} prompts, {len(seeds)} seeds: give one seed a prompt and no empty prompt")
        done: dict[int, Completion] = {}
        for batch in padded_batches([len(p) + sampling["max_new_tokens"] for p in prompts], self.batch_tokens):
            rows = Batch(self.model, self.head, [prompts[i] for i in batch], sampling)
            written = decode(rows, sampling["max_new_tokens"], [seeds[i] for i in batch], self.eos_ids, progress)
            done |= zip(batch, written)
        if any(math.isnan(sum(completion.logprobs)) for completion in done.values()):
            raise NonFinite(f"the logits of the model in {self.folder} are not finite: look at its weights, and what "
                            "trained it; for a model from outside, engine.dtype: float32 may help")
        return [done[i] for i in range(len(prompts))]

    def score(self, prompts: list[list[int]], completions: list[list[int]], want: Want, *, temperature: float = 1.0,
              progress=None) -> list[Signal]:
        """See Engine. Columns are float32 (float64 in a float64 engine). Raises ValueError at an empty prompt."""
        if len(prompts) != len(completions) or not all(prompts):
            raise ValueError(f"{len(prompts)} prompts, {len(completions)} completions: give one each, no empty prompt")
        if self.scoring_head is None:
            with torch.no_grad():
                self.scoring_head = self.head.to(torch.promote_types(self.dtype, torch.float32))
        signals: dict[int, Signal] = {}
        shared = self.share_prompts and can_share(self.model)
        for batch in batches_of(prompts, [len(c) for c in completions], self.batch_tokens, shared):
            packed = pack([prompts[i] for i in batch], [completions[i] for i in batch], shared)
            parts = self._score_batch(packed, [completions[i] for i in batch], want, temperature)
            for place, i in enumerate(batch):  # cloned, for tensors of inference mode cannot meet a gradient
                signals[i] = Signal(**{name: columns[place].clone() for name, columns in parts.items()})
            if progress is not None:
                progress.update(len(batch), tokens=sum(len(completions[i]) for i in batch))
        return [signals[i] for i in range(len(prompts))]

    @torch.inference_mode()
    def _score_batch(self, packed: Packed, completions: list[list[int]], want: Want, temperature: float
                     ) -> dict[str, tuple[Tensor, ...]]:
        """The columns by name, each a tensor a completion."""
        ids = torch.tensor([t for c in completions for t in c], dtype=torch.long, device=self.device)
        hidden = body_states(self.model, packed)[packed.places.to(self.device)]
        step = chunk_tokens(self.head.num_valid)
        chunks = [columns(self.scoring_head, hidden[i:i + step], ids[i:i + step], want, temperature)
                  for i in range(0, max(len(ids), 1), step)]
        out = {name: torch.cat([chunk[name] for chunk in chunks]).cpu() for name in chunks[0]}
        if want.hidden:
            out["hidden"] = storable(hidden).cpu()
        return {name: column.split([len(c) for c in completions]) for name, column in out.items()}

    def load(self, folder: Path) -> dict[str, str]:
        """Copy the weights of a folder into the tensors there are; a model of another shape is built anew."""
        folder = Path(folder)
        alone = not (lora.is_adapter(folder) or self.shared or lora.config_of(self.model))
        if not alone and base_version(folder) == self.base:
            self._dress(folder)
        elif alone and architecture(folder) == self.architecture and copy_weights(folder, self.model):
            self._adopt(folder)
        else:
            self.close()
            self._build(folder)
        return digests_of(lora.tensors_of(self.model))

    def capabilities(self) -> Capabilities:
        """Everything."""
        every = frozenset({"sampled", "top_k", "entropy", "hidden"})
        return Capabilities(columns=every)

    def sleep(self) -> None:
        """What was made of the weights goes; on a GPU they go to the host's memory, with all who share them."""
        for engine in self.sharers:
            engine.scoring_head = None
            if self.device.type != "cpu" and not engine.asleep:
                engine.asleep = True
                engine._model.to("cpu")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _wake(self) -> None:
        """Bring the weights back, into the same parameters. Tensors of inference mode could not be loaded into."""
        with torch.inference_mode(False):
            for engine in self.sharers if self.asleep else ():
                engine.asleep = False
                engine._model.to(self.device)
                engine._head = head_of(engine._model, engine.vocabulary)

    def close(self) -> None:
        """Drop the model; only `load` may follow."""
        self.sharers.discard(self)
        self.sharers, self.asleep = weakref.WeakSet(), False
        self._model = self.base = self.architecture = self._head = self.scoring_head = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def storable(hidden: Tensor) -> Tensor:
    """Hidden states as they are kept: bfloat16 as float16 (finer, same size) unless a value is too large for it."""
    if hidden.dtype in (torch.float32, torch.float64):
        return hidden
    if not torch.isfinite(hidden).all():
        raise EngineError("the model's hidden states are not finite in bfloat16; use engine.dtype: float32")
    small = hidden.abs().amax() < 6e4 if hidden.numel() else True
    return hidden.to(torch.float16 if small else torch.float32)
