"""What Prefect's server does by itself, registered at every start.

The keeper finds dead runs of this machine sooner; the first automation also covers workers of other machines.
"""
import hashlib

from flows.platform.api import Api
from flows.platform.servers import HEARTBEAT_SECONDS

ZOMBIES, FAILURES = "opd: crash runs without a heartbeat", "opd: a run failed"
MISSED = 3                              # heartbeats; with fewer, a busy machine kills runs that live
RUNS = {"prefect.resource.id": "prefect.flow-run.*"}
MESSAGE = "{{ flow_run.name }} is {{ flow_run.state.name }}: {{ flow_run.state.message }} {{ flow_run|ui_url }}"


def ensure(prefect: Api, alarm_url: str) -> None:
    """Register the automations. What people added to the second one stays, unless a webhook is asked for."""
    replace(prefect, zombies())
    if alarm_url:
        block = webhook(prefect, alarm_url)
        replace(prefect, failures({"type": "call-webhook", "block_document_id": block, "payload": MESSAGE}))
    elif not find(prefect, FAILURES):
        replace(prefect, failures({"type": "do-nothing"}))


def find(prefect: Api, name: str) -> str | None:
    """The id of an automation."""
    found = prefect.post("/automations/filter", {"automations": {"name": {"any_": [name]}}})
    return found[0]["id"] if found else None


def replace(prefect: Api, automation: dict) -> None:
    """Register an automation, in place of the one of that name."""
    known = find(prefect, automation["name"])
    if known:
        prefect.put(f"/automations/{known}", automation)
    else:
        prefect.post("/automations/", automation)


def zombies() -> dict:
    """A run whose heartbeats stop, without any other event of its own, has crashed."""
    return {
        "name": ZOMBIES, "enabled": True,
        "description": f"Runs send a heartbeat every {HEARTBEAT_SECONDS} s; after {MISSED} missed ones they are dead.",
        "trigger": {"type": "event", "posture": "Proactive", "match": RUNS, "after": ["prefect.flow-run.heartbeat"],
                    "expect": ["prefect.flow-run.*"], "for_each": ["prefect.resource.id"], "threshold": 1,
                    "within": MISSED * HEARTBEAT_SECONDS},
        "actions": [{"type": "change-flow-run-state", "state": "CRASHED", "name": "Crashed",
                     "message": f"no heartbeat for {MISSED * HEARTBEAT_SECONDS} s: its process, or its machine, died; "
                                "run it again, finished stages are kept"}]}


def failures(call: dict) -> dict:
    """A run that failed or crashed is told to whoever wants to know."""
    return {
        "name": FAILURES, "enabled": True,
        "description": "With OPD_ALARM_WEBHOOK set at `opd up` it is called; without, add an action here.",
        "trigger": {"type": "event", "posture": "Reactive", "match": RUNS, "threshold": 1, "within": 0,
                    "expect": ["prefect.flow-run.Failed", "prefect.flow-run.Crashed"]},
        "actions": [call]}


def webhook(prefect: Api, url: str) -> str:
    """The id of the block that holds a webhook's address, made once an address."""
    name = f"opd-alarm-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
    kind = prefect.get("/block_types/slug/webhook")
    found = prefect.post("/block_documents/filter", {"block_documents": {"name": {"any_": [name]}}})
    if found:
        return found[0]["id"]
    schema, *_ = prefect.post("/block_schemas/filter", {"block_schemas": {"block_type_id": {"any_": [kind["id"]]}}})
    return prefect.post("/block_documents/", {"name": name, "data": {"method": "POST", "url": url},
                                              "block_type_id": kind["id"], "block_schema_id": schema["id"]})["id"]
