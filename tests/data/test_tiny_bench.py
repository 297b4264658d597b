"""The bench's tasks: its tokenizer knows every request, careless tries forget to carry, faulty ones go wrong once."""
import dataclasses
import json
import random
import re

import pytest
import yaml

from tasks.opd.core.records import Prompt
from tasks.opd.data import tiny, tiny_bench
from tasks.opd.data.graders import exact
from tasks.opd.data.sources import SOURCES
from tasks.opd.makers.kinds import KINDS, Question
from tasks.opd.models.tokenizers import control_tokens
from tasks.opd.recipe.loading import CONFIGS
from tasks.opd.rollouts.trd import refinement_prompt
from tasks.opd.scoring.contexts import CONTEXTS

MANY = [tiny.problem(i, num_steps=4) for i in range(100)]
EXPERIENCE = yaml.safe_load((CONFIGS / "variants/opcd.yaml").read_text())["teacher"]["context"]["text"]
PARAMS = {"experience": {"text": EXPERIENCE}, "sibling": {"feedback": "always"}}


def lines_of(solution: str) -> list[tuple[int, int]]:
    """(what a line computes, what it says) for every line of a solution."""
    return [(eval(left), int(right))  # noqa: S307
            for left, right in re.findall(r", (\d+ [+-] \d+) = (\d+)$", solution, re.MULTILINE)]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_bench.build_tokenizer()


def question(tokenizer, problem, **other) -> Question:
    return Question(problem=problem, rng=random.Random(problem.text), tokenizer=tokenizer, **other)


@pytest.mark.parametrize("name", CONTEXTS)
def test_every_word_of_a_context_is_known(tokenizer, name):
    for problem in MANY[:20]:
        asked = question(tokenizer, problem)
        for tried in (asked.attempt(), problem.solution, "answer: 1", "line"):
            group = [asked.rollout(tried), dataclasses.replace(asked.rollout(problem.solution), rollout_id="other")]
            ids = CONTEXTS[name](group[0], group, asked.prompt, tokenizer, **PARAMS.get(name, {}))
            assert ids and tokenizer.unk_token_id not in ids


@pytest.mark.parametrize("worked", [False, True])
def test_every_word_of_a_rewriting_request_is_known(tokenizer, worked):
    asked = question(tokenizer, MANY[0])
    ids = refinement_prompt(asked.prompt, asked.attempt(), tokenizer, control_tokens(tokenizer), worked)
    assert ids and tokenizer.unk_token_id not in ids
    assert tiny.build_tokenizer().unk_token_id in tiny.build_tokenizer().encode(tokenizer.decode(ids))  # the tiny one's


def test_the_tiny_tasks_vocabulary_is_the_beginning_of_the_benchs(tokenizer):
    known, all_known = tiny.vocabulary(), tiny.vocabulary(tiny_bench.REQUESTS)
    assert all_known[:len(known)] == known and len(tokenizer) == len(all_known) > len(known)


def test_a_careless_solution_by_hand():
    made = tiny.Problem(text="", start=18, steps=[4, -3, 5], verbs=["adds", "eats", "adds"])  # 22, 19, 24
    wrong = tiny_bench.careless(made, random.Random(0), 1.0)
    # 18 + 4 = 22 crosses twenty and becomes 12; 12 - 3 has no two digits and becomes 19; 19 + 5 = 24 becomes 14
    assert lines_of(wrong) == [(22, 12), (9, 19), (24, 14)] and wrong.endswith("\nanswer: 14")
    assert tiny_bench.careless(made, random.Random(0), 0.0) == made.solution


def test_a_careless_solution_is_off_by_ten_where_a_line_crosses_one_and_nowhere_else():
    for problem in MANY:
        for right, said in lines_of(tiny_bench.careless(problem, random.Random(0), 1.0)):
            assert abs(right - said) in (0, 10) or not 10 <= right <= 99
        assert tiny_bench.careless(problem, random.Random(0), 0.0) == problem.solution


def test_a_faulty_try_has_one_wrong_line_and_may_stop_early():
    tries = [tiny_bench.faulty(problem, random.Random(i)) for i, problem in enumerate(MANY)]
    for problem, tried in zip(MANY, tries):
        wrong = [right != said for right, said in lines_of(tried) if 10 <= right <= 99]
        assert sum(wrong) >= 1 and tried != problem.solution
        assert all(10 <= said <= 99 for _, said in lines_of(tried))
    assert 20 < sum("answer" in tried for tried in tries) < 80


def test_a_list_is_sorted_and_its_grader_agrees():
    items = list(SOURCES["tiny_lists"](range(50), seed=3))
    assert items == [*SOURCES["tiny_lists"](range(50), seed=3)] and len({item["text"] for item in items}) == 50
    for item in items:
        digits = item["text"].removeprefix("Sort these digits: ").rstrip(".").split()
        assert item["answer"].split() == sorted(digits) and len(set(digits)) == tiny_bench.LENGTH
        prompt = Prompt(prompt_id="l:0", index=0, text=item["text"], token_ids=[], answer=item["answer"],
                        solution=item["solution"], entry=json.dumps(item["entry"]), domain=item["domain"])
        assert exact(prompt, item["solution"])[0] == 1 and exact(prompt, "answer: " + " ".join(digits))[0] in (
            (1.0,) if digits == sorted(digits) else (0.0,))


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_has_no_unknown_word_and_its_completion_is_what_is_right(tokenizer, kind):
    for problem in MANY[:20]:
        ids, text = KINDS[kind](question(tokenizer, problem, experience=EXPERIENCE))
        assert tokenizer.unk_token_id not in [*ids, *tokenizer.encode(text)]
        assert text == problem.solution or kind == "lists" and text.startswith("answer: ")
