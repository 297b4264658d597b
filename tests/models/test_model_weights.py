"""A model's folder is one model to every reader: head, engines, reload and counts read the same tensors, or refuse."""
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.opd.core.errors import DataError
from tasks.opd.engines.api import Want
from tasks.opd.engines.pool import Session
from tasks.opd.engines.torch_engine import TorchEngine
from tasks.opd.makers.models import make_model
from tasks.opd.models.heads import load_head, load_model
from tasks.opd.models.weights import INDEX, SINGLE, load_tensors, num_parameters, stored_in, weight_files
from tests.tiny_models import tiny_llama, write_tokenizer

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def folder(tmp_path):
    """A tied model in one file."""
    tiny_llama(1, dtype=torch.float32).save_pretrained(tmp_path / "model")
    write_tokenizer(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def shards(tmp_path):
    """The same model in several files with their index."""
    tiny_llama(1, dtype=torch.float32).save_pretrained(tmp_path / "model", max_shard_size="100KB")
    write_tokenizer(tmp_path / "model")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    return tmp_path / "model"


def point_at(folder):
    """The maker `folder`, as bootstrap runs it."""
    out = folder.parent / "artifact"
    out.mkdir()
    return make_model({}, {"maker": {"name": "folder", "params": {"path": str(folder)}}, "seed": 0}, out, Session())


def change(folder, **tensors):
    """Other tensors in the single file; None: without that one."""
    held = load_file(folder / SINGLE) | {name.replace("__", "."): value for name, value in tensors.items()}
    save_file({name: value.clone() for name, value in held.items() if value is not None}, folder / SINGLE,
              metadata={"format": "pt"})


def test_a_tied_config_over_another_head_is_refused(folder):
    embedding = load_file(folder / SINGLE)[EMBEDDING]
    change(folder, lm_head__weight=1.5 * embedding + 0.1 * torch.randn_like(embedding))
    with pytest.raises(DataError, match="ties lm_head.weight to model.embed_tokens.weight.*tie_word_embeddings: false"):
        point_at(folder)


def test_a_tied_head_stored_twice_with_the_same_numbers_is_one_model_and_counts_once(folder):
    once = num_parameters(folder)
    assert once == sum(p.numel() for p in load_model(folder).parameters())
    change(folder, lm_head__weight=load_file(folder / SINGLE)[EMBEDDING])
    assert {EMBEDDING, HEAD} < stored_in(folder).keys()
    assert num_parameters(folder) == once == point_at(folder)["parameters"]


def test_an_untied_head_is_what_every_reader_takes(folder, tmp_path):
    """Set free by the config, as the refusal says: scoring, hidden states and a reload take the head in the file."""
    embedding = load_file(folder / SINGLE)[EMBEDDING]
    change(folder, lm_head__weight=1.5 * embedding)
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    point_at(folder)
    engine, prompt, completion = TorchEngine(folder, device="cpu"), [[5, 6, 7]], [[8, 9, 3, 1]]
    def sampled():
        return engine.score(prompt, completion, Want(hidden=True))[0]
    first = sampled()
    by_head = load_head(folder).logprobs(first.hidden).gather(1, torch.tensor(completion[0])[:, None])[:, 0]
    engine.load(folder)
    assert torch.allclose(first.sampled, by_head, atol=1e-5) and torch.equal(first.sampled, sampled().sampled)


def test_a_single_file_beside_an_index_is_refused_by_name(shards):
    save_file(load_tensors(shards), shards / SINGLE, metadata={"format": "pt"})
    with pytest.raises(DataError, match="holds model.safetensors beside the model.*index"):
        point_at(shards)


@pytest.mark.parametrize("reader", [load_model, load_tensors, stored_in, num_parameters, load_head, TorchEngine])
def test_a_leftover_shard_is_refused_by_every_reader(shards, reader):
    left = shards / "model-00009-of-00009.safetensors"
    save_file({EMBEDDING: torch.zeros(20, 64)}, left, metadata={"format": "pt"})
    with pytest.raises(DataError, match="holds model-00009-of-00009.safetensors beside the model"):
        reader(shards)


def test_hidden_files_are_no_weights(folder):
    once = num_parameters(folder)
    for name in ("._model.safetensors", "._config.json", ".DS_Store"):
        (folder / name).write_text("of another machine")
    assert point_at(folder)["parameters"] == once
    listed = json.loads((folder.parent / "artifact" / "location.json").read_text())["files"]
    assert not [name for name in listed if name.startswith(".")]


def as_the_hub_ships_it(folder):
    """Beside the shards Mistral's copy of the weights with its own config, and the folder that Llama's come with."""
    save_file({"layers.0.attention.wq.weight": torch.zeros(2, 2)}, folder / "consolidated.safetensors")
    (folder / "params.json").write_text("{}")
    (folder / "original").mkdir()
    (folder / "original" / "consolidated.00.pth").write_bytes(b"a pickle")
    save_file({"tok_embeddings.weight": torch.zeros(2, 2)}, folder / "original" / "consolidated.safetensors")


def test_what_a_hub_ships_beside_the_shards_is_neither_read_nor_hashed(shards):
    files, before = weight_files(shards), load_model(shards).state_dict()
    as_the_hub_ships_it(shards)
    counts = point_at(shards)
    listed = json.loads((shards.parent / "artifact" / "location.json").read_text())["files"]
    assert not [name for name in listed if "consolidated" in name] and {file.name for file in files} < listed.keys()
    assert weight_files(shards) == files and counts["parameters"] == num_parameters(shards)
    assert all(torch.equal(value, before[name]) for name, value in load_model(shards).state_dict().items())


def test_a_copy_without_an_index_that_tells_it_from_the_model_is_refused(folder):
    as_the_hub_ships_it(folder)         # where vLLM would read both
    with pytest.raises(DataError, match="holds consolidated.safetensors beside the model"):
        point_at(folder)


def test_a_leftover_shard_does_not_come_in_by_a_reload(shards, tmp_path):
    engine = TorchEngine(shards, device="cpu")
    score = [[5, 6, 7]], [[8, 9, 3, 1]], Want()
    before = engine.score(*score)[0].sampled
    save_file({EMBEDDING: torch.zeros(20, 64)}, shards / "old.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match="old.safetensors beside the model"):
        engine.load(shards)
    (shards / "old.safetensors").unlink()
    engine.load(shards)
    assert torch.equal(engine.score(*score)[0].sampled, before)


def test_a_shard_that_the_index_names_and_that_is_missing_is_refused(shards):
    gone = weight_files(shards)[1]
    gone.unlink()
    with pytest.raises(DataError, match=f"lacks {gone.name}"):
        point_at(shards)


def test_an_index_and_files_of_two_models_are_refused(shards):
    index = json.loads((shards / INDEX).read_text())
    del index["weight_map"]["model.norm.weight"]
    (shards / INDEX).write_text(json.dumps(index))
    with pytest.raises(DataError, match="says that model.norm.weight stands in no file"):
        point_at(shards)
    (shards / INDEX).write_text("{}")
    with pytest.raises(DataError, match="is no index of tensors"):
        stored_in(shards)


def test_a_folder_without_weights_of_a_model_behind_a_server_counts_none(folder):
    (folder / SINGLE).unlink()
    assert num_parameters(folder) == 0


def test_a_tensor_in_two_shards_is_refused(shards):
    first, second = weight_files(shards)[:2]
    save_file(load_file(second) | {"model.norm.weight": torch.ones(64)}, second, metadata={"format": "pt"})
    if "model.norm.weight" not in load_file(first):
        save_file(load_file(first) | {"model.norm.weight": torch.ones(64)}, first, metadata={"format": "pt"})
    with pytest.raises(DataError, match="model.norm.weight stands in .* and in "):
        stored_in(shards)


def test_a_model_that_lacks_a_tensor_is_not_drawn_at_random(folder):
    change(folder, model__norm__weight=None)
    with pytest.raises(DataError, match="lacks 1 of its model's tensors, model.norm.weight"):
        load_model(folder)


def test_a_file_cut_short_is_refused_by_name(folder):
    (folder / SINGLE).write_bytes((folder / SINGLE).read_bytes()[:1000])
    with pytest.raises(DataError, match="model.safetensors cannot be read"):
        point_at(folder)


def test_an_adapter_of_nothing_says_that_it_is_one(folder):
    shutil.move(folder / SINGLE, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    (folder / "config.json").unlink()
    with pytest.raises(DataError, match="holds an adapter but no base.json.*merge"):
        point_at(folder)
