"""What Prefect's server does by itself. Registered again at every start, under the same names.

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
    """Register the automations, in place of what stands under their names."""
    call = {"type": "do-nothing"}
    if alarm_url:
        call = {"type": "call-webhook", "block_document_id": webhook(prefect, alarm_url), "payload": MESSAGE}
    for automation in (zombies(), failures(call)):
        body = {"automations": {"name": {"any_": [automation["name"]]}}}
        known = prefect.post("/automations/filter", body)
        if known:
            prefect.put(f"/automations/{known[0]['id']}", automation)
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
