"""Digests of a model's tensors: what an engine that loads a folder must hold, compared by tensor name.

Whoever saves a model writes `digests.json` beside the weights: of every tensor, as it is and as bfloat16, a hash of
fixed elements.
"""
import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from tasks.opd.core.errors import EngineError
from tasks.opd.models.lora import tensors_of

COLUMNS = 32              # of a matrix that are hashed, evenly spaced, each in whole; of a vector every element is
DIGESTS = "digests.json"


def columns_hashed(width: int) -> Tensor:
    """Indices of the columns of a matrix of `width` columns that a digest looks at."""
    return torch.linspace(0, width - 1, min(COLUMNS, width), dtype=torch.float64).round().long()


def elements(tensor: Tensor) -> Tensor:
    """The fixed elements of a tensor: some columns of a matrix (or of a stack of them), a vector in whole."""
    if tensor.ndim < 2:
        return tensor
    return tensor.index_select(-1, columns_hashed(tensor.shape[-1]).to(tensor.device))


def digest(fixed: Tensor) -> str:
    """Hash of fixed elements; equal numbers in another precision have the same."""
    plain = fixed.detach().float() + 0.0  # -0 is 0: a kernel asked for a column adds it to zeros
    return hashlib.blake2b(plain.cpu().contiguous().numpy().tobytes(), digest_size=8).hexdigest()


def digests_of(tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype | None = None) -> dict[str, str]:
    """Name -> digest, of tensors cast to `dtype` (None: as they are)."""
    return {name: digest(elements(tensor.detach()).to(dtype or tensor.dtype)) for name, tensor in tensors}


def write_digests(model, folder: Path) -> None:
    """digests.json of a live model: what every engine that loads `folder` must come to."""
    kept = list(tensors_of(model))
    found = {name: digests_of(kept, getattr(torch, name)) for name in ("float32", "bfloat16")}
    (folder / DIGESTS).write_text(json.dumps(found))


def check_digests(held: dict[str, str], folder: Path, dtype: str) -> None:
    """The tensors that an engine holds are those of `folder` in its precision; tied ones go by either name.

    Raises: EngineError naming the tensors that are not.
    """
    if not (folder / DIGESTS).exists():
        return
    known = json.loads((folder / DIGESTS).read_text())["bfloat16" if dtype == "bfloat16" else "float32"]
    stale = sorted(name for name, found in held.items() if name in known and known[name] != found)
    unseen = sorted(known.keys() - held.keys())
    if unseen:  # of a layout in the engine that is not known here, or kept there times a factor that rounds
        print(f"opd: {len(unseen)} of {len(known)} tensors cannot be read in the engine and are not compared, "
              f"{unseen[0]} among them", file=sys.stderr)
    if stale:
        names = ", ".join(stale[:4]) + (" ..." if len(stale) > 4 else "")
        raise EngineError(f"after loading {folder} the engine holds other numbers than were saved in {names}: "
                          f"{len(stale)} of {len(held.keys() & known.keys())} tensors are stale. Nothing was written "
                          "with them; run again, and if it stays, use engine.name=torch")
