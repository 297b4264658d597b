"""Graders on answers as models write them, and the stage that grades and filters."""
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from tasks.opd.core.records import STUDENT, Prompt, Quarantined, Rollout, read_rows, write_rows
from tasks.opd.data import tiny
from tasks.opd.data.graders import GRADERS, final_answer, grade_by_source, last_number
from tasks.opd.data.sources import SOURCES
from tasks.opd.engines.pool import Session
from tasks.opd.rollouts.grading import grade_rollouts


def asked(answer: str, entry: dict | None = None) -> Prompt:
    return Prompt(prompt_id="p:0", index=0, text="?", token_ids=[1], answer=answer, solution=None,
                  entry=json.dumps(entry or {}), domain="")


def reward(grader: str, answer: str, completion: str, **params) -> float:
    return GRADERS[grader](asked(answer), completion, **params)[0]


@pytest.mark.parametrize("text, number", [
    ("so 3 + 4 = 7.", 7), ("$1,200.50 in all", 1200.5), ("-3", -3), ("minus: \u22123", -3), ("x2", None),
    ("1e3", 1000), (".5 of it", 0.5), ("12 apples, 3 pears", 3), ("", None), ("40%", 40),
    ("1,2,3", 3), ("9" * 400, None),
])
def test_last_number(text, number):
    assert last_number(text) == number


def test_final_answer_is_what_follows_the_last_answer_else_the_last_line():
    assert final_answer("1 + 1 = 2\n**Answer: 2**\n") == "2"
    assert final_answer("The answer is 3. No, the final answer is: 4.") == "4"
    assert final_answer("working\n\n 42. \n") == "42" and final_answer("") == ""


def test_exact():
    assert reward("exact", "Paris", "I think\nAnswer: Paris") == 1 and reward("exact", "Paris", "paris") == 0
    assert reward("exact", "Paris", "paris", ignore_case=True) == 1


def test_numeric_reads_units_commas_and_tolerance():
    assert reward("numeric", "1200.5", "3 boxes cost $1,200.50 dollars in all") == 1
    assert reward("numeric", "7", "Answer: 7 apples\nI hope that 100 helps") == 1
    assert reward("numeric", "0.3333", "Answer: 0.333") == 0
    assert reward("numeric", "0.3333", "Answer: 0.333", tolerance=0.001) == 1
    assert reward("numeric", "1000", "999", tolerance=0.001) == 1
    assert reward("numeric", "1000", "998", tolerance=0.001) == 0
    assert GRADERS["numeric"](asked("7"), "none") == (0.0, "no answer was found; it is 7")
    assert GRADERS["numeric"](asked("7"), "8") == (0.0, "the answer is 7, not 8")


def test_numeric_refuses_a_truth_without_a_number():
    with pytest.raises(ValueError, match="holds no number; use the grader exact"):
        reward("numeric", "Paris", "3")


MATH = [("\\frac{1}{2}", "so \\boxed{0.5}", 1), ("2\\sqrt{3}", "$\\boxed{\\sqrt{12}}$", 1), ("4", "\\boxed{5}", 0),
        ("x+1", "the result is \\boxed{1+x}", 1), ("4", "first \\boxed{3}, no: \\boxed{4}", 1), ("4", "", 0)]


@pytest.mark.parametrize("truth, completion, right", MATH)
def test_math_knows_equal_expressions(truth, completion, right):
    assert reward("math", truth, completion) == right


def test_math_grades_alike_off_the_main_thread():
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda row: reward("math", row[0], row[1]), MATH))
    assert found == [row[2] for row in MATH]


def test_reasoning_gym_scores_the_final_number_and_not_the_working():
    item = next(iter(SOURCES["reasoning_gym"](range(3, 4), dataset="gsm_symbolic")))
    prompt, truth = asked(item["answer"], item["entry"]), item["answer"]
    grade = GRADERS["reasoning_gym"]
    assert grade(prompt, f"First 1 + 1 = 2, then more.\nAnswer: {truth}") == (1.0, None)
    assert grade(prompt, f"It is {truth}.00 dollars")[0] == 1.0
    assert grade(prompt, f"Answer: {int(truth) + 1}") == (0.0, f"the answer is {truth}, not {int(truth) + 1}")
    assert grade(prompt, f"Answer: {int(truth) + 1}", partial=True)[0] == 0.01  # the dataset's own consolation
    assert grade(prompt, "no idea")[0] == 0.0


def test_tiny_grader_is_the_tasks_own():
    made = tiny.problem(0)
    assert GRADERS["tiny"](asked(made.answer, made.entry), made.solution) == (1.0, None)


def test_each_source_has_its_grader_and_what_has_none_has_no_reward():
    graders = {"p": {"name": "exact", "params": {}}}
    assert grade_by_source(graders, asked("4"), "4") == (1.0, None)
    assert grade_by_source({"q": graders["p"]}, asked("4"), "4") == (None, None)


def test_the_stage_keeps_drops_and_counts(tmp_path):
    tokenizer, made = tiny.build_tokenizer(), tiny.problem(0)
    prompts, rollouts, out = (tmp_path / n for n in ("prompts", "rollouts", "out"))
    for place in (prompts, rollouts, out):
        place.mkdir()
    tokenizer.save_pretrained(prompts / "tokenizer")
    write_rows(prompts / "prompts.parquet", [asked(made.answer, made.entry)], Prompt)
    texts = [made.solution, made.solution.replace("answer", "line"), made.solution]
    rows = [rollout(str(i), [*tokenizer.encode(text), tokenizer.eos_token_id]) for i, text in enumerate(texts)]
    write_rows(rollouts / "rollouts.parquet", [*rows, rollout("3", [tokenizer.eos_token_id])], Rollout)
    filters = [{"name": "malformed", "params": {}}, {"name": "duplicate", "params": {}}]
    counts = grade_rollouts({"prompts": prompts, "rollouts": rollouts},
                            {"graders": {"p": {"name": "tiny", "params": {}}}, "filters": filters}, out, Session())
    kept, dropped = read_rows(out / "rollouts.parquet", Rollout), read_rows(out / "dropped.parquet", Quarantined)
    assert [(r.rollout_id, r.reward) for r in kept] == [("0", 1.0), ("1", 0.0)]
    assert kept[0].feedback is None and kept[1].feedback == f"the answer is {made.answer}"
    assert [(d.item_id, d.reason) for d in dropped] == [("2", "duplicate"), ("3", "malformed")]
    # rewards 1, 0, 1, 0
    assert counts == {"kept": 2, "dropped": 2, "reward_mean": 0.5, "dropped_duplicate": 1, "dropped_malformed": 1}


def rollout(name: str, token_ids: list[int]) -> Rollout:
    return Rollout(rollout_id=name, prompt_id="p:0", group_id="g", domain="", prompt_token_ids=[1], token_ids=token_ids,
                   logprobs=[0.0] * len(token_ids), author=[STUDENT] * len(token_ids), teacher_prompt_ids=None,
                   origin="student", parent=None, policy=[""] * len(token_ids), finish_reason="stop", reward=None,
                   feedback=None)
