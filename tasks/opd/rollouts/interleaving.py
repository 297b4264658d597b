"""SKD, where the teacher redraws unlikely tokens, and relays, where it takes over for a while.

Both are rules (when the teacher writes, how much, from which distribution) for completions written in turns: `turns`.
"""
from typing import Annotated

import torch
from pydantic import Field

from tasks.opd.core.batches import padded_batches
from tasks.opd.core.costs import READ, WRITTEN
from tasks.opd.core.errors import DataError
from tasks.opd.core.records import STUDENT, TEACHER, Rollout
from tasks.opd.rollouts.turns import InterleavedBatch, Rule
from tasks.opd.rollouts.writers import Engines
from tasks.opd.store.artifacts import model_folder


def skd(rollouts: list[Rollout], engines: Engines, *, k: Annotated[int, Field(ge=0)] = 25,
        draft_tokens: Annotated[int, Field(ge=1, le=256)] = 5,
        teacher_temperature: Annotated[float, Field(ge=0, le=10)] = 1.0,
        teacher_top_p: Annotated[float, Field(gt=0, le=1)] = 1.0,
        decay_tokens: Annotated[int, Field(ge=0)] = 0) -> list[Rollout | None]:
    """A token that is not among the teacher's top k is drawn anew by the teacher, and the student goes on from there.

    At a prefix, tokens follow pi(v) = 1[v in top k] q(v) + (1 - q(top k)) p(v), with q what the student samples
    from, p the teacher's at its temperature and top_p; the top k is of the teacher's own distribution, equals of the
    k-th included. k = 0 is the teacher's sampling; k = all of the vocabulary leaves rollouts as they are.
    With `decay_tokens` L, k falls by ceil(k / L) every max(int(L / k), 1) blocks, to 1 at least; then draft_tokens, the
    length of a block in the rollout as it came too, matters to what is written.
    Source: speculative knowledge distillation, arXiv:2410.11325, algorithm 1 (the decay: the authors' code).
    Raises: DataError when the teacher is behind a server, or a model has layers whose reading cannot be taken back.
    """
    teacher_sampling = {"temperature": teacher_temperature, "top_p": teacher_top_p}
    rule = Rule(k=k, draft_tokens=draft_tokens, teacher_sampling=teacher_sampling, decay_tokens=decay_tokens)
    return interleaved("skd", rollouts, engines, rule)


def relay(rollouts: list[Rollout], engines: Engines, *, k: Annotated[int, Field(ge=0)] = 25,
          span: Annotated[int, Field(ge=1)] = 16, spans: Annotated[int, Field(ge=1)] = 2,
          within: Annotated[int, Field(ge=1)] = 64,
          draft_tokens: Annotated[int, Field(ge=1, le=256)] = 5) -> list[Rollout | None]:
    """At a token that is not among the teacher's top k the teacher takes over for `span` tokens; then the student.

    It does so at most `spans` times in a rollout, and only among its first `within` tokens; after that the student goes
    on undisturbed. The teacher writes under the student's sampling.
    Source: Relay-OPD, arXiv:2607.26057, whose own trigger (the teacher's likeliest token is a word of reflection and
    none of the student's is) and whose end after the last span are not these: a reconstruction.
    Raises: as skd.
    """
    teacher_sampling = {key: engines.sampling[key] for key in ("temperature", "top_p", "top_k")}
    rule = Rule(k=k, draft_tokens=draft_tokens, teacher_sampling=teacher_sampling, span=span, spans=spans,
                within=within)
    return interleaved("relay", rollouts, engines, rule)


def interleaved(name: str, rollouts: list[Rollout], engines: Engines, rule: Rule) -> list[Rollout | None]:
    """The student's rollouts under a rule, others as they are; what was done goes into the report."""
    if (model_folder(engines.inputs["teacher"], engines.spec.get("folder", "model")) / "server.json").exists():
        raise DataError(f"refine {name} needs the teacher's caches, and a teacher behind a server lends none; give "
                        "teacher.model a model of the pair that lies in a folder, or take `refine` out")
    student, teacher = (engines.engine(role, name="torch") for role in ("student", "teacher"))
    with torch.no_grad():  # not rounded to bfloat16, where many are equals of the k-th
        ranking = teacher.scoring_head or teacher.head.to(torch.promote_types(teacher.dtype, torch.float32))
    own = [i for i, r in enumerate(rollouts) if r.token_ids and set(r.author) == {STUDENT}]
    room = engines.sampling["max_new_tokens"]
    lengths = [len(rollouts[i].prompt_token_ids) + max(room, len(rollouts[i].token_ids)) for i in own]
    out, tables = list(rollouts), []
    with engines.session.progress(len(own), f"{name}: teacher and student", "rollouts") as bar:
        for batch in padded_batches(lengths, min(student.batch_tokens, teacher.batch_tokens)):
            chosen = [own[i] for i in batch]
            table = InterleavedBatch([rollouts[i] for i in chosen], engines, rule, student, teacher, ranking)
            table.run(bar)
            tables.append(table)
            for i, refined in zip(chosen, table.refined(name)):
                out[i] = refined
    engines.report.update(report(tables, len(own)))
    for cost, name in ((WRITTEN[STUDENT], "drafted"), (WRITTEN[TEACHER], "taught"), (READ, "verified")):
        engines.costs[cost] += sum(table.counts[name] for table in tables)
    return out


def report(tables: list[InterleavedBatch], num_rollouts: int) -> dict[str, float | None]:
    """What was proposed, accepted and forwarded. A token after the first rejection of its draft was not proposed."""
    def total(name: str) -> int:
        return sum(table.counts[name] for table in tables)
    proposed = total("proposed")
    return {"accepted_share": total("accepted") / proposed if proposed else None,
            "blocks_mean": total("blocks") / num_rollouts if num_rollouts else None,
            "teacher_forward_tokens": total("read")}
