"""The tiny task: problems, solutions, grader and tokenizer agree with each other."""
import json
import re
import statistics

import pytest

from tasks.opd.core.records import Prompt
from tasks.opd.data import tiny

MANY = [tiny.problem(i) for i in range(300)]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.build_tokenizer()


def prompt_of(problem: tiny.Problem) -> Prompt:
    return Prompt(prompt_id="t:0", index=0, text=problem.text, token_ids=[], answer=problem.answer,
                  solution=problem.solution, entry=json.dumps(problem.entry), domain=problem.domain)


HAND = tiny.Problem(text="Tom in Rome has 23 figs. Monday buys 7, Tuesday eats 9. How many figs?", start=23,
                    steps=[7, -9], verbs=["buys", "eats"])  # 23 + 7 = 30, 30 - 9 = 21


def test_worked_solution_by_hand():
    assert HAND.solution == "line 1: Monday buys 7, 23 + 7 = 30\nline 2: Tuesday eats 9, 30 - 9 = 21\nanswer: 21"
    assert HAND.answer == "21" and HAND.values == [30, 21]


def test_a_right_solution_earns_one_without_feedback():
    assert tiny.grade(prompt_of(HAND), HAND.solution) == (1.0, None)


@pytest.mark.parametrize("old, new, feedback", [
    ("23 + 7 = 30", "23 + 7 = 31", "line 1: 23 + 7 is 30"),
    ("30 - 9", "30 + 9", "line 2: 30 - 9 is 21"),
    ("line 2: Tuesday eats 9, 30 - 9 = 21\n", "", "line 2: 30 - 9 is 21"),
    ("line 1: ", "", "line 1: 23 + 7 is 30"),
])
def test_feedback_names_the_first_wrong_line_and_the_final_answer_alone_is_rewarded(old, new, feedback):
    assert tiny.grade(prompt_of(HAND), HAND.solution.replace(old, new)) == (1.0, feedback)


def test_a_wrong_answer_after_right_lines_is_named():
    wrong = HAND.solution.replace("answer: 21", "answer: 20")
    assert tiny.grade(prompt_of(HAND), wrong) == (0.0, "the answer is 21, not 20")
    assert tiny.grade(prompt_of(HAND), HAND.solution.split("answer")[0]) == (0.0, "the answer is 21")
    assert tiny.grade(prompt_of(HAND), "")[0] == 0.0
    assert tiny.grade(prompt_of(HAND), "answer: 210\n")[0] == 0.0


def test_an_answer_counts_only_on_its_own_line():
    assert tiny.grade(prompt_of(HAND), "the answer: 21")[0] == 0.0
    assert tiny.grade(prompt_of(HAND), "answer: 20\nanswer: 21")[0] == 1.0  # the last one counts


def test_every_problem_says_what_its_solution_computes():
    for problem in MANY:
        start, *numbers = map(int, re.findall(r"\d+", problem.text))
        assert start == problem.start and numbers == [abs(s) for s in problem.steps] and len(numbers) in (4, 5)
        assert all(10 <= value <= 99 for value in (problem.start, *problem.values)) and 0 not in problem.steps
        assert all((verb in tiny.GAINS) == (step > 0) for verb, step in zip(problem.verbs, problem.steps))
        assert problem.answer == str(eval(f"{start}" + "".join(f"{s:+d}" for s in problem.steps)))  # noqa: S307
        assert tiny.grade(prompt_of(problem), problem.solution) == (1.0, None)


def test_an_easier_task_keeps_to_its_bounds_and_reaches_them():
    easy = [tiny.problem(i, num_steps=3, highest=29, largest=5) for i in range(300)]
    values = {value for problem in easy for value in (problem.start, *problem.values)}
    assert values == set(range(10, 30)) and {len(problem.steps) for problem in easy} == {3}
    assert {abs(step) for problem in easy for step in problem.steps} == {1, 2, 3, 4, 5}
    assert all(tiny.grade(prompt_of(problem), problem.solution) == (1.0, None) for problem in easy)
    assert {step for problem in MANY for step in problem.steps} == {*range(-9, 0), *range(1, 10)}
    assert max(value for problem in MANY for value in problem.values) == 59


def test_problems_depend_on_index_and_seed_only_and_do_not_repeat():
    assert tiny.problem(7, 3) == tiny.problem(7, 3)
    assert tiny.problem(7, 3) != tiny.problem(7, 4) and tiny.problem(7, 3) != tiny.problem(8, 3)
    texts = {tiny.problem(i, seed).text for i in range(2000) for seed in (0, 1)}
    assert len(texts) == 4000


def test_decode_inverts_encode_and_no_word_is_unknown(tokenizer):
    for problem in MANY:
        for text in (problem.text, problem.solution, tiny.grade(prompt_of(problem), "")[1], problem.text + "\n\n"):
            ids = tokenizer.encode(text)
            assert tokenizer.decode(ids) == text and tokenizer.unk_token_id not in ids


def test_the_teachers_words_are_known(tokenizer):
    from tasks.opd.scoring.contexts import WITH_SOLUTION
    text = WITH_SOLUTION.format(text=HAND.text, solution=HAND.solution)
    assert tokenizer.unk_token_id not in tokenizer.encode(text)


def test_sizes(tokenizer):
    lengths = [len(tokenizer.encode(p.solution)) + 1 for p in MANY]
    assert len(tokenizer) >= 512 and statistics.median(lengths) >= 48 and max(lengths) <= 96
    assert all(len(re.findall(r"\d", piece)) <= 1 for piece in tiny.vocabulary())  # digits are single
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_a_saved_tokenizer_opens_and_renders_the_same_ids(tokenizer, tmp_path):
    from transformers import AutoTokenizer
    tokenizer.save_pretrained(tmp_path)
    opened = AutoTokenizer.from_pretrained(tmp_path)
    turns = [{"role": "user", "content": HAND.text}, {"role": "assistant", "content": "answer: 21"}]
    ids = opened.apply_chat_template(turns, return_dict=False)
    user, assistant, end = opened.convert_tokens_to_ids(["<|user|>", "<|assistant|>", "<|end|>"])
    assert ids == [user, *opened.encode(HAND.text), assistant, *opened.encode("answer: 21"), end]
    asked = opened.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
    assert asked == ids[:len(asked)] and asked[-1] == assistant


def test_a_new_model_follows_from_its_seed_and_leaves_the_global_generator_alone(tokenizer):
    import torch
    before = torch.get_rng_state()
    one, same, other = (tiny.new_model(tokenizer, seed=s, layers=1, hidden=64) for s in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    weights = [m.get_input_embeddings().weight for m in (one, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert one.config.hidden_size // one.config.num_attention_heads == 32
