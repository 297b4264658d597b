"""The stage `grades`: reward and feedback on every rollout, then the filters; kept and dropped are both written."""
from collections import Counter
from dataclasses import replace
from pathlib import Path

from tasks.opd.core.errors import DataError
from tasks.opd.core.records import Prompt, Quarantined, Rollout, read_rows, write_rows
from tasks.opd.data.answers import completion_text
from tasks.opd.data.graders import grade_by_source
from tasks.opd.models.tokenizers import tokenizer_of
from tasks.opd.rollouts.filters import apply_filters


def grade_rollouts(inputs: dict[str, Path], spec: dict, out: Path, session) -> dict:
    """Stage: reward and feedback on every rollout, then the filters; kept and dropped are both written."""
    prompts = {p.prompt_id: p for p in read_rows(inputs["prompts"] / "prompts.parquet", Prompt)}
    rollouts = read_rows(inputs["rollouts"] / "rollouts.parquet", Rollout)
    tokenizer, graded = tokenizer_of(inputs["prompts"]), []
    with session.progress(len(rollouts), "grade", "rollouts") as bar:
        for rollout in rollouts:
            text = completion_text(tokenizer, rollout.token_ids, rollout.prompt_token_ids)
            reward, feedback = grade_by_source(spec["graders"], prompts[rollout.prompt_id], text)
            graded.append(replace(rollout, reward=reward, feedback=feedback))
            bar.update(1)
    kept, dropped = apply_filters(graded, spec["filters"])
    if graded and not kept:
        reasons = ", ".join(f"{name} {n}" for name, n in Counter(row.reason for row in dropped).most_common())
        raise DataError(f"the filters drop all {len(graded)} rollouts of a round ({reasons}): nothing is left to learn "
                        "from; loosen rollout.filters, or give completions more room (max_new_tokens)")
    write_rows(out / "rollouts.parquet", kept, Rollout)
    write_rows(out / "dropped.parquet", dropped, Quarantined)
    by_reason = Counter(row.reason for row in dropped)
    rewards = [r.reward for r in graded if r.reward is not None]
    mean = sum(rewards) / max(len(rewards), 1)
    return {"kept": len(kept), "dropped": len(dropped), "reward_mean": mean,
            **{f"dropped_{name}": n for name, n in sorted(by_reason.items())}}
