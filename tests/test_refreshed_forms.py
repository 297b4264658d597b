"""Refreshes as deployments: one at a time, on their schedule; promotion asks who decides, and why."""
import shutil

import pytest
from prefect.client.schemas.actions import DeploymentScheduleCreate

from flows.forms import refreshed
from tasks.opd.recipe import loading
from tasks.opd.recipe.refreshes import Schedule


def test_every_refresh_is_a_deployment_of_which_one_runs_and_a_second_tick_is_cancelled():
    found, refused = refreshed.refreshes()
    one = next(one for one in found if one.name == "tiny_nightly")
    assert refused == {} and (one.flow, one.parameters) == ("refresh", {"name": "tiny_nightly"})
    assert (one.concurrency, one.when_full, one.grace_seconds) == (1, "CANCEL_NEW", 300)
    assert [*one.form["properties"]] == ["accept_drift", "note"] and "refresh:tiny_nightly" in one.tags
    assert "better on tiny" in one.description and "30 2 * * *, Europe/Berlin" in one.description


@pytest.mark.parametrize("given, field, value", [
    ({"cron": "30 2 * * *", "timezone": "Europe/Berlin"}, "timezone", "Europe/Berlin"),
    ({"interval_seconds": 90}, "interval", 90)])
def test_a_schedule_is_one_that_prefect_takes(given, field, value):
    made = DeploymentScheduleCreate(schedule=refreshed.prefect_schedule(Schedule(**given))).schedule
    assert value in (getattr(made, field), getattr(getattr(made, field), "seconds", None))


def test_an_event_is_what_the_deployment_waits_for(monkeypatch, tmp_path):
    text = (loading.CONFIGS / "refreshes" / "tiny_nightly.yaml").read_text()
    shutil.copytree(loading.CONFIGS, tmp_path / "configs")
    schedule = next(line for line in text.splitlines() if line.startswith("schedule:"))
    (tmp_path / "configs/refreshes/tiny_nightly.yaml").write_text(text.replace(schedule, "schedule: {event: opd.new}"))
    monkeypatch.setattr(loading, "CONFIGS", tmp_path / "configs")
    [one] = refreshed.refreshes()[0]
    assert (one.event, one.schedule) == ("opd.new", None) and "**When**: upon opd.new." in one.description


def test_by_hand_and_upon_an_event_there_is_no_schedule():
    assert refreshed.prefect_schedule(Schedule()) is None
    assert refreshed.prefect_schedule(Schedule(event="opd.prompts.arrived")) is None


def test_promotion_and_rollback_ask_who_and_why():
    promote, rollback = refreshed.moves()[0]
    assert promote.form["required"] == ["name", "version", "approved_by", "reason"]
    assert rollback.form["required"] == ["name", "by", "reason"]
    assert promote.form["properties"]["version"]["pattern"] == r"^\d+$"
