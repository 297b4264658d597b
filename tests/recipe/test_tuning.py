"""A suite's trials: the same for every variant, on questions and a seed of their own; what is wrong is said at once."""
import pytest

from flows.cli.main import main
from tasks.opd.core.errors import RecipeError
from tasks.opd.recipe import loading
from tasks.opd.recipe.tuning import cells_with, grid, load_trials

TUNED = ["seeds=[0,1,2]", "tune={train.learning_rate: [1e-4, 5e-4], train.epochs: [1, 2]}",
         "validation={first: 2000000, count: 50}"]


def test_every_variant_is_tried_with_the_same_settings_on_the_validation_questions_alone():
    trials = load_trials("demo", TUNED)
    settings = [{"train.learning_rate": rate, "train.epochs": epochs} for rate in (1e-4, 5e-4) for epochs in (1, 2)]
    for variant in ("sft", "opd_reverse_kl", "gkd"):
        assert [trial.settings for trial in trials if trial.variant == variant] == settings
    last = trials[-1]
    assert (last.recipe.name, last.recipe.seed, last.recipe.train.learning_rate, last.recipe.train.epochs) == (
        "gkd-trial3", 1000, 5e-4, 2)
    [asked] = last.recipe.benchmarks
    assert (asked.name, asked.first, asked.count) == ("demo-validation", 2_000_000, 50)
    assert (last.test.name, last.test.first, last.test.count) == ("demo", 1_000_000, 200)
    assert asked.source == last.test.source and asked.grader == last.test.grader
    assert len({trial.recipe.name for trial in trials}) == 12
    assert load_trials("demo") == []


def test_a_budget_draws_the_same_settings_every_time():
    plan, _ = loading.load_suite("demo", [*TUNED, "trials=3"])
    assert len(grid(plan)) == 3 and grid(plan) == grid(plan)
    assert all(settings in grid(loading.load_suite("demo", TUNED)[0]) for settings in grid(plan))
    assert len(load_trials("demo", [*TUNED, "trials=3"])) == 9


def test_cells_have_the_settings_chosen_for_their_variant_and_the_suites_own_seeds_and_benchmark():
    cells = cells_with("demo", [*TUNED, "rounds=3"], {"gkd": {"train.learning_rate": 1e-5}})
    assert [seed for _, seed, _ in cells] == [0, 1, 2] * 3
    rates = {variant: recipe.train.learning_rate for variant, _, recipe in cells}
    assert rates == {"sft": 5e-4, "opd_reverse_kl": 5e-4, "gkd": 1e-5}        # the pair's own, where none was chosen
    assert all(recipe.rounds == 3 and recipe.benchmarks[0].name == "demo" for _, _, recipe in cells)


@pytest.mark.parametrize("overrides, said", [
    (TUNED[:2], "a suite that tunes needs validation"), ([*TUNED, "tune_seed=1"], "tune_seed 1 is one of seeds"),
    ([*TUNED, "trials=5"], "trials is 5, but tune has only 4 settings"),
    ([*TUNED[::2], "tune={train.epochs: []}"], "train.epochs has no values"),
    ([*TUNED[::2], "tune={train.epohcs: [1]}"], "unknown key; did you mean epochs"),
    ([*TUNED[:2], "validation={frist: 1}"], "unknown key; did you mean first"),
    ([*TUNED[::2], "tune={terms.0.divergence.beta: [0.1, 7]}"], "beta")])
def test_what_is_wrong_with_tuning_is_said_before_anything_runs(overrides, said, capsys):
    with pytest.raises(RecipeError, match=said):
        load_trials("demo", overrides)
    assert main(["check", "demo", *overrides]) == main(["compare", "demo", *overrides]) == 10
    capsys.readouterr()


def test_check_counts_trials_and_jobs_of_single_cells_cannot_tune(capsys):
    assert main(["check", "demo", *TUNED]) == 0 and "9 cells (sft, opd_reverse_kl, gkd), 12 trials before them" in (
        capsys.readouterr().out)
    assert main(["jobs", "demo", *TUNED]) == 10 and "tunes its variants before it runs them" in capsys.readouterr().err
