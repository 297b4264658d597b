"""How far the work is: rates, percent and ETA as they are told. The artifact in Prefect: test_flows."""
import time

import pytest

from flows import pools
from tasks import progress as page
from tasks.opd.core.progress import Progress, described, percent_of
from tasks.opd.recipe import loading

HALF = {"label": "score", "done": 128, "total": 512, "unit": "rollouts", "seconds": 64.0, "tokens": 12800}


def test_a_report_in_words_has_rates_and_the_time_left():
    # 128 in 64 s: 2 a second, so the other 384 take 192 s
    assert described(HALF) == "score: 128 / 512 rollouts, 2 rollouts/s, 200 tokens/s, ETA 0:03:12"
    assert percent_of(HALF) == 25.0


def test_without_a_total_there_is_neither_percent_nor_eta():
    assert described({**HALF, "total": None, "tokens": 0}) == "score: 128 rollouts, 2 rollouts/s"
    assert percent_of({**HALF, "total": None}) == 0.0
    assert described({**HALF, "done": 0, "tokens": 0}) == "score: 0 / 512 rollouts"


def test_tokens_are_a_sign_of_life_and_stand_on_the_bar(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("OPD_PROGRESS")
    heard = []
    with Progress(4, "write", "rollouts", heard.append) as bar:
        for _ in range(30):
            time.sleep(0.1)
            bar.update(0, tokens=10)  # no rollout is done yet
        bar.update(4)
    assert [report["done"] for report in heard[:-1]] == [0] * (len(heard) - 1) and len(heard) in (3, 4)
    assert heard[-1]["done"] == 4 and heard[-1]["tokens"] == 300
    rate = float(capsys.readouterr().err.rpartition(" tokens/s")[0].split()[-1])
    assert rate == pytest.approx(100, rel=0.15)


def test_a_short_stage_says_nothing():
    heard = []
    with Progress(3, "grade", "rollouts", heard.append) as bar:
        bar.update(3)
    assert heard == []


def test_outside_of_a_flow_nobody_is_told():
    with pools.pool_for(loading.load("opd_reverse_kl", ["workers=inline"])) as pool:
        assert not isinstance(pool.listener, page.Page)
