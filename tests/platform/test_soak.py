"""A refresh whose schedule ticks far more often than it can run, on two slots, while prompts come in."""
import os
import threading
import time
from datetime import UTC, datetime

import pytest

from flows.forms.refreshed import GRACE_SECONDS
from flows.platform import api, lifecycle, reconcile, settings
from flows.platform.servers import POOL
from tasks.opd.refresh import journal
from tests.e2e.test_refresh import write_prompts, write_refresh
from tests.platform.runs_for_tests import PATIENCE_SECONDS, ROOT, wait_for

pytestmark = pytest.mark.faults
SECONDS = float(os.environ.get("OPD_SOAK_SECONDS", "180"))  # that prompts come in
EVERY_SECONDS, PROMPTS, FILE_SECONDS = 5, 6, 15             # of the schedule; of a file of prompts
FIRST = 40                                                  # prompts that are there from the start


@pytest.fixture
def platform(opd_home, monkeypatch):
    """A platform with two slots, so that nothing but the deployment's limit and the refresh's flock keep two apart."""
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    try:
        yield api.prefect(lifecycle.up(settings.asked_for("127.0.0.1", 0, 0, "", 2))[0])
    finally:
        lifecycle.down()


def scheduled(prefect: api.Api, file: str) -> str:
    """The id of the refresh's deployment, limited as `opd up` limits one."""
    flow = prefect.post("/flows/", {"name": "refresh"})["id"]
    return prefect.post("/deployments/", {
        "name": "mine", "flow_id": flow, "work_pool_name": POOL, "path": str(ROOT), "pull_steps": [],
        "entrypoint": "flows.triggered.refresh.refresh", "parameters": {"name": file}, "concurrency_limit": 1,
        "concurrency_options": {"collision_strategy": "CANCEL_NEW", "grace_period_seconds": GRACE_SECONDS},
        "schedules": [{"active": True, "schedule": {"interval": EVERY_SECONDS}}]})["id"]


def write_on(folder, written: list[int], until: float) -> None:
    """Write a file of new prompts every few seconds."""
    while time.monotonic() < until:
        time.sleep(FILE_SECONDS)
        draft, number = folder / "draft", len(written)
        write_prompts(draft / "prompts.jsonl", FIRST + PROMPTS * number, PROMPTS)
        os.replace(draft / "prompts.jsonl", folder / "incoming" / f"{number:04d}.jsonl")
        written.append(number)


def test_no_two_refreshes_run_at_once_and_every_prompt_is_taken_once(platform, tmp_path, opd_home):
    file, written = write_refresh(tmp_path, drift={"length_psi": 100.0, "words_js": 1.0}), []
    deployment = scheduled(platform, file)
    writer = threading.Thread(target=write_on, args=(tmp_path, written, time.monotonic() + SECONDS))
    writer.start()
    most, since = 0, None

    def done() -> bool:
        nonlocal most, since
        active = platform.post("/flow_runs/filter", {
            "deployments": {"id": {"any_": [deployment]}}, "flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}})
        most = max(most, len(active))
        since = since or (None if writer.is_alive() else datetime.now(UTC).isoformat(timespec="seconds"))
        return since is not None and any(line.get("reason") == "nothing new" and line["at"] > since
                                         for line in journal.read("mine"))
    while writer.is_alive():
        done()
        time.sleep(0.2)
    wait_for(done, "a tick that finds nothing new", 4 * PATIENCE_SECONDS)  # after two whole ones, on a busy machine
    platform.patch(f"/deployments/{deployment}", {"paused": True})
    wait_for(lambda: not platform.post("/flow_runs/count", {"flow_runs": {"state": {
        "type": {"any_": [*reconcile.ACTIVE]}}}}), "the last tick")

    lines, prompts = journal.read("mine"), FIRST + PROMPTS * len(written)
    ended = [journal.read_tick("mine", line["tick"]) for line in lines
             if line["event"] == journal.ENDED and line["outcome"] in journal.TAKEN]
    taken = [row for tick in ended for row in (*tick.new, *tick.held_out)]
    runs = platform.post("/flow_runs/filter", {                 # those cancelled for the limit never ran
        "deployments": {"id": {"any_": [deployment]}}, "limit": 200,
        "flow_runs": {"state": {"type": {"not_any_": ["CANCELLED", "SCHEDULED"]}}}})
    spans = sorted((run["start_time"], run["end_time"]) for run in runs)
    counts = {what: sum(line["event"] == what for line in lines) for what in (journal.DECIDED, journal.OVERLAP)}
    print(f"{prompts} prompts, {len(spans)} runs, {len(ended)} ticks that took prompts, {counts}, most at once {most}")
    assert len(ended) >= 2 and most == 1 and {run["state_type"] for run in runs} == {"COMPLETED"}
    assert all(end <= begin for (_, end), (begin, _) in zip(spans, spans[1:]))
    assert len(taken) == len(set(taken)) == prompts == len(journal.taken("mine", []).seen)
