"""Whether trajectories are repaired before learning: rollouts in, rollouts out, in the same order.

`refiner(rollouts, engines, *, ..) -> rollouts`, None in the place of one that goes. A changed rollout has a new id, its
parent's id in `parent`, the writer's name still in `origin`, and no reward until it is graded again. What a refiner has
to tell it puts into `engines.report`; among several refiners each one's numbers bear its name. What it spends it adds
to `engines.costs`, which are the stage's, whoever spent them.
"""
import dataclasses
from pathlib import Path
from typing import Annotated

from pydantic import Field

from tasks.opd.core.costs import counted
from tasks.opd.core.entries import Entry
from tasks.opd.core.errors import DataError
from tasks.opd.core.records import Quarantined, Rollout, first_tokens, read_rows, write_rows
from tasks.opd.rollouts.interleaving import relay, skd
from tasks.opd.rollouts.trd import trd
from tasks.opd.rollouts.writers import Engines, labels


def truncate(rollouts: list[Rollout], engines: Engines, *,
             tokens: Annotated[int, Field(ge=1)]) -> list[Rollout | None]:
    """Completions end after `tokens` tokens: most of what a teacher has to say, it says early.

    Source: early-stopped rollouts, arXiv:2605.27028 (100 tokens there; 50 to 200 do as well).
    """
    return [dataclasses.replace(first_tokens(rollout, tokens), rollout_id=f"{rollout.rollout_id}:truncate",
                                parent=rollout.rollout_id, finish_reason="length", reward=None, feedback=None)
            if len(rollout.token_ids) > tokens else rollout for rollout in rollouts]


REFINERS = {
    "truncate": Entry(truncate),
    "trd": Entry(trd, authors=("teacher",), asks_teacher=True, reads_rewards=True,
                 shows_solution=lambda params: params["solution"], drops_student=lambda params: (
                     params["others"] == "drop" or params["which"] == params["keep"] == "all")),
    "skd": Entry(skd, authors=("student", "teacher"), asks_teacher=True, interleaved=True),
    "relay": Entry(relay, authors=("student", "teacher"), asks_teacher=True, interleaved=True)}


def refine_rollouts(inputs: dict[str, Path], spec: dict, out: Path, session) -> dict:
    """The stage `refined`: the refiners in their order; rollouts.parquet, and what goes in quarantined.parquet.

    Raises: DataError when nothing is left.
    """
    before = read_rows(inputs["rollouts"] / "rollouts.parquet", Rollout)
    engines, rollouts, gone, counts = Engines(inputs, spec, session), before, [], {}
    for slot, label in zip(spec["refiners"], labels([slot["name"] for slot in spec["refiners"]])):
        engines.report = {}
        refined = REFINERS[slot["name"]](rollouts, engines, **slot["params"])
        gone += [Quarantined(item_id=old.rollout_id, reason=slot["name"], text="not kept")
                 for old, new in zip(rollouts, refined, strict=True) if new is None]
        rollouts = [rollout for rollout in refined if rollout is not None]
        prefix = f"{label}_" if len(spec["refiners"]) > 1 else ""
        counts |= {f"{prefix}{name}": value for name, value in engines.report.items() if value is not None}
    if not rollouts:
        names = ", ".join(slot["name"] for slot in spec["refiners"])
        raise DataError(f"refine {names} kept none of {len(before)} rollouts in round {spec['round']}: nothing is left "
                        "to learn from; keep more (others: keep, keep: all), or sample more prompts a round")
    write_rows(out / "rollouts.parquet", rollouts, Rollout)
    write_rows(out / "quarantined.parquet", gone, Quarantined)
    earlier = {rollout.rollout_id for rollout in before}
    changed = sum(rollout.rollout_id not in earlier for rollout in rollouts)
    tokens = sum(len(r.token_ids) for r in rollouts)
    session.log(out, spec["round"], {"refine/changed_share": changed / len(rollouts),
                                     "refine/length_mean_tokens": tokens / len(rollouts),
                                     **{f"refine/{name}": float(value) for name, value in counts.items()}})
    return {"rollouts": len(rollouts), "refined": changed, "dropped": len(gone), "tokens": tokens,
            **counted("refined", engines.costs), **counts}
