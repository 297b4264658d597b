"""One file that shows hostile text as text, asks nobody for anything, and stays small."""
import base64
import hashlib
import json
import re

from tasks.opd.core.token_columns import TokenColumns
from tasks.opd.evaluation.report import lineage, runs
from tasks.opd.evaluation.report.page import ASSETS, LIMIT, Page, Table, fitting, render, sides, visible
from tasks.opd.store import run_records
from tests.evaluation.report.made_runs import rollout, run

HOSTILE = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(1)> \u202eabc\u2028 \x00 {{ 7 * 7 }}"


def data_of(html: str) -> dict:
    """The data that figures are drawn from, found as a browser finds them."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


def html_of(**options) -> str:
    return runs.html_of(lineage.read(run_records.files_of(run(**options))[0]))


def test_hostile_text_is_no_markup_anywhere():
    html = render(Page(title=HOSTILE, subject="run", verdict=HOSTILE, facts={HOSTILE: HOSTILE}, failures=[HOSTILE],
                       tables=[Table(title=HOSTILE, rows=[[HOSTILE], [HOSTILE]])], notes=[HOSTILE], benchmark=HOSTILE,
                       recipe=[(HOSTILE, HOSTILE)], pieces=[HOSTILE]))
    assert "<script>alert" not in html and "<img" not in html and "49" not in re.sub("<script.*</script>", "", html,
                                                                                    flags=re.DOTALL)
    assert "\u202e" not in html and "\x00" not in html and "[U+202E]abc" in html
    assert html.count("<script") == 6 == html.count("</script>")
    assert data_of(html)["pieces"] == [visible(HOSTILE)]


def test_every_script_is_the_one_that_the_policy_allows_and_nothing_else_may_be_asked_for():
    html = html_of()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)[1].replace("&#39;", "'")
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert len(scripts) == 5
    assert {base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in scripts} == allowed
    assert policy.startswith("default-src 'none'; ") and "http" not in policy and "unsafe-eval" not in policy
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", re.sub("<script>.*?</script>", "", html,
                                                                          flags=re.DOTALL))


def test_the_libraries_stand_with_their_licences_in_the_folder_and_in_the_page():
    for name, words in (("d3", "Copyright 2010-2026 Mike Bostock"), ("plot", "Copyright 2020-2025 Observable, Inc.")):
        assert words in (ASSETS / f"{name}.LICENSE").read_text() and words in html_of()


def test_the_same_store_gives_the_same_page():
    assert html_of() == html_of()


def test_a_page_of_forty_long_rollouts_stays_below_what_mlflow_shows():
    long = [rollout(f"0:p:0:student:{i}", [1, 2, 3, 4, 5] * 800, logprobs=[-1.2345] * 4000) for i in range(60)]
    used = [TokenColumns(rollout_id=one.rollout_id, term=term, weight=[0.123] * 1024, advantage=[-0.0123] * 1024)
            for one in long for term in ("teacher_gap", "grpo")]
    html = html_of(rollouts=long, top=True, rounds=1, used=used)
    assert len(html.encode()) <= LIMIT
    shown = data_of(html)["rollouts"]
    assert len(shown) == 40 and len(shown[0]["tokens"]) >= 256 and len(shown[0]["used"][1]["advantage"]) >= 256
    assert shown[0]["left_out"] + len(shown[0]["tokens"]) == 4000


def test_the_first_page_that_is_small_enough_is_taken_else_the_last():
    def page(characters: int) -> Page:
        return Page(title="x", subject="run", verdict="", facts={}, failures=["x" * characters])
    assert "x" * 150 not in (taken := fitting([page(LIMIT), page(100), page(200)])) and "x" * 100 in taken
    assert "x" * (LIMIT + 1) in fitting([page(LIMIT + 2), page(LIMIT + 1)])


def test_columns_of_numbers_stand_to_the_right():
    rows = [["variant", "mean", "vs", "seed 0", "verdict"], ["a", "1.0", "+1.0 [-1.0 +2.0]", "failed", "better"],
            ["b", "1,000.5", "", "3.0", "baseline"]]
    assert sides(rows) == ["", "number", "number", "number", ""]


def test_characters_that_turn_or_hide_text_are_spelt_out_and_others_stay():
    hidden = {"a\u202e": ["b\u200b", ("\ufeffc", 1, None)]}
    assert visible(hidden) == {"a[U+202E]": ["b[U+200B]", ["[U+FEFF]c", 1, None]]}
    text = "caf\u00e9 \u6570\u5b66 \U0001f600 tab\t line\n"
    assert visible(text) == text
