"""How the bench's models learn to read: cross-entropy on a mixture of kinds of prompts, as a run renders them.

The kinds' shares change once: first the prompts that help, from which reading is learnt, then more bare problems. All
problems have the same number of steps, so that what is looked up in a prompt stands at few distances: with three to
five steps nothing was read after as many examples as now suffice. In float32, which on micro-batches of like length
took 0.20 s a step where bfloat16 took 0.25 s on a CPU that multiplies it.
"""
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch.nn.functional import cross_entropy

from tasks.opd.core.errors import DataError, OpdError
from tasks.opd.core.seeds import derive_seed
from tasks.opd.data import tiny, tiny_bench
from tasks.opd.data.answers import completion_text
from tasks.opd.engines.torch_engine import TorchEngine
from tasks.opd.makers.kinds import KINDS, Question
from tasks.opd.makers.pretraining import GREEDY, optimizers_of, rate_factor, update
from tasks.opd.models.digests import write_digests
from tasks.opd.models.heads import head_of, hidden_states

MICRO_BATCHES = 4               # of a step's examples, sorted by length: little padding
HELD_OUT = 2 ** 40              # index of the first problem that is never learnt from
Kind = Literal["bare", "solution", "demonstration", "sibling", "feedback", "experience", "rewrite", "rewrite_shown",
               "lists"]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """What is learnt, how, and when it is enough."""
    layers: int
    hidden: int
    steps: int                  # at most
    batch: int                  # examples a step, never seen before
    learning_rate: float        # of the matrices, by Muon
    embedding_rate: float       # of everything else, by AdamW
    first: Mapping[str, float]  # kind -> its weight among the examples of a step
    then: Mapping[str, float]   # likewise, after the share `switch_at` of the steps
    switch_at: float
    num_steps: int              # of a problem
    highest: int                # value in one
    largest: int                # step in one
    careless: float             # see `Question`
    experience: str             # likewise
    learn_shown: bool           # a worked solution in a prompt is learnt as well as the one after it
    evaluate_from: int          # no evaluation before this step
    evaluate_every: int         # steps
    problems: int               # held-out problems of a kind an evaluation
    enough: Mapping[str, float]  # kind -> accuracy; the course ends when all are reached
    asked: tuple[str, ...]      # kinds whose accuracy is measured at the end
    muon: str = "float32"


Row = tuple[list[int], list[bool]]  # token ids of prompt and completion, and which of them are learnt


def tiny_reader(out: Path, origin: Path | None, seed: int, session, *, first: dict[Kind, Weight],
                then: dict[Kind, Weight], enough: dict[Kind, Share], at_most: dict[Kind, Share], layers: Count = 2,
                hidden: Count = 128, steps: Count = 400, batch: Count = 16, learning_rate: Rate = 0.015,
                embedding_rate: Rate = 0.01, switch_at: Share = 0.5,
                num_steps: Annotated[int, Field(ge=1, le=5)] = 4, highest: Annotated[int, Field(ge=19, le=99)] = 59,
                largest: Annotated[int, Field(ge=1, le=9)] = 9, careless: Share = 0.0, experience: str = "",
                learn_shown: bool = False, evaluate_from: Count = 200, evaluate_every: Count = 25,
                problems: Count = 100) -> dict:
    """A Llama that learns from nothing to solve tiny problems and to use what stands in a prompt (see `mixture`).

    `first` and `then` are the weights of kinds before and after the share `switch_at` of the steps. It ends when every
    kind of `enough` is answered so well, greedily. `careless`: the share of the lines crossing a ten in its answers to
    bare problems that go wrong (see `tiny_bench`); `experience`: the system message under which none does.

    Raises: OpdError when a kind of `enough` ends below, or one of `at_most` above it; DataError without weights.
    """
    if not all(any(weights.values()) for weights in (first, then)):
        raise DataError("tiny_reader draws kinds by the weights of `first` and of `then`: give each one above 0")
    asked = tuple(kind for kind in KINDS if first.get(kind) or then.get(kind) or kind in {**enough, **at_most})
    course = Mixture(layers=layers, hidden=hidden, steps=steps, batch=batch, learning_rate=learning_rate,
                     embedding_rate=embedding_rate, first=first, then=then, switch_at=switch_at, num_steps=num_steps,
                     highest=highest, largest=largest, careless=careless, experience=experience,
                     learn_shown=learn_shown, evaluate_from=evaluate_from, evaluate_every=evaluate_every,
                     problems=problems, enough=enough, asked=asked)
    taken, found = learn_mixture(out, derive_seed(seed, "tiny_reader"), session, course)
    wrong = [f"{kind} {found[kind]:.2f} (at least {least})" for kind, least in enough.items() if found[kind] < least]
    wrong += [f"{kind} {found[kind]:.2f} (at most {most})" for kind, most in at_most.items() if found[kind] > most]
    if wrong:
        raise OpdError(f"tiny_reader ended after {taken} steps with {', '.join(wrong)}; raise steps, change the "
                       "weights of kinds, evaluate more often, or take another seed")
    return {"steps": taken, **{f"accuracy_{kind}": value for kind, value in found.items()}}


def learn_mixture(out: Path, seed: int, session, course: Mixture) -> tuple[int, dict[str, float]]:
    """Train a new Llama until all of `enough` is reached, at most `steps` steps: out/model.

    Returns the steps taken, and the accuracy of every kind that was learnt or asked for.
    """
    tokenizer, folder = tiny_bench.build_tokenizer(), out / "model"
    model = tiny.new_model(tokenizer, seed=derive_seed(seed, "init"), layers=course.layers, hidden=course.hidden)
    optimizers, done = optimizers_of(model, course), False
    tokenizer.save_pretrained(folder)
    with session.progress(course.steps, "train the tiny reader", "steps") as bar:
        for step in range(1, course.steps + 1):
            rows, factor = examples(tokenizer, seed, step, course), rate_factor(step, course.steps)
            values = {"model/loss_nats": learn_step(model, optimizers, rows, factor)}
            if step == course.steps or step >= course.evaluate_from and step % course.evaluate_every == 0:
                model.save_pretrained(folder)
                write_digests(model, folder)
                found = accuracies(folder, tokenizer, seed, course, [*course.enough])
                values |= {f"model/accuracy_{kind}": value for kind, value in found.items()}
                done = all(found[kind] >= least for kind, least in course.enough.items())
            session.log(out, step, values)
            bar.update(1)
            if done:
                break
    return step, accuracies(folder, tokenizer, seed, course, course.asked)


def examples(tokenizer, seed: int, step: int, course: Mixture) -> list[Row]:
    """The examples of one step: fresh problems, of kinds drawn by the weights of then."""
    weights = course.first if step <= course.switch_at * course.steps else course.then
    rng = random.Random(derive_seed(seed, "learn", step))
    kinds = rng.choices([*weights], [*weights.values()], k=course.batch)
    asked = [question(tokenizer, (step - 1) * course.batch + i, rng, seed, course) for i in range(course.batch)]
    return [row_of(*KINDS[kind](one), tokenizer, course.learn_shown) for kind, one in zip(kinds, asked)]


def question(tokenizer, index: int, rng: random.Random, seed: int, course: Mixture) -> Question:
    """The course's problem at a place of the list of `seed`."""
    problem = tiny.problem(index, derive_seed(seed, "problems"), course.num_steps, course.highest, course.largest)
    return Question(problem=problem, rng=rng, tokenizer=tokenizer, careless=course.careless,
                    experience=course.experience)


def row_of(prompt: list[int], text: str, tokenizer, learn_shown: bool) -> Row:
    """A prompt and its completion with EOS; learnt is the completion and, where asked, the same text in the prompt."""
    written = tokenizer.encode(text)
    wanted, width = [False] * len(prompt), len(written)
    places = [i for i in range(len(prompt) - width + 1) if prompt[i:i + width] == written] if learn_shown else []
    for place in places:
        wanted[place:place + width] = [True] * width
    return [*prompt, *written, tokenizer.eos_token_id], [*wanted, *[True] * (width + 1)]


def learn_step(model, optimizers: list, rows: list[Row], factor: float) -> float:
    """One optimizer step on examples, in micro-batches; the mean loss over the tokens that are learnt, nats."""
    rows, tokens = sorted(rows, key=lambda row: len(row[0])), sum(sum(wanted) for _, wanted in rows)
    bounds = [len(rows) * part // MICRO_BATCHES for part in range(MICRO_BATCHES + 1)]
    model.zero_grad(set_to_none=True)
    total = 0.0
    for first, last in zip(bounds, bounds[1:]):
        if first < last:
            loss = loss_sum(model, rows[first:last]) / tokens
            loss.backward()
            total += loss.item()
    update(model, optimizers, factor)
    return total


def loss_sum(model, rows: list[Row]) -> torch.Tensor:
    """Sum over the learnt tokens of their negative log-likelihood, nats."""
    width = max(len(ids) for ids, _ in rows)
    ids, wanted = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.bool)
    for i, (tokens, learnt) in enumerate(rows):
        ids[i, :len(tokens)], wanted[i, :len(tokens)] = torch.tensor(tokens), torch.tensor(learnt)
    hidden = hidden_states(model, ids, torch.ones_like(ids))  # padding stands at the right, where no token looks
    return cross_entropy(head_of(model).logits(hidden[:, :-1][wanted[:, 1:]]), ids[:, 1:][wanted[:, 1:]],
                         reduction="sum")


def accuracies(folder: Path, tokenizer, seed: int, course: Mixture, kinds: list[str]) -> dict[str, float]:
    """Kind -> share of its held-out prompts that the model in a folder answers with a right last line, greedily.

    What is right does not depend on the kind: a careless answer to a bare problem is not.
    """
    engine, found = TorchEngine(folder, device="cpu"), {}
    for kind in kinds:
        rng = random.Random(derive_seed(seed, "held_out", kind))
        asked = [question(tokenizer, HELD_OUT + i, rng, seed, course) for i in range(course.problems)]
        made = [(KINDS[kind](one), one) for one in asked]
        written = engine.generate([prompt for (prompt, _), _ in made], GREEDY, [0] * len(made))
        truths = [text if kind == "lists" else one.problem.solution for (_, text), one in made]
        found[kind] = sum(last_line(completion_text(tokenizer, completion.token_ids)) == last_line(truth)
                          for completion, truth in zip(written, truths)) / len(made)
    engine.close()
    return found


def last_line(text: str) -> str:
    """What stands on the last line that is not empty."""
    return text.strip().rpartition("\n")[2]
