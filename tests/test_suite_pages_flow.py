"""A suite's page as its flow writes it after a cell."""
from flows.reports import show_suite
from tasks.opd.evaluation.report import suites
from tasks.opd.recipe import loading
from tasks.tracking.runs import suite_for


def test_the_command_of_the_page_is_the_one_that_was_typed(tmp_path):
    file = tmp_path / "other_name.yaml"
    file.write_text('{"name": "small", "variants": ["gkd"], "seeds": [0], "baseline": "start"}')
    overrides = ["rounds=1"]
    plan, cells = loading.load_suite(str(file), overrides)
    with suite_for(plan.name) as study:
        show_suite(str(file), plan, overrides, cells, {}, study, {}, {("gkd", 0): ValueError("no tokens")})
        assert "ValueError: no tokens" in study.files["report.html"]
    assert suites.read_state("small").facts["command"] == f"`opd compare {file} rounds=1`"
