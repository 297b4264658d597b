"""A budget in one currency: when it is spent, how much a round may still write, and what is refused at load."""
import pytest

from tasks.opd.core.errors import RecipeError
from tasks.opd.recipe import budgets, loading

SMALL = ["rollout.prompts_per_round=4", "rollout.sampling.max_new_tokens=10", "rounds=9"]


def recipe(variant: str = "opd_reverse_kl", *overrides: str):
    return loading.load(variant, [*SMALL, *overrides])


def record(*, cut: bool = False, **spent: float) -> dict:
    return {"spent": spent, "cut": cut}


@pytest.mark.parametrize("currency", ["trained_tokens", "student_written_tokens", "teacher_read_tokens", "seconds"])
def test_a_run_ends_once_its_budget_is_spent_and_not_before(currency):
    asked = recipe("opd_reverse_kl", f"budget.{currency}=100")
    assert not budgets.is_spent(asked, []) and not budgets.is_spent(asked, [record(**{currency: 99})])
    assert budgets.is_spent(asked, [record(**{currency: 100})]) and budgets.is_spent(asked, [record(**{currency: 101})])
    assert budgets.behind(asked, [record(**{currency: 25})]) == 0.25 and not budgets.is_spent(recipe(), [record()])


def test_a_round_that_was_cut_is_the_last_whatever_is_left():
    asked = recipe("opd_reverse_kl", "budget.teacher_read_tokens=100")
    assert budgets.is_spent(asked, [record(teacher_read_tokens=90, cut=True)])


def test_a_round_may_write_what_is_left_where_it_could_write_more():
    asked = recipe("opd_reverse_kl", "budget.student_written_tokens=100")
    student = ["student_written_tokens"]
    assert budgets.most_written(asked, []) is None                      # 4 prompts of at most 10 tokens: 40
    assert budgets.most_written(asked, [record(student_written_tokens=60)]) is None
    assert budgets.most_written(asked, [record(student_written_tokens=61)]) == {"tokens": 39, "of": student}
    several = recipe("opd_reverse_kl", "budget.student_written_tokens=100", "rollout.writers.0.n=3")
    assert budgets.most_written(several, []) == {"tokens": 100, "of": student}          # 120
    assert budgets.most_written(recipe("opd_reverse_kl", "budget.seconds=1"), [record(seconds=0.5)]) is None


def test_a_token_that_two_models_read_counts_twice_and_what_none_can_read_any_more_is_spent():
    two = recipe("opd_reverse_kl", "terms=[{advantage: teacher_gap, estimator: policy_gradient}, "
                 "{target: reference, support: full, divergence: reverse_kl}]", "budget.teacher_read_tokens=101")
    assert budgets.most_written(two, [record(teacher_read_tokens=50)])["tokens"] == 25      # 51 // 2
    assert budgets.is_spent(two, [record(teacher_read_tokens=100)])


def test_what_was_not_spent_exactly_is_told():
    asked = recipe("opd_reverse_kl", "budget.teacher_read_tokens=1000")
    assert budgets.told(asked, [record(teacher_read_tokens=1000)]) == [] == budgets.told(recipe(), [record()])
    assert budgets.told(asked, [record(teacher_read_tokens=1050)]) == [
        "spent 1,050 of 1,000 teacher read tokens (+5.0%)"]
    assert budgets.told(asked, [record(teacher_read_tokens=500)]) == [
        "spent 500 of 1,000 teacher read tokens (-50.0%); all 9 rounds were made: raise rounds"]


@pytest.mark.parametrize("variant, overrides, said", [
    ("opd_reverse_kl", ["budget={trained_tokens: 5, seconds: 9}"], "leave one of trained_tokens, seconds"),
    ("opd_reverse_kl", ["budget.teacher_written_tokens=5"], "budget.teacher_written_tokens = 5: is never spent"),
    ("sft", ["budget.student_written_tokens=5"], "budget.student_written_tokens = 5: is never spent"),
    ("grpo", ["budget.teacher_read_tokens=5"], "budget.teacher_read_tokens = 5: is never spent"),
    ("opd_reverse_kl", ["budget.tokens=5"], "unknown key")])
def test_a_budget_that_ends_nothing_or_has_two_currencies_is_refused(variant, overrides, said):
    with pytest.raises(RecipeError, match=said):
        recipe(variant, *overrides)


def test_a_suite_whose_variants_have_other_budgets_is_refused(tmp_path):
    file = tmp_path / "two.yaml"
    file.write_text("{name: two, variants: [sft, gkd, opd_reverse_kl], baseline: start, set: [budget.trained_tokens=9],"
                    " variant_set: {gkd: [budget.trained_tokens=8]}}")
    with pytest.raises(RecipeError, match="two.yaml: budget: gkd may spend 8 trained_tokens, sft 9 trained_tokens"):
        loading.load_suite(file)
    assert len(loading.load_suite(file, ["budget.trained_tokens=7"])[1]) == 6
