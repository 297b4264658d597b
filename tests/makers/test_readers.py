"""How the bench's models learn: kinds by phase, what of an example is learnt, when a course ends and when it fails."""
import dataclasses
import json
import random

import pytest
import torch
from transformers import AutoTokenizer

from tasks.opd.core.errors import DataError, OpdError
from tasks.opd.data import tiny, tiny_bench
from tasks.opd.engines.pool import Session
from tasks.opd.makers.kinds import KINDS, Question
from tasks.opd.makers.mixture import Mixture, examples, learn_step, loss_sum, row_of
from tasks.opd.makers.models import make_model
from tasks.opd.makers.pretraining import optimizers_of
from tasks.opd.models.tokenizers import render
from tasks.opd.recipe import loading

WORDS = tiny_bench.build_tokenizer()
COURSE = Mixture(layers=1, hidden=32, steps=4, batch=6, learning_rate=0.01, embedding_rate=0.01, first={"lists": 1},
                 then={"bare": 1, "solution": 0}, switch_at=0.5, num_steps=2, highest=29, largest=5, careless=0.0,
                 experience="Take care.", learn_shown=False, evaluate_from=1, evaluate_every=2, problems=2, enough={},
                 asked=("lists",))
SMALL = {"layers": 1, "hidden": 32, "steps": 4, "batch": 3, "num_steps": 2, "evaluate_from": 2, "evaluate_every": 2,
         "problems": 2, "first": {"bare": 1, "lists": 1}, "then": {"feedback": 1}}


def make(out, **params) -> dict:
    out.mkdir(parents=True)
    spec = {"maker": {"name": "tiny_reader", "params": {"enough": {}, "at_most": {}, **SMALL, **params}}, "seed": 0}
    return make_model({}, spec, out, Session())


def text_of(row) -> str:
    return WORDS.decode(row[0])


@pytest.mark.parametrize("step, opening", [(1, "<|user|>Sort"), (2, "<|user|>Sort"), (3, None), (4, None)])
def test_the_kinds_of_a_step_are_those_of_its_phase(step, opening):
    texts = [text_of(row) for row in examples(WORDS, 0, step, COURSE)]
    assert len(texts) == len(set(texts)) == 6
    assert all(text.startswith(opening) if opening else "How many" in text and "solution" not in text for text in texts)


def test_no_problem_is_learnt_twice_and_a_step_is_drawn_the_same_again():
    course = dataclasses.replace(COURSE, first={"bare": 1})
    texts = [text_of(row) for step in (1, 2, 3) for row in examples(WORDS, 0, step, course)]
    assert len(set(texts)) == 18
    assert texts[6:12] == [text_of(row) for row in examples(WORDS, 0, 2, course)]
    assert texts[:6] != [text_of(row) for row in examples(WORDS, 1, 1, course)]


def test_what_is_learnt_is_the_completion_and_where_asked_the_same_text_in_the_prompt():
    problem = tiny.problem(0, num_steps=2)
    ids, text = KINDS["solution"](Question(problem=problem, rng=None, tokenizer=WORDS))
    written, (whole, wanted) = WORDS.encode(text), row_of(ids, text, WORDS, learn_shown=False)
    assert whole == [*ids, *written, WORDS.eos_token_id]
    assert wanted == [False] * len(ids) + [True] * (len(written) + 1)
    _, both = row_of(ids, text, WORDS, learn_shown=True)
    assert [token for token, learnt in zip(whole, both) if learnt] == [*written, *written, WORDS.eos_token_id]
    assert row_of(render(WORDS, problem.text), text, WORDS, True)[1].count(True) == len(written) + 1


def test_a_step_is_that_of_all_its_examples_at_once():
    """Micro-batches of like length have the gradient of the mean over all learnt tokens."""
    course = dataclasses.replace(COURSE, first={"lists": 1, "bare": 1, "demonstration": 1})
    rows = examples(WORDS, 0, 1, course)
    model, other = (tiny.new_model(WORDS, seed=0, layers=1, hidden=32) for _ in range(2))
    tokens = sum(sum(wanted) for _, wanted in rows)
    whole = loss_sum(other, rows) / tokens
    whole.backward()
    optimizers = optimizers_of(model, course)
    assert learn_step(model, optimizers, rows, 0.0) == pytest.approx(whole.item(), rel=1e-5)
    norm = torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
    assert norm > 0
    for one, two in zip(model.parameters(), other.parameters()):
        assert torch.allclose(one.grad, two.grad, atol=1e-5)


def test_learning_lowers_the_loss(tmp_path):
    make(tmp_path / "m", steps=30, then=SMALL["first"], evaluate_from=30, hidden=64, batch=8)
    points = [json.loads(line) for line in (tmp_path / "m" / "metrics.jsonl").read_text().splitlines()]
    losses = [p["value"] for p in points if p["key"] == "model/loss_nats"]
    assert len(losses) == 30 and losses[0] > 5 and losses[-1] < losses[0] - 2   # ln 730 = 6.6 nats at first


def test_a_course_ends_when_all_is_enough_and_counts_every_kind_it_had(tmp_path):
    counts = make(tmp_path / "m", enough={"bare": 0.0, "rewrite": 0.0})
    assert counts["steps"] == 2
    assert {key for key in counts if key.startswith("accuracy")} == {
        "accuracy_bare", "accuracy_lists", "accuracy_feedback", "accuracy_rewrite"}
    assert AutoTokenizer.from_pretrained(tmp_path / "m" / "model").get_vocab() == WORDS.get_vocab()


def test_a_course_that_ends_below_enough_or_above_at_most_fails_by_kind(tmp_path):
    with pytest.raises(OpdError, match=r"after 4 steps with bare 0.00 \(at least 0.5\); raise steps"):
        make(tmp_path / "a", enough={"bare": 0.5, "lists": 0.0})
    with pytest.raises(OpdError, match=r"after 4 steps with lists 0.00 \(at least 1.0\), bare 0.00 \(at most -1\)"):
        make(tmp_path / "b", enough={"lists": 1.0}, at_most={"bare": -1})
    counts = make(tmp_path / "c", at_most={"rewrite": 0.5})     # a kind that is not learnt
    assert counts["accuracy_rewrite"] == 0 and "accuracy_sibling" not in counts


def test_a_course_without_any_kind_is_refused_before_it_begins(tmp_path):
    with pytest.raises(DataError, match="weights of `first` and of `then`"):
        make(tmp_path / "a", then={"bare": 0})


def test_careless_are_the_answers_to_bare_problems_only():
    problem = next(p for i in range(99) if (p := tiny.problem(i, num_steps=2)).values[0] // 10 > p.start // 10)
    texts = {kind: KINDS[kind](Question(problem=problem, rng=random.Random(0), tokenizer=WORDS, careless=1.0,
                                        experience="Take care."))[1] for kind in KINDS if kind != "lists"}
    assert texts.pop("bare") != problem.solution and set(texts.values()) == {problem.solution}


def test_the_benchs_system_message_is_the_one_that_opcds_teacher_sees():
    recipe = loading.load("opcd", ["pair=bench"])
    assert recipe.pair.student.params["experience"] == recipe.pair.teacher.params["experience"]
    assert recipe.pair.student.params["experience"] == recipe.teacher.context.params["text"]


def test_the_benchs_longest_request_and_its_rewrite_have_room():
    recipe = loading.load("trd_solution", ["pair=bench"])
    params = recipe.prompts.source.params
    made = [tiny.problem(i, num_steps=params["num_steps"], highest=params["highest"], largest=params["largest"])
            for i in range(50)]
    asked = [Question(problem=p, rng=random.Random(0), tokenizer=WORDS) for p in made]
    longest = max(len(KINDS["rewrite_shown"](one)[0]) for one in asked)
    assert longest + recipe.rollout.sampling.max_new_tokens <= recipe.pair.context_tokens
    assert max(len(WORDS.encode(p.solution)) + 1 for p in made) <= recipe.rollout.sampling.max_new_tokens
