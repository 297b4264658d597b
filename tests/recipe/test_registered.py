"""Benchmarks that are registered, and which of them can be had without a network."""
from tasks.opd.recipe import loading
from tasks.opd.recipe.registered import at_hand, exposure_spec, registered


def test_every_file_of_configs_is_registered():
    assert {"tiny", "gsm_symbolic", "gsm8k", "math500", "aime24", "aime25"} <= set(registered())


def test_a_hub_benchmark_is_at_hand_once_datasets_keeps_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    known = registered()
    assert at_hand(known["tiny"]) and at_hand(known["gsm_symbolic"]) and not at_hand(known["math500"])
    (tmp_path / "HuggingFaceH4___math-500").mkdir()                    # as datasets spells HuggingFaceH4/MATH-500
    assert at_hand(known["math500"]) and not at_hand(known["gsm8k"])


def test_a_benchmark_of_a_file_is_at_hand_where_the_file_is(tmp_path):
    [own] = loading.load("gkd", ["benchmarks.0.source={name: jsonl, path: /nowhere/b.jsonl}"]).benchmarks
    assert not at_hand(own)
    (tmp_path / "b.jsonl").touch()
    params = {**own.source.params, "path": str(tmp_path / "b.jsonl")}
    assert at_hand(own.model_copy(update={"source": own.source.model_copy(update={"params": params})}))


def test_the_recipes_own_benchmarks_have_limits_and_others_are_only_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    spec = exposure_spec(loading.load("gkd", ["benchmarks=tiny", "benchmarks.0.max_contaminated=0.1",
                                              "benchmarks.0.count=7"]))
    assert (spec["benchmarks"]["tiny"]["max_contaminated"], spec["benchmarks"]["tiny"]["count"]) == (0.1, 7)
    assert spec["benchmarks"]["gsm_symbolic"]["max_contaminated"] is None
    assert spec["not_at_hand"] == ["aime24", "aime25", "gsm8k", "math500"]


def test_a_file_that_is_unsound_is_named_and_stops_nobody(tmp_path, monkeypatch):
    (tmp_path / "benchmarks").mkdir()
    sound = (loading.CONFIGS / "benchmarks" / "tiny.yaml").read_text().replace("name: tiny\n", "name: good\n")
    (tmp_path / "benchmarks" / "good.yaml").write_text(sound)
    (tmp_path / "benchmarks" / "mine.yaml").write_text(sound + "cuont: 3\n")
    recipe = loading.load("gkd", ["benchmarks=tiny"])
    monkeypatch.setattr(loading, "CONFIGS", tmp_path)
    assert set(registered()) == {"good"} and exposure_spec(recipe)["not_at_hand"] == ["mine"]
