"""The trainer: scored rollouts in, a checkpoint out, whatever the variant.

A step forwards the body over micro-batches, then the head over chunks of the tokens that count; each chunk's loss is
back-propagated at once into the hidden states, so that one chunk of full-vocabulary logits lives at a time.
Coefficients carry the denominators of the whole optimizer batch (see `losses`), so gradients simply add up.
"""
import math
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tasks.opd.artifacts import model_folder
from tasks.opd.batches import micro_batches, optimizer_batches, pack
from tasks.opd.columns import Columns, columns_of
from tasks.opd.errors import NonFinite
from tasks.opd.heads import head_of, hidden_states, special_ids
from tasks.opd.losses import Prepared, Stats, Term, bind_terms, chunk_loss, coefficients, prepare
from tasks.opd.records import derive_seed
from tasks.opd.scored import ScoredSet, read_scored
from tasks.opd.supports import StudentTokens
from tasks.opd.trainer import Trainer, identity, learning_rate, resume, save, update_average

POSITION_BUCKETS = (0, 10, 30, 100, 300, 1000, 2000, 4000, 8000)  # first tokens of the buckets of gaps by position


class Forward:
    """The student over chosen tokens of the scored set, micro-batch by micro-batch, chunk by chunk."""

    def __init__(self, model, scored: ScoredSet, columns: Columns, spec: dict):
        self.model, self.rollouts, self.spec = model, scored.rollouts, spec
        self.starts = columns.lengths.cumsum(0) - columns.lengths
        self.lengths = [len(r.prompt_token_ids) + len(r.token_ids) for r in scored.rollouts]
        self.device = next(model.parameters()).device
        self.columns = columns

    def autocast(self):
        """bfloat16 compute over the master weights, where the recipe asks for it."""
        on = self.spec["train"]["autocast"] == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16) if on else nullcontext()

    def micro_batches(self, batch: list[int], wanted: Tensor):
        """(hidden states [n, d] with a graph, indices [n] into the columns) of wanted tokens, by micro-batches."""
        rows = torch.zeros(self.columns.num_rollouts, dtype=torch.bool)
        rows[self.columns.rollout[wanted]] = True
        limit = self.spec["effort"]["micro_batch_tokens"]
        for micro in micro_batches([i for i in batch if rows[i]], self.lengths, limit):
            packed = pack(self.rollouts, micro, self.starts, wanted)
            with self.autocast():
                hidden = hidden_states(self.model, packed.token_ids.to(self.device), packed.mask.to(self.device))
            yield hidden.flatten(0, 1)[packed.take.to(self.device)], packed.flat

    def student(self, hidden: Tensor, flat: Tensor) -> StudentTokens:
        """The student's distribution at a chunk of tokens."""
        head = head_of(self.model, self.spec["vocabulary"])
        logits = head.logits(hidden) / self.spec["loss"]["temperature"]
        return StudentTokens(logits=logits, token_ids=self.columns.token_ids[flat].to(self.device))

    def chunks(self, count: int):
        """Slices of at most `chunk_tokens` tokens."""
        size = self.spec["effort"]["chunk_tokens"]
        return [slice(i, min(i + size, count)) for i in range(0, count, size)]


@torch.no_grad()
def old_logprobs(forward: Forward, wanted: Tensor) -> Tensor:
    """The student's log-probabilities [N] of the wanted tokens written, at the loss temperature; NaN elsewhere."""
    dtype = torch.float64 if next(forward.model.parameters()).dtype == torch.float64 else torch.float32
    old = torch.full((forward.columns.num_tokens,), math.nan, dtype=dtype)
    for hidden, flat in forward.micro_batches(list(range(forward.columns.num_rollouts)), wanted):
        for part in forward.chunks(len(flat)):
            old[flat[part]] = forward.student(hidden[part], flat[part]).sampled.cpu().to(dtype)
    return old


def accumulate(forward: Forward, terms: list[Term], prepared: list[Prepared], coefficient: Tensor, batch: list[int],
               scored: ScoredSet, stats: Stats) -> float:
    """Add the gradient of one optimizer batch to the model's; its loss. `coefficient` is [terms, N].

    Raises: NonFinite when the loss is NaN or infinite, naming rollouts.
    """
    total = 0.0
    for hidden, flat in forward.micro_batches(batch, (coefficient != 0).any(0)):
        leaf = hidden.detach().requires_grad_()
        for part in forward.chunks(len(flat)):
            index = flat[part]
            student = forward.student(leaf[part], index)
            loss = chunk_loss(terms, prepared, coefficient[:, index].to(forward.device), index,
                              forward.columns.old[index].to(forward.device), student,
                              scored.tokens(index, forward.device), stats)
            if not torch.isfinite(loss):
                names = sorted({scored.rollouts[i].rollout_id for i in forward.columns.rollout[index].tolist()})
                raise NonFinite(f"the loss is {loss.item()} on rollouts {names[:4]}; no step was taken and the last "
                                "checkpoint stands: lower train.learning_rate, or look at these rollouts")
            loss.backward()
            total += loss.item()
        hidden.backward(leaf.grad)
    return total


def start_round(model, scored: ScoredSet, terms: list[Term], spec: dict, special: frozenset[int]
                ) -> tuple[Forward, list[Prepared]]:
    """Columns under the round's starting student, and what every term takes from them."""
    columns = columns_of(scored.rollouts, teacher=scored.sampled, special_ids=special)
    forward = Forward(model, scored, columns, spec)
    if any(term.advantage is not None for term in terms):
        columns = replace(columns, old=old_logprobs(forward, torch.ones(columns.num_tokens, dtype=torch.bool)))
        forward.columns = columns
    return forward, [prepare(term, columns) for term in terms]


def train_round(trainer: Trainer, scored: ScoredSet, spec: dict, special: frozenset[int], log, bar) -> dict:
    """All optimizer steps of one round. `log(step, values)` takes metrics. The round's counts."""
    train, terms = spec["train"], bind_terms(spec["terms"])
    forward, prepared = start_round(trainer.model, scored, terms, spec, special)
    epochs = [optimizer_batches(len(scored.rollouts), train["batch_rollouts"], spec["seed"], "order", spec["round"], e)
              for e in range(train["epochs"])]
    batches = [batch for epoch in epochs for batch in epoch]
    trained = 0
    log(trainer.step, gap_by_position(forward.columns))
    for i, batch in enumerate(batches):
        started, stats = time.monotonic(), Stats()
        coefficient = coefficients(terms, prepared, forward.columns, batch, spec["completion_limit"])
        tokens = int((coefficient != 0).any(0).sum())
        trainer.optimizer.zero_grad(set_to_none=True)
        loss = accumulate(forward, terms, prepared, coefficient, batch, scored, stats)
        rate = learning_rate(train, trainer.step, (spec["round"] + i / len(batches)) / spec["rounds"])
        norm = step(trainer, train, rate, spec["ema_decay"])
        trained += tokens
        trainer.tokens_seen += tokens
        log(trainer.step, {"train/loss_nats": loss, "train/grad_norm": norm, "train/learning_rate": rate,
                           "train/tokens_seen": trainer.tokens_seen, "train/step_seconds": time.monotonic() - started,
                           **{f"train/{key}": value for key, value in stats.means().items()}})
        bar.update(1)
    return {"trained_tokens": trained, "steps": len(batches), "loss": loss}


def step(trainer: Trainer, train: dict, rate: float, ema_decay: float | None) -> float:
    """One optimizer step on the gradient at hand; the gradient's norm before clipping."""
    norm = float(torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), train["max_grad_norm"]))
    if not math.isfinite(norm):
        raise NonFinite(f"the gradient's norm is {norm} at step {trainer.step}; no step was taken and the last "
                        "checkpoint stands: lower train.learning_rate")
    for group in trainer.optimizer.param_groups:
        group["lr"] = rate
    trainer.optimizer.step()
    trainer.step += 1
    if ema_decay is not None:
        update_average(trainer, ema_decay)
    return norm


def gap_by_position(columns: Columns) -> dict[str, float]:
    """Mean teacher gap, and its mean size, in nats, over the set and by position bucket; empty without both sides."""
    gap = columns.teacher - columns.old
    known = torch.isfinite(gap)
    if not known.any():
        return {}
    out = {"train/teacher_gap_mean_nats": float(gap[known].mean()),
           "train/teacher_gap_size_nats": float(gap[known].abs().mean())}
    for low, high in zip(POSITION_BUCKETS, (*POSITION_BUCKETS[1:], 10**9)):
        here = known & (columns.position >= low) & (columns.position < high)
        if here.any():
            out[f"train/teacher_gap_from_{low:04d}_nats"] = float(gap[here].mean())
    return out


def train_student(inputs: dict[str, Path], spec: dict, out: Path, session) -> dict:
    """Stage: one round of training; model/, the trainer's state and, with a moving average, ema/."""
    trainer = session.trainer
    if trainer is None or trainer.source != identity(inputs["student"]):
        session.trainer = trainer = resume(inputs["student"], spec["train"], spec["ema_decay"])
    session.trainer = None                      # while it changes it is nobody's state
    torch.manual_seed(derive_seed(spec["seed"], "train", spec["round"]))  # no state to carry from round to round
    origin = model_folder(inputs["student"])
    scored = read_scored(inputs, spec, trainer.device)
    trainer.teacher_tokens += sum(len(s.token_ids) for s in scored.rollouts) if scored.signal else 0
    with session.progress(total=None, label=f"train round {spec['round'] + 1}/{spec['rounds']}", unit="step") as bar:
        counts = train_round(trainer, scored, spec, special_ids(origin),
                             lambda at, values: session.log(out, at, values), bar)
    session.log(out, trainer.step, {"train/teacher_tokens": trainer.teacher_tokens})
    save(trainer, out, origin)
    trainer.source = identity(out)
    session.trainer = trainer
    return {**counts, "step": trainer.step, "tokens_seen": trainer.tokens_seen,
            "teacher_tokens": trainer.teacher_tokens}
