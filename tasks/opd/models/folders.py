"""What a model's folder says of the model, without its weights: architecture, ids that end, vocabulary, base."""
import json
import math
import shutil
from pathlib import Path

from tasks.opd.core.files import files_in, folder_version
from tasks.opd.models import lora
from tasks.opd.models.tokenizers import num_named, num_rows

NOT_ARCHITECTURE = {"transformers_version", "dtype", "torch_dtype", "use_cache"}
BESIDE_WEIGHTS = (  # what a model needs beside its weights; code (*.py) is never run here, and so not among it
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "*.model", "chat_template*",
    "preprocessor_config.json", "processor_config.json")


def copy_beside_weights(origin: Path, folder: Path) -> None:
    """Give a folder of weights those files of `origin` that belong to any version of the model (BESIDE_WEIGHTS).

    What the folder has of its own stays. Other weights, an optimizer's state and notes on `origin` are left there.
    """
    for file in files_in(origin, *BESIDE_WEIGHTS):
        if not (folder / file.name).exists():
            shutil.copy(file, folder / file.name)


def eos_ids_of(folder: Path, model) -> set[int]:
    """Every id that ends a completion: of the generation config, the config and the tokenizer."""
    found: set[int] = set()
    for config in (model.generation_config, model.config):
        ids = getattr(config, "eos_token_id", None)
        found |= set(ids) if isinstance(ids, (list, tuple)) else {ids}
    if (folder / "tokenizer.json").exists():
        from transformers import AutoTokenizer
        found.add(AutoTokenizer.from_pretrained(folder, local_files_only=True).eos_token_id)
    return found - {None}


def architecture(folder: Path) -> dict:
    """A model's configuration without what does not change the computation, however its file spells it."""
    from transformers import AutoConfig
    config = AutoConfig.from_pretrained(folder, local_files_only=True).to_dict()
    return {key: value for key, value in config.items() if key not in NOT_ARCHITECTURE and not key.startswith("_")}


def base_version(folder: Path) -> tuple:
    """Tells the base model of a folder, which is the folder itself without an adapter."""
    return folder_version(lora.base_of(folder) or folder)


def vocabulary_size(folder: Path) -> int:
    """Number of token ids that name a token and can be read: at most the rows of the embedding, see `num_rows`."""
    return min(num_named(folder), num_rows(folder) or math.inf)


def dtype_of(folder: Path) -> str:
    """Precision of a model folder's weights, as its config says."""
    config = json.loads((folder / "config.json").read_text())
    return config.get("dtype") or config.get("torch_dtype") or "float32"
