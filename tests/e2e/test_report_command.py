"""`opd report`: a suite's or a run's page, by name, on what a store holds."""
import json
from pathlib import Path

import pytest

from flows.cli import main as cli
from flows.cli.reports import has_display
from tasks.opd.evaluation.report import suites
from tasks.opd.recipe import loading
from tasks.opd.store import run_records
from tests.evaluation.report.made_runs import run


@pytest.fixture(autouse=True)
def no_display(monkeypatch):
    """Nothing is opened on the machine of whoever runs the tests."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)


def told(capsys, *words: str) -> dict:
    assert cli.main(["report", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_run_is_found_by_its_name_and_in_a_suite_by_both(capsys, opd_home):
    alone, inside = run(), run(suite="demo")
    assert told(capsys, "demo/gkd-seed0")["report"] == str(opd_home / "reports" / f"{inside}.html")
    run(after=[1, 1, 1, 1])                                  # the one last begun
    found = told(capsys, "gkd-seed0", "--no-open")
    assert found["report"] == str(opd_home / "reports" / f"{alone}.html") and not found["opened"]
    assert Path(found["report"]).stat().st_size == found["bytes"]


def test_a_run_that_failed_or_is_not_finished_has_a_page_too(capsys):
    run(error=ValueError("no more tokens"))
    assert "ValueError: no more tokens" in Path(told(capsys, "gkd-seed0")["report"]).read_text()


def test_a_run_that_has_measured_nothing_has_no_learning_curves(capsys):
    recipe = loading.load("gkd").model_dump(mode="json")
    with pytest.raises(ValueError), run_records.recorded("gkd-seed0", suite="", recipe=recipe):
        raise ValueError("at once")
    page = Path(told(capsys, "gkd-seed0")["report"]).read_text()
    assert "ValueError: at once" in page and 'id="lines"' not in page


def test_the_rounds_whose_rollouts_are_shown_can_be_chosen(capsys):
    run(rounds=4)
    page = Path(told(capsys, "gkd-seed0", "--rounds", "2,3")["report"]).read_text()
    assert "evenly spaced over the rounds 2, 3;" in page
    assert cli.main(["report", "gkd-seed0", "--rounds", "0"]) == 1
    assert "rounds are counted from 1" in capsys.readouterr().err


def test_a_suite_is_found_by_its_name_or_its_file(capsys, opd_home, tmp_path):
    state = suites.state_of("small", "tiny", "start", {}, [("gkd", 0, run(suite="small"))], {}, 0, None)
    suites.write_state(state)
    (tmp_path / "other_name.yaml").write_text(json.dumps(
        {"name": "small", "variants": ["gkd"], "seeds": [0], "baseline": "start"}))
    for name in ("small", str(tmp_path / "other_name.yaml")):
        assert told(capsys, name)["report"] == str(opd_home / "suites" / "small" / "report.html")


def test_an_unknown_name_is_refused_with_those_that_there_are(capsys):
    run(suite="demo")
    assert cli.main(["report", "no_such"]) == 11
    assert "no run or suite no_such" in (said := capsys.readouterr().err) and "demo/gkd-seed0" in said


def test_what_was_recorded_without_a_recipe_has_no_page(capsys):
    with run_records.recorded("refresh-weekly", refresh="weekly"):
        pass
    run()
    assert cli.main(["report", "refresh-weekly"]) == 11
    assert "no run or suite refresh-weekly" in (said := capsys.readouterr().err) and said.count("refresh-weekly") == 1


def test_rounds_that_there_are_not_are_refused_with_those_that_there_are(capsys):
    run(rounds=3)
    assert cli.main(["report", "gkd-seed0", "--rounds", "2,9"]) == 11
    assert "no round 9 has finished; those that have are 1, 2, 3" in capsys.readouterr().err
    run("tip", made_rounds=0, error=ValueError("at once"))
    assert cli.main(["report", "tip-seed0", "--rounds", "1"]) == 11
    assert "those that have are none" in capsys.readouterr().err


def test_a_browser_is_opened_only_where_there_is_a_display(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    assert not has_display()
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert has_display()


def test_rounds_of_a_suite_are_refused_with_a_run_that_has_them(capsys):
    stem = run(suite="s")
    suites.write_state(suites.state_of("s", "tiny", "start", {}, [("gkd", 0, stem)], {}, 0, None))
    assert cli.main(["report", "s", "--rounds", "2"]) == 11
    assert "opd report s/gkd-seed0 --rounds 2" in capsys.readouterr().err
    assert "over the round 2;" in Path(told(capsys, "s/gkd-seed0", "--rounds", "2")["report"]).read_text()
