"""GGUF files of a tiny model: what they say of their tokens is kept, on disk, in a package, in parts."""
import json
import sys
from types import SimpleNamespace

import numpy
import pytest
import torch
from transformers import AutoTokenizer

from tasks import bootstrap
from tasks.opd.core.errors import DataError
from tasks.opd.engines.pool import Session
from tasks.opd.engines.torch_engine import TorchEngine
from tasks.opd.makers.gguf import hash_parts, parts_in_package, parts_on_disk
from tasks.opd.makers.models import make_model
from tasks.opd.models.heads import load_model
from tasks.opd.models.tokenizers import render
from tasks.opd.recipe.schema import Pair
from tasks.opd.recipe.settings import Slot
from tests.tiny_models import tiny_llama

gguf = pytest.importorskip("gguf")
pytest.importorskip("accelerate")

TOKENS = ["<unk>", "<s>", "</s>", "<|eot|>", *"abcdefghijklmno", "ab"]
VALUES = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
NAMES = {"embed_tokens": "token_embd", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
         "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
         "mlp.down_proj": "ffn_down"}


def tensors():
    """A tiny model's tensors by the names of a GGUF; q and k have equal rows, whose order plays no part."""
    for name, value in tiny_llama(vocabulary=len(TOKENS), dtype=torch.float32).model.state_dict().items():
        value = torch.full_like(value, 0.01) if "q_proj" in name or "k_proj" in name else value
        name = name.replace("layers.", "blk.")
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        yield {"norm.weight": "output_norm.weight"}.get(name, name), value.numpy().astype(numpy.float32)


def write_gguf(path, part=None, template=None, **said):
    """A GGUF file; `part` (i, n): every n-th tensor from the i-th on, and only the first part says anything."""
    writer = gguf.GGUFWriter(path, "llama")
    if part is None or part[0] == 0:
        writer.add_block_count(2)
        writer.add_context_length(256)
        writer.add_embedding_length(64)
        writer.add_feed_forward_length(128)
        writer.add_head_count(2)
        writer.add_head_count_kv(2)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_rope_dimension_count(32)
        writer.add_vocab_size(len(TOKENS))
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(TOKENS)
        writer.add_token_types([3] * 4 + [1] * 16)
        writer.add_token_merges(["a b"])
        if template:
            writer.add_chat_template(template)
        for name, value in {**VALUES, **said}.items():
            (writer.add_bool if isinstance(value, bool) else writer.add_uint32)(f"tokenizer.ggml.{name}", value)
    i, n = part or (0, 1)
    for name, value in list(tensors())[i::n]:
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def make(out, maker="gguf", **params):
    out.mkdir()
    return make_model({}, {"maker": {"name": maker, "params": params}, "seed": 0}, out, Session()), out / "model"


@pytest.mark.parametrize("said, wanted", [({"add_bos_token": True}, [1, 19, 6]), ({"add_bos_token": False}, [19, 6]),
                                          ({}, [19, 6])])
def test_a_text_begins_as_the_file_says(tmp_path, said, wanted):
    counts, folder = make(tmp_path / "a", path=str(write_gguf(tmp_path / "m.gguf", **said)))
    assert render(AutoTokenizer.from_pretrained(folder), "abc") == wanted  # <s> ab c
    assert any("do not begin with its BOS '<s>'" in note for note in counts["notes"]) == (wanted[0] != 1)


def test_every_token_that_the_file_names_ends_a_completion_and_its_template_is_kept(tmp_path):
    file = write_gguf(tmp_path / "m.gguf", template="{{ messages[0]['content'] }}", eot_token_id=3)
    counts, folder = make(tmp_path / "a", path=str(file))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}" and tokenizer.eos_token == "</s>"
    assert TorchEngine(folder, device="cpu").eos_ids == {2, 3}
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [2, 3]


def test_a_file_in_parts_is_the_same_model(tmp_path, monkeypatch):
    """On disk, and in a package that carries them."""
    (tmp_path / "carrier").mkdir()
    (tmp_path / "carrier" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    parts = [write_gguf(tmp_path / "carrier" / f"m-0000{i + 1}-of-00003.gguf", (i, 3), add_bos_token=True)
             for i in range(3)]
    _, whole = make(tmp_path / "whole", path=str(write_gguf(tmp_path / "m.gguf", add_bos_token=True)))
    for out, how in (("disk", {"path": str(parts[0])}), ("package", {"maker": "gguf_package", "package": "carrier"})):
        counts, folder = make(tmp_path / out, **how)
        own, other = load_model(whole).state_dict(), load_model(folder).state_dict()
        assert own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own)
        assert render(AutoTokenizer.from_pretrained(folder), "abc") == [1, 19, 6]
        assert counts["source"] == parts[0].name and not (tmp_path / out / "joined.gguf").exists()
    before = hash_parts(str(parts[0]))
    parts[2].write_bytes(b"other")
    assert hash_parts(str(parts[0])) != before and hash_parts(str(tmp_path)) is None
    parts[1].unlink()
    with pytest.raises(DataError, match="lacks m-00002-of-00003.gguf, a part of m"):
        parts_on_disk(parts[0])
    sys.modules.pop("carrier", None)


def test_a_file_that_was_replaced_is_another_model_and_notes_are_said(tmp_path, monkeypatch):
    """The door of bootstrap: a GGUF's hash stands in the spec, and what the maker noted reaches the person."""
    specs, said = [], []
    monkeypatch.setattr(bootstrap, "run_stage", lambda stage, spec, *_: specs.append(spec) or SimpleNamespace(
        counts={"notes": ["no template"]}))
    monkeypatch.setattr(bootstrap, "log_artifact", lambda artifact, *_, **__: artifact)
    monkeypatch.setattr(bootstrap, "log_line", said.append)
    file = tmp_path / "m.gguf"
    pair = Pair(name="p", student=Slot(name="gguf", params={"path": str(file)}), teacher=Slot(name="random"))
    for content in (b"one", b"two"):
        file.write_bytes(content)
        bootstrap.make_models.fn(pair, {"student", "teacher"}, None)
    first, plain, second, _ = specs
    assert first["sha256"] != second["sha256"] and "sha256" not in plain
    assert said[:2] == ["student: no template", "teacher: no template"]


def test_what_is_no_file_or_package_says_what_to_give(tmp_path):
    with pytest.raises(DataError, match="no_such_package is not installed"):
        parts_in_package("no_such_package", "")
    with pytest.raises(DataError, match="is a path: for a file on disk use {name: gguf, path: /models/m.gguf}"):
        parts_in_package("json", "/models/m.gguf")
    with pytest.raises(DataError, match="is no \\*.gguf file"):
        parts_on_disk(tmp_path / "m.gguf")
