"""Deployments on Prefect's server, so that they are those of a list: added, updated where they changed, removed."""
import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import UUID

from httpx import ConnectError
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.objects import ConcurrencyOptions
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events import DeploymentEventTrigger
from prefect.exceptions import ObjectNotFound

from flows.forms.texts import TAG
from tasks.opd.core.addresses import masked
from tasks.opd.core.errors import EngineError
from tasks.opd.store.fingerprints import canonical
from tasks.workers.launchers import ROOT

PAGE = 200                              # deployments the server gives at once


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """A deployment: what the pages show as flow/name, and what its runs execute."""
    flow: str                           # the flow's name in Prefect
    name: str
    entrypoint: str                     # module.function of the flow
    parameters: dict[str, Any] = field(default_factory=dict)  # those that no field of the form shows
    form: dict[str, Any] = field(default_factory=dict)        # JSON schema
    tags: tuple[str, ...] = ()
    description: str = ""
    schedule: dict[str, Any] | None = None   # fields of a Prefect schedule: {cron, timezone} or {interval, anchor_date}
    event: str = ""                     # an event upon which it runs, by an automation of its own; empty: none
    concurrency: int | None = None      # runs of this deployment at once; None: as many as the pool lets
    when_full: str = "ENQUEUE"          # what becomes of a run beyond these: ENQUEUE or CANCEL_NEW
    grace_seconds: int | None = None    # until a run that does not begin gives its place back; None: Prefect's own

    def version(self, pool: str) -> str:
        """Tells a deployment from what it was before its file, its form or its pool changed."""
        return hashlib.sha256(canonical([asdict(self), pool, str(ROOT)]).encode()).hexdigest()[:12]


def register(wanted: Iterable[Deployed], pool: str, keep: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Make the server's deployments of ours those wanted: {server, added, updated, unchanged, removed}, by flow/name.

    Ours are those with the tag TAG; those named in `keep` are left as they are. What a person changed in the pages
    (paused, other tags) stays until the file changes. Raises: EngineError without server or pool.
    """
    with get_client(sync_client=True) as client:
        address = masked(str(client.api_url))
        try:
            client.read_work_pool(pool)
            found = ours(client)
        except ObjectNotFound as error:
            raise EngineError(f"Prefect at {address} has no work pool {pool!r}; make one: prefect work-pool "
                              f"create {pool} --type process, or name another with --pool") from error
        except ConnectError as error:
            raise EngineError(f"Prefect is not reached at {address}; set PREFECT_API_URL") from error
        flows = {}
        done = {"server": address, "pool": pool, "added": [], "updated": [], "unchanged": [], "removed": []}
        for one in wanted:
            label = f"{one.flow}/{one.name}"
            known = found.pop(label, None)
            change = "added" if known is None else "unchanged" if known.version == one.version(pool) else "updated"
            done[change].append(label)
            if change != "unchanged" and one.flow not in flows:
                flows[one.flow] = client.create_flow_from_name(one.flow)
            if change != "unchanged":
                put(client, one, flows[one.flow], pool)
        for label in (label for label in found if label not in keep):
            start_upon("", found[label].id, label, client)
            client.delete_deployment(found[label].id)
            done["removed"].append(label)
    return done


def ours(client: SyncPrefectClient) -> dict[str, DeploymentResponse]:
    """The server's deployments with our tag, by flow/name."""
    tagged, found = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG])), []
    while page := client.read_deployments(deployment_filter=tagged, limit=PAGE, offset=len(found)):
        found += page
    flows = {flow: client.read_flow(flow).name for flow in {one.flow_id for one in found}}
    return {f"{flows[one.flow_id]}/{one.name}": one for one in found}


def put(client: SyncPrefectClient, one: Deployed, flow_id: UUID, pool: str) -> None:
    """Create a deployment of a flow, or replace it. Its runs start in this checkout, with the worker's own Python."""
    limit = {} if one.concurrency is None else {"concurrency_limit": one.concurrency, "concurrency_options": (
        ConcurrencyOptions(collision_strategy=one.when_full, grace_period_seconds=one.grace_seconds))}
    schedules = {} if one.schedule is None else {"schedules": [DeploymentScheduleCreate(schedule=one.schedule)]}
    made = client.create_deployment(
        flow_id, one.name, version=one.version(pool), entrypoint=one.entrypoint,
        path=str(ROOT), work_pool_name=pool, job_variables={"working_dir": str(ROOT)}, parameters=one.parameters,
        parameter_openapi_schema=one.form, enforce_parameter_schema=True, tags=[TAG, *one.tags],
        description=one.description, pull_steps=[], **schedules, **limit)
    start_upon(one.event, made, f"{one.flow}/{one.name}", client)


def start_upon(event: str, deployment: UUID, label: str, client: SyncPrefectClient) -> None:
    """Have an automation run a deployment at every event of that name, in place of those it owned; empty: none.

    The server keeps the automations of a deployment that is deleted.
    """
    client.delete_resource_owned_automations(f"prefect.deployment.{deployment}")
    if event:
        trigger = DeploymentEventTrigger(name=f"opd: {label} upon {event}", expect={event},
                                         description=f"Runs {label} when an event {event} arrives.")
        trigger.set_deployment_id(deployment)
        client.create_automation(trigger.as_automation())
