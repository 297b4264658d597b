"""Forms and what becomes of them: the fields that Prefect draws, the overrides they are, deployments, verdicts."""
import inspect

import pytest

from flows import deployments
from flows.forms import fields, texts, values, verdicts
from flows.forms.values import OWN, Given, overrides_of, recipes_of, seeds_of
from flows.triggered import compare, distill, evaluate
from tasks.opd.core.errors import DataError, OpdError, RecipeError
from tasks.opd.evaluation import comparison
from tasks.opd.recipe import loading

FLOWS = {"distill": distill.distill, "compare": compare.compare, "evaluate": evaluate.evaluate}
DRAWN = {  # field -> title, type, default, bounds: what a person sees, and a submission is held against
    "pair": ("Pair", "string", OWN, {}), "prompts": ("Prompts", "string", OWN, {}),
    "benchmarks": ("Benchmark", "string", OWN, {}), "seeds": ("Seeds", "string", "0", {"pattern": fields.SEEDS}),
    "rounds": ("Rounds", "integer", 0, {"minimum": 0, "maximum": 100_000}),
    "learning_rate": ("Learning rate", "number", 0, {"minimum": 0, "maximum": 1}),
    "trained_tokens": ("Token budget", "integer", 0, {"minimum": 0}), "engine": ("Engine", "string", OWN, {}),
    "smoke": ("Smoke test", "boolean", False, {}), "note": ("Note", "string", "", {"maxLength": 500}),
    "overrides": ("Overrides", "array", [], {})}


@pytest.fixture(scope="module")
def deployed() -> dict:
    """flow/name -> what is registered for a variant, a suite and an evaluation."""
    found = [one for table in (deployments.variants, deployments.suites, deployments.evaluations) for one in table()[0]]
    return {f"{one.flow}/{one.name}": one for one in found}


def test_the_form_of_a_variant_is_flat_and_says_what_its_own_values_are(deployed):
    form = deployed["distill/opd_reverse_kl"].form
    drawn = {name: (one["title"], one["type"], one["default"],
                    {key: one[key] for key in ("minimum", "maximum", "pattern", "maxLength") if key in one})
             for name, one in form["properties"].items()}
    assert drawn == DRAWN and [one["position"] for one in form["properties"].values()] == list(range(len(DRAWN)))
    assert not {"$ref", "anyOf", "oneOf"} & {key for one in form["properties"].values() for key in one}
    for name, folder in (("pair", "pairs"), ("prompts", "prompts"), ("benchmarks", "benchmarks")):
        files = sorted(file.stem for file in (loading.CONFIGS / folder).glob("*.yaml"))
        assert form["properties"][name]["enum"] == [OWN, *files]
    assert form["properties"]["engine"]["enum"] == [OWN, "torch", "vllm"]
    told = {name: one["description"] for name, one in form["properties"].items()}
    assert told["pair"] == "The models. own: tiny."
    assert told["rounds"].endswith("0: the recipe's own, 45.") and told["learning_rate"].endswith("own, 0.0005.")


def test_every_file_is_a_deployment_that_says_what_it_is_and_can_be_found(deployed):
    names = {f"distill/{file.stem}" for file in (loading.CONFIGS / "variants").glob("*.yaml")}
    names |= {f"compare/{file.stem}" for file in (loading.CONFIGS / "suites").glob("*.yaml")}
    assert set(deployed) == {*names, "evaluate/model"}
    for label, one in deployed.items():
        assert "**Cost**" in one.description or one.flow == "compare" and "**Baseline**" in one.description, label
        kinds = {tag.partition(":")[0] for tag in one.tags}
        assert kinds == {"distill": {"variant", "family"}, "compare": {"suite"}, "evaluate": set()}[one.flow], label
        assert "family:other" not in one.tags, f"{label}: configs/suites/zoo.yaml lists it under no heading"
    gkd = deployed["distill/gkd"]
    assert gkd.tags == ("variant:gkd", "family:baselines")
    assert "[arXiv:2306.13649](https://arxiv.org/abs/2306.13649)" in gkd.description
    assert "**Placebo**, which it must beat: random_teacher." in gkd.description


def test_a_form_fits_the_function_that_it_fills(deployed):
    for one in deployed.values():
        taken = inspect.signature(FLOWS[one.flow].fn).parameters
        assert one.entrypoint == f"{FLOWS[one.flow].fn.__module__}.{FLOWS[one.flow].fn.__name__}"
        assert FLOWS[one.flow].name == one.flow and set(taken) == {*one.form["properties"], *one.parameters}
        for name, drawn in one.form["properties"].items():
            default = taken[name].default
            given = [*default] if isinstance(default, tuple) else default
            assert (name in one.form.get("required", [])) == (default is inspect.Parameter.empty), name
            assert name in one.form.get("required", []) or name == "seeds" or given == drawn["default"], name


def test_a_file_that_cannot_be_loaded_is_refused_by_name_and_leaves_the_others(monkeypatch, tmp_path):
    for name, text in (("good", "seed: 2"), ("bad", "seed: none")):
        (tmp_path / f"{name}.yaml").write_text(f"defaults: {loading.CONFIGS / 'base.yaml'}\nname: {name}\n{text}\n")
    monkeypatch.setattr(texts, "files", lambda kind: ["bad", "good"])
    loaded, refused = texts.by_name("variants", lambda name: loading.load(tmp_path / f"{name}.yaml"))
    assert loaded["good"].seed == 2 and 'seed = "none"' in refused["bad"] and len(loaded) == len(refused) == 1


def test_what_is_left_as_it_is_becomes_no_override():
    plain = {name: default for name, (_, _, default, _) in DRAWN.items()}
    assert overrides_of(plain) == []
    filled = overrides_of({**plain, "pair": "tiny", "learning_rate": 0.00001, "engine": "vllm", "rounds": 3,
                           "overrides": ["train.epochs=2", " ", "rounds=4"]})
    assert filled == [Given("pair=tiny", "pair"), Given("rounds=3", "rounds"),
                      Given("train.learning_rate=1e-05", "learning_rate"), Given("engine.name=vllm", "engine"),
                      Given("train.epochs=2", "overrides"), Given("rounds=4", "overrides")]
    [recipe] = recipes_of("gkd", [one for one in filled if one.field != "engine"], "7")
    assert (recipe.train.learning_rate, recipe.rounds, recipe.train.epochs, recipe.seed) == (1e-5, 4, 2, 7)


def test_a_smoke_run_is_small_whatever_else_the_form_says():
    form = {"smoke": True, "pair": "qwen3_1.7b_from_8b", "rounds": 500, "trained_tokens": 9, "benchmarks": "aime24"}
    for recipe in recipes_of("gkd", overrides_of(form), "0, 1"):
        assert recipe.pair.name == "smoke" and recipe.rounds == 2 and recipe.budget.trained_tokens == 0
        assert [(benchmark.name, benchmark.count) for benchmark in recipe.benchmarks] == [("tiny", 10)]
        assert {maker.name for maker in (recipe.pair.student, recipe.pair.teacher)} == {"random"}
    recipes = values.cells_of("demo", [Given("seeds=[3]", "seeds"), *overrides_of({"smoke": True})])
    assert {(recipe.pair.name, recipe.rounds, recipe.seed) for recipe in recipes} == {("smoke", 2, 3)}


def test_all_that_is_wrong_is_said_at_once_by_field():
    given = overrides_of({"learning_rate": 7.0, "rounds": -1, "overrides": ["terms.0.divergence.beta=9"]})
    with pytest.raises(RecipeError) as caught:
        recipes_of("gkd", given, "0")
    first, second, third = sorted(str(caught.value).splitlines())
    assert first.startswith("field learning_rate: train.learning_rate = 7.0: must be less than or equal to 1")
    assert second.startswith("field rounds: rounds = -1: must be greater than or equal to 1")
    assert third.startswith("override 'terms.0.divergence.beta=9': ")


@pytest.mark.parametrize("text", ["", " , ", "1;2", "-1", "one"])
def test_seeds_are_whole_numbers_with_commas(text):
    assert seeds_of("0, 1,,1") == [0, 1]
    with pytest.raises(RecipeError, match="field seeds: .* must be whole numbers"):
        seeds_of(text)


def rewards(*right: int) -> dict[str, float]:
    return {f"p{i}": float(i in right) for i in range(10)}


def test_a_verdict_is_one_sentence_with_the_difference_and_its_interval():
    # nine of ten against none: +90 points, and a resample of ten prompts rarely has fewer than seven of the nine
    cells = {("start", 0): rewards(), ("gkd", 0): rewards(*range(9)), ("sft", 0): rewards()}
    table = comparison.compare(cells, "start")
    low, high = (100 * bound for bound in table.rows[1].interval)
    assert verdicts.of_variant("gkd", {"tiny": table}) == (
        f"gkd better than start: +90.0 [{low:+.1f}, {high:+.1f}] points on tiny")
    assert verdicts.of_variant("sft", {"a": table, "b": table}) == (
        "sft not distinguishable from start: +0.0 [+0.0, +0.0] points on a; "
        "not distinguishable from start: +0.0 [+0.0, +0.0] points on b")
    assert "no benchmark was asked" in verdicts.of_variant("gkd", {})


def test_a_suites_verdict_names_the_best_and_counts_the_rest():
    rows = [{"variant": f"v{i}", "verdict": "better", "difference": i / 100, "interval": (0, 1)} for i in range(1, 8)]
    rows += [{"variant": "sft", "verdict": "failed", "difference": None, "interval": None},
             {"variant": "start", "verdict": "baseline", "difference": None, "interval": None}]
    assert verdicts.of_suite({"rows": rows, "baseline": "start"}, "tiny") == (
        "better than start: v7 +7.0, v6 +6.0, v5 +5.0, v4 +4.0, v3 +3.0 and 2 more; failed: sft (points on tiny)")


def test_a_failed_seed_fails_the_run_and_says_how_the_others_ended():
    table = comparison.compare({("start", 0): rewards(), ("gkd", 0): rewards()}, "start")
    with pytest.raises(DataError) as caught:
        verdicts.of_seeds("gkd", {"tiny": table}, {1: DataError("no such file")})
    first, second = str(caught.value).splitlines()
    assert first == "seed 1: no such file" and second.startswith("gkd not distinguishable from start")
    with pytest.raises(OpdError, match="seed 2: KeyError: 'x'"):
        verdicts.of_seeds("gkd", {}, {2: KeyError("x")})
