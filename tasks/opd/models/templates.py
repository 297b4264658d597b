"""Whether a chat template shows what it is given, and the same every time.

A template is a program that somebody else wrote. One that drops the question makes all prompts the same few tokens, and
one that draws a line by lot gives teacher and student different prompts; neither fails.
"""
import random
from collections.abc import Sequence

from tasks.opd.core.errors import DataError
from tasks.opd.models.tokenizers import render

SHORT, LONG = "How many?", "How many apples has Tom in 3 bags of 12, and how many are left when he eats 1?"
DRAWS = 8  # renderings, each with another state of `random`: a choice of two that is drawn by lot differs in one


def check_template(tokenizer) -> None:
    """Raise DataError for a chat template that fails, drops the question, or renders one question in several ways."""
    if not tokenizer.chat_template:
        return
    try:
        short, *drawn = [render_drawing(tokenizer, SHORT, seed) for seed in range(DRAWS)]
        long = render_drawing(tokenizer, LONG, 0)
    except DataError as error:
        raise DataError(f"the student's chat template fails on a question: {error.__cause__}; mend it") from error
    if short == long:
        raise DataError("the student's chat template drops the question: two different ones become the same "
                        f"{len(short)} tokens. It may read content given as parts only; use one that shows a text")
    if any(other != short for other in drawn):
        raise DataError("the student's chat template renders one question in different ways (it draws by lot): "
                        "use one that depends on the messages alone")


def render_drawing(tokenizer, text: str, seed: int) -> list[int]:
    """Token ids of a question, with Python's own generator, which templates draw from, in a state of `seed`."""
    before = random.getstate()
    random.seed(seed)
    try:
        return render(tokenizer, text)
    finally:
        random.setstate(before)


def turn_left_out(tokenizer, roles: Sequence[str]) -> str | None:
    """What a template does to turns of these roles before a question: "leaves out the system's turn", "refuses ..".

    None: it shows them all, so that other words there make another prompt. Some templates know no system message, and
    say so or drop it; some drop what an assistant said before.
    """
    if not (roles and tokenizer.chat_template):
        return None
    for index, role in enumerate(roles):
        try:
            one, other = (render(tokenizer, SHORT, [{"role": named, "content": text if place == index else SHORT}
                                                    for place, named in enumerate(roles)]) for text in (SHORT, LONG))
        except DataError as error:
            return f"refuses the turns {', '.join(roles)}, user: {error.__cause__}"
        if one == other:
            return f"leaves out the {role}'s turn"
    return None
