"""How much of what was written repeats itself, as `trust/..` metrics: what a collapse into loops looks like early.

A teacher that reads a loop is sure that it goes on, so loops are rewarded, and lengthen until the limit cuts them off.
Source: StableOPD, arXiv:2604.08527 (zlib); 3-grams: arXiv:2605.11182.
"""
import statistics
import zlib
from collections.abc import Callable

from tasks.opd.core.records import Rollout

RATIO = 10                              # of raw to compressed bytes, above which a text is a loop
LAST, LEAST = 10_000, 1_000             # characters looked at from the end; a shorter text than LEAST is no loop
LEAST_TOKENS = LEAST // 10              # that such a text has: ten characters a token are more than any prose takes


def repetition(rollouts: list[Rollout], decode: Callable[[list[list[int]]], list[str]]) -> dict[str, float]:
    """trust/zlib_share: rollouts that are loops; trust/trigram_repetition: see there, mean over rollouts.

    `decode` turns completions into texts; it is asked only for those that may be long enough.
    """
    if not rollouts:
        return {}
    repeated = [value for rollout in rollouts if (value := trigram_repetition(rollout.token_ids)) is not None]
    long = [rollout.token_ids for rollout in rollouts if len(rollout.token_ids) >= LEAST_TOKENS]
    loops = sum(map(is_loop, decode(long))) if long else 0
    return {"trust/zlib_share": loops / len(rollouts),
            **({"trust/trigram_repetition": statistics.fmean(repeated)} if repeated else {})}


def trigram_repetition(token_ids: list[int]) -> float | None:
    """1 - different 3-grams / all 3-grams of a completion's tokens; None for fewer than three tokens."""
    grams = list(zip(token_ids, token_ids[1:], token_ids[2:]))
    return 1 - len(set(grams)) / len(grams) if grams else None


def is_loop(text: str) -> bool:
    """Whether zlib makes a text's last LAST characters more than RATIO times smaller; not for fewer than LEAST."""
    end = text[-LAST:].encode()
    return len(text) >= LEAST and len(end) > RATIO * len(zlib.compress(end))
