"""Chat templates, which come with a model's folder: what they may not do, and what is said then."""
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tasks.opd.core.errors import DataError
from tasks.opd.models.tokenizers import render


def tokenizer(template: str) -> PreTrainedTokenizerFast:
    """A tokenizer of three words with this chat template."""
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "one": 1, "two": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    made.chat_template, made.name_or_path = template, "folder/of/a/model"
    return made


def test_a_question_is_rendered_through_the_template_and_without_one_as_it_stands():
    assert render(tokenizer("one {{ messages[0]['content'] }}"), "two") == [1, 2]
    assert render(tokenizer(""), "two") == [2]


@pytest.mark.parametrize("template, told", [
    ("{{ ''.__class__.__mro__ }}", "SecurityError"),
    ("{{ messages.__class__.__base__.__subclasses__() }}", "SecurityError"),
    ("{% for message in messages %}", "TemplateSyntaxError"),
    ("{{ raise_exception('roles must alternate') }}", "TemplateError: roles must alternate"),
    ("{{ nobody.said }}", "UndefinedError"),
    ("{{ 1 // 0 }}", "ZeroDivisionError"),
    ("{{ messages + 1 }}", "TypeError"),
    ("{{ range(999999999) | list }}", "OverflowError")])
def test_a_template_that_fails_or_breaks_out_is_an_error_of_the_models_folder(template, told):
    with pytest.raises(DataError, match=f"(?s)chat template of folder/of/a/model cannot be used: .*{told}") as caught:
        render(tokenizer(template), "one")
    assert caught.value.exit_code == 11
