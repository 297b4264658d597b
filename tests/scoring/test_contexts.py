"""What the teacher sees."""
import dataclasses
import json

import pytest
from transformers import AutoTokenizer

from tasks.bootstrap import make_models, models_needed
from tasks.context import check_context
from tasks.opd.core.errors import DataError
from tasks.opd.core.records import Prompt
from tasks.opd.data import tiny
from tasks.opd.models.tokenizers import render
from tasks.opd.recipe import loading, slots
from tasks.opd.scoring.contexts import AGAIN, CONTEXTS, CORRECT, FEEDBACK, WITH_DEMONSTRATION, WITH_SOLUTION, answer_of
from tasks.workers import pools
from tests.rollouts.test_filters import ROLLOUT
from tests.small_llama import save_llama

PROMPT = Prompt(prompt_id="a", index=0, text="w7 w8", token_ids=[7, 8], answer="", solution="w9 {w10}", entry="{}",
                domain="d")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    made = AutoTokenizer.from_pretrained(save_llama(tmp_path_factory.mktemp("llama")))
    made.chat_template = "w40 {{ messages[0]['content'] }}{% if add_generation_prompt %} w41{% endif %}"
    return made


def test_same_is_the_prompt_the_student_saw(tokenizer):
    assert CONTEXTS["same"](ROLLOUT, [ROLLOUT], PROMPT, tokenizer) == ROLLOUT.prompt_token_ids


def test_solution_shows_question_and_solution_in_the_chat_template(tokenizer):
    ids = CONTEXTS["solution"](ROLLOUT, [ROLLOUT], PROMPT, tokenizer)
    assert ids == render(tokenizer, WITH_SOLUTION.format(text="w7 w8", solution="w9 {w10}"))
    assert (ids[0], ids[1], ids[2], ids[-1]) == (40, 7, 8, 41)
    assert 9 in ids and ids.index(9) > 2


def test_solution_has_nothing_to_show_without_one(tokenizer):
    for missing in (None, ""):
        assert CONTEXTS["solution"](ROLLOUT, [], dataclasses.replace(PROMPT, solution=missing), tokenizer) is None


PROBLEM = tiny.problem(0)
QUESTION = Prompt(prompt_id="t", index=0, text=PROBLEM.text, token_ids=[], answer=PROBLEM.answer,
                  entry=json.dumps(PROBLEM.entry), domain="d", solution=PROBLEM.solution)


@pytest.fixture(scope="module")
def words():
    """The tiny task's tokenizer: text and ids map one to one, so that a context can be read back."""
    return tiny.build_tokenizer()


def group_of(words, *texts, rewards):
    """Rollouts of one prompt, each ending in the end token."""
    return [dataclasses.replace(ROLLOUT, rollout_id=f"r{i}", reward=reward,
                                token_ids=words.encode(text) + [words.eos_token_id])
            for i, (text, reward) in enumerate(zip(texts, rewards))]


def seen(words, index, group, **params):
    """What the teacher sees for rollout `index` of the group, as text; None for nothing."""
    ids = CONTEXTS["sibling"](group[index], group, QUESTION, words, **params)
    return None if ids is None else words.decode(ids)


def asked(*parts):
    return "<|user|>" + "\n\n".join([QUESTION.text, *parts, AGAIN]) + "<|assistant|>"


def test_demonstration_shows_the_solution_as_an_answer_and_asks_for_another(tokenizer, words):
    ids = CONTEXTS["demonstration"](ROLLOUT, [], PROMPT, tokenizer)
    assert ids == render(tokenizer, WITH_DEMONSTRATION.format(text="w7 w8", solution="w9 {w10}"))
    assert ids != CONTEXTS["solution"](ROLLOUT, [], PROMPT, tokenizer)
    shown = words.decode(CONTEXTS["demonstration"](ROLLOUT, [], QUESTION, words))
    assert shown.index(QUESTION.text) < shown.index(QUESTION.solution) < shown.index("Now answer the question yourself")
    for missing in (None, ""):
        assert CONTEXTS["demonstration"](ROLLOUT, [], dataclasses.replace(PROMPT, solution=missing), tokenizer) is None


def test_the_only_success_is_everyone_elses_sibling_and_has_none_of_its_own(words):
    group = group_of(words, "answer: 11", "answer: 12", "answer: 13", rewards=[0.0, 1.0, 0.0])
    expected = asked(CORRECT.format(sibling="answer: 12"))
    assert [seen(words, i, group) for i in range(3)] == [expected, None, expected]
    assert [seen(words, i, group, own_success=True) for i in range(3)] == [expected] * 3
    assert CONTEXTS["sibling"](group[0], group, QUESTION, words) == words.encode(expected)


def test_the_sibling_is_the_first_other_success(words):
    group = group_of(words, "answer: 11", "answer: 12", "answer: 13", "answer: 14", rewards=[0.4, 0.5, None, 1.0])
    assert "answer: 12" in seen(words, 0, group) and "answer: 14" not in seen(words, 0, group)
    assert "answer: 14" in seen(words, 1, group) and "answer: 12" not in seen(words, 1, group)
    assert "answer: 12" in seen(words, 1, group, own_success=True)
    assert "answer: 14" in seen(words, 0, group, threshold=0.6)
    assert seen(words, 3, group, threshold=0.6) is None


def test_without_a_success_there_is_feedback_or_nothing(words):
    group = group_of(words, "answer: 11", "answer: 12", rewards=[0.0, None])
    group[0] = dataclasses.replace(group[0], feedback="line 1: 3 + 4 is 7")
    told = asked(FEEDBACK.format(feedback="line 1: 3 + 4 is 7"))
    assert [seen(words, i, group) for i in range(2)] == [told, None]
    assert seen(words, 0, group, feedback="always") == told
    assert seen(words, 0, group, feedback="never") is None
    assert "answer: 11" not in told                       # what the rollout itself wrote stays out


def test_feedback_beside_a_sibling_stands_alone_always_or_never(words):
    group = group_of(words, "answer: 11", "answer: 12", rewards=[0.0, 1.0])
    group = [dataclasses.replace(r, feedback="not 11") for r in group]
    sibling, told = CORRECT.format(sibling="answer: 12"), FEEDBACK.format(feedback="not 11")
    assert seen(words, 0, group, feedback="always") == asked(sibling, told)
    assert seen(words, 0, group, feedback="alone") == seen(words, 0, group, feedback="never") == asked(sibling)
    assert seen(words, 1, group) == asked(told)           # the only success has no sibling


@pytest.mark.parametrize("written, shown", [
    ("<think>then 3\n</think>\n\nanswer: 4", "answer: 4"), ("then 3</think>answer: 4", "answer: 4"),
    ("answer: 4<think>then 3", "answer: 4"), ("<think>1</think>answer<think>2</think>: 4", "answer: 4"),
    ("answer: 4", "answer: 4"), ("answer: 3 - 1 = 2", "answer: 3 - 1 = 2")])
def test_thinking_is_not_shown(written, shown):
    words = thinking_tokenizer()
    rollout = dataclasses.replace(ROLLOUT, token_ids=words.encode(written) + [words.eos_token_id])
    assert answer_of(rollout, words) == shown


def thinking_tokenizer():
    """The tiny tokenizer with <think> and </think> as ordinary tokens, as Qwen has them."""
    words = tiny.build_tokenizer()
    words.add_tokens(["<think>", "</think>"])
    return words


def test_a_success_of_nothing_but_thinking_is_passed_over():
    words = thinking_tokenizer()
    group = group_of(words, "answer: 1", "<think>then</think>", "<think>so", "answer: 4", rewards=[0.0, 1.0, 1.0, 1.0])
    assert seen(words, 0, group) == asked(CORRECT.format(sibling="answer: 4"))


def test_text_that_spells_a_control_token_is_not_shown(words):
    group = group_of(words, "answer: 11", "answer: 12", rewards=[0.0, 0.0])
    told = [dataclasses.replace(group[0], feedback=f"not{end} 11") for end in ("<|end|>", "<|user|>")]
    assert [seen(words, 0, [rollout, group[1]]) for rollout in told] == [None, None]
    assert words.decode(words.encode("<|end|>")) == "<|end|>"         # it would have become the token itself


def test_experience_is_a_system_message_before_the_question(tokenizer, words):
    ids = CONTEXTS["experience"](ROLLOUT, [], QUESTION, words, text="Answer step by step.")
    assert words.decode(ids) == f"<|system|>Answer step by step.<|user|>{QUESTION.text}<|assistant|>"
    plain = tiny.build_tokenizer()
    plain.chat_template = None
    ids = CONTEXTS["experience"](ROLLOUT, [], QUESTION, plain, text="Answer step by step.")
    assert plain.decode(ids) == f"Answer step by step.\n\n{QUESTION.text}"


def test_experience_refuses_a_template_that_drops_it_and_an_empty_text():
    deaf = tiny.build_tokenizer()
    deaf.chat_template = "{{ '<|user|>' + messages[-1]['content'] + '<|assistant|>' }}"
    with pytest.raises(DataError, match="leaves out the system's turn"):
        CONTEXTS["experience"](ROLLOUT, [], QUESTION, deaf, text="Answer step by step.")
    for params in ({}, {"text": ""}):
        _, problems = slots.check(slots.Slot(name="experience", params=params), "context")
        assert [p.key for p in problems] == ["text"]


def test_experience_refuses_a_template_that_refuses_system_messages():
    strict = tiny.build_tokenizer()
    strict.chat_template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + \
        tiny.TEMPLATE
    with pytest.raises(DataError, match="refuses the turns system, user: no system"):
        CONTEXTS["experience"](ROLLOUT, [], QUESTION, strict, text="Answer step by step.")


def test_models_whose_template_drops_what_the_context_adds_are_refused_before_anything_is_asked(opd_home, tmp_path):
    tokenizer = tiny.build_tokenizer()
    model = tiny.new_model(tokenizer, seed=0, layers=1, hidden=64)
    for name, template in (("hears", tiny.TEMPLATE), ("deaf", "<|user|>{{ messages[-1]['content'] }}<|assistant|>")):
        tokenizer.chat_template = template
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)

    def check(variant: str, name: str) -> int:
        student = f"pair.student={{name: folder, path: {tmp_path / name}}}"
        recipe = loading.load(variant, ["workers=inline", student])
        with pools.for_run(recipe) as pool:
            models = make_models.fn(recipe.pair, models_needed(recipe), pool)
            return len(check_context.fn(recipe, models, pool))
    assert [check("opcd", "hears"), check("opsd", "deaf")] == [1, 0]  # of contexts only experience has system=True
    with pytest.raises(DataError, match="leaves out the system's turn; teacher.context experience is a system message"):
        check("opcd", "deaf")


def test_messages_before_the_question_stay_before_it_in_every_context(words):
    history = [{"role": "system", "content": "Answer."}, {"role": "user", "content": "How many figs?"},
               {"role": "assistant", "content": "answer: 12"}]
    prompt = dataclasses.replace(QUESTION, history=json.dumps(history))
    group = group_of(words, "answer: 11", "answer: 12", rewards=[0.0, 1.0])
    before = render(words, "answer", history)[:len(words.encode("Answer.How many figs?answer: 12"))]
    for name in ("solution", "demonstration", "sibling"):
        assert CONTEXTS[name](group[0], group, prompt, words)[:len(before)] == before, name
    told = [{"role": "system", "content": "Answer step by step.\n\nAnswer."}, *history[1:]]
    assert CONTEXTS["experience"](ROLLOUT, [], prompt, words, text="Answer step by step.") == render(
        words, prompt.text, told)


def test_our_words_are_all_known_to_the_tiny_task(words):
    right_lines = QUESTION.solution.rpartition("\n")[0]
    told = [tiny.grade(QUESTION, text)[1] for text in ("answer: 1", f"{right_lines}\nanswer: 1", right_lines)]
    for text in (WITH_SOLUTION, WITH_DEMONSTRATION, CORRECT, *(FEEDBACK.format(feedback=t) for t in told), AGAIN):
        filled = text.format(text=QUESTION.text, solution=QUESTION.solution, sibling="answer: 1")
        assert words.unk_token_id not in words.encode(filled) and words.decode(words.encode(filled)) == filled


def test_what_a_context_needs_is_what_it_has_nothing_to_say_without(words):
    group = group_of(words, "answer: 11", "answer: 12", rewards=[0.0, 1.0])
    bare, blind = dataclasses.replace(QUESTION, solution=None), [dataclasses.replace(r, reward=None) for r in group]
    params = {"experience": {"text": "Answer."}}

    def silent(prompt, rollouts):
        return {name for name, see in CONTEXTS.items()
                if see(rollouts[0], rollouts, prompt, words, **params.get(name, {})) is None}
    assert silent(QUESTION, group) == set()
    assert silent(bare, group) == {name for name, entry in CONTEXTS.items() if entry.shows_solution}
    assert silent(QUESTION, blind) == {"sibling"}
    assert silent(QUESTION, group[:1]) == {name for name, entry in CONTEXTS.items() if entry.grouped}
