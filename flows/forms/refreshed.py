"""Refreshes as deployments: each by its schedule and by hand; promotion and rollback by hand."""
from typing import Any, Literal

from pydantic import Field

from flows.forms import texts
from flows.forms.fields import schema_of
from flows.forms.registration import Deployed
from tasks.opd.recipe import refreshes as files
from tasks.opd.recipe.refreshes import Refresh, Schedule

GRACE_SECONDS = 300                     # a run that was taken and does not begin by then gives its place back
ANCHOR = "2026-01-01T00:00:00Z"         # from which intervals count, so that registering again shifts none
NOTE = (str, Field("", title="Note", max_length=500, description="For people. At most 500 characters."))
Table = tuple[list[Deployed], dict[str, str]]  # deployments, and why files were refused, by flow/name


def refreshes() -> Table:
    """`refresh/<refresh>` for every file in configs/refreshes: one at a time, and a tick that finds one is cancelled.

    A limited deployment must not retry its flow in Prefect; the next tick takes up what one left.
    """
    loaded, refused = texts.by_name("refreshes", files.load)
    form = {"accept_drift": (bool, Field(False, title="Accept drift", description="Train on new prompts although their "
                                         "drift raised an alarm.")), "note": NOTE}
    return [Deployed(
        flow="refresh", name=name, entrypoint="flows.triggered.refresh.refresh", parameters={"name": name},
        form=schema_of(form), tags=(f"refresh:{ask.name}",), description=described(ask, name),
        schedule=prefect_schedule(ask.schedule), event=ask.schedule.event, concurrency=1, when_full="CANCEL_NEW",
        grace_seconds=GRACE_SECONDS,
    ) for name, ask in loaded.items()], {f"refresh/{name}": why for name, why in refused.items()}


def moves() -> Table:
    """`promote/champion` and `rollback/champion`, where there is a refresh."""
    names = [ask.name for ask in texts.by_name("refreshes", files.load)[0].values()]
    if not names:
        return [], {}
    name = (Literal[tuple(names)], Field(..., title="Refresh", description="A file in configs/refreshes."))
    by, why = ((str, Field(..., title=title, min_length=1, description=text)) for title, text in (
        ("By", "Who decides."), ("Reason", "Why; it stands on the version in MLflow.")))
    version = (str, Field(..., title="Version", pattern=r"^\d+$", description="Of the registered model, a number. Its "
                          "gate must have passed."))
    return [Deployed(flow="promote", name="champion", entrypoint="flows.promote.promote", description=PROMOTE,
                     form=schema_of({"name": name, "version": version, "approved_by": by, "reason": why})),
            Deployed(flow="rollback", name="champion", entrypoint="flows.rollback.rollback", description=ROLLBACK,
                     form=schema_of({"name": name, "by": by, "reason": why}))], {}


def prefect_schedule(schedule: Schedule) -> dict[str, Any] | None:
    """The fields of Prefect's schedule; None for one by hand, or upon an event."""
    if schedule.cron:
        return {"cron": schedule.cron, "timezone": schedule.timezone}
    if schedule.interval_seconds:
        return {"interval": schedule.interval_seconds, "anchor_date": ANCHOR}
    return None


def described(ask: Refresh, file: str) -> str:
    """A refresh's page: what is distilled again, when, and what the gate asks."""
    kept = ", ".join(f"{name} within {100 * margin:g} points" for name, margin in ask.gate.retention.items())
    when = ask.schedule.cron or (f"every {ask.schedule.interval_seconds} s" if ask.schedule.interval_seconds else
                                 f"upon {ask.schedule.event}" if ask.schedule.event else "by hand")
    return "\n\n".join([
        f"{ask.recipe} distilled from its champion on, with prompts that are new ({ask.prompts.source.name}).",
        f"**When**: {when}{f', {ask.schedule.timezone}' if ask.schedule.cron else ''}.",
        f"**Gate**: better on {ask.gate.target}{f'; not worse on {kept}' if kept else ''}.",
        f"**Approval**: {ask.approve}.",
        f"File: `configs/refreshes/{file}.yaml`"])


PROMOTE = "Makes a version of a refresh's model the champion. A version whose gate did not pass is refused."
ROLLBACK = "Makes the version that the champion was promoted over the champion again. Nothing is trained."
