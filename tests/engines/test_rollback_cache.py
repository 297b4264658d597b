"""Sequences of different lengths, read in whole batches, whose ends change after they were read."""
import torch
from transformers import MistralConfig, MistralForCausalLM

from tasks.opd.engines.api import Want
from tasks.opd.engines.rollback_cache import RollbackCache
from tasks.opd.engines.torch_engine import TorchEngine
from tests.small_llama import save_llama

PROMPTS = [[5, 9, 11], [7], [20, 21, 22, 23, 24, 25, 26, 27], [5, 9, 11], [3, 4, 5, 6], [30, 31]]


def test_sequences_read_what_scoring_reads(tmp_path):
    """Hidden states of rows of different lengths, after some of them were read wrong and forgotten."""
    save_llama(tmp_path / "llama", seed=0)
    torch.manual_seed(0)
    config = MistralConfig(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, eos_token_id=2,
                           num_attention_heads=2, num_key_value_heads=1, sliding_window=6, bos_token_id=None,
                           pad_token_id=None)
    MistralForCausalLM(config).save_pretrained(tmp_path / "mistral")
    for name in ("llama", "mistral"):
        engine = TorchEngine(tmp_path / name, "float64")
        ids = torch.randint(3, 60, (6, 20), generator=torch.Generator().manual_seed(0))
        for row, prompt in enumerate(PROMPTS):
            ids[row, :len(prompt)] = torch.tensor(prompt)
        lengths = torch.tensor(list(map(len, PROMPTS)))
        with torch.inference_mode():
            sequences = RollbackCache(engine.model, PROMPTS)
            wrong = ids.clone()
            wrong[torch.arange(20) >= lengths[:, None]] = 3
            sequences.read(wrong, torch.tensor([0, 2, 3]), lengths[[0, 2, 3]] + torch.tensor([5, 9, 1]))
            sequences.read(wrong, torch.tensor([0, 2, 3, 4, 5]), lengths[[0, 2, 3, 4, 5]] + 2)  # most: all are read
            assert sequences.filled.tolist() == (lengths + torch.tensor([5, -1, 9, 2, 2, 2])).tolist()
            sequences.forget(torch.arange(6), lengths)
            sequences.keep(torch.tensor([0, 2, 4, 5]))
            rows = torch.tensor([0, 2, 4, 5])
            sequences.read(ids[rows], torch.arange(4), lengths[rows] + torch.tensor([1, 4, 2, 0]))
            last = sequences.read(ids[rows], torch.arange(4), lengths[rows] + torch.tensor([7, 8, 6, 3]))[:, -1]
        completions = [ids[r, lengths[r]:lengths[r] + n + 1].tolist() for r, n in zip(rows.tolist(), (7, 8, 6, 3))]
        signals = engine.score([PROMPTS[r] for r in rows.tolist()], completions, Want(hidden=True))
        assert torch.allclose(last, torch.stack([s.hidden[-1] for s in signals]), atol=1e-9, rtol=0)
