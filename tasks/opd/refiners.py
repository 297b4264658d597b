"""Whether trajectories are repaired before learning: rollouts in, rollouts out, as many and in the same order.

`refiner(rollouts, engines, *, ..) -> rollouts`. A changed rollout has a new id, its parent's id in `parent`, the
writer's name still in `origin`, and no reward until it is graded again.
"""
import dataclasses
from pathlib import Path
from typing import Annotated

from pydantic import Field

from tasks.opd.records import Rollout, read_rows, write_rows
from tasks.opd.writers import Engines


def truncate(rollouts: list[Rollout], engines: Engines, *, tokens: Annotated[int, Field(ge=1)]) -> list[Rollout]:
    """Completions end after `tokens` tokens: most of what a teacher has to say, it says early.

    Source: early-stopped rollouts, arXiv:2605.27028 (100 tokens there; 50 to 200 do as well).
    """
    return [cut(rollout, tokens) if len(rollout.token_ids) > tokens else rollout for rollout in rollouts]


def cut(rollout: Rollout, tokens: int) -> Rollout:
    """The rollout with its first tokens only."""
    return dataclasses.replace(
        rollout, rollout_id=f"{rollout.rollout_id}:truncate", parent=rollout.rollout_id, finish_reason="length",
        token_ids=rollout.token_ids[:tokens], logprobs=rollout.logprobs[:tokens], author=rollout.author[:tokens],
        reward=None, feedback=None)


REFINERS = {"truncate": truncate}


def refine_rollouts(inputs: dict[str, Path], spec: dict, out: Path, session) -> dict:
    """The stage `refined`: the refiners in their order; rollouts.parquet."""
    before = read_rows(inputs["rollouts"] / "rollouts.parquet", Rollout)
    engines, rollouts = Engines(inputs, spec, session), before
    for slot in spec["refiners"]:
        rollouts = REFINERS[slot["name"]](rollouts, engines, **slot["params"])
    write_rows(out / "rollouts.parquet", rollouts, Rollout)
    changed = sum(old.rollout_id != new.rollout_id for old, new in zip(before, rollouts, strict=True))
    tokens = sum(len(r.token_ids) for r in rollouts)
    session.log(out, spec["round"], {"refine/changed_share": changed / max(len(rollouts), 1),
                                     "refine/length_mean_tokens": tokens / max(len(rollouts), 1)})
    return {"rollouts": len(rollouts), "refined": changed, "tokens": tokens}
