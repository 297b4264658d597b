"""Where an answer stands: outside thinking, in the last complete box, behind the last "answer:", in the last line."""
import pytest

from tasks.opd.data import tiny
from tasks.opd.data.answers import boxes, completion_text, final_text, trimmed, without_thinking


def final_answer(completion: str, num_lines: int = 1) -> str:
    return trimmed(final_text(completion, num_lines))


def test_final_answer_is_what_follows_the_last_answer_else_the_last_line():
    assert final_answer("1 + 1 = 2\n**Answer: 2**\n") == "2"
    assert final_answer("The answer is 3. No, the final answer is: 4.") == "4"
    assert final_answer("working\n\n 42. \n") == "42" and final_answer("") == ""
    assert final_answer("**Answer**: Paris") == final_answer("## Final Answer\n\nParis") == "Paris"
    assert final_answer("\\boxed{Paris}, for 2 reasons. Any answer: welcome") == "Paris"


def test_final_answer_has_as_many_lines_as_are_asked_for():
    assert final_answer("so\nAnswer:\n```\n1 2\n3 4\n```\nDone.", 2) == final_answer("so:\n1 2\n3 4", 2) == "1 2\n3 4"


@pytest.mark.parametrize("text, found", [
    (r"\boxed{3}, \boxed{}", ["3"]), (r"\boxed{3}, \boxed{4", ["3"]), (r"\fbox{3} \boxed {4}", ["3", "4"]),
    (r"\boxed{\frac{1}{2}}", [r"\frac{1}{2}"]), (r"\boxed{\{1, 2\}}", [r"\{1, 2\}"]), (r"\boxed{\boxed{3}}", ["3"]),
    (r"\boxed{ }", []), ("boxed 3", [])])
def test_boxes_that_are_complete_and_hold_something(text, found):
    assert boxes(text) == found


@pytest.mark.parametrize("text, rest", [
    ("<think>5</think>\n\n7", "7"), ("5</think>7", "7"), ("<think>5", ""), ("7", "7"), ("7<think>5", "7"),
    ("<think>1</think>a<think>2</think>b", "ab"), ("<think>1<think>2</think>3</think>7", "7"),
    ("[THINK]5[/THINK]7", "7"), ("<thinking>5</thinking>7", "7"), ("", "")])
def test_thinking_goes(text, rest):
    assert without_thinking(text) == rest


def test_thinking_that_the_prompt_opened_is_opened_in_the_text():
    words = tiny.build_tokenizer()
    words.add_tokens(["<think>", "</think>"])
    prompt = words.encode("<|user|>Tom<|assistant|><think>")
    assert completion_text(words, words.encode("line 1"), prompt) == "<think>line 1"
    assert completion_text(words, words.encode("line 1"), words.encode("<think></think>")) == "line 1"
    assert completion_text(words, [*words.encode("line 1"), words.eos_token_id]) == "line 1"


def test_marks_of_thinking_that_are_special_tokens_stay_where_others_go():
    words = tiny.build_tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})
    ids = [*words.encode("[THINK]line 1[/THINK]answer: 4"), words.eos_token_id]
    assert completion_text(words, ids) == "[THINK]line 1[/THINK]answer: 4"
