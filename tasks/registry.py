"""The tasks of the registry: the alias `champion`, moved and announced."""
from uuid import NAMESPACE_URL, uuid5

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from tasks.opd.refresh import journal
from tasks.opd.refresh.failpoints import failpoint
from tasks.tracking import registry
from tasks.tracking.registry import Version


@task(cache_policy=NO_CACHE, task_run_name="promote-{name}-{number}")
def move_champion(name: str, number: str, *, by: str, reason: str, over: str = registry.ANY) -> Version:
    """Make a version the champion, tell Prefect, write it down. Repeated, it tells again and changes nothing."""
    return announced(registry.promote(name, number, by=by, reason=reason, over=over), journal.PROMOTED, by, reason)


@task(cache_policy=NO_CACHE, task_run_name="rollback-{name}")
def return_champion(name: str, *, by: str, reason: str) -> Version:
    """Make the version before the champion the champion again, tell Prefect, write it down."""
    version, gone = registry.rollback(name, by=by, reason=reason)
    return announced(version, journal.ROLLED_BACK, by, f"{reason} (from version {gone})")


def announced(version: Version, event: str, by: str, reason: str) -> Version:
    """The version, after Prefect and the journal were told; a rollback is a promotion too for whoever serves."""
    about = {"version": version.number, "folder": version.tags["folder"], "event": event, "by": by, "reason": reason}
    emit_event("opd.champion.promoted", {"prefect.resource.id": f"opd.champion.{version.name}"}, payload=about,
               id=uuid5(NAMESPACE_URL, f"{version.name}/{version.number}/{version.tags[registry.SINCE]}"))
    failpoint("announced")
    moves = [line for line in journal.read(version.name) if line["event"] in journal.MOVES]
    if not moves or moves[-1]["version"] != version.number:
        journal.append(version.name, event, version=version.number, by=by, reason=reason)
    return version
