"""The page of a run, written as it ends or fails; whatever goes wrong with the page, the run ends as it did."""
import pytest

from tasks.opd.recipe import loading
from tasks.opd.store import run_records
from tasks.pages import recorded_run
from tasks.tracking.runs import run_for
from tests.tracked_runs import runs, text_of

RECIPE = loading.load("opd_reverse_kl")


def test_a_run_that_ends_has_its_page_where_it_said():
    with recorded_run(RECIPE, "") as page:
        assert not page.exists()
    assert "opd_reverse_kl-seed0: nothing has been compared with its start yet." in page.read_text(encoding="utf-8")


def test_a_run_that_fails_has_a_page_that_says_why_and_fails_as_it_would():
    with pytest.raises(ZeroDivisionError), recorded_run(RECIPE, "demo") as page:
        raise ZeroDivisionError("no tokens")
    assert "ZeroDivisionError: no tokens" in page.read_text(encoding="utf-8")


def test_a_run_that_is_stopped_is_gone_at_once():
    with pytest.raises(KeyboardInterrupt), recorded_run(RECIPE, "") as page:
        raise KeyboardInterrupt
    assert not page.exists()


def test_a_page_that_cannot_be_made_is_a_warning(opd_home, capsys):
    opd_home.mkdir()
    (opd_home / "reports").write_text("in the way")
    with recorded_run(RECIPE, ""):
        pass
    assert "opd: no report of opd_reverse_kl-seed0" in capsys.readouterr().err
    assert run_records.read_all()[0].finished


def test_a_failed_run_whose_page_cannot_be_made_fails_by_its_own_error(opd_home):
    opd_home.mkdir()
    (opd_home / "reports").write_text("in the way")
    with pytest.raises(ZeroDivisionError, match="no tokens"), recorded_run(RECIPE, ""):
        raise ZeroDivisionError("no tokens")


def test_mlflows_run_holds_the_page():
    with run_for(RECIPE), recorded_run(RECIPE, "") as page:
        pass
    assert text_of(runs()[0], "report.html") == page.read_text(encoding="utf-8")
