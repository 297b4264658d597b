"""The resident training state: float32 master weights, AdamW, moving average, step; saved and resumed exactly.

With `train.lora` only the adapter learns: optimizer state, moving average and checkpoints are the adapter's alone.
"""
import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tasks.opd.core.errors import DataError
from tasks.opd.models import lora
from tasks.opd.models.digests import write_digests
from tasks.opd.models.folders import copy_beside_weights
from tasks.opd.models.heads import load_model
from tasks.opd.store.artifacts import fingerprint_of, model_folder

FROZEN = ("beta1", "beta2", "epsilon", "weight_decay", "gradient_checkpointing", "lora")  # in model and optimizer
COUNTERS = ("step", "tokens_seen")


@dataclass(kw_only=True)
class Trainer:
    """What a student needs to go on learning. `source` tells the artifact whose state this is."""
    model: torch.nn.Module
    optimizer: torch.optim.AdamW
    average: dict[str, torch.Tensor] | None     # exponential moving average of the weights that learn, by name
    step: int                                   # optimizer steps so far
    tokens_seen: int                            # tokens trained on so far
    source: tuple[str, int]
    settings: dict                              # those of `train` that it was built with, see FROZEN
    base: dict | None = None                    # the artifact an adapter stands on: kind, fingerprint, digest

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return next(self.model.parameters()).device


def artifact_key(folder: Path) -> tuple[str, int]:
    """Tells an artifact from all others and from itself remade: fingerprint and inode, which outlive the rename."""
    return fingerprint_of(folder), folder.stat().st_ino


def frozen(train: dict) -> dict:
    """The settings that a trainer keeps: under others it has to be built anew."""
    return {name: train.get(name) for name in FROZEN}


def new_optimizer(model: torch.nn.Module, train: dict) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in parameters if p.ndim >= 2], "weight_decay": train["weight_decay"]},
              {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=train["learning_rate"], betas=(train["beta1"], train["beta2"]),
                             eps=train["epsilon"])


def resume(folder: Path, train: dict, ema_decay: float | None, seed: int = 0,
           dtype: torch.dtype = torch.float32) -> Trainer:
    """The state saved in an artifact folder; a folder without `trainer.json` is a model before its first step.

    Raises: DataError when train.lora does not go with what is there.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = trainable(folder, train["lora"], seed, dtype).to(device)
    if train["gradient_checkpointing"]:
        model.gradient_checkpointing_enable()
        model.train()
    optimizer = new_optimizer(model, train)
    trainer = Trainer(model=model, optimizer=optimizer, average=None, source=artifact_key(folder),
                      settings=frozen(train), base=lora.base_named(folder) if train["lora"] else None,
                      **dict.fromkeys(COUNTERS, 0))
    if (folder / "trainer.json").exists():
        load_state(trainer, folder)
    if ema_decay is not None:
        start = saved_average(folder, dtype) or lora.learning(model)
        trainer.average = {name: value.detach().clone().to(device) for name, value in start.items()}
    return trainer


def trainable(folder: Path, wanted: dict | None, seed: int, dtype: torch.dtype) -> torch.nn.Module:
    """The model of an artifact folder on the CPU, with its adapter, or a new one where the recipe asks for one."""
    place = model_folder(folder)
    found = lora.settings_of(place) if lora.is_adapter(place) else None
    if found or (folder / "trainer.json").exists():
        asked = wanted and {**wanted, "targets": sorted(wanted["targets"]) or (found or wanted)["targets"]}
        if asked != found:
            raise DataError(f"train.lora is {wanted}, but the student in {folder} has {found or 'no adapter'}: what "
                            "learns stays the same from the first round on; set train.lora so, or begin anew")
        return load_model(place, dtype)
    model = load_model(place, dtype)
    if wanted:
        lora.attach(model, wanted, seed)
    return model


def saved_average(folder: Path, dtype: torch.dtype) -> dict[str, torch.Tensor] | None:
    """The moving average in an artifact folder, by the names of the parameters; None where there is none."""
    if lora.is_adapter(folder / "ema"):
        return {name: value.to(dtype) for name, value in lora.read(folder / "ema").items()}
    return lora.learning(load_model(folder / "ema", dtype)) if (folder / "ema").exists() else None


def save(trainer: Trainer, out: Path, origin: Path) -> None:
    """Write model/, the trainer's state and, with a moving average, ema/; the tokenizer's files come from `origin`."""
    save_model(trainer, out / "model", origin)
    if trainer.average is not None:
        kept = {name: p.detach().clone() for name, p in lora.learning(trainer.model).items()}
        assign(trainer.model, trainer.average)
        save_model(trainer, out / "ema", origin)
        assign(trainer.model, kept)
    save_state(trainer, out)


def save_state(trainer: Trainer, out: Path) -> None:
    """trainer.safetensors (AdamW's moments by parameter, generator's state) and trainer.json (counters): no pickle."""
    tensors = {f"{index}.{key}": value.cpu().contiguous()
               for index, state in trainer.optimizer.state_dict()["state"].items() for key, value in state.items()}
    save_file(tensors, out / "trainer.safetensors")
    (out / "trainer.json").write_text(json.dumps({name: getattr(trainer, name) for name in COUNTERS}))


def load_state(trainer: Trainer, folder: Path) -> None:
    """Take the optimizer's moments and the counters of a checkpoint."""
    tensors = load_file(folder / "trainer.safetensors")
    state = defaultdict(dict)
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state[int(index)][key] = value
    groups = trainer.optimizer.state_dict()["param_groups"]
    trainer.optimizer.load_state_dict({"state": dict(state), "param_groups": groups})
    for name, value in json.loads((folder / "trainer.json").read_text()).items():
        setattr(trainer, name, value)


def save_model(trainer: Trainer, folder: Path, origin: Path) -> None:
    """A Hugging Face safetensors folder, or peft's of an adapter, with the tokenizer's files of `origin`."""
    if trainer.base is None:
        trainer.model.save_pretrained(folder, safe_serialization=True)
    else:
        lora.save(trainer.model, folder, trainer.base)
    write_digests(trainer.model, folder)
    copy_beside_weights(origin, folder)


@torch.no_grad()
def assign(model: torch.nn.Module, values: dict[str, torch.Tensor]) -> None:
    """Copy tensors into the model's parameters that learn, by name."""
    for name, parameter in lora.learning(model).items():
        parameter.copy_(values[name])


@torch.no_grad()
def update_average(trainer: Trainer, decay: float) -> None:
    """average <- decay * average + (1 - decay) * weights that learn."""
    for name, parameter in lora.learning(trainer.model).items():
        trainer.average[name].mul_(decay).add_(parameter, alpha=1 - decay)


def learning_rate(train: dict, step: int, progress: float) -> float:
    """The rate of optimizer step `step` (from 0): linear warm-up, then the schedule over `progress` in [0, 1)."""
    factors = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}
    warmup = min(1.0, (step + 1) / train["warmup_steps"]) if train["warmup_steps"] else 1.0
    return train["learning_rate"] * warmup * factors[train["schedule"]]
