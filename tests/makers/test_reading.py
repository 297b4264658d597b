"""Bootstrap says what may not be meant in how a model reads a question; a run would be silent about it."""
import json

import pytest
import torch
from transformers import AutoTokenizer

from tasks.opd.core.errors import DataError
from tasks.opd.engines.pool import Session
from tasks.opd.makers import reading
from tasks.opd.makers.models import make_model
from tests.tiny_models import tiny_llama, write_tokenizer

TEMPLATE = "{{ messages[0]['content'] }}"


def model(folder, *, vocabulary=20, template="", seed=1, **special):
    """A tiny model whose tokenizer names `vocabulary` ids and has these special tokens."""
    tiny_llama(seed, dtype=torch.float32).save_pretrained(folder)
    write_tokenizer(folder, vocabulary)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | special))
    if template:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def made(folder, out):
    out.mkdir()
    return make_model({}, {"maker": {"name": "folder", "params": {"path": str(folder)}}, "seed": 0}, out, Session())


def test_a_model_with_a_template_and_a_row_for_every_token_has_no_notes(tmp_path):
    assert "notes" not in made(model(tmp_path / "m", template=TEMPLATE), tmp_path / "a")


def test_a_model_without_a_chat_template_says_so(tmp_path):
    note, = made(model(tmp_path / "m"), tmp_path / "a")["notes"]
    assert "has no chat template" in note and "chat_template.jinja" in note


def test_tokens_without_a_row_are_named_and_not_counted(tmp_path):
    counts = made(model(tmp_path / "m", vocabulary=22, template=TEMPLATE), tmp_path / "a")
    note, = counts["notes"]
    assert "names 22 ids, its embedding has 20 rows: 'w20'" in note and counts["vocabulary"] == 20


def test_an_eos_without_a_row_is_refused(tmp_path):
    with pytest.raises(DataError, match="eos_token 'w21' is token 21, but the embedding has 20 rows"):
        made(model(tmp_path / "m", vocabulary=22, template=TEMPLATE, eos_token="w21"), tmp_path / "a")


@pytest.mark.parametrize("seed", [1, 2])
def test_a_bos_that_prompts_lack_is_measured_on_a_sentence_with_and_without(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(reading, "SENTENCE", "w5 w6 w7 w8")
    folder = model(tmp_path / "m", template=TEMPLATE, bos_token="w3", seed=seed)
    known = tiny_llama(seed, dtype=torch.float32)

    def nats(ids, first):  # of w6 w7 w8, which both ways predict
        with torch.no_grad():
            logprobs = known(torch.tensor([ids])).logits[0].log_softmax(-1)
        return -sum(float(logprobs[i - 1, ids[i]]) for i in range(first, len(ids))) / 3
    without, given = nats([5, 6, 7, 8], 1), nats([3, 5, 6, 7, 8], 2)
    note, = made(folder, tmp_path / "a")["notes"]
    assert f"{without:.2f} nats a token without, {given:.2f} with it" in note
    assert ("post-processor" in note) == (given < without)


def test_a_model_that_is_large_is_not_loaded_to_measure_a_sentence(tmp_path, monkeypatch):
    folder = model(tmp_path / "m", template=TEMPLATE, bos_token="w3")
    monkeypatch.setattr(reading, "MOST_PARAMETERS", reading.num_parameters(folder) - 1)
    monkeypatch.setattr(reading, "load_model", None)
    note, = made(folder, tmp_path / "a")["notes"]
    assert "'w3'; what that costs it was not measured, for it has 0.0 billion parameters" in note


def test_a_bos_that_the_template_writes_is_not_missed(tmp_path):
    folder = model(tmp_path / "m", template="{{ bos_token }} " + TEMPLATE, bos_token="w3")
    assert reading.bos_missing(folder, AutoTokenizer.from_pretrained(folder)) == []
