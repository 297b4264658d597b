"""What vLLM's worker learns of us: to read its own weights, and to leave out what names no token. Imports no vLLM.

A linear layer's kernel may keep its matrix in a layout of its own (a CPU's does, and drops the plain one), so columns
are read by asking for the images of unit vectors, which are exact.
"""
import math

import torch
from torch import Tensor

from tasks.opd.models.digests import columns_hashed, digest, elements


class Inspection:
    """What vLLM's worker learns: to read its weights under the names they were saved by, and what pads the vocabulary.

    Its methods are called by name, so that they reach a worker in another process too.
    """

    def prepare_logits(self, num_valid: int) -> None:
        """Logits of ids that name no token are -inf from now on: never drawn, and not in the normaliser.

        No adapter here lies over the head, for which vLLM makes room all the same and then cannot score prompts.
        """
        model = self.model_runner.get_model()
        model.logits_processor = getattr(model.logits_processor, "base_layer", model.logits_processor)

        def cut(module, inputs, logits):
            return logits if logits is None else logits.index_fill_(
                -1, torch.arange(num_valid, logits.shape[-1], device=logits.device), -math.inf)
        model.logits_processor.register_forward_hook(cut)

    def pack_heads(self) -> None:
        """Give the head's kernel the head's weights again: a head tied to the embedding is not among what is loaded."""
        for module in self.model_runner.get_model().modules():
            if is_head(module):
                module.quant_method.process_weights_after_loading(module)

    def weight_digests(self, adapter: tuple[int, int, float] | None = None) -> dict[str, str]:
        """Name -> digest of every tensor whose place is known, an adapter's (id, rank, scale) too."""
        model = self.model_runner.get_model()
        found: dict[str, str] = {}
        for name, module in model.named_modules():
            if name.endswith("base_layer"):  # what an adapter lies over: looked at by its own name
                continue
            held = module_elements(name, getattr(module, "base_layer", module), model.packed_modules_mapping)
            found |= {known: digest(fixed) for known, fixed in held}
            if adapter and isinstance(getattr(module, "lora_a_stacked", None), tuple):  # no adapter's embedding is ours
                number, rank, scale = adapter
                slot = self.model_runner.lora_manager._adapter_manager.lora_index_to_id.index(number)
                held = adapter_elements(name, module, model.packed_modules_mapping, slot, rank, scale)
                found |= {known: digest(fixed) for known, fixed in held}
        return found


def is_head(module) -> bool:
    """Whether a module is what makes logits."""
    return type(module).__name__ == "ParallelLMHead"


def module_elements(name: str, module, packed: dict[str, list[str]]):
    """(saved name, fixed elements) of the tensors that a module holds itself; `packed`: a fused layer -> its parts."""
    own = {key: value for key, value in module.named_parameters(recurse=False) if value.numel()}
    above, leaf = name.rpartition(".")[::2]
    parts, sizes = [name], None
    if is_head(module):
        parts, sizes = [name], [module.org_vocab_size]  # without the rows vLLM pads to
        yield f"{name}.weight", images(module, module.embedding_dim)[:module.org_vocab_size]
    elif "weight" in own and hasattr(module, "org_vocab_size"):  # the embedding
        sizes = [module.org_vocab_size]
        yield f"{name}.weight", elements(own["weight"][:module.org_vocab_size])
    elif hasattr(module, "input_size"):  # a linear layer
        parts = [f"{above}.{part}" for part in packed.get(leaf, [leaf])]
        sizes = shared_out(parts, getattr(module, "output_partition_sizes", None) or [module.output_size])
        yield from zip((f"{part}.weight" for part in parts), split(images(module, module.input_size), sizes))
    for key, value in own.items():
        if sizes is not None and key == "bias":
            yield from zip((f"{part}.bias" for part in parts), split(value, sizes))
        elif sizes is None or key != "weight":
            yield f"{name}.{key}", elements(value)


def shared_out(parts: list[str], sizes: list[int]) -> list[int]:
    """Rows of each part that a fused layer was saved in; none where parts and the layer's own slices do not match."""
    return [sum(sizes)] if len(parts) == 1 else sizes if len(parts) == len(sizes) else []


def split(rows: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    """The first rows of a tensor in parts of these sizes; those that pad them are left out."""
    return rows[:sum(sizes)].split(sizes) if sizes else ()


def adapter_elements(name: str, module, packed: dict[str, list[str]], slot: int, rank: int, scale: float):
    """(saved name, fixed elements) of an adapter's tensors in its slot of a layer.

    B is kept times alpha / rank, which only a power of two lets undo to the bit; of another scale B is left out.
    """
    above, leaf = name.rpartition(".")[::2]
    parts, ups = packed.get(leaf, [leaf]), [up[slot, 0, :, :rank] for up in module.lora_b_stacked]
    sizes = shared_out(parts, [len(up) for up in ups])
    for part, down, up in zip(parts, module.lora_a_stacked, split(torch.cat(ups), sizes)):
        yield f"base_model.model.{above}.{part}.lora_A.weight", elements(down[slot, 0, :rank])
        if math.frexp(scale)[0] == 0.5:
            yield f"base_model.model.{above}.{part}.lora_B.weight", elements(up) / scale


@torch.inference_mode()
def images(module, width: int) -> Tensor:
    """The hashed columns [outputs, COLUMNS] of a layer's matrix, as its kernel multiplies by them."""
    columns, like = columns_hashed(width), next(module.parameters())
    units = torch.zeros(len(columns), width, dtype=like.dtype, device=like.device)
    units[torch.arange(len(columns)), columns] = 1
    return module.quant_method.apply(module, units, None).T
