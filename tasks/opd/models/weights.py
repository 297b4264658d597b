"""The weights of a model's folder: which files and tensors are the model. Whoever reads a folder asks here.

Libraries choose differently: transformers takes `model.safetensors` although an index of shards lies beside it, vLLM
takes the shards, and a reader of every *.safetensors takes both. One rule holds here: the shards that the index names,
else `model.safetensors` (of an adapter's folder: the adapter). Another *.safetensors beside them is refused by name,
for no reader could tell which of them was meant. Hidden files are no weights, nor are Mistral's
consolidated*.safetensors beside an index: every reader takes the shards then.
"""
import json
import math
from collections import defaultdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from tasks.opd.core.errors import DataError
from tasks.opd.core.files import files_in
from tasks.opd.models import lora
from tasks.opd.store.contents import COPIES, matches

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that are the model of a folder, by name; the base of an adapter is not among them.

    Raises: DataError when one of them is missing, when another lies beside them, or when the index is none.
    """
    if lora.is_adapter(folder):
        named, why = {lora.WEIGHTS}, f"{lora.CONFIG} makes it the folder of an adapter, {lora.WEIGHTS}"
    elif (folder / INDEX).is_file():
        named = set(indexed(folder).values())
        why = f"{INDEX} names {len(named)} files, {min(named, default='none')} first"
    else:
        named, why = {SINGLE}, f"without {INDEX} the model is {SINGLE}"
    there = {file.name for file in files_in(folder, "*.safetensors")}
    if (folder / INDEX).is_file():
        there = {name for name in there if name in named or not matches(name, (COPIES,))}
    if missing := sorted(named - there):
        raise DataError(f"{folder} lacks {' and '.join(missing[:3])}: {why}; there are {sorted(there) or 'none'}. "
                        "Copy or download the model again")
    if strangers := sorted(there - named):
        raise DataError(f"{folder} holds {' and '.join(strangers[:3])} beside the model: {why}. Libraries differ in "
                        "which they read, so move away what is not the model (an index that is out of date, too)")
    return [folder / name for name in sorted(named)]


def has_weights(folder: Path) -> bool:
    """Whether a folder holds weights; that of a model behind a server does not."""
    return bool(files_in(folder, "*.safetensors"))


def indexed(folder: Path) -> dict[str, str]:
    """Name of each tensor -> its file, as the index says. Raises DataError when it does not say so."""
    try:
        return dict(json.loads((folder / INDEX).read_text())["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / INDEX} is no index of tensors ({error!r}): save the model again with "
                        "save_pretrained") from error


def stored_in(folder: Path) -> dict[str, Path]:
    """Name of each tensor of a folder's model -> its file, read off the files' headers.

    Raises: DataError when a file cannot be read, or when the index and the files disagree about a tensor.
    """
    found: dict[str, Path] = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, "pt") as tensors:
                names = set(tensors.keys())
        except (SafetensorError, OSError) as error:
            raise DataError(f"{file} cannot be read: {error}. Copy or download it again") from error
        if both := sorted(names & found.keys()):
            raise DataError(f"{both[0]} stands in {found[both[0]].name} and in {file.name} of {folder}: which one is "
                            "the model's cannot be told; save the model again with save_pretrained")
        found |= dict.fromkeys(names, file)
    if (folder / INDEX).is_file() and not lora.is_adapter(folder):
        said, held = indexed(folder), {name: file.name for name, file in found.items()}
        if wrong := sorted(said.items() ^ held.items()):
            name = wrong[0][0]
            raise DataError(f"{folder / INDEX} says that {name} stands in {said.get(name, 'no file')}, it stands in "
                            f"{held.get(name, 'none of them')}: the files are of two models; save it again")
    return found


def load_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's model by name, on the CPU."""
    return {name: value for file in weight_files(folder) for name, value in load_file(file).items()}


def empty_model(folder: Path):
    """The model that a folder's config describes, without numbers."""
    from transformers import AutoConfig, AutoModelForCausalLM
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))


def tied_names(folder: Path) -> list[list[str]]:
    """Names that are one tensor in a folder's model, as its config ties them (embedding and head)."""
    names = defaultdict(list)
    for name, parameter in empty_model(folder).named_parameters(remove_duplicate=False):
        names[parameter].append(name)
    return [group for group in names.values() if len(group) > 1]


def check_weights(folder: Path) -> None:
    """The files of a folder with whole weights are one model, and so are the names that its config ties.

    A tied tensor may be stored under each of its names, with the same numbers. With others some libraries take the
    one and some the other.
    Raises: DataError.
    """
    stored = stored_in(folder)
    for group in tied_names(folder):
        first, *others = [name for name in group if name in stored] or [None]
        for other in others:
            if not torch.equal(read_tensor(stored[first], first), read_tensor(stored[other], other)):
                raise DataError(f"the config of {folder} ties {other} to {first}, but its files hold other numbers "
                                "under each: if both are meant, set tie_word_embeddings: false in config.json; else "
                                f"remove {other} from {stored[other].name}")


def read_tensor(file: Path, name: str) -> Tensor:
    """One tensor of a safetensors file."""
    with safe_open(file, "pt") as tensors:
        return tensors.get_tensor(name)


def num_parameters(folder: Path) -> int:
    """Numbers in a folder's model, its base's too, read off the headers; a tensor stored under two names counts once.

    A folder without any weights, of a model behind a server, has 0.
    """
    if not has_weights(folder):
        return 0
    base, stored = lora.base_of(folder), stored_in(folder)
    twice = set() if base else {name for group in tied_names(folder)
                                for name in [name for name in group if name in stored][1:]}
    total = num_parameters(base) if base else 0
    for name, file in stored.items():
        with safe_open(file, "pt") as tensors:
            total += 0 if name in twice else math.prod(tensors.get_slice(name).get_shape())
    return total
