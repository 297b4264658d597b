"""Versions of a refresh's model in MLflow's registry, and which of them is the champion.

A version is registered once a tick, with its lineage and its gate's table as tags, so that there is no version without
a table. The alias `champion` moves only to a version whose table passed. `previous` is for people to see: what a
rollback returns to is a tag of the champion itself (`promoted_over`), so a crash between two aliases loses nothing.
MLflow has no compare-and-set: whoever moves an alias holds a flock, and reads it again afterwards.
"""
import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tasks.opd.core.errors import DataError, EngineError
from tasks.opd.core.files import flock
from tasks.opd.recipe.refreshes import Refresh
from tasks.opd.refresh import gate, journal
from tasks.opd.refresh.failpoints import failpoint
from tasks.tracking.client import client_at, reached, tracking_uri

CHAMPION, CANDIDATE, PREVIOUS = "champion", "candidate", "previous"
SINCE = "champion_since"                # tag: when it became the champion, also by a rollback
ANY = "any"                             # champion, whichever there is


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """A registered checkpoint."""
    name: str                           # of the refresh
    number: str                         # MLflow's version, "1" for the first
    tags: dict[str, str]                # tick, fingerprint, digest, folder, parent, gate, table, .., promoted_over

    @property
    def folder(self) -> Path:
        """Where its model lies."""
        return Path(self.tags["folder"])


@contextlib.contextmanager
def opened():
    """A client of the registry, whose store has to answer. Raises EngineError where it does not."""
    with reached():
        yield client_at(tracking_uri())


def versions_of(name: str) -> list[Version]:
    """All versions of a refresh's model, from old to new; empty before the first."""
    with opened() as client:
        found = client.search_model_versions(f"name='{name}'")
    found = [Version(name=name, number=str(one.version), tags=dict(one.tags)) for one in found]
    return sorted(found, key=lambda version: int(version.number))


def aliases_of(name: str) -> dict[str, str]:
    """Alias -> version number."""
    with opened() as client:
        models = client.search_registered_models(filter_string=f"name='{name}'")
    return {alias: str(number) for model in models for alias, number in model.aliases.items()}


def version_of(name: str, number: str) -> Version:
    """One version. Raises DataError for one that there is not."""
    there = versions_of(name)
    for version in there:
        if version.number == number:
            return version
    raise DataError(f"{name} has no version {number}; it has {', '.join(v.number for v in there) or 'none'}")


def champion_of(name: str) -> Version | None:
    """The version with the alias champion; None before the first promotion."""
    number = aliases_of(name).get(CHAMPION)
    return version_of(name, number) if number else None


def worth_keeping(ask: Refresh) -> list[Version]:
    """The versions whose models stay: champion, the one before it, candidate, and the newest few."""
    there, aliases = versions_of(ask.name), aliases_of(ask.name)
    kept = {*aliases.values(), *(version.number for version in there[len(there) - ask.keep_versions:])}
    kept |= {version.tags.get("promoted_over") for version in there if version.number == aliases.get(CHAMPION)}
    return [version for version in there if version.number in kept]


def ancestry(champion: Version | None) -> list[int]:
    """The ticks of a version and of those that it was distilled from, newest first."""
    if champion is None:
        return []
    there, found = {version.number: version for version in versions_of(champion.name)}, [champion]
    while parent := there.get(found[-1].tags["parent"]):
        found.append(parent)
    return [int(version.tags["tick"]) for version in found]


def register(name: str, tags: dict[str, str], description: str, run_id: str | None) -> Version:
    """The version of a tick's checkpoint: the one that is there, else a new one, with all its tags in one step."""
    with flock(journal.folder(name) / "registry.lock"), opened() as client:
        same = [version for version in versions_of(name)
                if all(version.tags.get(key) == tags[key] for key in ("tick", "fingerprint"))]
        if not client.search_registered_models(filter_string=f"name='{name}'"):
            client.create_registered_model(name, description="Refreshed by opdlab; the alias `champion` is served.")
        number = same[0].number if same else client.create_model_version(
            name, source=f"opd:/refreshes/{name}/models/{tags['fingerprint']}", run_id=run_id, tags=tags,
            description=description).version
        if aliases_of(name).get(CHAMPION) != str(number):
            client.set_registered_model_alias(name, CANDIDATE, number)
    failpoint("registered")
    return version_of(name, str(number))


def promote(name: str, number: str, *, by: str, reason: str, over: str = ANY) -> Version:
    """Make a version the champion. Done already, it changes nothing, so that it can be repeated after a crash.

    `over` is the champion that is to be replaced (empty: there is none); without it, whichever it is.
    Raises: DataError when its gate did not pass, its model is gone, or another champion than `over` is there.
    """
    with flock(journal.folder(name) / "registry.lock"):
        version, before = version_of(name, number), aliases_of(name).get(CHAMPION, "")
        if before == number:
            return version
        refuse_unfit(version)
        if over not in (ANY, before):
            raise DataError(f"the champion of {name} is version {before or 'none'} now, not {over or 'none'}, against "
                            f"which version {number} was gated; refresh again")
        return moved(version, before, {"approved_by": by, "approval_reason": reason, "promoted_over": before})


def rollback(name: str, *, by: str, reason: str) -> tuple[Version, str]:
    """Make the version that the champion was promoted over the champion again; it and the one that went.

    Raises: DataError when there is none, or its model is gone.
    """
    with flock(journal.folder(name) / "registry.lock"):
        champion = champion_of(name)
        before = champion.tags.get("promoted_over") if champion else None
        if not before:
            raise DataError(f"{name} has no version to go back to: " + (
                f"version {champion.number} is its first champion" if champion else "nothing was promoted yet"))
        version = version_of(name, before)
        refuse_unfit(version)
        with opened() as client:
            client.set_model_version_tag(name, champion.number, "rolled_back", f"{by}: {reason}")
        return moved(version, version.tags.get("promoted_over") or None, {}), champion.number


def moved(version: Version, previous: str | None, tags: dict[str, str]) -> Version:
    """The version with further tags and as the champion; `previous` gets that alias. Raises EngineError."""
    name, number = version.name, version.number
    with opened() as client:
        for key, value in {**tags, SINCE: datetime.now(UTC).isoformat(timespec="milliseconds")}.items():
            client.set_model_version_tag(name, number, key, value)
        failpoint("tagged")
        if previous:
            client.set_registered_model_alias(name, PREVIOUS, previous)
        failpoint("half_moved")
        client.set_registered_model_alias(name, CHAMPION, number)
        if aliases_of(name).get(CANDIDATE) == number:
            client.delete_registered_model_alias(name, CANDIDATE)
    if (now := aliases_of(name).get(CHAMPION)) != number:
        raise EngineError(f"version {number} of {name} was made champion, but the registry says {now}: somebody else "
                          "moves the alias too; look at it, then run the same command again")
    failpoint("moved")
    return version_of(name, number)


def refuse_unfit(version: Version) -> None:
    """Raise DataError for a version whose gate's table does not pass, or whose model is not there."""
    checks = gate.from_json(version.tags.get("table", "[]"))
    if version.tags.get("gate") != gate.PASSED or not gate.passed(checks):
        raise DataError(f"version {version.number} of {version.name} did not pass its gate, so it cannot be the "
                        f"champion: {gate.failures(checks) or 'it has no table'}")
    if not version.folder.is_dir():
        raise DataError(f"the model of version {version.number} of {version.name} is not in {version.folder} any more; "
                        "raise keep_versions to go back further, or refresh again")
