"""When the weights of a self-teacher change: which folder of which student version teaches in a round.

Each entry gives (version, folder): version "start" is the student before training, "round" the student as the round
begins. An exponential moving average is kept by the trainer, updated at every optimizer step, and saved with the
checkpoint.
"""
from typing import Annotated

from pydantic import Field

from tasks.opd.core.entries import Entry


def frozen() -> tuple[str, str]:
    """The student as it was before training. Source: OPSD, arXiv:2601.18734."""
    return "start", "model"


def live() -> tuple[str, str]:
    """The student as the round begins."""
    return "round", "model"


def ema(*, decay: Annotated[float, Field(ge=0, le=1)] = 0.95) -> tuple[str, str]:
    """average <- decay * average + (1 - decay) * student at every optimizer step. Source: SDFT, arXiv:2601.19897."""
    return "round", "ema"


REFRESHES = {"frozen": Entry(frozen), "live": Entry(live, moves=True), "ema": Entry(ema, moves=True, averages=True)}
