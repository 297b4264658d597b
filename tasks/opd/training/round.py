"""The trainer: scored rollouts in, a checkpoint out, whatever the variant.

A step forwards the body over micro-batches, then the head over chunks of the tokens that count; each chunk's loss is
back-propagated at once into the hidden states, so that one chunk of full-vocabulary logits lives at a time. Autograd
ends at the logits: the head's own gradients are two matrix products, added where they belong (`Head.backward`).
Coefficients carry the denominators of the whole optimizer batch (see `objective.loss`), so gradients simply add up.
"""
import gc
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tasks.opd.core import token_columns
from tasks.opd.core.costs import TRAINED, counted
from tasks.opd.core.errors import DataError, NonFinite
from tasks.opd.core.records import Rollout, first_tokens
from tasks.opd.core.seeds import derive_seed
from tasks.opd.core.token_columns import TokenColumns
from tasks.opd.engines.canary import write_canary
from tasks.opd.models.heads import special_ids
from tasks.opd.models.lora import learning
from tasks.opd.objective.columns import Columns, columns_of
from tasks.opd.objective.loss import Stats, chunk_loss, coefficients
from tasks.opd.objective.terms import Prepared, Term, bind_terms, prepare
from tasks.opd.store.artifacts import model_folder
from tasks.opd.training.batching import optimizer_batches
from tasks.opd.training.diagnostics import Diagnostics
from tasks.opd.training.forward import Forward, old_logprobs
from tasks.opd.training.kept_tokens import kept_tokens
from tasks.opd.training.prepass import collect
from tasks.opd.training.repetition import repetition
from tasks.opd.training.scored_set import ScoredSet, read_scored
from tasks.opd.training.trainer import Trainer, artifact_key, frozen, learning_rate, resume, save, update_average

CANARY_TOKENS = 1024  # of the longest completions: in bfloat16 a hundred are too few for a mean


def accumulate(forward: Forward, terms: list[Term], prepared: list[Prepared], coefficient: Tensor, batch: list[int],
               scored: ScoredSet, stats: Stats, diagnostics: Diagnostics | None = None) -> float:
    """Add the gradient of one optimizer batch to the model's; its loss. `coefficient` is [terms, N].

    `diagnostics` see what the terms see.
    Raises: NonFinite when the loss is NaN or infinite, naming rollouts.
    """
    total = 0.0
    for hidden, flat in forward.micro_batches(batch, (coefficient != 0).any(0)):
        states, gradient = hidden.detach(), torch.zeros_like(hidden)
        for part in forward.chunks(len(flat)):
            index = flat[part]
            student = forward.student(states[part], index)
            loss = chunk_loss(terms, prepared, coefficient[:, index].to(forward.device), index, student,
                              scored.tokens(index, forward.device), stats, diagnostics and diagnostics.look)
            if not torch.isfinite(loss):
                names = sorted({scored.rollouts[i].rollout_id for i in forward.columns.rollout[index].tolist()})
                raise NonFinite(f"the loss is {loss.item()} on rollouts {names[:4]}; no step was taken and the last "
                                "checkpoint stands: lower train.learning_rate, or look at these rollouts")
            gradient[part] = forward.backward(states[part], student, loss)
            total += loss.item()
        if diagnostics:
            diagnostics.note("gradient", flat, gradient.norm(dim=-1))
        hidden.backward(gradient)
    return total


def start_round(model, scored: ScoredSet, terms: list[Term], spec: dict, special: frozenset[int],
                tick: Callable[[], None] = lambda: None) -> tuple[Forward, list[Prepared]]:
    """What every term takes from its columns under the round's starting student."""
    columns = columns_of(scored.rollouts, special_ids=special)
    forward = Forward(model, scored.rollouts, columns, spec, tick)
    return forward, [prepare(term, own) for term, own in zip(terms, collect(forward, terms, scored))]


def check_domains(terms: list[Term], columns: Columns) -> None:
    """Raises DataError when a term is split over domains and a rollout's is not among them: nobody would teach it."""
    for group in {term.group for term in terms if term.domain}:
        parts = [term for term in terms if term.group == group]
        known, taught = {term.domain for term in parts}, parts[0].domains or set(columns.domain)
        if strangers := sorted(taught.intersection(columns.domain) - known):
            raise DataError(f"no expert teaches domain {strangers[0]!r}, only {', '.join(sorted(known))} have one; "
                            "name it in pair.experts")


def train_round(trainer: Trainer, scored: ScoredSet, spec: dict, special: frozenset[int], log, bar,
                keep: Callable[[list[TokenColumns]], None] = lambda rows: None) -> dict:
    """All optimizer steps of one round. `log(step, values)` takes metrics, `keep` some tokens'. The round's counts."""
    train, terms = spec["train"], bind_terms(spec["terms"])
    forward, prepared = start_round(trainer.model, scored, terms, spec, special, lambda: bar.update(0))
    check_domains(terms, forward.columns)
    epochs = [optimizer_batches(len(scored.rollouts), train["batch_rollouts"], spec["seed"], "order", spec["round"], e)
              for e in range(train["epochs"])]
    batches = [batch for epoch in epochs for batch in epoch]
    diagnostics = Diagnostics(terms, forward.columns, scored)
    trained, steps, loss = 0, 0, 0.0
    log(trainer.step, {f"train/{t.label}/{name}": value for t, p in zip(terms, prepared)
                       for name, value in p.report.items()})
    keep(kept_tokens(terms, prepared, forward.columns, scored.rollouts))
    for i, batch in enumerate(batches):
        started, stats = time.monotonic(), Stats()
        left = spec[TRAINED] - trainer.tokens_seen if TRAINED in spec else None
        if left is not None and left <= 0:
            break
        fitting = prepared if left is None else cut(prepared, forward.columns, batch, left)
        coefficient = coefficients(terms, fitting, forward.columns, batch, spec["completion_limit"])
        tokens = int((coefficient != 0).any(0).sum())
        trainer.optimizer.zero_grad(set_to_none=True)
        loss = accumulate(forward, terms, fitting, coefficient, batch, scored, stats,
                          diagnostics if i < len(epochs[0]) else None)
        rate = learning_rate(train, trainer.step, share_behind(spec, trainer.tokens_seen, i / len(batches)))
        norm, diagnostics.moved = step(trainer, train, rate, spec["ema_decay"]), True
        trained, steps = trained + tokens, steps + 1
        trainer.tokens_seen += tokens
        log(trainer.step, {"train/loss_nats": loss, "train/grad_norm": norm, "train/learning_rate": rate,
                           "train/tokens_seen": trainer.tokens_seen, "train/step_seconds": time.monotonic() - started,
                           **{f"train/{key}": value for key, value in stats.means().items()}})
        bar.update(1, tokens=tokens)
    log(trainer.step, diagnostics.values())
    trainer.optimizer.zero_grad(set_to_none=True)  # as large as the weights, and nobody's until the next round
    for name, parameter in learning(trainer.model).items():
        if not torch.isfinite(parameter).all():
            raise NonFinite(f"the weights of {name} are not finite after step {trainer.step - 1}; they are not kept, "
                            "the last checkpoint stands: lower train.learning_rate or train.weight_decay")
    return {**counted("checkpoint", {TRAINED: trained}), "steps": steps, "loss": loss}


def share_behind(spec: dict, tokens_seen: int, of_round: float) -> float:
    """How much of the run lies behind, in [0, 1]: of its budget where it has one, else of its rounds.

    `of_round` is the share of the current round's optimizer batches that are done. Of a budget that is not of trained
    tokens, `behind` has the shares at which the round's training begins and ends.
    """
    if "behind" in spec:
        begin, end = spec["behind"]
        return begin + of_round * (end - begin)
    return tokens_seen / spec[TRAINED] if TRAINED in spec else (spec["round"] + of_round) / spec["rounds"]


def cut(prepared: list[Prepared], columns: Columns, batch: list[int], left: int) -> list[Prepared]:
    """What the terms took, without the batch's tokens after the first `left` that count in some term."""
    inside = torch.zeros(columns.num_rollouts, dtype=torch.bool)
    inside[batch] = True
    counting = inside[columns.rollout] & torch.stack([p.weight > 0 for p in prepared]).any(0)
    kept = counting.cumsum(0) <= left
    return [replace(p, mask=p.mask & kept, weight=torch.where(kept, p.weight, 0.0)) for p in prepared]


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


def record_canary(model, rollouts: list[Rollout], spec: dict, folder: Path) -> None:
    """The canary of the weights just saved: what they make of the round's longest completions, up to CANARY_TOKENS.

    Its precision is the engine's: bfloat16 weights are another model than the float32 ones they round.
    """
    by_length = sorted(rollouts, key=lambda r: -len(r.token_ids))
    before = itertools.accumulate((len(r.token_ids) for r in by_length), initial=0)
    known = [first_tokens(r, CANARY_TOKENS - n) for r, n in zip(by_length, before) if n < CANARY_TOKENS]
    columns = columns_of(known)
    precision = {"train": {**spec["train"], "autocast": spec["canary_autocast"]}, "loss": {"temperature": 1.0}}
    forward = Forward(model, known, columns, spec | precision)
    logprobs = old_logprobs(forward, torch.ones(columns.num_tokens, dtype=torch.bool))
    write_canary(folder, [r.prompt_token_ids for r in known], [r.token_ids for r in known],
                 [part.tolist() for part in logprobs.split(columns.lengths.tolist())])


def resident(student: Path, spec: dict, session) -> Trainer:
    """The trainer of a student artifact: the session's own when it stands there, else one loaded from the folder.

    The session holds none from here on: while a trainer changes it is nobody's state, and one that is replaced leaves
    its memory before the next is loaded.
    """
    trainer, session.trainer = session.trainer, None
    if trainer is not None and (trainer.source, trainer.settings) == (artifact_key(student), frozen(spec["train"])):
        return trainer
    del trainer
    gc.collect()  # modules and optimizers may stand in reference cycles
    return resume(student, spec["train"], spec["ema_decay"], spec["seed"])


def decoded(token_ids: list[list[int]], folder: Path) -> list[str]:
    """Completions as text, by the tokenizer of a model's folder."""
    from tokenizers import Tokenizer
    return Tokenizer.from_file(str(folder / "tokenizer.json")).decode_batch(token_ids)


def train_student(inputs: dict[str, Path], spec: dict, out: Path, session) -> dict:
    """Stage: one round of training; model/, the trainer's state, some tokens' columns and, where it moves, ema/."""
    session.sleep()
    trainer = resident(inputs["student"], spec, session)
    torch.manual_seed(derive_seed(spec["seed"], "train", spec["round"]))  # no state to carry from round to round
    origin = model_folder(inputs["student"])
    scored = read_scored(inputs, spec, trainer.device)
    batch = spec["train"]["batch_rollouts"] or len(scored.rollouts)
    steps = spec["train"]["epochs"] * math.ceil(len(scored.rollouts) / batch)
    with session.progress(steps, f"train round {spec['round'] + 1}/{spec['rounds']}", "steps") as bar:
        try:
            counts = train_round(trainer, scored, spec, special_ids(origin),
                                 lambda at, values: session.log(out, at, values), bar,
                                 lambda rows: token_columns.write(out / token_columns.FILE, rows))
        except NonFinite as error:
            raise NonFinite(f"round {spec['round']}: {error}. It started from {inputs['student']}") from error
    session.log(out, trainer.step, repetition(scored.rollouts, lambda rows: decoded(rows, origin)))
    if spec["controlled"]:
        session.log(out, trainer.step, {f"train/controlled_{key}": value for key, value in spec["controlled"].items()})
    save(trainer, out, origin)
    record_canary(trainer.model, scored.rollouts, spec, out / "model")
    trainer.source = artifact_key(out)
    session.trainer = trainer
    return {**counts, "step": trainer.step, "tokens_seen": trainer.tokens_seen}
