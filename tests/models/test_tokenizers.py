"""A question as token ids: with what a tokenizer puts before it, never with what ends it."""
import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from tasks.opd.core.errors import DataError
from tasks.opd.models.folders import vocabulary_size
from tasks.opd.models.tokenizers import encode, num_named, num_rows, render
from tests.tiny_models import tiny_llama, write_tokenizer


@pytest.mark.parametrize("single, wanted", [
    ("$A <eos>", [5, 6]),                       # an EOS that would end the prompt
    ("<pad> $A <eos>", [0, 5, 6]),              # what begins a text stays
    ("<pad> $A", [0, 5, 6]), ("$A", [5, 6])])
def test_a_plain_question_keeps_what_begins_a_text_and_loses_what_ends_it(tmp_path, single, wanted):
    write_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=single, special_tokens=[("<pad>", 0), ("<eos>", 1)])
    assert encode(tokenizer, "w5 w6") == render(tokenizer, "w5 w6") == wanted


@pytest.mark.parametrize("template, told", [
    ("{{ ''.__class__.__mro__ }}", "SecurityError"),
    ("{{ messages.__class__.__base__.__subclasses__() }}", "SecurityError"),
    ("{% for message in messages %}", "TemplateSyntaxError"),
    ("{{ raise_exception('roles must alternate') }}", "TemplateError: roles must alternate"),
    ("{{ nobody.said }}", "UndefinedError"),
    ("{{ 1 // 0 }}", "ZeroDivisionError"),
    ("{{ messages + 1 }}", "TypeError"),
    ("{{ range(999999999) | list }}", "OverflowError")])
def test_a_template_that_fails_or_breaks_out_is_an_error_of_the_models_folder(tmp_path, template, told):
    write_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(DataError, match=f"(?s)chat template of {tmp_path} cannot be used: .*{told}") as caught:
        render(AutoTokenizer.from_pretrained(tmp_path), "w5")
    assert caught.value.exit_code == 11


def test_ids_without_a_row_in_the_embedding_are_no_vocabulary(tmp_path):
    tiny_llama(vocabulary=20).save_pretrained(tmp_path)
    write_tokenizer(tmp_path, vocabulary=23)
    assert (num_named(tmp_path), num_rows(tmp_path), vocabulary_size(tmp_path)) == (23, 20, 20)
    write_tokenizer(tmp_path, vocabulary=18)
    assert vocabulary_size(tmp_path) == 18
    (tmp_path / "config.json").unlink()                     # a model behind a server
    assert num_rows(tmp_path) is None and vocabulary_size(tmp_path) == 18
