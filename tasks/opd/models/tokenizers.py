"""Tokenizers: a question as the model is asked it, the tokens that steer a conversation, text that may be shown."""
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

TODAY = datetime(2026, 1, 1)  # the day that chat templates are told: a prompt is the same whenever it is made


def render(tokenizer, text: str, history: Sequence[dict] = ()) -> list[int]:
    """Token ids of a question as the model is asked it, after the messages of `history`.

    Through its chat template, which is told TODAY where it asks for the date; without one, the texts as they stand,
    with an empty line between them.
    """
    template = tokenizer.chat_template
    if not template:
        return tokenizer.encode("\n\n".join([*(turn["content"] for turn in history), text]))
    clock = {"strftime_now": TODAY.strftime} if "strftime_now" in str(template) else {}
    return list(tokenizer.apply_chat_template([*history, {"role": "user", "content": text}], add_generation_prompt=True,
                                              tokenize=True, return_dict=False, **clock))


def control_tokens(tokenizer) -> list[str]:
    """Tokens that steer a conversation; a question that holds one could end its own turn or start another's."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted(added | set(tokenizer.all_special_tokens))


def tokenizer_of(path: Path):
    """The tokenizer that prompts were rendered with: kept beside them, so that reading completions needs no model."""
    from transformers import AutoTokenizer
    return AutoTokenizer.from_pretrained(path / "tokenizer", local_files_only=True)


def showable(text: str, control: list[str]) -> str:
    """The text without space around it; nothing at all when it spells a token that would end the user's turn."""
    return "" if any(token in text for token in control) else text.strip()
