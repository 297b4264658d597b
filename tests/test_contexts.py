"""What the teacher sees."""
import dataclasses

import pytest
from transformers import AutoTokenizer

from tasks.opd.contexts import CONTEXTS, WITH_SOLUTION
from tasks.opd.prompts import render
from tasks.opd.records import Prompt
from tests.small_llama import save_llama
from tests.test_filters import ROLLOUT

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
