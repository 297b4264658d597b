"""A row's fields as an item: the question as messages, the truth as text; what cannot be used says why.

A value that is no text is never turned into Python's way to write it: a reader would train on brackets and quotes.
"""
import json
import math
import re
from typing import Any

ROLES = ("system", "developer", "user", "assistant")
NOT_SHOWN = ("tool_calls", "function_call", "tool_call_id", "images", "audio", "reasoning_content", "thinking")
KINDS = {bool: "true or false", list: "a list", dict: "an object", float: "no finite number", type(None): "null"}
PACKED = "opd.packed"                   # the key of an object that stands for what JSON lacks
THOUSANDS = re.compile(r"(?<![\d,.])[1-9]\d{0,2}(?:,\d{3})+(?![\d,]*\d)")


def item_of(row: dict, where: str, question: str, answer: str, solution: str, entry: str = "",
            domain: str = "") -> dict:
    """A row with named fields as an item; one that lacks a field, or has no text there, says so under `invalid`.

    The question is a text, or messages of which the last is the user's: `text` is that one's, `history` has those
    before it. A truth is a text or a number (see `split_answer`).
    """
    missing = [name for name in (question, answer, solution, entry, domain) if name and row.get(name) is None]
    if missing or "invalid" in row:
        reason = row.get("invalid") or f"{where} has no {', '.join(map(repr, missing))}; it has {sorted(row)}"
        return {"invalid": str(reason), "text": ""}
    try:
        history, text = turns_of(row[question], question)
        truth, worked = split_answer(text_of(row[answer], answer)) if answer else ("", None)
        worked = text_of(row[solution], solution) if solution else worked
        if entry and not isinstance(row[entry], dict):
            raise ValueError(f"{entry!r} is {kind_of(row[entry])}; it must be an object")
        return {"text": text, "history": history, "answer": truth, "solution": worked,
                "entry": row[entry] if entry else {}, "domain": text_of(row[domain], domain) if domain else "default"}
    except ValueError as error:
        return {"invalid": f"{where}: {error}", "text": ""}


def text_of(value: Any, field: str) -> str:
    """A text or finite number as text. Raises ValueError for anything else, and for a lone surrogate."""
    number = type(value) is int or type(value) is float and math.isfinite(value)
    if not isinstance(value, str) and not number:
        raise ValueError(f"{field!r} is {kind_of(value)}; it must be a text or a number")
    text = str(value)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{field!r} holds a lone surrogate, which is no character")
    return text


def kind_of(value: Any) -> str:
    """What a value is, in JSON's words."""
    return KINDS.get(type(value), f"of type {type(value).__name__}")


def turns_of(value: Any, field: str) -> tuple[list[dict], str]:
    """The messages before the question, and the question. Raises ValueError when they are not in shape."""
    if not isinstance(value, list):
        if isinstance(value, dict):
            raise ValueError(f"{field!r} is an object; it must be a text or a list of messages")
        return [], text_of(value, field)
    turns = [message_of(message, f"{field}[{index}]") for index, message in enumerate(value)]
    if not turns or turns[-1]["role"] != "user":
        raise ValueError(f"{field!r} {'is an empty list' if not turns else 'ends with the ' + turns[-1]['role']}; the "
                         "last of its messages must be the user's")
    return turns[:-1], turns[-1]["content"]


def message_of(message: Any, place: str) -> dict[str, str]:
    """{"role", "content"} of a message; content in parts of text is joined. Raises ValueError when it is none."""
    if not isinstance(message, dict) or not {"role", "content"} <= set(message):
        raise ValueError(f"{place} is {kind_of(message)} without role and content; a question is a text or a list of "
                         '{"role": .., "content": ..}')
    if message["role"] not in ROLES:
        raise ValueError(f"{place} has the role {ascii(message['role'])[:40]}; known: {', '.join(ROLES)}")
    if unknown := [name for name in NOT_SHOWN if message.get(name)]:
        raise ValueError(f"{place} has {', '.join(unknown)}, which prompts do not show")
    content = message["content"]
    if isinstance(content, list):
        if any(not isinstance(part, dict) or part.get("type") != "text" for part in content):
            raise ValueError(f"{place} has content that is not text")
        content = "".join(text_of(part.get("text"), f"{place}.text") for part in content)
    return {"role": message["role"], "content": text_of(content, f"{place}.content")}


def conversation(history: list[dict], text: str) -> str | list[dict]:
    """What `turns_of` reads: the question itself, or its messages where some stand before it."""
    return [*history, {"role": "user", "content": text}] if history else text


def all_said(history: list[dict], text: str) -> str:
    """The texts of all messages of a question, in their order: what tells it from another one."""
    return "\n\n".join([*(turn["content"] for turn in history), text])


def split_answer(text: str) -> tuple[str, str | None]:
    """("1042", "the working") of GSM8K's "the working\n#### 1,042"; (text, None) of anything else.

    Only thousands lose their commas: "3,5,7" and "0,1" stay, "100,200" is a number.
    """
    working, mark, truth = text.rpartition("####")
    if not mark:
        return text.strip(), None
    working = re.sub(r"<<.*?>>", "", working)  # GSM8K's calculator notes
    return THOUSANDS.sub(lambda found: found[0].replace(",", ""), truth.strip()), working.strip() or None


def packed(value: Any) -> Any:
    """The value as JSON holds it, so that `unpacked` gives tuples, and keys that are no text, back as they were.

    A dataset's own scorer may tell a tuple from a list. What JSON lacks besides becomes text.
    """
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: packed(held) for key, held in value.items()}
    if isinstance(value, dict):
        return {PACKED: "dict", "of": [[packed(key), packed(held)] for key, held in value.items()]}
    if isinstance(value, tuple):
        return {PACKED: "tuple", "of": [packed(held) for held in value]}
    if isinstance(value, list):
        return [packed(held) for held in value]
    return json.loads(json.dumps(value, default=str))


def unpacked(text: str) -> Any:
    """The value that was `packed` and written as JSON."""
    kinds = {"tuple": tuple, "dict": dict}
    return json.loads(text, object_hook=lambda held: kinds[held[PACKED]](held["of"]) if PACKED in held else held)
