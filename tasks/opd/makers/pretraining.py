"""How the tiny pair learns its task from nothing: cross-entropy on fresh worked solutions, stopped by evaluations.

A loop of its own rather than the trainer with an nll term: the models would otherwise be remade whenever a slot of the
trainer is edited. Matrices are updated by Muon, which here needs a third fewer steps than AdamW and forgives its rate;
by torch's own in bfloat16, whose price depends on the CPU, or by ours in float32.
"""
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from tasks.opd.core.records import Prompt
from tasks.opd.core.seeds import derive_seed
from tasks.opd.data import tiny
from tasks.opd.data.answers import completion_text
from tasks.opd.engines.torch_engine import TorchEngine
from tasks.opd.makers.muon import Muon
from tasks.opd.models.digests import write_digests
from tasks.opd.models.heads import head_of, hidden_states
from tasks.opd.models.tokenizers import render

GREEDY = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 96}
WARMUP_STEPS, DECAY_SHARE, LOWEST = 20, 0.6, 0.05  # the rate rises, stays, and falls over the last share of the steps


@dataclass(frozen=True, kw_only=True)
class Course:
    """What is learnt, how, and when it is enough."""
    layers: int
    hidden: int
    steps: int                  # at most
    batch: int                  # problems a step, never seen before
    learning_rate: float        # of the matrices, by Muon
    embedding_rate: float       # of everything else, by AdamW
    evaluate_from: int          # no evaluation before this step
    evaluate_every: int         # steps
    problems: int               # held-out problems an evaluation
    stop_at: float              # share of them answered rightly that is enough
    only: int = 0               # steps of the problems; 0: four or five
    highest: int = tiny.HIGHEST  # value in a problem
    largest: int = 9            # step in a problem
    muon: str = "bfloat16"      # what it multiplies in


def learn(out: Path, seed: int, session, course: Course) -> dict:
    """Train a new Llama until an evaluation reaches `stop_at`, at most `steps` steps; out/model, and its counts."""
    tokenizer, folder = tiny.build_tokenizer(), out / "model"
    model = tiny.new_model(tokenizer, seed=derive_seed(seed, "init"), layers=course.layers, hidden=course.hidden)
    optimizers = optimizers_of(model, course)
    tokenizer.save_pretrained(folder)
    with session.progress(course.steps, "train the tiny model", "steps") as bar:
        for step in range(1, course.steps + 1):
            fresh = range((step - 1) * course.batch, step * course.batch)
            rows = [example(tokenizer, problem) for problem in problems(derive_seed(seed, "learn"), fresh, course)]
            loss = learn_step(model, optimizers, rows, rate_factor(step, course.steps))
            values = {"model/loss_nats": loss}
            if step == course.steps or step >= course.evaluate_from and step % course.evaluate_every == 0:
                model.save_pretrained(folder)
                write_digests(model, folder)
                held_out = problems(derive_seed(seed, "held_out"), range(course.problems), course)
                values["model/accuracy"] = accuracy_of(folder, tokenizer, held_out)
            session.log(out, step, values)
            bar.update(1)
            if values.get("model/accuracy", -1) >= course.stop_at:
                break
    return {"steps": step, "accuracy": values["model/accuracy"]}


def problems(seed: int, indices: range, course: Course) -> list[tiny.Problem]:
    """The course's problems at these places of the list of `seed`."""
    return [tiny.problem(i, seed, course.only, course.highest, course.largest) for i in indices]


def example(tokenizer, problem: tiny.Problem) -> tuple[list[int], list[int]]:
    """Prompt ids, and the ids of the worked solution with its EOS."""
    return render(tokenizer, problem.text), [*tokenizer.encode(problem.solution), tokenizer.eos_token_id]


def optimizers_of(model, course: Course) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings and norms."""
    matrices = [p for p in model.base_model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
    muon = Muon(matrices, lr=course.learning_rate) if course.muon == "float32" else \
        torch.optim.Muon(matrices, lr=course.learning_rate, weight_decay=0.0)
    chosen = [muon,
              torch.optim.AdamW(others, lr=course.embedding_rate, betas=(0.9, 0.95), weight_decay=0.0)]
    for optimizer in chosen:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return chosen


def rate_factor(step: int, steps: int) -> float:
    """Share of the peak learning rate at `step` (from 1)."""
    return min(1.0, step / WARMUP_STEPS) * max(LOWEST, min(1.0, (steps - step + 1) / (DECAY_SHARE * steps)))


def learn_step(model, optimizers: list, rows: list[tuple[list[int], list[int]]], factor: float) -> float:
    """One optimizer step on prompts and completions; the mean loss over completion tokens, nats."""
    width = max(len(prompt) + len(completion) for prompt, completion in rows)
    ids, wanted = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.bool)
    for i, (prompt, completion) in enumerate(rows):
        length = len(prompt) + len(completion)
        ids[i, :length] = torch.tensor(prompt + completion)
        wanted[i, len(prompt):length] = True
    with torch.autocast("cpu", torch.bfloat16, enabled=gains_from_bfloat16()):
        hidden = hidden_states(model, ids, torch.ones_like(ids))  # padding stands at the right, where no token looks
    loss = cross_entropy(head_of(model).logits(hidden[:, :-1][wanted[:, 1:]]), ids[:, 1:][wanted[:, 1:]])
    model.zero_grad(set_to_none=True)
    loss.backward()
    update(model, optimizers, factor)
    return loss.item()


def update(model, optimizers: list, factor: float) -> None:
    """One step of each optimizer on the clipped gradient, at this share of its peak rate."""
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        optimizer.step()


def gains_from_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware."""
    return torch.cpu.get_capabilities().get("amx_bf16", False) or torch.cpu.get_capabilities().get("avx512_bf16", False)


def accuracy_of(folder: Path, tokenizer, problems: list[tiny.Problem]) -> float:
    """Share of the problems that the model in a folder answers rightly, greedily."""
    prompts = [Prompt(prompt_id=str(i), index=i, text=p.text, token_ids=render(tokenizer, p.text), answer=p.answer,
                      solution=None, entry=json.dumps(p.entry), domain="tiny") for i, p in enumerate(problems)]
    engine = TorchEngine(folder, device="cpu")
    written = engine.generate([p.token_ids for p in prompts], GREEDY, [0] * len(prompts))
    engine.close()
    rewards = [tiny.grade(p, completion_text(tokenizer, c.token_ids))[0] for p, c in zip(prompts, written)]
    return sum(rewards) / len(rewards)
