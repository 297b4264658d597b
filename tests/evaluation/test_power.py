"""What a suite can detect is said before it runs, by hand and on the command line, and refused where it is too much."""
import json

import pytest

from flows.cli.main import main
from flows.forms import values
from flows.forms.values import Given
from tasks.opd.core.errors import RecipeError
from tasks.opd.evaluation import power
from tasks.opd.recipe import loading


def planned(*overrides: str):
    plan, cells = loading.load_suite("demo", overrides)
    return power.detectable_by(plan, power.benchmark_of(plan, cells))


def test_one_seed_by_hand():
    # a fourth x (1 - 0.3) = 0.175 a half; two halves over 200 prompts: se = sqrt(0.35 / 200) = 0.041833. With 199
    # degrees of freedom t(0.975) = 1.97196, and 2.8152 is the noncentrality of power 0.8: 11.78 points
    assert planned("variants=[gkd]") == pytest.approx(0.11777, abs=1e-5)
    # with four samples an answer a quarter of the half that is drawn anew, all of the prompts' own: sqrt(0.625)
    assert planned("variants=[gkd]", "benchmarks.0.samples=4") == pytest.approx(0.11777 * 0.625 ** 0.5, abs=1e-5)
    assert planned("variants=[gkd]", "assume.accuracy=0.1") == pytest.approx(0.11777 * 0.6, abs=1e-5)  # 0.3 of 0.5


def test_three_seeds_by_hand():
    # A = 0.05^2 / 3 + E, C = 0.175 / 200 + E, E = 0.175 / 600: Var = 0.002, df = 0.002^2 / (A^2 / 2 + C^2 / 199 + ..)
    # = 6.29, where power 0.8 needs 3.339
    assert planned("variants=[gkd]", "seeds=[0,1,2]", "assume.seed_sd=0.05") == pytest.approx(0.1493, abs=1e-3)


def test_more_comparisons_and_a_baseline_with_seeds_of_its_own_detect_less():
    three = "seeds=[0,1,2]"
    assert planned(three) > planned(three, "variants=[gkd]")
    assert planned(three, "baseline=sft") > planned(three)
    assert planned(three, "baseline=sft", "assume.seed_sd=0") == planned(three, "assume.seed_sd=0")
    assert planned("seeds=[0,0,0]") == planned("seeds=[0]")                  # a seed twice is one seed


def test_the_sentence_has_its_assumptions_and_says_what_one_seed_cannot():
    one, three = (power.described(*loading.load_suite("demo", [seeds])) for seeds in ("seeds=[0]", "seeds=[0,1,2]"))
    assert "1 seed x 200 prompts can detect a difference of 13.6 points to start (power 80%, 5% by Holm over 3" in one
    assert "seed variance not estimable with fewer than 3" in one and "points between seeds" not in one
    assert ("50% right, correlation 0.3 between two students' answers, prompts that are no kin, 3 points between seeds"
            in three)


def test_check_and_compare_refuse_what_a_suite_cannot_detect(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPD_HOME", str(tmp_path / "home"))
    for command in ("check", "compare"):
        assert main([command, "demo", "detect=0.05"]) == 10
        said = capsys.readouterr().err
        assert "can detect a difference of 13.6 points" in said and "looks for 5 points (detect)" in said
    assert not (tmp_path / "home").exists()                                  # before anything starts
    assert main(["check", "demo", "detect=0.2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["detectable"] == pytest.approx(0.136, abs=1e-3) and told["cells"] == 3


def refusal(*overrides: str) -> str:
    with pytest.raises(RecipeError) as refused:
        power.refuse_undetectable(*loading.load_suite("demo", overrides))
    return str(refused.value)


def test_a_refusal_advises_only_what_lowers_it():
    one, two = refusal("detect=0.05"), refusal("detect=0.05", "seeds=[0,1]")
    assert "What lowers it: 2 seeds: " in one and "; 400 prompts: 9.6 points; 2 samples: " in one
    assert "1 variant: 11.8 points; measured assumptions (assume)" in one
    assert "4 seeds" not in two and "400 prompts" in two      # of four, that between seeds is told, which widens it
    alone = refusal("detect=0.05", "variants=[gkd]", "seeds=[0,1,2]", "assume.seed_sd=0.2")
    assert "6 seeds" in alone and "variant:" not in alone
    told = [part.split(": ")[-1] for part in one.split("lowers it: ")[1].split("; ")[:-1]]
    assert len(told) == 4 and max(float(part.removesuffix(" points")) for part in told) < 13.6


def test_one_prompt_tells_no_difference_and_is_refused_only_where_one_is_looked_for(capsys):
    assert main(["check", "demo", "benchmarks.0.count=1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["detectable"] is None and told["described"] == (
        "demo: 1 prompt tells no difference to start; benchmark demo needs a count of 2 or more")
    assert "2 prompts: " in refusal("benchmarks.0.count=1", "detect=0.3")


def test_anyway_runs_it_all_the_same(monkeypatch):
    monkeypatch.setattr("flows.cli.runs.prepare", lambda arguments: (_ for _ in ()).throw(RecipeError("it starts")))
    with pytest.raises(RecipeError, match="it starts"):
        from flows.cli import runs
        from flows.cli.main import parsed
        runs.compare(parsed(["compare", "demo", "detect=0.05", "--anyway"]))


def test_check_takes_a_suite_by_name_or_path_and_names_a_recipe_that_is_not_sound(tmp_path, capsys):
    assert loading.is_suite("demo") and loading.is_suite("configs/suites/zoo.yaml")
    assert not any(map(loading.is_suite, ("gkd", "configs/variants/gkd.yaml", "none", "no/such.yaml")))
    file = tmp_path / "s.yaml"
    file.write_text("name: s\nvariants: [gkd]\nbaseline: start\nset: [pair=demo]\n")
    assert main(["check", str(file)]) == 0 and "s is sound: 2 cells (gkd)" in capsys.readouterr().out
    assert main(["check", str(file), "terms.0.divergence.beta=9"]) == 10


def test_a_form_is_refused_too_but_for_a_smoke_run():
    looks = Given("detect=0.05", "overrides")
    with pytest.raises(RecipeError, match="looks for 5 points"):
        values.cells_of("demo", [looks])
    assert values.cells_of("demo", [looks, *(Given(one, "smoke") for one in values.SMOKE)])
