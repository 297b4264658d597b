"""Graders on answers as models write them, and the stage that grades and filters."""
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from tasks.opd.core.records import STUDENT, Prompt, Quarantined, Rollout, read_rows, write_rows
from tasks.opd.data import tiny
from tasks.opd.data.graders import GRADERS, grade_by_source
from tasks.opd.data.sources import SOURCES
from tasks.opd.engines.pool import Session
from tasks.opd.rollouts.grading import grade_rollouts


def asked(answer: str, entry: dict | None = None) -> Prompt:
    return Prompt(prompt_id="p:0", index=0, text="?", token_ids=[1], answer=answer, solution=None,
                  entry=json.dumps(entry or {}), domain="")


def reward(grader: str, answer: str, completion: str, **params) -> float:
    return GRADERS[grader](asked(answer), completion, **params)[0]


def test_exact():
    assert reward("exact", "Paris", "I think\nAnswer: Paris") == 1 and reward("exact", "Paris", "paris") == 0
    assert reward("exact", "Paris", "paris", ignore_case=True) == 1
    assert reward("exact", "Paris", "**Answer**: Paris") == 1
    assert reward("exact", "Paris", "\\boxed{\\text{Paris}}") == 1
    assert reward("exact", "Paris.", "It is\n**Paris.**") == 1 and reward("exact", "", "") == 0


@pytest.mark.parametrize("grader", ["exact", "numeric", "math"])
@pytest.mark.parametrize("truth", [
    r"\boxed{7}", r"$\boxed{7}$", r"As 3 + 4 is 7, it is \fbox{7}.", r"\boxed{\boxed{7}}"])
def test_a_truth_in_a_box_is_what_the_box_holds(grader, truth):
    assert reward(grader, truth, "Answer: 7") == reward(grader, truth, r"So \boxed{7}") == 1
    assert reward(grader, truth, "Answer: 8") == reward(grader, truth, r"So \boxed{4}") == 0


def test_exact_keeps_marks_that_are_the_truths_own():
    assert reward("exact", "> 5", "answer: > 5") == reward("exact", "*", "answer: *") == 1.0
    assert reward("exact", "> 5", "answer: 5") == 0.0


def test_exact_compares_as_many_lines_as_the_truth_has():
    assert reward("exact", "1 2\n3 4", "Row by row.\nAnswer:\n```\n1 2\n3 4\n```\nDone.") == 1
    assert reward("exact", "1 2\n3 4", "Row by row:\n1 2\n3 4") == 1
    assert reward("exact", "1 2\n3 4", "Answer:\n3 4") == 0


def test_numeric_reads_units_commas_and_tolerance():
    assert reward("numeric", "1200.5", "3 boxes cost $1,200.50 dollars in all") == 1
    assert reward("numeric", "7", "Answer: 7 apples\nI hope that 100 helps") == 1
    assert reward("numeric", "0.3333", "Answer: 0.333") == 0
    assert reward("numeric", "0.3333", "Answer: 0.333", tolerance=0.001) == 1
    assert reward("numeric", "1000", "999", tolerance=0.001) == 1
    assert reward("numeric", "1000", "998", tolerance=0.001) == 0
    assert GRADERS["numeric"](asked("7"), "none") == (0.0, "no answer was found; it is 7")
    assert GRADERS["numeric"](asked("7"), "8") == (0.0, "the answer is 7, not 8")


def test_numeric_refuses_a_truth_that_is_not_one_number():
    with pytest.raises(ValueError, match="holds no number; use the grader exact"):
        reward("numeric", "Paris", "3")
    with pytest.raises(ValueError, match="holds several numbers; use the grader exact or math"):
        reward("numeric", "3,5,7", "7")


@pytest.mark.parametrize("truth, completion, right", [
    ("24", "24 m^2", 1), ("2", "24 m^2", 0), ("1/2", "0.5", 1), ("1/2", "2", 0), ("1/2", "5/2", 0), ("5", "-$5", 0),
    ("-5", "-$5", 1), ("5", "\u20135", 0), ("-5", "\u20135", 1), ("1200", r"\boxed{1{,}200}", 1),
    ("7", "7 (2 more than 5)", 1), ("12", r"\boxed{12}. This took 3 steps", 1),
    ("12", "The answer is 12. This took 3 steps.", 1),
    ("1000000", r"1 \times 10^6", 1), ("1200", "1 200", 1), ("1234", r"\boxed{1\,234}", 1), ("7", "**Answer**: 7", 1),
    ("3.4641016", r"\boxed{2\sqrt{3}}", 1),
    ("7", r"\boxed{3 + 4}", 1), ("7", r"\boxed{x = 7}", 1), ("24", r"\boxed{24\,\text{m}^2}", 1),
    ("40", "Answer: 50% of 80 is 40", 1),
    ("7", "Answer: 7 apples, which is 2 more than 5", 1), ("18", "She makes **$18** a day.\nAsk me 2 more!", 1),
    ("12", "Answer: 12 = 3*4", 1), ("4", "Answer: x = 4", 1), ("12", "Answer: x = 3*4 = 12", 1),
    ("12", "Answer: **12 apples = 3 + 9**", 1), ("24", "Answer: 24 = 4!", 1), ("24", "Answer: 4! = 24", 1),
    ("4", "Answer: 2x = 8, x = 4", 1), ("36", "Answer: 3 dozen = 36", 1), ("5", r"Answer: $5 = \sqrt{25}$", 1),
    ("24", "Answer: 24 m^2 = 4 m * 6 m", 1), ("4", "Answer: y = 2x = 4", 1), ("12", r"\boxed{12 = 3 \cdot 4}", 1),
    ("7", r"\boxed{10^{400}}", 0), ("7", r"\boxed{1/0}", 0), ("7", r"\boxed{\infty}", 0), ("7", r"\boxed{2i}", 0),
    ("14", "**Step 1:** 3 + 4 = 7\n**Step 2:** 7 * 2 = 14\nSo 14.", 1), ("5", "I counted 2.\nAnswer:\n5", 1)])
def test_numeric_reads_numbers_as_people_write_them(truth, completion, right):
    assert reward("numeric", truth, completion) == right


MATH = [("\\frac{1}{2}", "so \\boxed{0.5}", 1), ("2\\sqrt{3}", "$\\boxed{\\sqrt{12}}$", 1), ("4", "\\boxed{5}", 0),
        ("x+1", "the result is \\boxed{1+x}", 1), ("4", "first \\boxed{3}, no: \\boxed{4}", 1), ("4", "", 0),
        ("4", "\\boxed{4}. So \\boxed{}", 1), ("4", "\\boxed{4}. So \\boxed{5", 1), ("3", "\\fbox{3}", 1),
        ("3, 5", "x = \\boxed{3} or x = \\boxed{5}", 1), ("3, 5", "\\boxed{5, 3}", 1), ("3, 5", "x = \\boxed{3}", 0),
        ("\\$18.90", "\\boxed{\\$18.90}", 1), ("\\$18.90", "$18.90$", 1), ("\\$18.90", "\\boxed{18.80}", 0)]


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


THOUGHT = "<think>\nSo the answer is {wrong}.\nWait, it is {right}.\n</think>\n\n"


@pytest.mark.parametrize("dataset", [
    "basic_arithmetic", "number_format",                        # more digits than ten
    "rearc",                                                    # whose scorer tells tuples from lists
    "n_queens", "ab", "emoji_mystery", "sentence_reordering"])  # what looks like a mark is the answer's own
def test_reasoning_gym_gives_the_datasets_own_answers_their_reward(dataset):
    for item in SOURCES["reasoning_gym"](range(4), dataset=dataset):
        prompt = asked(item["answer"], item["entry"])
        assert GRADERS["reasoning_gym"](prompt, f"answer: {item['answer']}")[0] == 1.0


def thought_over() -> list:
    """Of every grader: a prompt, its answer as a completion says it, and a wrong one."""
    item = next(iter(SOURCES["reasoning_gym"](range(3, 4), dataset="gsm_symbolic")))
    made = tiny.problem(0)
    return [("exact", asked("7"), "answer: 7", "answer: 5"),
            ("numeric", asked("7"), "She has **7** apples.", "It is 5."),
            ("math", asked("7"), "It is $7$.", "It is $5$."),
            ("reasoning_gym", asked(item["answer"], item["entry"]), f"Answer: {item['answer']}", "Answer: 0"),
            ("tiny", asked(made.answer, made.entry), f"answer: {made.answer}", "answer: 100")]


def test_what_stands_in_thinking_is_never_the_answer_of_any_grader():
    assert [row[0] for row in thought_over()] == list(GRADERS)
    for name, prompt, right, wrong in thought_over():
        for thought in (THOUGHT.format(wrong=wrong, right=right), f"so {right}\n</think>\n"):  # opened here, or before
            assert GRADERS[name](prompt, thought + right)[0] == 1, name
            assert GRADERS[name](prompt, thought + wrong)[0] == 0, name
        assert GRADERS[name](prompt, f"<think>\n{right}")[0] == 0, name  # cut off


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
