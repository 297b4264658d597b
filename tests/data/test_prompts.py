"""Prompts from rows as people bring them: truths are asked of their graders, messages are rendered as messages."""
import json
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.opd.core.errors import DataError
from tasks.opd.data import tiny
from tasks.opd.data.prompts import prompt_of, ungradable
from tasks.opd.data.sources import SOURCES
from tasks.opd.models.tokenizers import render, tokenizer_of
from tests.data.test_sources import make, student, write_lines  # noqa: F401  a fixture among them


@pytest.mark.parametrize("grader, good, bad", [
    ("numeric", ["4", 4, "1,200", "$5", "1/2", "24 m^2", "-7", "7 (2 more than 5)"], ["Paris", "", "3,5,7", "1/0"]),
    ("math", ["\\frac{1}{2}", "$x+1$", "3, 5", "\\$5", "\\boxed{4}", "\\text{(C)}", "(-\\infty, 3]"],
     ["\\frac{1}{", ""]),
    ("exact", ["Paris", "It is 5.", "a\nb", "}", "C#", "answer: 4", "**bold**", "**"], ["", " "]),
    ("tiny", [], ["4"]), ("reasoning_gym", [], ["4"])])
def test_a_truth_that_its_grader_does_not_give_1_is_quarantined(grader, good, bad, student, tmp_path):  # noqa: F811
    rows = [{"question": f"How many figs, {index}?", "answer": truth} for index, truth in enumerate([*good, *bad])]
    path = write_lines(tmp_path / "q.jsonl", {"question": "figs?", "answer": 1}, *rows)
    if not good:  # rows without the entry that these graders read
        with pytest.raises(DataError, match=f"'truth': {len(bad) + 1}.*the grader {grader} fails on"):
            make(student, tmp_path / "p", "jsonl", count=99, path=path, grader=grader)
        return
    counts, prompts, quarantined = make(student, tmp_path / "p", "jsonl", count=99, path=path, grader=grader)
    assert [prompt.answer for prompt in prompts] == ["1", *(str(truth).strip() for truth in good)]
    assert [row.reason.split(":")[0] for row in quarantined] == ["truth"] * len(bad)
    assert counts["quarantined_truth"] == len(bad)


def test_the_truths_of_every_source_made_here_stand_before_their_graders(student, tmp_path):  # noqa: F811
    assert make(student, tmp_path / "a", "tiny", grader="tiny", count=30)[0]["quarantined"] == 0
    for dataset in ("gsm_symbolic", "mini_sudoku"):  # a number, and a grid of several lines
        made = make(student, tmp_path / dataset, "reasoning_gym", grader="reasoning_gym", count=5, limit=127,
                    dataset=dataset, max_quarantined=1.0)[0]
        assert "quarantined_truth" not in made, dataset


def test_a_dataset_that_judges_answers_and_has_none_is_not_asked_for_one():
    item = next(iter(SOURCES["reasoning_gym"](range(1), dataset="graph_color")))
    prompt = prompt_of(item, "train:0", 0, [1], "")
    assert item["entry"]["answer"] is None and ungradable(prompt, {"name": "reasoning_gym", "params": {}}) is None


def test_more_than_the_share_quarantined_is_an_error_that_says_why(student, tmp_path):  # noqa: F811
    rows = [{"question": f"How many figs, {i}?", "answer": "4" if i % 2 else "Paris"} for i in range(4)]
    path = write_lines(tmp_path / "q.jsonl", *rows)
    counts, *_ = make(student, tmp_path / "half", "jsonl", path=path, grader="numeric", max_quarantined=0.5)
    assert counts["prompts"] == 2
    with pytest.raises(DataError, match="2 of 4 items of jsonl .*q.jsonl cannot be used .*'truth': 2.*max_quarantined "
                                        "0.4; for example train:0: truth: the grader numeric fails on 'Paris'"):
        make(student, tmp_path / "less", "jsonl", path=path, grader="numeric", max_quarantined=0.4)


def test_messages_are_rendered_as_messages_and_kept_beside_the_question(student, tmp_path):  # noqa: F811
    turns = [{"role": "system", "content": "answer"}, {"role": "user", "content": "How many figs?"},
             {"role": "assistant", "content": "answer: 4"}, {"role": "user", "content": "How many apples?"}]
    path = write_lines(tmp_path / "q.jsonl", {"question": turns, "answer": "4"}, {"question": turns[3:], "answer": "4"},
                       {"question": [turns[1] | {"content": "<|end|>"}, *turns[2:]], "answer": "4"})
    _, prompts, quarantined = make(student, tmp_path / "p", "jsonl", count=9, path=path)
    tokenizer = tokenizer_of(tmp_path / "p")
    whole = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert prompts[0].token_ids == whole == render(tokenizer, prompts[0].text, prompts[0].turns)
    assert [prompt.turns for prompt in prompts] == [turns[:3], []] and prompts[1].text == "How many apples?"
    assert [row.reason for row in quarantined] == ["special_token: the text holds <|end|>"]
    with pytest.raises(DataError, match="train:0 = train:0"):  # the same conversation, held out
        make(student, tmp_path / "again", "jsonl", count=1, path=path, train=tmp_path / "p")
    turns[1] = {"role": "user", "content": "figs?"}
    other = write_lines(tmp_path / "o.jsonl", {"question": turns, "answer": "4"})
    make(student, tmp_path / "other", "jsonl", count=1, path=other, train=tmp_path / "p")  # only its last turn is known


def test_a_template_is_asked_before_it_makes_prompts(student, tmp_path, monkeypatch):  # noqa: F811
    template = "<|user|>{% for part in messages[-1]['content'] if part.type == 'text' %}{{ part.text }}{% endfor %}"
    deaf = tiny.build_tokenizer()
    deaf.chat_template = template
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *given, **known: deaf)
    with pytest.raises(DataError, match="drops the question"):
        make(student, tmp_path / "p", "tiny")


FIELDS = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters()) | st.sampled_from(
        ["4", "\ud800", "#### 1,2", "<|end|>", "\\boxed{", [{"role": "user", "content": "How many?"}]]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner),
    max_leaves=6)
LINE = st.fixed_dictionaries({}, optional={"question": FIELDS, "answer": FIELDS, "entry": FIELDS}).map(
    lambda row: json.dumps(row).encode()) | st.binary(max_size=40) | st.sampled_from(
    [b"[" * 5000, b'{"question": "\xe9", "answer": "4"}', b'{"question": "How many?", "answer": "4"}', b"1" * 5000])
FILES = st.builds(lambda start, lines, by: start + by.join(lines), st.sampled_from(
    [b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b", b"\x1f\x8b\x08\x00", b"[", b"PAR1"]), st.lists(LINE, max_size=5),
    st.sampled_from([b"\n", b"\r\n", b",", b"\n\n"]))


@settings(max_examples=100, deadline=timedelta(seconds=20), derandomize=True, database=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(content=FILES, grader=st.sampled_from(["numeric", "exact", "math", "tiny", None]))
def test_whatever_bytes_a_file_has_it_ends_in_rows_quarantine_or_a_data_error(
        content, grader, student, tmp_path_factory):  # noqa: F811
    place = tmp_path_factory.mktemp("any")
    (place / "q.jsonl").write_bytes(content)
    try:
        counts, prompts, quarantined = make(student, place / "p", "jsonl", count=9, path=str(place / "q.jsonl"),
                                            grader=grader)
    except DataError as error:
        assert str(place / "q.jsonl") in str(error)
        str(error).encode()
    else:
        assert counts["prompts"] == len(prompts) > 0 and counts["quarantined"] == len(quarantined)


def test_a_benchmark_whose_questions_are_trained_on_but_for_a_word_is_refused_above_its_limit(
        student, tmp_path):  # noqa: F811
    asked = [" ".join(f"{word}{number}" for word in ("ada", "has", "some", "figs")) for number in range(8)]
    questions = [f"{first} {' '.join(asked)}" for first in ("Monday", "Tuesday")]
    other = {"question": "Something else entirely, of more words than the thirteen of a run.", "answer": "4"}
    trained = write_lines(tmp_path / "train.jsonl", {"question": questions[0], "answer": "4"}, other)
    held_out = write_lines(tmp_path / "test.jsonl", {"question": questions[1], "answer": "4"},
                           {"question": "How many apples?", "answer": "4"}, {"question": "How many?", "answer": "4"})
    make(student, tmp_path / "p", "jsonl", path=trained, limit=128)
    given = {"name": "test", "path": held_out, "train": tmp_path / "p", "limit": 128}
    # 1 of 3 shares its last 32 of 33 words
    counts, *_ = make(student, tmp_path / "kept", "jsonl", **given, max_contaminated=0.34)
    assert counts["contaminated_share"] == counts["overlapping_share"] == pytest.approx(1 / 3)
    assert json.loads((tmp_path / "kept" / "contamination.json").read_text())["examples"] == ["test:0"]
    with pytest.raises(DataError, match="33% of the questions of test stand .*test:0: 'Tuesday ada0"):
        make(student, tmp_path / "refused", "jsonl", **given, max_contaminated=0.33)
