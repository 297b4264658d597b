"""Random tiny models and rollouts for tests: real Llamas, real tokenizers, no training."""
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tasks.opd.core.records import STUDENT, Rollout
from tasks.opd.core.seeds import derive_seed


def tiny_llama(seed: int = 0, *, vocabulary: int = 20, dtype: torch.dtype = torch.float64, layers: int = 2,
               hidden: int = 64):
    """A random Llama with weights large enough for peaked distributions."""
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=vocabulary, hidden_size=hidden, intermediate_size=2 * hidden,
                         num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=2,
                         max_position_embeddings=256, tie_word_embeddings=True,
                         bos_token_id=None, eos_token_id=1, pad_token_id=0, initializer_range=0.15)
    return LlamaForCausalLM(config).to(dtype).eval()


def rollout(index: int, prompt: list[int], completion: list[int], *, group: str | None = None,
            reward: float | None = None, author: int | list[int] = STUDENT,
            logprobs: list[float] | None = None) -> Rollout:
    """A rollout with only what a test cares for."""
    return Rollout(rollout_id=f"r{index}", prompt_id=f"p{index}", group_id=group or f"g{index}", domain="", parent=None,
                   prompt_token_ids=prompt, token_ids=completion, logprobs=logprobs or [0.0] * len(completion),
                   author=author if isinstance(author, list) else [author] * len(completion), teacher_prompt_ids=None,
                   origin="student", policy=[""] * len(completion), finish_reason="stop", reward=reward, feedback=None)


def random_rollouts(lengths: list[tuple[int, int]], *, vocabulary: int = 20, seed: int = 0) -> list[Rollout]:
    """Rollouts of (prompt, completion) lengths with random tokens, ending in EOS (id 1)."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "rollouts"))
    rows = [torch.randint(2, vocabulary, (p + c,), generator=generator).tolist() for p, c in lengths]
    return [rollout(i, row[:p], row[p:-1] + [1], reward=float(i % 2))
            for i, (row, (p, _)) in enumerate(zip(rows, lengths))]


def with_teacher(rollouts: list[Rollout], *, teacher: list | None = None, old_logprobs=None, special_ids=frozenset()):
    """Columns of rollouts with a teacher's log-probabilities [T] for each, or None, and the student's old ones [N]."""
    from dataclasses import replace

    from tasks.opd.objective.columns import columns_of
    columns = columns_of(rollouts, special_ids=special_ids)
    signals = teacher or [None] * len(rollouts)
    blank = [torch.full((len(r.token_ids),), torch.nan) for r in rollouts]
    return replace(columns, has_signal=torch.tensor([s is not None for s in signals]),
                   old_logprobs=columns.old_logprobs if old_logprobs is None else old_logprobs,
                   teacher=torch.cat([b if s is None else s for s, b in zip(signals, blank)]))


def prepared(term, columns):
    """What a term takes from columns, after its mask."""
    from dataclasses import replace

    from tasks.opd.objective.terms import prepare, taking_part
    return prepare(term, replace(columns, mask=taking_part(term, columns)))


def term(**changes) -> dict:
    """A term's part of a spec, with the schema's defaults."""
    from tasks.opd.recipe import requirements
    from tasks.opd.recipe.schema import Term
    return requirements.part_of(Term(**changes))


def train_spec(terms: list[dict], **changes) -> dict:
    """A checkpoint stage's spec with the schema's defaults."""
    from tasks.opd.recipe.schema import Train
    train = {**Train().model_dump(mode="json"), "autocast": "off", **changes.pop("train", {})}
    return {"terms": terms, "train": train, "loss": {"temperature": 1.0}, "seed": 0, "round": 0, "rounds": 1,
            "scored": {}, "vocabulary": 20, "completion_limit": 16, "ema_decay": None, "canary_autocast": "off",
            "controlled": {}, **changes,
            "effort": {"micro_batch_tokens": 10_000, "chunk_tokens": 1000, "share_prompts": True,
                       **changes.get("effort", {})}}


def write_tokenizer(folder: Path, vocabulary: int = 20) -> None:
    """A word-level tokenizer of ids 0 <pad>, 1 <eos>, then w2, w3, ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    words = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, vocabulary)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w2"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>").save_pretrained(folder)
