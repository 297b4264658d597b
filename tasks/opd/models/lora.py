"""LoRA: a model as a base, which stays as it is, and an adapter, two small matrices beside each linear layer.

An adapter folder is peft's own (adapter_model.safetensors, adapter_config.json), so that anybody can load it; config
and tokenizer lie beside it, and `base.json` names the base by its artifact, never by a path. The layers are peft's, put
into the transformers model where it stands, so that it keeps its class and its body. Left out: dropout (old
log-probabilities must repeat), merging (scores would round otherwise), adapters of the embedding and of the head.

Source: LoRA, arXiv:2106.09685: W x becomes W x + alpha / rank * B A x, with B = 0 at the start.
"""
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tasks.opd.core.errors import CorruptArtifact, DataError
from tasks.opd.core.seeds import derive_seed
from tasks.opd.store import artifacts

if TYPE_CHECKING:
    from peft import LoraConfig

WEIGHTS, CONFIG, BASE = "adapter_model.safetensors", "adapter_config.json", "base.json"


def is_adapter(folder: Path) -> bool:
    """Whether a model folder holds an adapter instead of whole weights."""
    return (folder / CONFIG).exists()


def settings_of(folder: Path) -> dict:
    """rank, alpha and targets (names of linear layers) of an adapter folder."""
    config = json.loads((folder / CONFIG).read_text())
    return {"rank": config["r"], "alpha": config["lora_alpha"], "targets": sorted(config["target_modules"])}


def base_of(folder: Path) -> Path | None:
    """The model folder that an adapter folder stands on, verified; None for a folder with whole weights.

    Raises: DataError when it is not said or is gone, CorruptArtifact when it is not what the adapter was trained on.
    """
    if not is_adapter(folder):
        return None
    if not (folder / BASE).exists():
        raise DataError(f"{folder} holds an adapter but no {BASE}, which names the model it stands on; merge the two "
                        "outside (peft: merge_and_unload) and give the merged model's folder")
    named = json.loads((folder / BASE).read_text())
    place = artifacts.place(named["kind"], named["fingerprint"])
    record = artifacts.read_record(place)
    if record is None:
        raise DataError(f"the adapter in {folder} stands on {place}, which is gone; run its flow again, which makes it")
    for key, value in named.items():
        if record.get(key) != value:
            raise CorruptArtifact(f"the adapter in {folder} stands on the {named['kind']} whose {key} is {value}, but "
                                  f"in {place} it is {record.get(key)}; run its flow again")
    artifacts.verify(artifacts.Artifact.from_json(record))
    return artifacts.model_folder(place)


def base_named(student: Path) -> dict:
    """What base.json says for an adapter trained on a student artifact: its name, or that of its own adapter's base.

    Raises: DataError when the folder is no artifact.
    """
    folder = artifacts.model_folder(student)
    if is_adapter(folder):
        return json.loads((folder / BASE).read_text())
    record = artifacts.read_record(student)
    if record is None:
        raise DataError(f"{student} is no artifact, so an adapter cannot name it as its base")
    return {key: record[key] for key in ("kind", "fingerprint", "digest")}


def linear_layers(model) -> list[str]:
    """Last names of the linear layers of a model's body, the head not among them: q_proj, up_proj, ..."""
    return sorted({name.rpartition(".")[2] for name, module in model.base_model.named_modules()
                   if isinstance(module, torch.nn.Linear)})


def attach(model, lora: dict, seed: int) -> None:
    """Put an adapter into a plain model, in place: A drawn from the seed, B zero; only A and B learn.

    lora is {rank, alpha, targets}; no targets: all linear layers of the body.
    Raises: DataError for a target that is not one of them.
    """
    from peft import LoraConfig, inject_adapter_in_model
    known = linear_layers(model)
    if strangers := sorted(set(lora["targets"]) - set(known)):
        raise DataError(f"train.lora.targets: {strangers[0]!r} is no linear layer of the model's body; there are "
                        f"{', '.join(known)}")
    config = LoraConfig(r=lora["rank"], lora_alpha=lora["alpha"], target_modules=lora["targets"] or known,
                        task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "lora"))
        inject_adapter_in_model(config, model)


def load(model, folder: Path):
    """A model with the adapter of a folder: in the tensors it has for one, or in new ones beside the same base.

    Raises: CorruptArtifact when the folder's tensors are not those of an adapter of this model.
    """
    wanted, config = settings_of(folder), config_of(model)
    held = config and {"rank": config.r, "alpha": config.lora_alpha, "targets": sorted(config.target_modules)}
    if held != wanted:
        model = without(model)
        attach(model, wanted, seed=0)
    own, stored = learning(model), read(folder)
    if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in stored.items()}:
        raise CorruptArtifact(f"the tensors of {folder / WEIGHTS} are not those of an adapter of its base")
    with torch.no_grad():
        for name, value in stored.items():
            own[name].copy_(value)
    return model


def without(model):
    """The base of a model as another model that shares its tensors; the model itself stays as it is."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    base = copy.deepcopy(model, tensors)  # what stands in the memo is not copied
    for name, module in list(base.named_modules()):
        if hasattr(module, "base_layer"):
            base.set_submodule(name, module.base_layer)
    if config_of(base):
        del base.peft_config
    return base


def config_of(model) -> "LoraConfig | None":
    """peft's settings of a model's adapter; None for a plain model."""
    return getattr(model, "peft_config", {}).get("default")


def learning(model) -> dict[str, Tensor]:
    """The parameters that training moves, by name: an adapter's, or else all."""
    return {name: p for name, p in model.named_parameters() if "lora_" in name or config_of(model) is None}


def tensors_of(model) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a model, base and adapter, under the names by which folders save them."""
    for name, value in model.state_dict().items():
        yield (saved_name(name) if "lora_" in name else name.replace(".base_layer.", ".")), value


def saved_name(name: str) -> str:
    """peft's name in a file of an adapter's parameter."""
    return "base_model.model." + name.replace(".default.", ".")


def read(folder: Path) -> dict[str, Tensor]:
    """An adapter folder's tensors by the names of `learning`."""
    stored = load_file(folder / WEIGHTS)
    return {name.removeprefix("base_model.model.").replace(".weight", ".default.weight"): value
            for name, value in stored.items()}


def save(model, folder: Path, base: dict) -> None:
    """Write a model's adapter and the name of its base."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({saved_name(name): value.detach().cpu().contiguous() for name, value in learning(model).items()},
              folder / WEIGHTS, metadata={"format": "pt"})
    config = config_of(model).to_dict() | {"inference_mode": True}
    config |= {key: sorted(value) for key, value in config.items() if isinstance(value, set)}  # sets have no order
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))
    (folder / BASE).write_text(json.dumps(base, indent=1))
