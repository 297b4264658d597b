"""How a model reads a question: what bootstrap says of its tokenizer and template. A run would be silent.

A prompt without the BOS that a model was trained with is read worse from its first token to its last: a base model gave
plain English 5.0 nats a token instead of 2.6. So where rendered prompts lack a BOS that the tokenizer has, one sentence
is measured both ways, unless the model is too large to be read for that.
"""
from pathlib import Path

import torch

from tasks.opd.core.errors import DataError
from tasks.opd.models.folders import dtype_of
from tasks.opd.models.heads import head_of, hidden_states, load_model
from tasks.opd.models.tokenizers import num_named, num_rows, render
from tasks.opd.models.weights import has_weights, num_parameters

MOST_PARAMETERS = 3_000_000_000         # of a model that is measured: 12 GB in float32, a minute on a CPU
SENTENCE = ("The river rises in the mountains north of the town, runs past the old mill and reaches the sea a day "
            "later, where most of the people who live along it sell their fish.")


def notes(folder: Path) -> list[str]:
    """What may not be meant in how a model's folder reads a question, a sentence each.

    Raises: DataError when a token that ends a completion has no row in the embedding.
    """
    if not (folder / "tokenizer.json").exists():
        return []
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return [*rows_missing(folder, tokenizer), *template_missing(tokenizer), *bos_missing(folder, tokenizer)]


def template_missing(tokenizer) -> list[str]:
    """That there is no chat template."""
    return [] if tokenizer.chat_template else [
        "it has no chat template: questions are given as plain text, and it goes on from them; for a chat model put "
        "chat_template.jinja into its folder"]


def rows_missing(folder: Path, tokenizer) -> list[str]:
    """Tokens whose ids have no row in the embedding; DataError when the tokenizer's EOS is one of them."""
    named, rows = num_named(folder), num_rows(folder)
    if rows is None or named <= rows:
        return []
    first = tokenizer.convert_ids_to_tokens(rows)
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id >= rows:
        raise DataError(f"{folder}: eos_token {tokenizer.eos_token!r} is token {tokenizer.eos_token_id}, but the "
                        f"embedding has {rows} rows: no completion could end. Resize the model "
                        "(resize_token_embeddings) and save it, or name another eos_token in tokenizer_config.json")
    return [f"its tokenizer names {named} ids, its embedding has {rows} rows: {first!r} and what follows cannot be "
            "read, and prompts that hold such a token are quarantined; resize_token_embeddings would give them rows"]


def bos_missing(folder: Path, tokenizer) -> list[str]:
    """That rendered prompts lack the BOS that the tokenizer has, with what a sentence costs with and without it."""
    bos = tokenizer.bos_token_id
    if bos is None or bos in render(tokenizer, SENTENCE)[:1] or not has_weights(folder):
        return []
    missing = f"its prompts do not begin with its BOS {tokenizer.bos_token!r}"
    remedy = "put it into the post-processor of tokenizer.json, or the chat template"
    if (size := num_parameters(folder)) > MOST_PARAMETERS:
        return [f"{missing}; what that costs it was not measured, for it has {size / 1e9:.1f} billion parameters: if "
                f"it was trained with one, {remedy}"]
    without, given = sentence_nats(folder, tokenizer, bos)
    return [f"{missing}: a plain English sentence costs it {without:.2f} nats a token without, {given:.2f} with it; "
            f"{remedy if given < without else 'it does better as it is'}"]


@torch.no_grad()
def sentence_nats(folder: Path, tokenizer, bos: int) -> tuple[float, float]:
    """Mean -log p of SENTENCE's tokens but the first, nats: without and with the BOS before it."""
    ids = tokenizer.encode(SENTENCE, add_special_tokens=False)
    model = load_model(folder, torch.bfloat16 if dtype_of(folder) == "bfloat16" else torch.float32)

    def nats(before: list[int]) -> float:
        row = torch.tensor([before + ids])
        hidden = hidden_states(model, row, torch.ones_like(row))[0, len(before):-1]
        return -float(head_of(model).logprobs(hidden).gather(1, torch.tensor(ids[1:])[:, None]).mean())
    return nats([]), nats([bos])
