"""Chat templates: one that drops the question, draws by lot or leaves out a turn is found before it makes prompts."""
import random

import pytest

from tasks.opd.core.errors import DataError
from tasks.opd.data import tiny
from tasks.opd.models.templates import check_template, turn_left_out
from tasks.opd.models.tokenizers import render

PARTS_ONLY = "<|user|>{% for part in messages[-1]['content'] if part.type == 'text' %}{{ part.text }}{% endfor %}"
DATED = "<|user|>{{ strftime_now('%d %B %Y') }} {{ messages[-1]['content'] }}<|assistant|>"
BY_LOT = "<|user|>{{ ['Tom', 'Ada'] | random }} {{ messages[-1]['content'] }}<|assistant|>"


def with_template(template: str | None):
    tokenizer = tiny.build_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("template", [tiny.TEMPLATE, None, DATED])
def test_a_template_that_shows_the_question_passes_and_so_does_none(template):
    tokenizer = with_template(template)
    assert check_template(tokenizer) is None
    assert render(tokenizer, "3 apples") == render(tokenizer, "3 apples") != render(tokenizer, "4 apples")


@pytest.mark.parametrize("template, why", [
    (PARTS_ONLY, "drops the question"), ("<|user|>hello<|assistant|>", "drops the question"), (BY_LOT, "draws by lot"),
    ("{{ raise_exception('not today') }}", "fails on a question: not today"), ("{{ messages[0]['x']['y'] }}", "fails"),
    ("{% if %}", "fails")])
def test_a_template_that_cannot_be_trusted_is_refused(template, why):
    with pytest.raises(DataError, match=why):
        check_template(with_template(template))


def test_the_check_leaves_the_global_generator_alone():
    state = random.getstate()
    with pytest.raises(DataError):
        check_template(with_template(BY_LOT))
    assert random.getstate() == state


def test_a_template_that_prints_the_date_is_told_the_same_one_every_day(monkeypatch):
    import datetime

    from transformers.utils import chat_template_utils
    dated = with_template("<|user|>{{ strftime_now('%Y') }} {{ messages[-1]['content'] }}<|assistant|>")
    today = render(dated, "3 apples")
    assert dated.decode(today) == "<|user|>2026 3 apples<|assistant|>"

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 5, 6)
    monkeypatch.setattr(chat_template_utils, "datetime", Later)
    assert dated.apply_chat_template([{"role": "user", "content": "3 apples"}], return_dict=False) != today
    assert render(dated, "3 apples") == today


def test_turns_that_are_left_out_or_refused_are_named():
    assert turn_left_out(tiny.build_tokenizer(), ["system", "user", "assistant"]) is None
    assert turn_left_out(with_template(None), ["system"]) is None
    last = with_template("<|user|>{{ messages[-1]['content'] }}<|assistant|>")
    assert turn_left_out(last, []) is None
    assert turn_left_out(last, ["user", "assistant"]) == "leaves out the user's turn"
    strict = with_template("{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
                           "{% endif %}{{ m.content }}{% endfor %}")
    assert turn_left_out(strict, ["user", "system"]) == "refuses the turns user, system, user: no system"


def test_without_a_template_messages_stand_as_they_are():
    bare = with_template(None)
    history = [{"role": "system", "content": "Tom has 3 apples."}]
    assert render(bare, "How many?", history) == bare.encode("Tom has 3 apples.\n\nHow many?")
