"""`make tour`: the README's pictures, taken from a platform that runs, whose forms are filled in as a person does.

    python -m tests.browser.tour [form] [running] [comparison] [gate] [key=value ...]

Each part submits what it shows and waits for it; without names all of them in order: about ten minutes on 2 cores. What
is given as key=value stands under Overrides, too: `pair.teacher={name: folder, path: ...}` spares making the models.
"""
import io
import sys
import time
from pathlib import Path

from PIL import Image
from selenium.webdriver.common.by import By

from flows.platform import api, settings
from tasks.tracking import view
from tests.browser import pages
from tests.browser.pages import Page, browser, until

FOLDER = Path(__file__).resolve().parents[2] / "infra" / "tour"
WIDTH, WIDE, COLOURS = 1300, 1700, 96   # pixels of a page, and of one with charts; of a picture's palette: below 150 KB
ASSISTANT = "//*[normalize-space(text())='MLflow Assistant']/following::button"
STILL_SECONDS = 10                      # that a page is waited for to stand still
VARIANTS, REFRESH = ("opd_reverse_kl", "opd_reverse_kl_full"), "tiny_nightly"
pages.PATIENCE_SECONDS = 1800.0         # a refresh makes its models first


class Tour:
    """A browser on a platform."""

    def __init__(self, page: Page, runs: settings.Settings, overrides: list[str]):
        self.page, self.runs, self.prefect, self.overrides = page, runs, api.prefect(runs), overrides

    def show(self, path: str, *words: str) -> None:
        """Open one of Prefect's pages, and wait for what it must say."""
        self.page.open(f"{self.runs.prefect_url}{path}").shows(*words)

    def form_of(self, name: str) -> None:
        """The form of a deployment, found as a person does."""
        self.show("/deployments", "Deployments")
        self.page.search(name)
        self.page.link(name)
        self.page.press("Run")
        self.page.choose("Custom run")
        self.page.shows("Validate parameters")

    def submit(self) -> str:
        """The id of the run that the form makes."""
        def latest() -> list[str]:
            return [run["id"] for run in self.prefect.post("/flow_runs/filter", {
                "sort": "EXPECTED_START_TIME_DESC", "limit": 20}) if run["deployment_id"] and not run["auto_scheduled"]]
        before = latest()
        self.page.press("Submit")
        return until("a run", lambda: [run for run in latest() if run not in before])[0]

    def complete(self, run: str) -> None:
        """Wait for a run's end. Raises AssertionError with its reason where that is not a good one."""
        self.page.open("about:blank")  # a page that is open keeps the server busy

        def ended() -> bool:
            state = self.prefect.get(f"/flow_runs/{run}")["state"]
            assert state["type"] not in ("FAILED", "CRASHED", "CANCELLED"), state["message"]
            return state["type"] == "COMPLETED"
        until(f"the end of {run}", ended)

    def save(self, name: str, height: int, width: int = WIDTH) -> None:
        """Keep what the window shows, once it has stood still for a second; a run at work never does."""
        self.page.driver.set_window_size(width, height)
        self.page.driver.execute_script("document.activeElement.blur()")  # no caret
        before, end = b"", time.monotonic() + STILL_SECONDS
        while (now := self.page.driver.get_screenshot_as_png()) != before and time.monotonic() < end:
            before = now
            time.sleep(1)
        FOLDER.mkdir(parents=True, exist_ok=True)
        picture = Image.open(io.BytesIO(now)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        picture.save(FOLDER / f"{name}.png", optimize=True)
        print(f"{FOLDER / name}.png, {(FOLDER / f'{name}.png').stat().st_size / 1000:.0f} KB", flush=True)


def form(tour: Tour) -> None:
    """A variant's form with some fields changed."""
    tour.page.driver.set_window_size(WIDTH, 1800)
    tour.form_of(VARIANTS[0])
    fill(tour, [])
    tour.save("form", 1800)


def fill(tour: Tour, overrides: list[str]) -> None:
    """A short run."""
    tour.page.fill("Rounds", "8")
    tour.page.fill("Note", "the tour")
    tour.page.add("Overrides", "evaluate_every=2", *overrides)


def running(tour: Tour) -> None:
    """A run at work: its stages over time, and their log."""
    tour.form_of(VARIANTS[0])
    fill(tour, tour.overrides)
    run = tour.submit()
    until("a few stages", lambda: tour.prefect.post("/task_runs/count", {
        "flow_runs": {"id": {"any_": [run]}}, "task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}) >= 15)
    tour.show(f"/runs/flow-run/{run}", "Running", "Logs")
    tour.save("running", 1100)
    tour.complete(run)


def comparison(tour: Tour) -> None:
    """Runs of two variants side by side in MLflow; the first of them is `running`'s."""
    for name in VARIANTS:
        tour.form_of(name)
        fill(tour, tour.overrides)
        tour.complete(tour.submit())
    charts(tour)


def charts(tour: Tour) -> None:
    """MLflow's page of all runs, without its assistant, which takes a third of the window."""
    experiment = api.mlflow(tour.runs).get("/api/2.0/mlflow/experiments/get-by-name", experiment_name="opd")
    tour.page.driver.set_window_size(WIDE, 1000)
    tour.page.open(view.link(tour.runs.mlflow_url, experiment["experiment"]["experiment_id"], "all"))
    tour.page.shows(*VARIANTS, "Benchmarks")
    for button in tour.page.driver.find_elements(By.XPATH, ASSISTANT)[2:3]:  # refresh, settings, close
        button.click()
    tour.save("comparison", 1000, WIDE)


def gate(tour: Tour) -> None:
    """A refresh, and the table of what its candidate had to pass."""
    tour.form_of(REFRESH)
    run = tour.submit()
    tour.complete(run)
    [table] = [one for one in tour.prefect.post("/artifacts/filter", {"flow_runs": {"id": {"any_": [run]}}})
               if one["key"].startswith("table-")]
    tour.show(f"/artifacts/artifact/{table['id']}", "target/tiny")
    tour.save("gate", 1100)


def main(words: list[str]) -> None:
    """Take the pictures."""
    overrides = [word for word in words if "=" in word]
    runs = settings.read()
    if runs is None:
        sys.exit("no platform runs here: opd up first")
    known = {part.__name__: part for part in (form, running, comparison, gate)}
    with browser() as page:
        for name in [word for word in words if word not in overrides] or known:
            known[name](Tour(page, runs, overrides))


if __name__ == "__main__":
    main(sys.argv[1:])
