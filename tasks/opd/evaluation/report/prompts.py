"""Questions as text, the answers that students gave to them, and which of them a variant gained or lost."""
import statistics
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow.parquet as pq

from tasks.opd.evaluation.report.lineage import Evaluation
from tasks.opd.store.artifacts import Artifact

RIGHT = 0.5                                 # a question counts as answered from this mean reward on
ANSWER_CHARACTERS, QUESTION_CHARACTERS = 1500, 600
ASKED = 12                                  # questions whose answers stand side by side

Rewards = dict[str, float]                  # prompt_id -> mean reward


@dataclass(frozen=True, kw_only=True, slots=True)
class Flips:
    """A variant against the baseline, prompt by prompt; rewards are means over samples and seeds."""
    variant: str
    gained: int                             # right with the variant only
    lost: int                               # right with the baseline only
    both: int
    neither: int
    dots: list[tuple[float, float, int]]    # reward of the baseline, of the variant, number of prompts


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One answer, or its beginning."""
    by: str
    text: str
    reward: float
    feedback: str
    finish: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A question with answers to it."""
    prompt_id: str
    text: str
    truth: str
    answers: list[Answer]


def mean_over(cells: list[Rewards]) -> Rewards:
    """The mean over seeds, prompt by prompt."""
    return {prompt: statistics.fmean(cell[prompt] for cell in cells) for prompt in cells[0]} if cells else {}


def flips_of(variant: str, own: Rewards, baseline: Rewards) -> Flips:
    """Prompts gained and lost, and how many lie at each pair of rewards (rounded to hundredths)."""
    outcomes = Counter((baseline[prompt] >= RIGHT, own[prompt] >= RIGHT) for prompt in own)
    dots = Counter((round(baseline[prompt], 2), round(own[prompt], 2)) for prompt in own)
    return Flips(variant=variant, gained=outcomes[False, True], lost=outcomes[True, False], both=outcomes[True, True],
                 neither=outcomes[False, False], dots=[(*place, count) for place, count in sorted(dots.items())])


def disputed(means: dict[str, Rewards]) -> list[str]:
    """The prompts on which variants differ most, at most ASKED; those on which all agree are left out."""
    prompts = next(iter(means.values()), {})
    apart = {prompt: statistics.pvariance([of[prompt] for of in means.values()]) for prompt in prompts}
    return [prompt for prompt in sorted(apart, key=lambda one: (-apart[one], one)) if apart[prompt] > 0][:ASKED]


class Asked(NamedTuple):
    """A question, and the truth."""
    prompt_id: str
    text: str
    answer: str


def asked(prompts: Artifact) -> dict[str, Asked]:
    """The questions of prompts by id, without their tokens: there may be very many."""
    table = pq.read_table(prompts.path / "prompts.parquet", columns=[*Asked._fields])
    return {row["prompt_id"]: Asked(**row) for row in table.to_pylist()}


def questions_of(evaluation: Evaluation) -> dict[str, Asked]:
    """The questions of an evaluation by id."""
    return asked(Artifact.from_json(evaluation.report.record["inputs"]["prompts"]))


def answered(evaluation: Evaluation, by: str, characters: int = ANSWER_CHARACTERS) -> dict[str, Answer]:
    """The first answer to every question, by its id, cut at `characters`."""
    table = pq.read_table(evaluation.report.path / "samples.parquet",
                          columns=["prompt_id", "sample_index", "text", "reward", "feedback", "finish_reason"])
    return {row["prompt_id"]: Answer(by=by, text=shortened(row["text"], characters), reward=row["reward"],
                                     feedback=shortened(row["feedback"] or "", 300), finish=row["finish_reason"])
            for row in table.to_pylist() if row["sample_index"] == 0}


def side_by_side(ends: dict[str, Evaluation], prompts: list[str], characters: int) -> list[Question]:
    """Questions with the answers of all; `ends` are evaluations on one benchmark, by whose they are. An answer is cut
    at `characters`, or at ANSWER_CHARACTERS.
    """
    if not ends or not prompts:
        return []
    known, answers = questions_of(next(iter(ends.values()))), {by: answered(one, by, min(characters, ANSWER_CHARACTERS))
                                                       for by, one in ends.items()}
    return [question(known[prompt], [of[prompt] for of in answers.values() if prompt in of]) for prompt in prompts]


def failed(evaluation: Evaluation, by: str, count: int) -> tuple[int, list[Question]]:
    """How many first answers are wrong, and the first `count` of them in the order of the benchmark."""
    known, answers = questions_of(evaluation), answered(evaluation, by)
    wrong = [prompt for prompt in known if prompt in answers and answers[prompt].reward < 1]
    return len(wrong), [question(known[prompt], [answers[prompt]]) for prompt in wrong[:count]]


def question(prompt: Asked, answers: list[Answer]) -> Question:
    """A prompt with answers."""
    return Question(prompt_id=prompt.prompt_id, text=shortened(prompt.text, QUESTION_CHARACTERS),
                    truth=shortened(prompt.answer, QUESTION_CHARACTERS), answers=answers)


def shortened(text: str, characters: int) -> str:
    """The text, or its beginning and how much is left out."""
    left = len(text) - characters
    return text if left <= 0 else f"{text[:characters]} [{left:,} characters more]"
