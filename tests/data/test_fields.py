"""A row's fields: messages as messages, truths as they were written, and nothing in Python's own way to write it."""
import json
import re
from datetime import date

import pytest

from tasks.opd.data.fields import conversation, item_of, packed, split_answer, turns_of, unpacked

TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 3?"},
         {"role": "assistant", "content": "5"}, {"role": "user", "content": "And 4 more?"}]


def item(**row) -> dict:
    return item_of({"question": "2 + 3?", "answer": "5"} | row, "q.jsonl:1", "question", "answer", "")


def test_gsm8k_answers_are_split_from_their_working():
    assert split_answer("He has 48/2 = <<48/2=24>>24 left.\nSo 1,042.\n#### 1,042") == \
        ("1042", "He has 48/2 = 24 left.\nSo 1,042.")
    assert split_answer(" 17 ") == ("17", None)


@pytest.mark.parametrize("written, truth", [
    ("3,5,7", "3,5,7"), ("0,1", "0,1"), ("1,042", "1042"), ("-1,234,567.5", "-1234567.5"), ("$1,200", "$1200"),
    ("0,100", "0,100"), ("1,000,50", "1,000,50"), ("1,2000", "1,2000"), ("Paris, France", "Paris, France")])
def test_only_thousands_lose_their_commas(written, truth):
    assert split_answer(f"so\n#### {written}") == (truth, "so")


def test_a_list_of_messages_is_a_question_with_what_stands_before_it():
    found = item(question=TURNS)
    assert (found["history"], found["text"]) == (TURNS[:3], "And 4 more?")
    assert conversation(*turns_of(TURNS, "q")) == TURNS and conversation(*turns_of("2 + 3?", "q")) == "2 + 3?"
    parts = [{"type": "text", "text": "2 +"}, {"type": "text", "text": " 3?"}]
    assert item(question=[{"role": "user", "content": parts, "name": None}])["text"] == "2 + 3?"


@pytest.mark.parametrize("question, why", [
    ({"text": "2 + 3?"}, "'question' is an object"), ([], "is an empty list"),
    (["2 + 3?"], r"question\[0\] is of type str"),
    (TURNS[:3], "ends with the assistant"),
    ([{"role": "human", "content": "?"}], "has the role 'human'; known: system"),
    ([{"from": "human", "value": "?"}], "without role and content"),
    ([{"role": "user", "content": {}}], "is an object"),
    ([{"role": "user", "content": [{"type": "image"}]}], "content that is not text"), (True, "is true or false"),
    ([TURNS[1] | {"tool_calls": [{}]}], "has tool_calls"), (float("nan"), "is no finite number"),
    ("\ud800", "lone surrogate"), ([{"role": "user", "content": "\udc00"}], "lone surrogate"),
    ([{"role": ["\ud800"], "content": "?"}], "has the role")])
def test_any_other_question_is_refused_by_name(question, why):
    found = item(question=question)
    assert re.search(why, found["invalid"]) and found["invalid"].startswith("q.jsonl:1: ") and found["text"] == ""
    found["invalid"].encode()


@pytest.mark.parametrize("answer, truth", [("5", "5"), (5, "5"), (0.5, "0.5"), (-7, "-7"), ("", "")])
def test_a_truth_is_a_text_or_a_number(answer, truth):
    assert item(answer=answer)["answer"] == truth


@pytest.mark.parametrize("answer, kind", [
    (["5"], "a list"), ({"value": 5}, "an object"), (True, "true or false"), (float("nan"), "no finite number"),
    (float("inf"), "no finite number"), (b"5", "of type bytes")])
def test_any_other_truth_is_refused_by_name(answer, kind):
    assert item(answer=answer)["invalid"] == f"q.jsonl:1: 'answer' is {kind}; it must be a text or a number"


def test_an_entry_is_an_object_and_an_unnamed_answer_is_empty():
    row = {"q": "?", "e": [1]}
    assert "'e' is a list; it must be an object" in item_of(row, "x", "q", "", "", entry="e")["invalid"]
    assert item_of({"q": "?"}, "x", "q", "", "")["answer"] == ""


def test_what_json_lacks_is_packed_and_comes_back():
    value = {"board": ((0, 1), (2, 3)), "of": [1, (2,)], "counts": {1: "a", (2, 3): "b"}, "none": None}
    assert unpacked(json.dumps(packed(value))) == value and packed({"a": [1, "b"]}) == {"a": [1, "b"]}
    assert packed({"on": date(2026, 11, 27)}) == {"on": "2026-11-27"}
