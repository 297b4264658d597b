"""Reports in a real browser: no complaint, no request, hostile text stays text, keys and colours work.

With OPD_PICTURES set to a folder, what is seen at 1,280 pixels, light and dark, is kept there.
"""
import base64
import json
import os
from pathlib import Path

import pytest

pytest.importorskip("selenium", reason="pip install -e .[e2e]; make test-e2e does it")

from selenium.webdriver.common.by import By  # noqa: E402  after the skip
from selenium.webdriver.common.keys import Keys  # noqa: E402

from tasks.opd.core.costs import TRAINED  # noqa: E402
from tasks.opd.core.token_columns import TokenColumns  # noqa: E402
from tasks.opd.evaluation.cell_costs import Costs  # noqa: E402
from tasks.opd.evaluation.comparison import compare  # noqa: E402
from tasks.opd.evaluation.report import lineage, runs, suites  # noqa: E402
from tasks.opd.store import run_records  # noqa: E402
from tests.browser.pages import NEEDS_BROWSER, browser  # noqa: E402
from tests.evaluation.report.made_runs import ROLLOUTS, rollout, run  # noqa: E402

pytestmark = [pytest.mark.browser, NEEDS_BROWSER]
WIDTH, NARROW = 1280, 390
HOSTILE = "</script><script>document.title = 'hit'</script><img src=x onerror=\"document.title = 'hit'\"> \u202egnitide"
VALUES = {f"position/{name}/{bucket}": sign * bucket / 50 for name, sign in (("reverse_kl", 1), ("advantage_mean", -1))
          for bucket in (0, 16, 32)}
REFINED = [rollout("0:p:0:student:1:trd", [1, 2, 7, 4], parent="0:p:0:student:1", author=[0, 1, 1, 1],
                   logprobs=[-1.0, *[float("nan")] * 3]), *ROLLOUTS[:1]]


@pytest.fixture(scope="module")
def page():
    with browser(logs={"browser": "ALL", "performance": "ALL"}) as page:
        yield page


def opened(page, folder: Path, html: str, *, dark: bool = False, width: int = WIDTH):
    """Open a page from a file; it may neither complain nor ask for anything."""
    (folder / "report.html").write_text(html, encoding="utf-8")
    driver = page.driver
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {
        "features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]})
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600})
    for log in ("browser", "performance"):
        driver.get_log(log)
    page.open((folder / "report.html").as_uri())
    assert driver.get_log("browser") == []
    assert asked_for(driver) == [(folder / "report.html").as_uri()]
    return driver


def asked_for(driver) -> list[str]:
    """Every address that the page has asked for; pictures that stand in it are not asked for."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    addresses = [message["params"]["request"]["url"] for message in messages
                 if message["method"] == "Network.requestWillBeSent"]
    return [address for address in addresses if not address.startswith("data:")]


def keep(driver, name: str) -> None:
    """The whole page as a picture, where pictures are wanted."""
    if not (folder := os.environ.get("OPD_PICTURES")):
        return
    size = driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {
        "captureBeyondViewport": True, "clip": {"x": 0, "y": 0, "width": WIDTH, "height": size["height"], "scale": 1}})
    Path(folder, f"{name}.png").write_bytes(base64.b64decode(shot["data"]))


def run_page(**options) -> str:
    return runs.html_of(lineage.read(run_records.files_of(run(**options))[0]))


def suite_page(answers: list[str] = ()) -> str:
    """A suite of two variants with two seeds, one of whose cells failed."""
    rewards = {("gkd", 0): [1, 1, 1, 1], ("gkd", 1): [1, 1, 1, 0], ("tip", 0): [0, 1, 0, 0]}
    stems = [(*key, run(*key, suite="s", after=after, values=VALUES, texts=answers, top=True,
                        passes={"pass@1": after[0], "pass@4": 1.0})) for key, after in rewards.items()]
    stems += [("tip", 1, run("tip", 1, suite="s", error=ValueError(HOSTILE)))]
    cells = {("start", 0): dict(zip("abcd", [1.0, 0.0, 0.0, 0.0])),
             **{key: dict(zip("abcd", after)) for key, after in rewards.items()}, ("tip", 1): HOSTILE}
    spent = {key: Costs(tokens={TRAINED: 100.0 * i}, evaluation_tokens={}, seconds={"checkpoint": i}, size={})
             for i, key in enumerate(rewards, 1)}
    table = compare(cells, "start", spent=spent)
    failed = {("tip", 1): HOSTILE}
    return suites.html_of(suites.state_of("s", "tiny", "start", {"device": "cpu"}, stems, failed, 0, table))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_suites_page_draws_every_figure_and_asks_for_nothing(page, tmp_path, dark):
    driver = opened(page, tmp_path, suite_page(), dark=dark)
    for name in ("forest", "lines", "pareto", "flips", "pass_at", "maps"):
        assert driver.find_elements(By.CSS_SELECTOR, f"#{name} .chart svg"), name
    assert driver.execute_script("return document.documentElement.scrollWidth") <= WIDTH
    ground = driver.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")
    assert ("255" in ground) != dark
    keep(driver, f"made-suite-{'dark' if dark else 'light'}")


def test_every_choice_of_a_suites_page_can_be_made(page, tmp_path):
    driver = opened(page, tmp_path, suite_page())
    made = driver.execute_script("""
        let made = 0;
        for (const list of document.querySelectorAll("select")) for (const option of list.options) {
          list.value = option.value;
          list.dispatchEvent(new Event("change"));
          made += 1;
        }
        return made;""")
    assert made > 20
    assert driver.get_log("browser") == [] and asked_for(driver) == []
    assert driver.find_elements(By.CSS_SELECTOR, "#lines .chart svg")


def test_hostile_answers_and_errors_stay_text(page, tmp_path):
    driver = opened(page, tmp_path, suite_page([HOSTILE, HOSTILE + " and more"] * 2))
    text = driver.find_element(By.TAG_NAME, "body").text
    assert driver.title == "s: opdlab report" and not driver.find_elements(By.TAG_NAME, "img")
    assert "<img src=x onerror=" in text and "[U+202E]gnitide" in text and "\u202e" not in driver.page_source
    assert "</script><script>" in driver.find_element(By.CSS_SELECTOR, "#questions .answers").text


def test_where_two_answers_part_is_marked(page, tmp_path):
    driver = opened(page, tmp_path, suite_page([f"answer {i} indeed, it is" for i in range(4)]))
    assert [mark.text for mark in driver.find_elements(By.CSS_SELECTOR, "#questions mark")] == ["\u2205", " indeed,"]


def test_rollouts_are_read_token_by_token_with_keys(page, tmp_path):
    driver = opened(page, tmp_path, run_page(top=True, values=VALUES))
    assert driver.find_element(By.CSS_SELECTOR, ".tokens").text.split() == ["one", "two", "three", "one"]
    driver.find_element(By.CSS_SELECTOR, ".list").send_keys(Keys.ARROW_DOWN)
    tokens = driver.find_element(By.CSS_SELECTOR, ".tokens")
    assert "<img src=x onerror=alert(1)>[U+202E]" in tokens.text
    tokens.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    told = driver.find_element(By.CSS_SELECTOR, ".token").text
    assert '1 "<img src=x onerror=alert(1)>"' in told and "teacher's gap to the student -0.50" in told
    assert '"</script>" 22.3 %' in told and driver.get_log("browser") == []      # e ** -1.5


def test_tokens_are_coloured_by_what_is_chosen(page, tmp_path):
    driver = opened(page, tmp_path, run_page(refined=REFINED))

    def colours() -> list[str]:
        return [span.value_of_css_property("background-color")
                for span in driver.find_elements(By.CSS_SELECTOR, ".tokens span")]
    gap = colours()
    assert len(set(gap)) == 2                       # the student wrote the first, the others have no gap
    driver.execute_script("const list = document.querySelector('#rollouts select'); list.value = 'author'; "
                          "list.dispatchEvent(new Event('change'))")
    student, *teacher = colours()
    assert set(teacher) == {teacher[0]} != {student}


def test_tokens_are_coloured_by_what_training_took(page, tmp_path):
    used = [TokenColumns(rollout_id="0:p:0:student:0", term=HOSTILE, weight=[0, 0.0025, 1, 1, 1],
                         advantage=[float("nan"), -2.0, 2.0, 0.5, 0.5])]
    driver = opened(page, tmp_path, run_page(used=used, top=True))
    names = [option.text for option in driver.find_elements(By.CSS_SELECTOR, "#rollouts select option")]
    weight, advantage = (next(i for i, name in enumerate(names) if name.startswith(kind))
                         for kind in ("weight in </script>", "advantage in </script>"))

    def colours(choice: int) -> list[str]:
        driver.execute_script("const list = document.querySelector('#rollouts select'); "
                              "list.selectedIndex = arguments[0]; list.dispatchEvent(new Event('change'))", choice)
        return [span.value_of_css_property("background-color")
                for span in driver.find_elements(By.CSS_SELECTOR, ".tokens span")]
    nothing, little, *whole = colours(weight)
    assert len({nothing, little, *whole}) == 3 and len(set(whole)) == 1
    unknown, less, more, *some = colours(advantage)
    assert len({unknown, less, more, *some}) == 4
    assert "less of it (\u2264 -2.00)" in driver.find_element(By.CSS_SELECTOR, "#rollouts .scale").text
    driver.find_element(By.CSS_SELECTOR, ".tokens").send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert "gnitide 0.00250" in driver.find_element(By.CSS_SELECTOR, ".token").text
    assert driver.title.endswith(": opdlab report") and not driver.find_elements(By.TAG_NAME, "img")
    assert driver.get_log("browser") == []


def test_raw_text_stands_beside_refined_text(page, tmp_path):
    driver = opened(page, tmp_path, run_page(refined=REFINED))
    before, after = driver.find_elements(By.CSS_SELECTOR, ".pair .text")
    assert before.text.startswith("</script>") and after.text.split()[:2] == ["one", "two"]
    assert len(driver.find_elements(By.CSS_SELECTOR, ".pair mark")) == 2


@pytest.mark.parametrize("html", [suite_page, run_page], ids=["suite", "run"])
def test_a_page_fits_on_a_phone(page, tmp_path, html):
    driver = opened(page, tmp_path, html(), width=NARROW)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= NARROW


def test_a_page_of_a_run_that_failed_at_once_has_nothing_to_draw_and_does_not_complain(page, tmp_path):
    driver = opened(page, tmp_path, run_page(made_rounds=0, error=ValueError("at once")))
    assert "ValueError: at once" in driver.find_element(By.TAG_NAME, "body").text
