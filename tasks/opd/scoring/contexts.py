"""What the teacher sees instead of the student's prompt: token ids, or None where it has nothing to say.

`context(rollout, group, prompt, tokenizer, *, ..) -> teacher prompt ids | None`; the tokenizer is the teacher's,
`group` the rollouts of the same prompt in this round, this one included. A rollout whose context is None leaves its
terms and their denominators. The wordings are ours; only the ideas are the papers'.
"""
import re
from typing import Annotated, Literal

from pydantic import Field

from tasks.opd.core.entries import Entry
from tasks.opd.core.records import Prompt, Rollout
from tasks.opd.models.tokenizers import control_tokens, render, render_chat, showable

WITH_SOLUTION = """{text}

Here is a worked solution to check against:
{solution}

Make sure you understand why it is right. Then solve the problem yourself, step by step and in your own words."""
WITH_DEMONSTRATION = """{text}

Here is an answer to this question:
{solution}

Now answer the question yourself, step by step and in your own words."""
CORRECT = "Here is a correct solution:\n{sibling}"
FEEDBACK = "Your first try has this feedback: {feedback}"
AGAIN = "Now solve the problem, step by step."
THINKING = re.compile(r"\A(?:(?!<think>).)*?</think>\s*|<think>.*?(?:</think>\s*|\Z)", re.DOTALL)


def same(rollout: Rollout, group: list[Rollout], prompt: Prompt, tokenizer) -> list[int] | None:
    """The student's own prompt."""
    return rollout.prompt_token_ids


def solution(rollout: Rollout, group: list[Rollout], prompt: Prompt, tokenizer) -> list[int] | None:
    """The question with its worked solution, and the request to solve it afresh; None without a solution.

    The idea is OPSD's, arXiv:2601.18734: a model that sees the solution teaches the same model that does not.
    """
    if not prompt.solution:
        return None
    return render(tokenizer, WITH_SOLUTION.format(text=prompt.text, solution=prompt.solution))


def demonstration(rollout: Rollout, group: list[Rollout], prompt: Prompt, tokenizer) -> list[int] | None:
    """The question with its worked solution as an example of an answer, then the request for one's own; None without.

    Nothing says that the example is to be understood or checked against: it shows what answers look like.
    Source: SDFT, arXiv:2601.19897.
    """
    if not prompt.solution:
        return None
    return render(tokenizer, WITH_DEMONSTRATION.format(text=prompt.text, solution=prompt.solution))


def sibling(rollout: Rollout, group: list[Rollout], prompt: Prompt, tokenizer, *,
            feedback: Literal["never", "alone", "always"] = "alone", threshold: float = 0.5,
            own_success: bool = False) -> list[int] | None:
    """The question with another rollout of its group that succeeded, or with feedback to this one; None with neither.

    The sibling is the first of the group with a reward of at least `threshold`; `own_success` lets the rollout be its
    own. Feedback is the grader's to this rollout: shown `never`, `alone` (without a sibling only) or `always`. What
    this rollout wrote is not shown.
    Source: SDPO, arXiv:2601.20802 (3); own_success is the reverse of its code's dont_reprompt_on_self_success.
    """
    control, parts = control_tokens(tokenizer), [prompt.text]
    for other in group:
        if (other.reward is None or other.reward < threshold
                or other.rollout_id == rollout.rollout_id and not own_success):
            continue
        if text := showable(answer_of(other, tokenizer), control):
            parts.append(CORRECT.format(sibling=text))
            break
    shown = showable(rollout.feedback or "", control)
    if shown and (feedback == "always" or feedback == "alone" and len(parts) == 1):
        parts.append(FEEDBACK.format(feedback=shown))
    return render(tokenizer, "\n\n".join([*parts, AGAIN])) if len(parts) > 1 else None


def answer_of(rollout: Rollout, tokenizer) -> str:
    """A completion's text without special tokens and without what stands in <think>..</think>.

    Thinking that began in the prompt ends at the first </think>; thinking that was cut off ends with the text.
    """
    text = tokenizer.decode(rollout.token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return THINKING.sub("", text)


def experience(rollout: Rollout, group: list[Rollout], prompt: Prompt, tokenizer, *,
               text: Annotated[str, Field(min_length=1)]) -> list[int] | None:
    """The question after a system message of one's own; before a plain question without a chat template.

    The student learns to act as if it had been told.
    Source: OPCD, arXiv:2602.12275.
    Raises: ValueError when the chat template leaves the system message out.
    """
    if not tokenizer.chat_template:
        return tokenizer.encode(f"{text}\n\n{prompt.text}")
    messages = [{"role": "system", "content": text}, {"role": "user", "content": prompt.text}]
    ids = render_chat(tokenizer, messages)
    if ids == render(tokenizer, prompt.text):
        raise ValueError("the teacher's chat template leaves out the system message of teacher.context experience; "
                         "take a teacher whose template has system messages")
    return ids


CONTEXTS = {"same": Entry(same, own_prompt=True), "solution": Entry(solution, shows_solution=True),
            "demonstration": Entry(demonstration, shows_solution=True), "sibling": Entry(sibling, grouped=True),
            "experience": Entry(experience)}
