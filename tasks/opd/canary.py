"""Whether an engine holds the weights it was told to hold: digests of its tensors, and what it makes of known tokens.

Whoever saves a model writes `digests.json` beside the weights: of every tensor, as it is and as bfloat16, a hash of
fixed elements. A trainer adds `canary.json`: a few completions with its own log-probabilities. After every swap the
engine's tensors and log-probabilities must agree with both. Left out: models from outside bring neither.
"""
import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from tasks.opd.adapters import tensors_of
from tasks.opd.errors import EngineError

COLUMNS = 32              # of a matrix that are hashed, evenly spaced, each in whole; of a vector every element is
DIGESTS, CANARY = "digests.json", "canary.json"
AGREEMENT = {"float32": 1e-3, "float64": 1e-3, "bfloat16": 0.1}  # mean |engine - trainer|, nats; 0.04 is usual in bf16


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


def write_canary(folder: Path, prompts: list[list[int]], completions: list[list[int]],
                 logprobs: list[list[float]]) -> None:
    """canary.json: completions and the log-probabilities [T] that the trainer's weights give them."""
    (folder / CANARY).write_text(json.dumps({"prompts": prompts, "completions": completions, "logprobs": logprobs}))


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


def check_canary(engine, folder: Path, dtype: str) -> None:
    """The engine gives known tokens the log-probabilities that the trainer gave them. Raises EngineError."""
    from tasks.opd.engines import Want
    if not (folder / CANARY).exists():
        return
    known = json.loads((folder / CANARY).read_text())
    scored = engine.score(known["prompts"], known["completions"], Want())
    differences = torch.cat([signal.sampled.double() - torch.tensor(logprobs, dtype=torch.float64)
                             for signal, logprobs in zip(scored, known["logprobs"])]).abs()
    if not float(differences.mean()) <= AGREEMENT[dtype]:
        raise EngineError(f"after loading {folder} engine and trainer differ by {float(differences.mean()):.4f} nats a "
                          f"token on known completions (bound {AGREEMENT[dtype]}): stale weights or cache, or another "
                          "precision. Nothing was written with them; run again, and if it stays, use engine.name=torch")
