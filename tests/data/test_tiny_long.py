"""The long task: long enough, in known words, judged line by line, and split so that no text is in two splits."""
import json
import statistics

import pytest

from tasks.opd.core.records import Prompt
from tasks.opd.data import tiny, tiny_long
from tasks.opd.data.graders import GRADERS
from tasks.opd.data.sources import SOURCES
from tasks.opd.recipe import loading

SPLITS = ("train", "validation", "test")
WORDS = tiny.build_tokenizer()
BY_HAND = tiny_long.LongProblem(text="", start=18, steps=[4, -3, 9])    # 22, 19, 28


def prompt_of(item: dict) -> Prompt:
    return Prompt(prompt_id="l:0", index=0, text=item["text"], token_ids=[], answer=item["answer"],
                  solution=item["solution"], entry=json.dumps(item["entry"]), domain=item["domain"])


def graded(item: dict, completion: str) -> tuple[float, str | None]:
    return GRADERS["tiny"](prompt_of(item), completion)


def slipped(made: tiny_long.LongProblem, line: int, off: int) -> str:
    """A solution whose line (from 0) is `off` too high, and which goes on from there."""
    lines, before = [], made.start
    for i, step in enumerate(made.steps):
        after = before + step + (off if i == line else 0)
        lines.append(f"line {i + 1}: {before} {tiny.sign(step)} {abs(step)} = {after}")
        before = after
    return "\n".join([*lines, f"answer: {before}"])


def test_a_solution_by_hand():
    assert BY_HAND.solution == "line 1: 18 + 4 = 22\nline 2: 22 - 3 = 19\nline 3: 19 + 9 = 28\nanswer: 28"
    assert BY_HAND.answer == "28"


def test_a_slip_spoils_all_that_follows_and_the_feedback_names_its_line():
    item = {"text": "", "answer": "28", "solution": BY_HAND.solution, "entry": BY_HAND.entry, "domain": "long"}
    assert graded(item, BY_HAND.solution) == (1.0, None)
    wrong = slipped(BY_HAND, 1, 10)         # 22 - 3 = 29, 29 + 9 = 38
    assert wrong.endswith("line 2: 22 - 3 = 29\nline 3: 29 + 9 = 38\nanswer: 38")
    assert graded(item, wrong) == (0.0, "line 2: 22 - 3 is 19")
    for made in SOURCES["tiny_long"](range(20)):
        problem = tiny_long.LongProblem(text=made["text"], **made["entry"])
        assert slipped(problem, 0, 0) == made["solution"] and graded(made, made["solution"]) == (1.0, None)
        assert graded(made, slipped(problem, 4, 1))[0] == 0
        assert graded(made, slipped(problem, 4, 1))[1].startswith("line 5: ")


def test_no_text_is_in_two_splits():
    found = {split: [item["text"] for item in SOURCES["tiny_long"](range(200), split=split)] for split in SPLITS}
    assert all(tiny_long.split_of(text) == split for split, texts in found.items() for text in texts)
    assert len({text for texts in found.values() for text in texts}) == 600


def test_most_texts_are_for_training():
    found = [tiny_long.split_of(f"text {i}") for i in range(2000)]
    # 1600, 200 and 200 expected; the standard deviation of 200 is sqrt(2000 * 0.1 * 0.9) = 13
    assert all(abs(found.count(split) - wanted) < 60 for split, wanted in zip(SPLITS, (1600, 200, 200)))


@pytest.mark.parametrize("highest, largest", [(59, 9), (29, 5)])
def test_values_and_steps_stay_within_their_bounds_and_an_item_is_the_same_again(highest, largest):
    items = list(SOURCES["tiny_long"](range(50), seed=3, highest=highest, largest=largest))
    assert items[20:30] == list(SOURCES["tiny_long"](range(20, 30), seed=3, highest=highest, largest=largest))
    for item in items:
        start, steps = item["entry"]["start"], item["entry"]["steps"]
        values = [start + sum(steps[:i]) for i in range(len(steps) + 1)]
        assert tiny.LOWEST <= min(values) and max(values) <= highest and str(values[-1]) == item["answer"]
        assert 0 < min(map(abs, steps)) and max(map(abs, steps)) <= largest and len(steps) == 14


@pytest.mark.parametrize("split", SPLITS)
def test_solutions_are_long_in_known_words_and_fit_the_limits(split):
    recipe = loading.load("gkd", ["pair=tiny", "prompts=bench_long", "benchmarks=bench_long"])
    [benchmark] = recipe.benchmarks
    assert (recipe.prompts.source.params["split"], benchmark.source.params["split"]) == ("train", "test")
    lengths = []
    for item in SOURCES["tiny_long"](range(50), split=split):
        asked, written = WORDS.encode(item["text"]), WORDS.encode(item["solution"])
        assert WORDS.unk_token_id not in [*asked, *written] and WORDS.decode(written) == item["solution"]
        assert len(asked) + 2 <= recipe.prompts.max_prompt_tokens     # and the template's two
        lengths.append(len(written) + 1)
    assert statistics.median(lengths) >= 150 and max(lengths) <= benchmark.sampling.max_new_tokens
