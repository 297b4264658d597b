"""A causal language model in two parts: the body, which gives hidden states, and the head, which makes them logits.

Training and scoring run the body over whole sequences and the head over chunks of tokens, so that full-vocabulary
logits never live for more than one chunk. A teacher's hidden states with its head are its exact distribution in 2-10 KB
a token. Ids at or above `num_valid` pad the embedding matrix and name no token: they are -inf on both sides.
"""
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers.utils import logging

from tasks.opd.core.errors import DataError
from tasks.opd.models import lora
from tasks.opd.models.weights import empty_model, read_tensor, stored_in, weight_files

logging.disable_progress_bar()  # its bars for every load and save would drown the run's own


@dataclass(frozen=True, kw_only=True)
class Head:
    """The last linear layer with what follows it."""
    weight: Tensor                # [V, d]
    bias: Tensor | None           # [V]
    scale: float                  # multiplies the logits
    softcap: float | None         # logits -> softcap * tanh(logits / softcap)
    num_valid: int                # ids from here on are padding of the matrix
    products: Literal["own", "bfloat16"] = "own"  # bfloat16: those of a float32 weight may round their factors to it

    def logits(self, hidden: Tensor, temperature: float = 1.0) -> Tensor:
        """Float32 (float64 stays) logits [..., num_valid] of hidden states [..., d], divided by the temperature."""
        weight = self.weight[:self.num_valid]
        with float32_products(self.products == "bfloat16"):
            out = hidden.to(weight.dtype) @ weight.T
        out = out if out.dtype == torch.float64 else out.float()
        if self.bias is not None:
            out = out + self.bias[:self.num_valid]
        out = out * self.scale if self.scale != 1.0 else out
        out = self.softcap * torch.tanh(out / self.softcap) if self.softcap else out
        return out / temperature if temperature != 1.0 else out

    @torch.no_grad()
    def backward(self, hidden: Tensor, logits: Tensor, gradient: Tensor, temperature: float = 1.0) -> Tensor:
        """The gradient of hidden states [n, d]; those of weight and bias are added to theirs, in place.

        `gradient` [n, num_valid] is with respect to `logits(hidden, temperature)`, and is overwritten.
        """
        gradient = gradient.div_(temperature) if temperature != 1.0 else gradient
        if self.softcap:                                             # tanh' = 1 - tanh^2
            gradient.mul_(1 - (logits * (temperature / self.softcap)) ** 2)
        gradient = gradient.mul_(self.scale) if self.scale != 1.0 else gradient
        if self.bias is not None and self.bias.requires_grad:
            gradient_of(self.bias)[:self.num_valid] += gradient.sum(0)
        weight = self.weight[:self.num_valid]
        with float32_products(self.products == "bfloat16"):
            gradient = gradient.to(weight.dtype)
            if self.weight.requires_grad:
                gradient_of(self.weight)[:self.num_valid].addmm_(gradient.T, hidden.to(weight.dtype))
            return (gradient @ weight).to(hidden.dtype)

    def logprobs(self, hidden: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-probabilities [..., num_valid] in nats, of logits / temperature."""
        return torch.log_softmax(self.logits(hidden, temperature), dim=-1)

    def to(self, where: torch.dtype | torch.device | str) -> "Head":
        """The same head in another precision or on another device."""
        return replace(self, weight=self.weight.to(where), bias=None if self.bias is None else self.bias.to(where))


def gradient_of(parameter: Tensor) -> Tensor:
    """The gradient that stands at a parameter; zeros where none does yet."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


@contextmanager
def float32_products(may_round: bool) -> Iterator[None]:
    """Whether products of float32 matrices may round their factors, to bfloat16 on a CPU that has it (to TF32 on CUDA).

    Sums stay float32. On a CPU without bfloat16 nothing changes.
    """
    before = torch.get_float32_matmul_precision()
    if may_round:
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        if may_round:
            torch.set_float32_matmul_precision(before)


def head_of(model, num_valid: int | None = None) -> Head:
    """The head of a transformers causal LM; its weight is the live parameter, so gradients reach it."""
    layer, config = model.get_output_embeddings(), model.config
    scale = getattr(config, "logit_scale", None) or 1.0
    if getattr(config, "logits_scaling", None):  # Granite divides
        scale = scale / config.logits_scaling
    return Head(weight=layer.weight, bias=getattr(layer, "bias", None), scale=scale,
                softcap=getattr(config, "final_logit_softcapping", None),
                num_valid=min(num_valid or layer.weight.shape[0], layer.weight.shape[0]))


def hidden_states(model, token_ids: Tensor, mask: Tensor) -> Tensor:
    """Hidden states after the final norm [B, L, d]; `mask` [B, L] is 1 on tokens, 0 on padding at either side."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return model.base_model(input_ids=token_ids, attention_mask=mask, position_ids=positions,
                            use_cache=False).last_hidden_state


def load_model(folder: Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"):
    """A causal LM from a local safetensors folder, in eval mode, without dropout; an adapter is put into its base.

    Never runs code from the folder. Raises: DataError when the files are not one whole model (`weights`).
    """
    from transformers import AutoModelForCausalLM
    base = lora.base_of(folder)
    weight_files(base or folder)
    model, loading = AutoModelForCausalLM.from_pretrained(base or folder, dtype=dtype, use_safetensors=True,
                                                          local_files_only=True, output_loading_info=True)
    if missing := sorted(loading["missing_keys"]):  # transformers draws them at random
        raise DataError(f"{base or folder} lacks {len(missing)} of its model's tensors, {missing[0]} among them: save "
                        "the whole model with save_pretrained")
    model = lora.load(model, folder) if base else model
    return model.to(device).eval()


def load_head(folder: Path, num_valid: int | None = None, dtype: torch.dtype = torch.float32) -> Head:
    """Only the head of a model folder (an adapter's is its base's): of the body no number is read."""
    folder = lora.base_of(folder) or folder
    model = empty_model(folder)
    head, stored = head_of(model, num_valid), stored_in(folder)

    def read(parameter: Tensor | None) -> Tensor | None:
        if parameter is None:
            return None
        named = model.named_parameters(remove_duplicate=False)  # a tied matrix is stored under one of its names
        name = next(name for name, other in named if other is parameter and name in stored)
        return read_tensor(stored[name], name).to(dtype)
    return replace(head, weight=read(head.weight), bias=read(head.bias))


def special_ids(folder: Path) -> frozenset[int]:
    """Ids of the tokenizer's special tokens (end of turn, template), from tokenizer.json."""
    data = json.loads((folder / "tokenizer.json").read_text())
    return frozenset(token["id"] for token in data.get("added_tokens", []) if token.get("special"))


def wide(head: Head) -> Head:
    """A head in float32 at least."""
    return head.to(torch.promote_types(head.weight.dtype, torch.float32))
