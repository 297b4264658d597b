"""Where in a completion its answer stands: outside its thinking; in a box, behind "answer:", or in the last line."""
import re

from tasks.opd.models.tokenizers import control_tokens

THINKING = (("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<thought>", "</thought>"),
            ("[THINK]", "[/THINK]"))
TAGS = {tag for pair in THINKING for tag in pair}
FINAL = re.compile(r"answer[*_`]*\s*(?:is\b\s*:?|:|=)[*_`]*|^[#*_\s]*(?:the\s+)?(?:final\s+)?answer[*_ \t]*$",
                   re.IGNORECASE | re.MULTILINE)
BOX = re.compile(r"\\f?boxed\s*\{|\\fbox\s*\{")
WORDS = re.compile(r"\\(?:text|textbf|textrm|mathrm|mbox)\s*\{([^{}]*)\}")
FENCE = re.compile(r"^\s*```.*$\n?", re.MULTILINE)
PROMPT_TAIL = 16                        # tokens of a prompt in which a template opens the thinking


def completion_text(tokenizer, token_ids: list[int], prompt_token_ids: list[int] | None = None) -> str:
    """The text of a completion without special tokens but for those that mark thinking.

    With the prompt's tokens, thinking that the prompt opened is opened in the text, too.
    """
    control = set(control_tokens(tokenizer))
    if marks := TAGS & control:
        hidden = set(tokenizer.convert_tokens_to_ids(sorted(control - marks)))
        token_ids = [token for token in token_ids if token not in hidden]
    text = tokenizer.decode(token_ids, skip_special_tokens=not marks, clean_up_tokenization_spaces=False)
    return opened_thinking(tokenizer, prompt_token_ids or []) + text


def opened_thinking(tokenizer, prompt_token_ids: list[int]) -> str:
    """The mark of thinking that a prompt ends with; "" where it ends otherwise."""
    tail = tokenizer.decode(prompt_token_ids[-PROMPT_TAIL:], clean_up_tokenization_spaces=False).rstrip()
    return next((begin for begin, _ in THINKING if tail.endswith(begin)), "")


def without_thinking(text: str) -> str:
    """A completion without what stands between marks of thinking.

    Thinking that is closed but was never opened began in the prompt, so all before its end goes; thinking that was cut
    off goes to the end of the text. A text without marks stays as it is.
    """
    for begin, end in THINKING:
        *closed, rest = text.split(end)
        kept = ""
        for index, part in enumerate(closed):
            said, opened, _ = part.partition(begin)
            kept = kept + (said.lstrip() if index else said) if opened else ""
        text = kept + (rest.lstrip() if closed else rest).partition(begin)[0]
    return text


def boxes(text: str) -> list[str]:
    r"""The contents of all \boxed{..} and \fbox{..} that are complete and hold something, innermost ones only."""
    found = (balanced(text, match.end()) for match in BOX.finditer(text))
    return [content.strip() for content in found if content and content.strip() and not BOX.search(content)]


def unboxed(truth: str) -> str:
    r"""The content of the one box that a truth holds, as those of datasets of solutions do; without one, all of it."""
    found = boxes(truth)
    return found[0] if len(found) == 1 else truth


def balanced(text: str, start: int) -> str | None:
    """What stands between an opening brace, which ends at `start`, and the one that closes it; None where none does."""
    depth = 1
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if not depth:
            return text[start:match.start()]
    return None


def final_text(completion: str, num_lines: int = 1) -> str:
    """The last box's content, else what stands after the last "answer:" or "answer is", else the last line.

    After those words, and at the end, `num_lines` lines count, for truths that have several; thinking and code fences
    go.
    """
    text = without_thinking(completion)
    if boxed := boxes(text):
        return boxed[-1]
    text = FENCE.sub("", text)
    after = marked(text)
    lines = (after or text).strip().splitlines()
    return "\n".join(lines[:num_lines] if after else lines[-num_lines:]).strip()


def marked(text: str) -> str | None:
    """What stands after the last "answer:", "answer is" or heading "Answer"; None without one, or where it is last."""
    found = list(FINAL.finditer(text))
    return text[found[-1].end():].strip() or None if found else None


def trimmed(text: str) -> str:
    r"""An answer without Markdown's marks around it, \text{..} and a full stop."""
    return WORDS.sub(r"\1", text).strip().lstrip("#> ").strip("*_` \t").rstrip(".").strip()
