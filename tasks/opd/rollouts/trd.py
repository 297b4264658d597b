"""Trajectories rewritten: the teacher reads the student's solution and writes it anew, mended where it is wrong (TRD).

The rewrite is on the student's ground because it keeps the student's structure, style and right steps; nothing but the
prompt sees to that, so how near it came is measured: lengths, the table of passes and failures, and how much likelier
the tokens are to the teacher than to the student. The wording is ours; the idea is the paper's.

Left out: rewrites of rewrites, and the choice of the best of several.
"""
import dataclasses
from collections import Counter
from typing import Annotated, Literal

import torch
from pydantic import Field

from tasks.opd.core.costs import READ
from tasks.opd.core.errors import DataError
from tasks.opd.core.records import Prompt, Rollout, read_rows
from tasks.opd.core.seeds import derive_seed
from tasks.opd.data.answers import completion_text
from tasks.opd.data.graders import grade_by_source
from tasks.opd.engines.api import Want
from tasks.opd.models.tokenizers import control_tokens, render, showable
from tasks.opd.rollouts.writers import Engines, drafts_of
from tasks.opd.store.artifacts import model_folder

DRAFT = "Here is a first try at a solution. It may have errors, and it may stop before the answer:\n{draft}"
REFERENCE = "Here is a correct solution to check the first try against:\n{solution}"
REWRITE = ("Rewrite the first try so that it is a correct solution. Keep its structure and its style, and keep every "
           "step that is correct. Correct the steps that are wrong. If it stops before the answer, continue it until "
           "the answer. Write only the rewritten solution, as if it were the first.")
PASS = 1.0        # the reward of a right answer
MEASURED = 64     # rollouts at most of which teacher and student are asked what they think


def trd(rollouts: list[Rollout], engines: Engines, *, which: Literal["all", "failed", "succeeded"] = "all",
        solution: bool = False, keep: Literal["all", "repaired"] = "all", others: Literal["drop", "keep"] = "drop",
        temperature: Annotated[float, Field(ge=0, le=10)] = 1.0) -> list[Rollout | None]:
    """The teacher's rewrites of the rollouts, to be scored under the refinement prompt that each was written from.

    y_r ~ teacher(. | refinement prompt of x, y_o and, with `solution`, the worked solution); top_p, top_k and the limit
    are the recipe's. `which` are rewritten, by their reward; `keep: repaired` keeps only rewrites that pass where the
    rollout failed. `others` are those not chosen, not kept, and those that cannot be rewritten: a completion that is
    empty or spells a control token, no worked solution, or no room in the context. The rollout stands in the prompt, so
    an engine that speculates by n-gram lookup has it as its draft with nothing said here.
    Source: TRD, arXiv:2606.08432.
    Raises: DataError when a rollout is not graded, and when no rewrite has room in the context.
    """
    if ungraded := [rollout.rollout_id for rollout in rollouts if rollout.reward is None]:
        raise DataError(f"refine trd reads rewards, which {len(ungraded)} of {len(rollouts)} rollouts lack, such as "
                        f"{ungraded[0]}; put trd before the refiners that change rollouts")
    prompts = {p.prompt_id: p for p in read_rows(engines.inputs["prompts"] / "prompts.parquet", Prompt)}
    chosen = [r for r in rollouts if which == "all" or (r.reward >= PASS) == (which == "succeeded")]
    views = refinement_prompts(chosen, prompts, engines, solution)
    fitting = [r for r in chosen if views[r.rollout_id]]
    sampling = {**engines.sampling, "temperature": temperature}
    written = rewritten(fitting, [views[r.rollout_id] for r in fitting], prompts, engines, sampling)
    texts = [completion_text(engines.tokenizer, rollout.token_ids, rollout.prompt_token_ids) for rollout in written]
    rewards = [grade_by_source(engines.spec["graders"], prompts[rollout.prompt_id], text)[0]
               for rollout, text in zip(written, texts)]
    engines.report |= outcome_counts(fitting, written, rewards)
    engines.report |= gap_counts(engines, fitting[:MEASURED], written[:MEASURED])
    engines.report["not_rewritten"] = len(chosen) - len(fitting)
    kept = {old.rollout_id: new for old, new, reward in zip(fitting, written, rewards)
            if keep == "all" or old.reward < PASS <= reward}
    return [kept.get(r.rollout_id, r if others == "keep" else None) for r in rollouts]


def refinement_prompts(rollouts: list[Rollout], prompts: dict[str, Prompt], engines: Engines,
                       solution: bool) -> dict[str, list[int] | None]:
    """The refinement prompt of each rollout by its id; None where there is none, or no room to write after it.

    Raises: DataError when room is all that any of them lacks.
    """
    from transformers import AutoTokenizer
    folder = model_folder(engines.inputs["teacher"], engines.spec.get("folder", "model"))
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    control = control_tokens(tokenizer)
    views = {r.rollout_id: refinement_prompt(prompts[r.prompt_id], completion_text(engines.tokenizer, r.token_ids),
                                             tokenizer, control, solution) for r in rollouts}
    context, limit = engines.spec["context_tokens"], engines.sampling["max_new_tokens"]
    lengths = [len(ids) for ids in views.values() if ids]
    if lengths and min(lengths) + limit > context:
        raise DataError(f"refine trd has no room: the shortest refinement prompt has {min(lengths)} tokens, which with "
                        f"max_new_tokens {limit} exceed pair.context_tokens {context}; raise it to "
                        f"{max(lengths) + limit}, where all have room")
    engines.report["no_room"] = sum(length + limit > context for length in lengths)
    return {name: ids if ids and len(ids) + limit <= context else None for name, ids in views.items()}


def refinement_prompt(prompt: Prompt, draft: str, tokenizer, control: list[str], solution: bool) -> list[int] | None:
    """The question, the student's draft, with `solution` the worked one too, and the request, in the chat template.

    None when the draft cannot be shown (`contexts.showable`) or there is no solution to show.
    """
    parts, shown, worked = [prompt.text], showable(draft, control), showable(prompt.solution or "", control)
    if not shown or solution and not worked:
        return None
    parts.append(DRAFT.format(draft=shown))
    parts += [REFERENCE.format(solution=worked)] if solution else []
    return render(tokenizer, "\n\n".join([*parts, REWRITE]), prompt.turns)


def rewritten(rollouts: list[Rollout], views: list[list[int]], prompts: dict[str, Prompt], engines: Engines,
              sampling: dict) -> list[Rollout]:
    """What the teacher writes after each view, under a distribution, as rollouts without a reward."""
    spec = engines.spec
    seeds = [derive_seed(spec["seed"], spec["round"], rollout.rollout_id, "trd") for rollout in rollouts]
    asked = [dataclasses.replace(prompts[rollout.prompt_id], token_ids=ids) for rollout, ids in zip(rollouts, views)]
    drafts = drafts_of(engines, "teacher", asked, seeds, sampling) if rollouts else []
    engines.costs[READ] += sum(len(rollout.token_ids) for rollout in rollouts)
    return [dataclasses.replace(
        rollout, rollout_id=f"{rollout.rollout_id}:trd", parent=rollout.rollout_id, teacher_prompt_ids=ids,
        reward=None, feedback=None, **dataclasses.asdict(draft))
        for rollout, ids, draft in zip(rollouts, views, drafts, strict=True)]


def outcome_counts(rollouts: list[Rollout], written: list[Rollout], rewards: list[float]) -> dict[str, float | None]:
    """Which passed before and after, and how the length changed."""
    turns = Counter((old.reward >= PASS, reward >= PASS) for old, reward in zip(rollouts, rewards))
    before, after = (sum(len(r.token_ids) for r in rows) for rows in (rollouts, written))
    return {"fail_to_pass": turns[False, True], "pass_to_fail": turns[True, False],
            "fail_to_fail": turns[False, False], "pass_to_pass": turns[True, True],
            "length_change_mean_tokens": (after - before) / len(rollouts) if rollouts else None}


def gap_counts(engines: Engines, rollouts: list[Rollout], written: list[Rollout]) -> dict[str, float | None]:
    """`gap_nats` of the rollouts and of their rewrites; nothing where the teacher's engine cannot score."""
    if not rollouts or "sampled" not in engines.teacher.capabilities().columns:
        return {}
    return {"teacher_gap_raw_nats": gap_nats(engines, rollouts),
            "teacher_gap_rewritten_nats": gap_nats(engines, written)}


def gap_nats(engines: Engines, rollouts: list[Rollout]) -> float:
    """Mean over tokens of log teacher - log student, the student after the prompt, the teacher after what it saw."""
    completions = [r.token_ids for r in rollouts]
    theirs = engines.teacher.score([r.teacher_prompt_ids or r.prompt_token_ids for r in rollouts], completions, Want())
    engines.costs[READ] += sum(map(len, completions))
    own = engines.student.score([r.prompt_token_ids for r in rollouts], completions, Want())
    return torch.cat([one.sampled.double() - other.sampled.double() for one, other in zip(theirs, own)]).mean().item()
