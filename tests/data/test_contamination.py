"""Runs of words that a benchmark shares with what is trained on, by hand."""
import pytest

from tasks.opd.core.errors import DataError
from tasks.opd.data.contamination import (
    COMMON,
    contaminated,
    contamination,
    covered,
    grams,
    prompts_with,
    refuse,
    shared_shares,
)

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
OTHER = " ".join(f"w{i}" for i in range(20))


def shares(questions: list[str], said, ngram: int = 13) -> list[float]:
    """Of each question the share that it has in common with (prompt id, text) pairs, or with texts of a prompt each."""
    pairs = [one if isinstance(one, tuple) else (str(i), one) for i, one in enumerate(said)]
    wanted = {gram for question in questions for gram in grams(question, ngram)}
    return shared_shares(questions, prompts_with(wanted, iter(pairs), ngram), ngram)


def test_words_are_compared_without_case_and_punctuation():
    assert shares(["How many FIGS, then?"], ["how many figs then"]) == [1.0]
    assert shares(["How many figs?"], ["how many plums?"]) == [0.0]


def test_a_question_is_covered_by_the_runs_that_it_shares():
    # 16 words; the trained text has its first 14: runs 0 and 1 are shared, which cover 14 words
    first = " ".join(LONG.split()[:14])
    assert shares([LONG], [f"before {first} after"]) == [14 / 16]
    assert shares([LONG], [" ".join(LONG.split()[:12])]) == [0.0]      # 12 words in a row are too few
    assert covered([("a", "b"), ("b", "c"), ("c", "d")], [True, False, True]) == 1.0
    assert covered([("a", "b"), ("b", "c"), ("c", "d")], [True, False, False]) == 0.5 and covered([], []) == 0.0


def test_a_run_that_stands_in_many_texts_is_a_template():
    assert shares([LONG], [LONG] * COMMON) == [1.0]
    assert shares([LONG], [LONG] * (COMMON + 1)) == [0.0]
    assert shares([LONG], [f"{LONG} and {LONG}"] * COMMON) == [1.0]   # counted by prompts, not by occurrences


def test_many_texts_of_one_prompt_are_no_template():
    assert shares([LONG], [("p", f"{LONG} {i}") for i in range(10 * COMMON)]) == [1.0]
    assert shares([LONG], [(str(i), LONG) for i in range(COMMON + 1)]) == [0.0]


def test_both_shares_and_the_questions_that_share_most():
    questions = {"b:0": LONG, "b:1": f"{LONG} {OTHER}", "b:2": OTHER, "b:3": ""}
    found = contamination({"b": questions, "empty": {}}, iter([("p", LONG)]))
    # b:1 shares 16 of its 36 words
    assert found["b"] == {"overlapping_share": 0.5, "contaminated_share": 0.25, "examples": ["b:0", "b:1"]}
    assert found["empty"] == {"overlapping_share": 0.0, "contaminated_share": 0.0, "examples": []}


def test_a_share_above_the_limit_is_refused_with_an_example():
    found = {"contaminated_share": 0.25, "examples": ["b:0"]}
    refuse("b", found, LONG, 0.25)
    with pytest.raises(DataError, match="25% of the questions of b .*limit max_contaminated 0.2.* b:0: 'one two"):
        refuse("b", found, LONG, 0.2)


@pytest.mark.parametrize("count", [1, 3])
def test_what_is_trained_on_may_be_read_once(count):
    assert shares([LONG] * count, iter([OTHER, LONG])) == [1.0] * count


def test_a_text_that_shares_a_run_with_a_question_is_contaminated():
    texts = {"copy": "Then: ADA has three figs, and buys four more!", "apart": "Ada has three pears and buys four more",
             "short": "How many?", "empty": "!"}
    asked = ["Ada has three figs and buys four more. How many?", "how many"]
    # 6 words in a row: "ada has three figs and buys"; the copy has them, "pears" breaks the other's
    assert contaminated(texts, asked, 6) == {"copy": asked[0], "short": asked[1]}
    assert grams("a b, c", 2) == [("a", "b"), ("b", "c")] and grams("a b", 9) == [("a", "b")] and grams("?", 3) == []
