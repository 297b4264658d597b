"""The platform as people use it: a variant found, changed, run, refused, cancelled and compared in a real browser."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("selenium", reason="pip install -e .[e2e]; make test-e2e does it")

from flows.platform import api, settings  # noqa: E402  after the skip
from tests.browser.pages import NEEDS_BROWSER, browser, until  # noqa: E402

pytestmark = [pytest.mark.browser, NEEDS_BROWSER]
ROOT, NAMED = Path(__file__).resolve().parents[2], ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")
ENDED, AT_WORK = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}, {"PENDING", "RUNNING", "CANCELLING"}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("browser") / "opd"


@pytest.fixture
def opd_home(home, monkeypatch) -> Path:
    """All tests of this module share a platform."""
    monkeypatch.setenv("OPD_HOME", str(home))
    return home


def opd(home: Path, *words: str) -> None:
    """Run a command of the console; it must succeed."""
    environment = {name: value for name, value in os.environ.items() if name not in NAMED} | {"OPD_HOME": str(home)}
    done = subprocess.run([sys.executable, "-m", "flows.cli", *words], cwd=ROOT, env=environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def platform(home):
    """A platform with every deployment: (its settings, Prefect's API)."""
    opd(home, "up", "--prefect-port", "0", "--mlflow-port", "0")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OPD_HOME", str(home))
            runs = settings.read()
        yield runs, api.prefect(runs)
    finally:
        opd(home, "down")


@pytest.fixture(scope="module")
def page():
    with browser() as page:
        yield page


def submitted(page, platform, name: str) -> dict:
    """Submit the form; the run that came of it."""
    runs, prefect = platform
    before = {run["id"] for run in flow_runs(prefect)}
    page.press("Submit")
    return until(f"a run of {name}", lambda: next((run for run in flow_runs(prefect) if run["id"] not in before), None))


def flow_runs(prefect) -> list[dict]:
    """The runs that deployments made."""
    return [run for run in prefect.post("/flow_runs/filter", {"limit": 100}) if run["deployment_id"]]


def ended(prefect, run: dict) -> dict:
    """The run once it is over."""
    def look() -> dict | None:
        now = next(one for one in flow_runs(prefect) if one["id"] == run["id"])
        return now if now["state"]["type"] in ENDED else None
    return until(f"the end of {run['name']}", look)


def form_of(page, platform, variant: str) -> None:
    """Find a variant among the deployments, as a person does, and open its form."""
    page.open(f"{platform[0].prefect_url}/deployments").search(variant)
    page.link(variant)
    page.press("Run")
    page.choose("Custom run")
    page.shows("Learning rate", "Overrides")


def test_a_variant_is_found_changed_submitted_and_seen_to_complete_with_its_verdict(page, platform, opd_home):
    form_of(page, platform, "opd_reverse_kl")
    page.fill("Learning rate", "0.001")
    page.fill("Note", "from a browser")
    page.switch("Smoke test")
    run = submitted(page, platform, "opd_reverse_kl")
    assert (run["parameters"]["learning_rate"], run["parameters"]["smoke"]) == (0.001, True)
    done = ended(platform[1], run)
    assert done["state"]["type"] == "COMPLETED" and "opd_reverse_kl" in done["state"]["message"]
    page.open(f"{platform[0].prefect_url}/runs/flow-run/{run['id']}").shows("Completed", "Artifacts")


def test_a_wrong_override_ends_the_run_at_once_with_all_that_is_wrong(page, platform, opd_home):
    form_of(page, platform, "gkd")
    page.add("Overrides", "train.learning_rat=1", "train.epochs=none")
    run = submitted(page, platform, "gkd")
    done = ended(platform[1], run)
    assert done["state"]["type"] == "FAILED"
    for words in ("learning_rat", "did you mean learning_rate?", "train.epochs"):
        assert words in done["state"]["message"]
    page.open(f"{platform[0].prefect_url}/runs/flow-run/{run['id']}").shows("Failed", "did you mean learning_rate?")


def processes_of(run: dict) -> list[int]:
    """Processes that were started for a run: its id stands in their environment."""
    found = []
    for place in Path("/proc").iterdir():
        try:
            if place.name.isdigit() and run["id"].encode() in (place / "environ").read_bytes():
                found.append(int(place.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def test_cancel_in_the_page_leaves_no_process_and_frees_the_slot(page, platform, opd_home):
    form_of(page, platform, "opd_reverse_kl")
    page.switch("Smoke test")
    page.fill("Seeds", "7")
    page.add("Overrides", "rounds=100000")
    run = submitted(page, platform, "opd_reverse_kl")
    until("a worker at work", lambda: len(processes_of(run)) >= 3)  # the flow, its supervisor, its worker
    page.open(f"{platform[0].prefect_url}/runs/flow-run/{run['id']}").shows("Running")
    page.press("Cancel")
    page.press("Confirm")
    until("no process of the run", lambda: not processes_of(run))
    assert ended(platform[1], run)["state"]["type"] == "CANCELLED"
    until("the slot", lambda: not [one for one in flow_runs(platform[1]) if one["state"]["type"] in AT_WORK])


def test_two_runs_stand_side_by_side_in_mlflow(page, platform, opd_home):
    runs, prefect = platform
    form_of(page, platform, "opd_reverse_kl")
    page.switch("Smoke test")
    page.fill("Seeds", "0,1")
    assert ended(prefect, submitted(page, platform, "opd_reverse_kl"))["state"]["type"] == "COMPLETED"
    mlflow = api.mlflow(runs)
    experiments = mlflow.get("/api/2.0/mlflow/experiments/search", max_results=10)["experiments"]
    experiment = next(one for one in experiments if one["name"] == "opd")
    page.open(f"{runs.mlflow_url}/#/experiments/{experiment['experiment_id']}/runs")
    page.shows("opd_reverse_kl-seed0", "opd_reverse_kl-seed1")
    found = mlflow.post("/api/2.0/mlflow/runs/search", {"experiment_ids": [experiment["experiment_id"]]})["runs"]
    finished = [one["info"]["run_id"] for one in found if one["info"]["status"] == "FINISHED"][:2]
    chosen = "[" + ",".join(f'"{one}"' for one in finished) + "]"
    page.open(f"{runs.mlflow_url}/#/compare-runs?runs={chosen}&experiments=[\"{experiment['experiment_id']}\"]")
    page.shows("Comparing 2 Runs", "learning_rate")
    page.open(f"{runs.mlflow_url}/#/experiments/{experiment['experiment_id']}/runs/{finished[0]}/artifacts")
    page.shows("recipe.yaml")
