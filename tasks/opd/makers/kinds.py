"""Kinds of prompts that the bench's models learn to answer, each rendered by what renders it in a run.

A kind is `kind(question) -> (prompt token ids, completion)`. What a teacher may see comes from `scoring.contexts`, the
request to rewrite a try from `rollouts.trd`. Tries are made up: careless ones, and ones with any one line wrong.
"""
import functools
import json
import random
from dataclasses import dataclass
from typing import Any

from tasks.opd.core.entries import Entry
from tasks.opd.core.records import STUDENT, Prompt, Rollout
from tasks.opd.data import tiny, tiny_bench
from tasks.opd.models.tokenizers import control_tokens, render
from tasks.opd.rollouts.trd import refinement_prompt
from tasks.opd.scoring import contexts

NAME = "bench:0"                    # of the prompt and its group


@dataclass(frozen=True, kw_only=True)
class Question:
    """A problem to ask about, and what the kinds draw by and are told."""
    problem: tiny.Problem
    rng: random.Random
    tokenizer: Any
    careless: float = 0.0           # share of the lines crossing a ten that go wrong in answers to bare problems
    experience: str = ""            # system message of the kind `experience`

    @functools.cached_property
    def prompt(self) -> Prompt:
        """The problem as a prompt of a run."""
        made = self.problem
        return Prompt(prompt_id=NAME, index=0, text=made.text, token_ids=render(self.tokenizer, made.text),
                      answer=made.answer, solution=made.solution, entry=json.dumps(made.entry), domain=made.domain)

    def rollout(self, text: str) -> Rollout:
        """`text` as a graded rollout of the problem."""
        reward, feedback = tiny.grade(self.prompt, text)
        ids = [*self.tokenizer.encode(text), self.tokenizer.eos_token_id]
        return Rollout(rollout_id=text, prompt_id=NAME, group_id=NAME, domain=self.prompt.domain,
                       prompt_token_ids=self.prompt.token_ids, token_ids=ids, logprobs=[0.0] * len(ids),
                       author=[STUDENT] * len(ids), teacher_prompt_ids=None, origin="student", parent=None,
                       policy=[""] * len(ids), finish_reason="stop", reward=reward, feedback=feedback)

    def attempt(self) -> str:
        """A try that goes wrong: half of the time carelessly, where that does go wrong, else with any one line."""
        careless = tiny_bench.careless(self.problem, self.rng, 1.0)
        wrong = tiny.grade(self.prompt, careless)[0] < 1
        return careless if wrong and self.rng.random() < 0.5 else tiny_bench.faulty(self.problem, self.rng)


def in_context(name: str, asked: Question, texts: list[str], **params) -> tuple[list[int], str]:
    """The prompt of a context for a rollout that wrote the first text, in a group of them all; the worked solution."""
    group = [asked.rollout(text) for text in texts]
    ids = contexts.CONTEXTS[name](group[0], group, asked.prompt, asked.tokenizer, **params)
    return ids, asked.problem.solution


def bare(asked: Question) -> tuple[list[int], str]:
    """The problem alone, answered carelessly by the question's share."""
    return asked.prompt.token_ids, tiny_bench.careless(asked.problem, asked.rng, asked.careless)


def solution(asked: Question) -> tuple[list[int], str]:
    """After the worked solution, to check against."""
    return in_context("solution", asked, [""])


def demonstration(asked: Question) -> tuple[list[int], str]:
    """After the worked solution as an example of an answer."""
    return in_context("demonstration", asked, [""])


def sibling(asked: Question) -> tuple[list[int], str]:
    """After another rollout of the group, which is right, for a try that is not."""
    return in_context("sibling", asked, [asked.attempt(), asked.problem.solution])


def feedback(asked: Question) -> tuple[list[int], str]:
    """After what the grader says of a try that went wrong, which is not shown."""
    return in_context("sibling", asked, [asked.attempt()])


def experience(asked: Question) -> tuple[list[int], str]:
    """After the system message, which asks for care; without one, the problem alone."""
    if not asked.experience:
        return asked.prompt.token_ids, asked.problem.solution
    return in_context("experience", asked, [""], text=asked.experience)


def rewrite(asked: Question, worked: bool = False) -> tuple[list[int], str]:
    """The request to rewrite a try that went wrong or, one time in five, a right one."""
    draft = asked.problem.solution if asked.rng.random() < 0.2 else asked.attempt()
    control = control_tokens(asked.tokenizer)
    return refinement_prompt(asked.prompt, draft, asked.tokenizer, control, worked), asked.problem.solution


def rewrite_shown(asked: Question) -> tuple[list[int], str]:
    """The request to rewrite a try, with the worked solution to check it against."""
    return rewrite(asked, worked=True)


def lists(asked: Question) -> tuple[list[int], str]:
    """A list to sort, in the problem's place."""
    text, answer = tiny_bench.sorting(asked.rng.randrange(10 ** 9), seed=1)
    return render(asked.tokenizer, text), f"answer: {answer}"


KINDS = {"bare": Entry(bare), "solution": Entry(solution), "demonstration": Entry(demonstration),
         "sibling": Entry(sibling), "feedback": Entry(feedback), "experience": Entry(experience),
         "rewrite": Entry(rewrite), "rewrite_shown": Entry(rewrite_shown), "lists": Entry(lists)}
