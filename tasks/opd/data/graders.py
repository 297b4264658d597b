"""What an answer is worth: graders compare a completion with the prompt's truth.

A grader gives (reward, feedback text or None). Extraction is half of grading (see `answers`): what stands in a finished
trace of thinking is never the answer, and an unfinished one has none.
"""
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
from tasks.opd.data.answers import boxes, final_text, marked, trimmed, unboxed, without_thinking
from tasks.opd.data.fields import unpacked
from tasks.opd.data.numerals import answer_number, bold_number, last_number, numbers_of
from tasks.opd.data.sources import gym_dataset

LONGEST = 2000                    # characters of an expression that is looked at
UNESCAPED = re.compile(r"(?<!\\)\$|\\boxed")  # LaTeX that says itself where mathematics begins
THIN_SPACE = re.compile(r"(?<=\d)\\[,;: ](?=\d{3})")  # between thousands, in LaTeX
CLAUSE = re.compile(r"(?<=\d)[.;!?](?=\s)(?!\s*[-=+*/\u00d7])|(?<=\D)[.;!?](?=\s|$)|,?\s(?:because|since|which)\b")


def exact(prompt: Prompt, completion: str, *, ignore_case: bool = False) -> tuple[float, str | None]:
    """1 when the completion's final answer is the truth, spaces and Markdown's marks around both aside.

    That is the last box's content, else the text after the last "answer:", else the last line that is not empty; of
    a truth with several lines as many. A truth with a box is the box's content.
    """
    truth = unboxed(prompt.answer).strip()
    text = final_text(completion, len(truth.splitlines()))
    wanted = {truth} if truth.startswith((">", "#")) else {truth, trimmed(truth)}   # which are no marks there
    cased = str.lower if ignore_case else str
    right = {cased(form) for form in wanted if form} & {cased(text), cased(trimmed(text))}
    return verdict(bool(right), trimmed(text), prompt.answer)


def numeric(prompt: Prompt, completion: str, *,
            tolerance: Annotated[float, Field(ge=0)] = 1e-6) -> tuple[float, str | None]:
    """1 when the final number equals the truth within `tolerance`, relative to numbers above 1 and absolute below.

    Thousands' commas, currency and percent signs and units are passed over: "$1,200.50 in all" is 1200.5. Fractions,
    powers, every dash and LaTeX are read (see `numerals`). The truth is one number, or has one in its box.
    Raises: ValueError when the truth holds none, or several.
    """
    told = unboxed(prompt.answer)
    wanted = numbers_of(told)
    if len(wanted) != 1 and (value := evaluated(told)) is not None:
        wanted = [value]
    if len(wanted) != 1:
        raise ValueError(f"prompt {prompt.prompt_id} has the answer {prompt.answer!r}, which holds "
                         f"{'several numbers' if wanted else 'no number'}; use the grader exact or math")
    given, truth = final_number(completion), wanted[0]
    right = given is not None and abs(given - truth) <= tolerance * max(1.0, abs(truth))
    return verdict(right, None if given is None else f"{given:g}", prompt.answer)


def final_number(completion: str) -> float | None:
    """The number a completion answers with; None without one.

    That is the one in its last box, else the one after "answer:" (before a reason that follows it), else the last bold
    one, else the last one that stands alone.
    """
    text = without_thinking(completion)
    if boxed := boxes(text):
        return number_in(boxed[-1])
    line = (marked(text) or "").partition("\n")[0]
    found = (read(part) for read, part in ((answer_number, CLAUSE.split(line)[0]), (answer_number, line),
                                           (bold_number, text), (last_number, text)))
    return next((value for value in found if value is not None), None)


def number_in(expression: str) -> float | None:
    """The value of an expression in a box: the only number there, else what it comes to, else its `answer_number`."""
    expression = THIN_SPACE.sub("", expression)
    found = numbers_of(expression)
    value = evaluated(expression) if len(found) != 1 or "\\" in expression else None
    return value if value is not None else answer_number(expression)


def evaluated(expression: str) -> float | None:
    """What an expression in LaTeX comes to, such as 2\\sqrt{3}; None where that is no finite number."""
    parsed, _ = parsed_math(f"\\boxed{{{expression}}}")
    value = parsed[0] if parsed else None
    if not getattr(value, "is_number", False) or not value.is_real:
        return None
    try:
        number = float(value)
    except (OverflowError, TypeError):  # 10^400
        return None
    return number if mathematics.isfinite(number) else None


def math(prompt: Prompt, completion: str) -> tuple[float, str | None]:
    """1 when math-verify finds the final (boxed, LaTeX or plain) expression equal to the truth.

    Of several boxes the last complete one counts; where the truth has n values, the last n together count as well.
    math-verify stops endless simplification with SIGALRM, which only a main thread may set. So its limits of five
    seconds hold there, and off the main thread it runs without limits; longer ones than 2,000 characters are wrong.
    """
    text = without_thinking(completion)
    if not (boxed := boxes(text)):
        return verdict(*math_equal(prompt.answer, text[-LONGEST:]), prompt.answer)
    right, shown = math_equal(prompt.answer, f"\\boxed{{{boxed[-1]}}}")
    together = f"\\boxed{{{', '.join(boxed[-num_values(prompt.answer):])}}}"
    return verdict(right or math_equal(prompt.answer, together)[0], shown, prompt.answer)


def num_values(truth: str) -> int:
    """How many values a truth has: 2 of "3, 5"; 1 of a single expression, and of what cannot be parsed."""
    from sympy import FiniteSet
    parsed, _ = parsed_math(as_latex(truth))
    return max(len(parsed[0]), 1) if parsed and isinstance(parsed[0], FiniteSet) else 1


def as_latex(truth: str) -> str:
    """A truth within dollar signs, unless it says itself where mathematics begins."""
    return truth if UNESCAPED.search(truth) else f"${truth}$"


def parsed_math(text: str) -> tuple[list, int | None]:
    """What math-verify's parser finds in a text, and the seconds that its calls may take in this thread."""
    from math_verify import parse
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns at every call that it runs without limits
    seconds = 5 if threading.current_thread() is threading.main_thread() else None
    return parse(text, parsing_timeout=seconds), seconds


def math_equal(truth: str, completion: str) -> tuple[bool, str | None]:
    """Whether the completion's final expression equals the truth, and that expression as written."""
    from math_verify import verify
    wanted, seconds = parsed_math(as_latex(truth))
    given, _ = parsed_math(completion)
    if not given or any(len(str(part)) > LONGEST for part in given):
        return False, None
    return bool(verify(wanted, given, timeout_seconds=seconds)), str(given[-1])


def reasoning_gym(prompt: Prompt, completion: str, *, partial: bool = False) -> tuple[float, str | None]:
    """The dataset's own `score_answer` of the final answer: its last number where the truth is one, and its text.

    Many datasets give 0.01 for any attempt; below 1 counts as 0 unless `partial`.
    """
    entry, text = unpacked(prompt.entry), final_text(completion, len(prompt.answer.strip().splitlines()))
    given = [text, trimmed(text)]       # "#B", "_ Q _", a sentence with its full stop: marks may be the answer's own
    if is_number(prompt.answer):
        number = final_number(completion)
        given = [written(number), text] if number is not None else [""]
    scores = {form: float(gym(entry["dataset"], entry["seed"]).score_answer(form or None, entry)) for form in given}
    best = max(scores, key=scores.get)
    right = scores[best] >= 1
    return (scores[best] if partial or right else 0.0), verdict(right, best or None, prompt.answer)[1]


def written(number: float) -> str:
    """A number with all its digits."""
    return str(int(number)) if number.is_integer() else repr(number)


def is_number(text: str) -> bool:
    """Whether a text is a number as programs write them, and nothing else."""
    return re.fullmatch(r"\s*[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?\s*", text) is not None and \
        last_number(text) is not None


@lru_cache(maxsize=16)
def gym(dataset: str, seed: int):
    """A dataset for its scoring alone; its size does not matter."""
    return gym_dataset(dataset, seed, 1)


def tiny(prompt: Prompt, completion: str) -> tuple[float, str | None]:
    """1 when the answer is right; the feedback names the first wrong line ("line 3: 12 + 7 is 19")."""
    return tiny_task.grade(prompt, without_thinking(completion))


GRADERS = {"exact": Entry(exact), "numeric": Entry(numeric), "math": Entry(math), "reasoning_gym": Entry(reasoning_gym),
           "tiny": Entry(tiny)}


def verdict(right: bool, given: str | None, truth: str) -> tuple[float, str | None]:
    """(1, None), or 0 and what was wrong."""
    if right:
        return 1.0, None
    return 0.0, f"the answer is {truth}, not {given}" if given else f"no answer was found; it is {truth}"


def grade_by_source(graders: dict[str, dict], prompt: Prompt, completion: str) -> tuple[float | None, str | None]:
    """Reward and feedback by the grader of the prompt's source; None and None where that has no grader."""
    grader = graders.get(source_of(prompt.prompt_id))
    return grade(grader, prompt, completion) if grader else (None, None)


def grade(grader: dict, prompt: Prompt, completion: str) -> tuple[float, str | None]:
    """Reward and feedback of a grader given as a slot ({"name", "params"})."""
    reward, feedback = GRADERS[grader["name"]](prompt, completion, **grader["params"])
    assert mathematics.isfinite(reward), f"grader {grader['name']} gave {reward} on {prompt.prompt_id}"
    return float(reward), feedback
