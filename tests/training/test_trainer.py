"""What a checkpoint's folders take over from the model they were trained from, and what they leave there."""
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from tasks.opd.models import lora
from tasks.opd.models.heads import load_model
from tasks.opd.training.trainer import resume, save, save_model
from tests.tiny_models import tiny_llama, train_spec, write_tokenizer

STALE = ("pytorch_model.bin", "model.gguf", "tf_model.h5", "flax_model.msgpack", "optimizer.pt", "scheduler.pt",
         "rng_state.pth", "training_args.bin", "trainer_state.json", "events.out.tfevents.1", "README.md",
         "digests.json", "canary.json", "model.safetensors.index.json", "extra.safetensors", "adapter_config.json",
         "modeling_own.py")
TAKEN = ("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
         "chat_template.jinja", "preprocessor_config.json", "special_tokens_map.json")


@pytest.fixture
def start(tmp_path):
    """An artifact's folder whose model has a tokenizer, and beside them what trainers and hubs leave."""
    folder = tmp_path / "a"
    tiny_llama(1, dtype=torch.float32).save_pretrained(folder / "model")
    write_tokenizer(folder / "model")
    return folder


def strew(folder) -> None:
    for name in (*STALE, *TAKEN):
        if not (folder / name).exists():
            (folder / name).write_text("{}" if name.endswith(".json") else "")
    (folder / "runs").mkdir()


def test_a_checkpoint_takes_the_tokenizer_along_and_nothing_that_belongs_to_other_weights(start, tmp_path):
    trainer = resume(start, train_spec([])["train"], ema_decay=0.5)
    strew(start / "model")
    (start / "model" / "generation_config.json").write_text('{"eos_token_id": 7}')
    save(trainer, tmp_path / "out", start / "model")
    for folder in (tmp_path / "out" / "model", tmp_path / "out" / "ema"):
        there = {path.name for path in folder.iterdir()}
        own = {"config.json", "generation_config.json", "model.safetensors", "digests.json"}
        assert there - own == {"tokenizer.json", "tokenizer_config.json", *TAKEN}
        assert "7" not in (folder / "generation_config.json").read_text()  # its own stays
        assert load_model(folder).config.vocab_size == 20 and not lora.is_adapter(folder)
        assert AutoTokenizer.from_pretrained(folder).eos_token == "<eos>"


def test_an_adapter_takes_config_and_tokenizer_along(start, tmp_path):
    model = load_model(start / "model")
    lora.attach(model, {"rank": 2, "alpha": 4.0, "targets": ["q_proj"]}, seed=0)
    strew(start / "model")
    save_model(SimpleNamespace(model=model, base={"kind": "model", "fingerprint": "a", "digest": "b"}),
               tmp_path / "adapter", start / "model")
    there = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "adapter_model.safetensors"} < there
    assert lora.settings_of(tmp_path / "adapter") == {"rank": 2, "alpha": 4.0, "targets": ["q_proj"]}
    assert not there & (set(STALE) - {"adapter_config.json", "digests.json"})
