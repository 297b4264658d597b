"""The bench's tasks: the tiny word problems with words for every request, careless and faulty solutions, and lists.

A model that is to use its prompt must know the words in it: those of every teacher's context and of the rewriting
request stand in this vocabulary. A careless solution forgets to carry and borrows twice: where a line crosses a ten its
result is ten too low ("18 + 4 = 12"), and the lines after it go on from there. Lists of digits to sort are a task of
its own that nobody trains on: what a model forgets shows there.
"""
import random
from collections.abc import Callable

from tasks.opd.core.seeds import derive_seed
from tasks.opd.data import tiny
from tasks.opd.data.tiny import DAYS, Problem, sign

REQUESTS = """if it keep write as at before continue errors every its may only rewritten so steps stop stops structure
style until were If It Keep Write Rewrite Sort these digits""".split()
LENGTH = 5                        # digits of a list, all different


def build_tokenizer(folder=None):
    """The tiny task's tokenizer with the words of every request."""
    return tiny.build_tokenizer(folder, REQUESTS)


def sorting(index: int, seed: int = 0) -> tuple[str, str]:
    """List `index` of the endless row that belongs to `seed`: what is asked, and the answer."""
    digits = random.Random(derive_seed("lists", seed, index)).sample(range(10), LENGTH)
    return f"Sort these digits: {' '.join(map(str, digits))}.", " ".join(map(str, sorted(digits)))


def written(problem: Problem, result: Callable[[int, int, int], int]) -> str:
    """A solution whose lines end with `result(line from 0, value before, step)`, each going on from the last."""
    lines, before = [], problem.start
    for i, (step, verb) in enumerate(zip(problem.steps, problem.verbs)):
        after = result(i, before, step)
        lines.append(f"line {i + 1}: {DAYS[i]} {verb} {abs(step)}, {before} {sign(step)} {abs(step)} = {after}")
        before = after
    return "\n".join([*lines, f"answer: {before}"])


def careless(problem: Problem, rng: random.Random, share: float) -> str:
    """A solution in which each line that crosses a ten is ten too low, with probability `share`.

    Where a value would not have two digits it keeps the tens digit of the one before.
    """
    def result(i: int, before: int, step: int) -> int:
        crosses = (before + step) // 10 != before // 10
        after = before + step - (10 if crosses and rng.random() < share else 0)
        return after if 10 <= after <= 99 else before // 10 * 10 + after % 10
    return written(problem, result)


def faulty(problem: Problem, rng: random.Random) -> str:
    """A try with one wrong line, which the lines after it go on from; half of them stop before the answer."""
    wrong = rng.randrange(len(problem.steps))
    off = rng.choice([off for off in (-10, -2, -1, 1, 2, 10) if 10 <= problem.values[wrong] + off <= 99])

    def result(i: int, before: int, step: int) -> int:
        after = before + step + (off if i == wrong else 0)
        return after if 10 <= after <= 99 else 10 + after % 10
    lines = written(problem, result).split("\n")
    return "\n".join(lines if rng.random() < 0.5 else lines[:rng.randint(wrong + 1, len(lines) - 1)])
