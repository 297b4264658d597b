"""What the teacher sees instead of the student's prompt: token ids, or None where it has nothing to say.

`context(rollout, group, prompt, tokenizer, *, ..) -> teacher prompt ids | None`; the tokenizer is the teacher's,
`group` the rollouts of the same prompt in this round. A rollout whose context is None leaves its terms and
their denominators.
"""
from tasks.opd.prompts import render
from tasks.opd.records import Prompt, Rollout

WITH_SOLUTION = """{text}

Here is a worked solution to check against:
{solution}

Make sure you understand why it is right. Then solve the problem yourself, step by step and in your own words."""


def same(rollout: Rollout, group: list[Rollout], prompt: Prompt, tokenizer) -> list[int] | None:
    """The student's own prompt."""
    return rollout.prompt_token_ids


def solution(rollout: Rollout, group: list[Rollout], prompt: Prompt, tokenizer) -> list[int] | None:
    """The question with its worked solution, and the request to solve it afresh; None without a solution.

    The idea is OPSD's: a model that sees the solution teaches the same model that does not. The wording is ours.
    """
    if not prompt.solution:
        return None
    return render(tokenizer, WITH_SOLUTION.format(text=prompt.text, solution=prompt.solution))


CONTEXTS = {"same": same, "solution": solution}
