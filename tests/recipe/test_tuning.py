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


def test_validation_changes_what_it_says_of_the_benchmark_and_nothing_beside_it():
    changed = [TUNED[0], TUNED[1], "validation={first: 2000000, sampling: {temperature: 0}, grader: math, name: other}"]
    trial = load_trials("demo", [*changed, "benchmarks.0.sampling.max_new_tokens=17"])[0]
    [asked] = trial.recipe.benchmarks
    assert (asked.sampling.temperature, asked.sampling.max_new_tokens) == (0, 17)
    assert asked.grader.name == "math" and asked.name == "demo-validation"
    source = load_trials("demo", [*TUNED[:2], "validation={source: {name: tiny}}"])[0].recipe.benchmarks[0].source
    assert source.name == "tiny"                                              # of another source nothing is kept
    with pytest.raises(RecipeError, match="validation: benchmarks.0.pass_at.3: no such entry"):
        load_trials("demo", [*TUNED[:2], "validation={pass_at: {3: 1}}"])


@pytest.fixture
def tuned(tmp_path) -> str:
    """A suite whose file tunes."""
    file = tmp_path / "tuned.yaml"
    file.write_text("name: tuned\nvariants: [gkd]\nseeds: [0]\nbaseline: start\nset: [pair=demo]\ntrials: 2\n"
                    "tune: {train.learning_rate: [1.0e-4, 5.0e-4]}\nvalidation: {first: 2000000, count: 50}\n")
    return str(file)


def test_tuning_is_switched_off_or_replaced_on_the_command_line(tuned, capsys):
    assert load_trials(tuned, ["tune={}"]) == [] and len(load_trials(tuned)) == 2
    assert [trial.settings for trial in load_trials(tuned, ["tune={train.epochs: [1, 2]}"])] == [
        {"train.epochs": 1}, {"train.epochs": 2}]
    assert main(["jobs", tuned]) == 10 and "tune={}" in capsys.readouterr().err
    assert main(["jobs", tuned, "tune={}"]) == 0 and '"opd"' in capsys.readouterr().out


@pytest.mark.parametrize("override, first, count", [
    ("validation={first: 3000000}", 3_000_000, 200), ("validation.first=3000000", 3_000_000, 50)])
def test_validation_is_replaced_as_a_whole_or_changed_by_key(tuned, override, first, count):
    [asked] = load_trials(tuned, [override])[0].recipe.benchmarks
    assert (asked.first, asked.count) == (first, count)


def test_a_suite_over_another_tunes_by_its_own_mapping(tuned, tmp_path):
    over = tmp_path / "over.yaml"
    over.write_text("defaults: tuned.yaml\ntune: {train.epochs: [1, 2]}\n")
    assert [trial.settings for trial in load_trials(over)] == [{"train.epochs": 1}, {"train.epochs": 2}]


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
