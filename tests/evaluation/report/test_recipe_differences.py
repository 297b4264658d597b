"""What recipes say differently, exactly."""
from tasks.opd.evaluation.report.recipes import differences, flattened
from tasks.opd.recipe import loading


def test_settings_are_named_by_their_path_and_empty_ones_are_there():
    assert dict(flattened({"a": {"b": [1, {"c": "x"}], "d": []}, "e": None})) == {
        "a.b.0": "1", "a.b.1.c": "x", "a.d": "[]", "e": "null"}


def test_a_slot_is_one_setting_with_its_parameters_beside_its_other_keys():
    writer = {"name": "student", "params": {"k": 2, "of": "x"}, "n": 4}
    assert dict(flattened({"w": [writer, {"name": "jsd", "params": {}}]})) == {
        "w.0": "student(k 2, of x)", "w.0.n": "4", "w.1": "jsd"}


def test_only_what_differs_is_listed_and_what_one_lacks_is_said():
    found = differences({"one": {"name": "one", "seed": 0, "a": 1, "b": [1], "c": {"d": 2}},
                         "two": {"name": "two", "seed": 1, "a": 1, "b": [1, 2], "c": {"d": 3}}})
    assert (found.settings, found.num_equal) == (["c.d", "b.1"], 2)
    assert found.values == {"one": ["2", "-"], "two": ["3", "2"]}


def test_two_variants_differ_in_what_their_papers_say():
    gkd, tip = (loading.load(name).model_dump(mode="json") for name in ("gkd", "tip"))
    found = differences({"gkd": gkd, "tip": tip})
    assert "terms.0.weights.0" in found.settings
    assert not any(setting.startswith(("pair.", "about.", "train.")) for setting in found.settings)
    assert differences({"gkd": gkd, "again": gkd | {"seed": 7}}).settings == []
