"""Whether an engine gives known tokens the log-probabilities that the trainer gave them.

A trainer writes `canary.json` beside the weights: a few completions with its own log-probabilities. After every swap
the engine must agree with them, as its tensors must with the digests (`models.digests`). Left out: models from outside
bring neither.
"""
import json
from pathlib import Path

import torch

from tasks.opd.core.errors import EngineError

CANARY = "canary.json"
AGREEMENT = {"float32": 1e-3, "float64": 1e-3, "bfloat16": 0.1}  # mean |engine - trainer|, nats; 0.04 is usual in bf16


def write_canary(folder: Path, prompts: list[list[int]], completions: list[list[int]],
                 logprobs: list[list[float]]) -> None:
    """canary.json: completions and the log-probabilities [T] that the trainer's weights give them."""
    (folder / CANARY).write_text(json.dumps({"prompts": prompts, "completions": completions, "logprobs": logprobs}))


def check_canary(engine, folder: Path, dtype: str) -> None:
    """The engine gives known tokens the log-probabilities that the trainer gave them. Raises EngineError."""
    from tasks.opd.engines.api import Want
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
