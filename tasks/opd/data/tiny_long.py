"""The bench's long task: a number and many signed steps, a short line for each, so that an early slip spoils the rest.

Fourteen steps take 164 tokens with the EOS, where four of a tiny word problem take 65. The words are those of the tiny
tokenizer and the lines have the tiny task's form, so that its grader judges them and its feedback names the first wrong
one. Training, tuning and reports have splits of their own, by a hash of the text: no text is in two of them, whatever
the seeds.
"""
import random
from dataclasses import dataclass
from itertools import count
from typing import Literal

from tasks.opd.core.seeds import derive_seed
from tasks.opd.data.tiny import HIGHEST, LOWEST, NAMES, PLACES, THINGS, sign

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LongProblem:
    """One long computation with its truth."""
    text: str
    start: int                          # two digits
    steps: list[int]                    # signed single digits, none zero

    @property
    def answer(self) -> str:
        return str(self.start + sum(self.steps))

    @property
    def solution(self) -> str:
        """The worked solution: a line a step, each on the result of the one before, then the answer."""
        lines, before = [], self.start
        for i, step in enumerate(self.steps):
            lines.append(f"line {i + 1}: {before} {sign(step)} {abs(step)} = {before + step}")
            before += step
        return "\n".join([*lines, f"answer: {before}"])

    @property
    def entry(self) -> dict:
        """What `tiny.grade` needs beside the answer."""
        return {"start": self.start, "steps": self.steps}


def problem(index: int, seed: int = 0, split: Split = "train", num_steps: int = 14, highest: int = HIGHEST,
            largest: int = 9) -> LongProblem:
    """Problem `index` of the endless list that belongs to `seed` and a split: the same today and on every machine.

    No step is above `largest`, no value outside LOWEST..`highest`. It is the first of a row of draws whose text is in
    the split.
    """
    rng = random.Random(derive_seed("long", seed, split, index))
    return next(made for _ in count() if split_of((made := drawn(rng, num_steps, highest, largest)).text) == split)


def split_of(text: str) -> Split:
    """The split that a text belongs to, by its hash: eight in ten are for training, one each for the others."""
    return {8: "validation", 9: "test"}.get(derive_seed("split", text) % 10, "train")


def drawn(rng: random.Random, num_steps: int, highest: int, largest: int) -> LongProblem:
    """A problem of any split."""
    start, steps = rng.randint(LOWEST, highest), []
    value = start
    for _ in range(num_steps):
        steps.append(rng.choice([signed for size in range(1, largest + 1) for signed in (size, -size)
                                 if LOWEST <= value + signed <= highest]))
        value += steps[-1]
    name, place, thing = rng.choice(NAMES), rng.choice(PLACES), rng.choice(THINGS)
    told = ", ".join(f"{sign(step)} {abs(step)}" for step in steps)
    return LongProblem(text=f"{name} in {place} has {start} {thing}. Then {told}. How many {thing}?", start=start,
                       steps=steps)
