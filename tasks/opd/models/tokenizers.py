"""Tokenizers: a question as the model is asked it, the tokens that steer a conversation, text that may be shown."""
from pathlib import Path

from tasks.opd.core.errors import DataError


def render(tokenizer, text: str) -> list[int]:
    """Token ids of a question as the model is asked it: through its chat template, else (without one) as it stands."""
    if not tokenizer.chat_template:
        return tokenizer.encode(text)
    return render_chat(tokenizer, [{"role": "user", "content": text}])


def render_chat(tokenizer, messages: list[dict[str, str]]) -> list[int]:
    """Token ids of a conversation {role, content} whose next turn is the model's, through its chat template.

    Raises: DataError for a template that fails, or that does what a template may not: it comes with a model's folder.
    """
    from jinja2 import TemplateError
    bare = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
    try:
        return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True,
                                                  return_dict=False))
    except (TemplateError, *bare) as error:
        raise DataError(f"the chat template of {tokenizer.name_or_path or 'the tokenizer'} cannot be used: "
                        f"{type(error).__name__}: {error}; see chat_template.jinja, or chat_template in "
                        "tokenizer_config.json, in the model's folder") from error


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
