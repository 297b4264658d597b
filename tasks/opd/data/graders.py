"""What an answer is worth: graders compare a completion with the prompt's truth.

A grader gives (reward, feedback text or None). Extraction is half of grading: the last number, last `answer:` or last
boxed expression counts, so that working shown before it does no harm.
"""
import json
import logging
import math as mathematics
import re
import threading
from functools import lru_cache
from typing import Annotated

from pydantic import Field

from tasks.opd.core.entries import Entry
from tasks.opd.core.records import Prompt, source_of
from tasks.opd.data import tiny as tiny_task
from tasks.opd.data.sources import gym_dataset

LONGEST = 2000                    # characters of an expression that is looked at
NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|(?<![\w.])[-+]?\.\d+")
FINAL = re.compile(r"answer\s*(?:is\s*:?|:|=)", re.IGNORECASE)


def exact(prompt: Prompt, completion: str, *, ignore_case: bool = False) -> tuple[float, str | None]:
    """1 when the text after the last "answer:" (else the last line that is not empty) is the truth, spaces aside."""
    given, truth = final_answer(completion), prompt.answer.strip()
    right = given.lower() == truth.lower() if ignore_case else given == truth
    return verdict(right, given, truth)


def numeric(prompt: Prompt, completion: str, *,
            tolerance: Annotated[float, Field(ge=0)] = 1e-6) -> tuple[float, str | None]:
    """1 when the final number equals the truth within `tolerance`, relative to numbers above 1 and absolute below.

    Thousands' commas, currency and percent signs and units are passed over: "$1,200.50 in all" is 1200.5.
    """
    given, truth = last_number(final_answer(completion)), last_number(prompt.answer)
    given = last_number(completion) if given is None else given
    if truth is None:
        raise ValueError(f"prompt {prompt.prompt_id} has the answer {prompt.answer!r}, which holds no number; "
                         "use the grader exact or math")
    right = given is not None and abs(given - truth) <= tolerance * max(1.0, abs(truth))
    return verdict(right, None if given is None else f"{given:g}", prompt.answer)


def math(prompt: Prompt, completion: str) -> tuple[float, str | None]:
    """1 when math-verify finds the final (boxed, LaTeX or plain) expression equal to the truth.

    math-verify stops endless simplification with SIGALRM, which only a main thread may set. So its limits of five
    seconds hold there, and off the main thread it runs without limits; longer ones than 2,000 characters are wrong.
    """
    boxed = completion.rfind("\\boxed")  # of several, the last counts
    right, shown = math_equal(prompt.answer, completion[boxed:] if boxed >= 0 else completion[-LONGEST:])
    return verdict(right, shown, prompt.answer)


def math_equal(truth: str, completion: str) -> tuple[bool, str | None]:
    """Whether the completion's final expression equals the truth, and that expression as written."""
    from math_verify import parse, verify
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns at every call that it runs without limits
    seconds = 5 if threading.current_thread() is threading.main_thread() else None
    wanted = parse(truth if "$" in truth or "\\boxed" in truth else f"${truth}$", parsing_timeout=seconds)
    given = parse(completion, parsing_timeout=seconds)
    if not given or any(len(str(part)) > LONGEST for part in given):
        return False, None
    return bool(verify(wanted, given, timeout_seconds=seconds)), str(given[-1])


def reasoning_gym(prompt: Prompt, completion: str, *, partial: bool = False) -> tuple[float, str | None]:
    """The dataset's own `score_answer` of the final answer: its last number where the truth is one, else its text.

    Many datasets give 0.01 for any attempt; below 1 counts as 0 unless `partial`.
    """
    entry = json.loads(prompt.entry)
    given = final_answer(completion)
    if last_number(prompt.answer) is not None and NUMBER.fullmatch(prompt.answer.strip()):
        number = last_number(given) if last_number(given) is not None else last_number(completion)
        given = "" if number is None else f"{number:.10g}"
    score = float(gym(entry["dataset"], entry["seed"]).score_answer(given or None, entry))
    right = score >= 1
    return (score if partial or right else 0.0), verdict(right, given or None, prompt.answer)[1]


@lru_cache(maxsize=16)
def gym(dataset: str, seed: int):
    """A dataset for its scoring alone; its size does not matter."""
    return gym_dataset(dataset, seed, 1)


def tiny(prompt: Prompt, completion: str) -> tuple[float, str | None]:
    """1 when the answer is right; the feedback names the first wrong line ("line 3: 12 + 7 is 19")."""
    return tiny_task.grade(prompt, completion)


GRADERS = {"exact": Entry(exact), "numeric": Entry(numeric), "math": Entry(math), "reasoning_gym": Entry(reasoning_gym),
           "tiny": Entry(tiny)}


def verdict(right: bool, given: str | None, truth: str) -> tuple[float, str | None]:
    """(1, None), or 0 and what was wrong."""
    if right:
        return 1.0, None
    return 0.0, f"the answer is {truth}, not {given}" if given else f"no answer was found; it is {truth}"


def final_answer(completion: str) -> str:
    """What stands after the last "answer:" or "answer is", else the last line that is not empty; closing marks go."""
    found = list(FINAL.finditer(completion))
    lines = [line for line in completion.splitlines() if line.strip()]
    text = completion[found[-1].end():].strip().partition("\n")[0] if found else lines[-1] if lines else ""
    return text.strip().strip("*`").rstrip(".").strip()


def last_number(text: str) -> float | None:
    """The last finite number of a text, commas removed; None when there is none."""
    for found in reversed(NUMBER.findall(text.replace("−", "-"))):
        value = float(found.replace(",", ""))
        if mathematics.isfinite(value):
            return value
    return None


def grade_by_source(graders: dict[str, dict], prompt: Prompt, completion: str) -> tuple[float | None, str | None]:
    """Reward and feedback by the grader of the prompt's source; None and None where that has no grader."""
    grader = graders.get(source_of(prompt.prompt_id))
    return grade(grader, prompt, completion) if grader else (None, None)


def grade(grader: dict, prompt: Prompt, completion: str) -> tuple[float, str | None]:
    """Reward and feedback of a grader given as a slot ({"name", "params"})."""
    reward, feedback = GRADERS[grader["name"]](prompt, completion, **grader["params"])
    assert mathematics.isfinite(reward), f"grader {grader['name']} gave {reward} on {prompt.prompt_id}"
    return float(reward), feedback


def completion_text(tokenizer, token_ids: list[int]) -> str:
    """The text of a completion without special tokens, as graders read it."""
    return tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


