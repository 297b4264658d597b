"""Model folders from outside: pointed at with the hash of every file, after what cannot be used was refused by name."""
import json
from pathlib import Path

from tasks.opd.core.errors import DataError
from tasks.opd.core.files import files_in, hash_file
from tasks.opd.models import lora
from tasks.opd.models.weights import check_weights, has_weights
from tasks.opd.store.contents import COPIES, matches

PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]  # what a model folder may hold for us
WEIGHTS_OF_CODE = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def point_at(out: Path, place: Path) -> None:
    """Write location.json for a model folder from outside. Raises DataError when it is not one we open."""
    refuse_foreign(place)
    files = {file.name: hash_file(file) for file in files_in(place, *PATTERNS) if not matches(file.name, (COPIES,))}
    (out / "location.json").write_text(json.dumps({"path": str(place), "files": files}, indent=1))


def refuse_foreign(place: Path) -> None:
    """Raise DataError unless a folder holds config, one model's safetensors and tokenizer, and asks for no code.

    An adapter with a `base.json` (one of our checkpoints) stands on its base; any other adapter is no model by itself.
    """
    lora.base_of(place)
    if not (place / "config.json").is_file():
        raise DataError(f"{place} is not a model folder: it has no config.json")
    if not has_weights(place):
        others = sorted(f.name for f in place.iterdir() if f.suffix in WEIGHTS_OF_CODE)
        raise DataError(f"{place} has no *.safetensors{f' but {others}' if others else ''}; pickled weights can run "
                        "code and are not opened: save the model with save_pretrained(safe_serialization=True)")
    if not (place / "tokenizer.json").is_file():
        raise DataError(f"{place} has no tokenizer.json; save its fast tokenizer there with save_pretrained")
    refuse_code(place)
    if not lora.is_adapter(place):
        check_weights(place)


def refuse_code(place: Path) -> None:
    """Raise DataError when a folder asks for code of its own."""
    for name in ("config.json", "tokenizer_config.json"):
        if (place / name).is_file() and "auto_map" in json.loads((place / name).read_text()):
            raise DataError(f"{place / name} has auto_map: the model brings its own code, which is not run; "
                            "use a model that transformers implements")
