"""Tokenizers: a question as the model is asked it, the tokens that steer a conversation, text that may be shown."""
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from tasks.opd.core.errors import DataError

TODAY = datetime(2026, 1, 1)  # the day that chat templates are told: a prompt is the same whenever it is made


def render(tokenizer, text: str, history: Sequence[dict] = ()) -> list[int]:
    """Token ids of a question as the model is asked it, after the messages of `history`.

    Through its chat template; without one, the texts as they stand, with an empty line between them.
    """
    if not tokenizer.chat_template:
        return encode(tokenizer, "\n\n".join([*(turn["content"] for turn in history), text]))
    return render_messages(tokenizer, [*history, {"role": "user", "content": text}])


def render_messages(tokenizer, messages: list[dict[str, str]]) -> list[int]:
    """Token ids of messages {role, content} through the chat template, which is told TODAY where it asks for the date.

    Raises: DataError when the template, which came with a model's folder, fails or does what a template may not.
    """
    from jinja2 import TemplateError
    bare = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
    clock = {"strftime_now": TODAY.strftime} if "strftime_now" in str(tokenizer.chat_template) else {}
    try:
        return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True,
                                                  return_dict=False, **clock))
    except (TemplateError, *bare) as error:  # of the sandbox too, in which templates are rendered
        raise DataError(f"the chat template of {tokenizer.name_or_path or 'the tokenizer'} cannot be used: "
                        f"{type(error).__name__}: {error}; see chat_template.jinja, or chat_template in "
                        "tokenizer_config.json, in the model's folder") from error


def encode(tokenizer, text: str) -> list[int]:
    """Token ids of plain text that somebody goes on from: with what its tokenizer puts before a text (BOS), but without
    what it puts after one (EOS, SEP), which would end it.
    """
    whole, bare = tokenizer.encode(text), tokenizer.encode(text, add_special_tokens=False)
    for start in range(len(whole) - len(bare) + 1):
        if whole[start:start + len(bare)] == bare:
            return whole[:start + len(bare)]
    return whole


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


def num_rows(folder: Path) -> int | None:
    """Rows of the embedding, as config.json says; None where there is none or it does not say (a model elsewhere).

    An id from there on, of a token that was added without resizing the model, cannot be looked up.
    """
    file = folder / "config.json"
    config = json.loads(file.read_text()) if file.exists() else {}
    return config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")


def num_named(folder: Path) -> int:
    """Number of token ids that name a token: the highest id of tokenizer.json plus one."""
    data = json.loads((folder / "tokenizer.json").read_text())
    ids = list(data["model"]["vocab"].values()) if isinstance(data["model"]["vocab"], dict) else \
        list(range(len(data["model"]["vocab"])))
    return max(ids + [token["id"] for token in data.get("added_tokens", [])]) + 1
