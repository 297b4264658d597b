"""A Llama of two layers with a word-level tokenizer (w0 w1 ...), random but real, for tests of engines and stages."""
import json

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def save_llama(folder, seed=0, valid=60, eos=2, **other):
    """A random Llama of 64 rows, `valid` of which have a name; logits spread enough to tell tokens apart."""
    torch.manual_seed(seed)
    config = LlamaConfig(**{"vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
                            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128,
                            "bos_token_id": None, "eos_token_id": eos, "pad_token_id": 0, "initializer_range": 0.2,
                            "tie_word_embeddings": False, **other})
    LlamaForCausalLM(config).save_pretrained(folder)
    first = eos if isinstance(eos, int) else eos[0]
    vocabulary = {f"w{i}" if i != first else "<eos>": i for i in range(valid)}
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
                 "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
                 "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"}))
    return folder
