"""A suite that tunes: trials on questions of their own, then its cells with what was chosen; again, nothing is made."""
import contextlib
import io
import json

import pytest

from flows.compare import compare
from tasks.opd.core.errors import DataError
from tasks.opd.store import artifacts, garbage
from tests import prefect_harness

TINY = ["workers=inline", "pair.student=random", "pair.teacher.name=random", "pair.teacher.hidden=96", "rounds=1",
        "prompts.count=64", "rollout.prompts_per_round=8", "rollout.sampling.max_new_tokens=16",
        "benchmarks.0.count=6", "benchmarks.0.sampling.max_new_tokens=16"]


@pytest.fixture(scope="session", autouse=True)
def prefect_server():
    """A server of these tests' own, started once."""
    with prefect_harness.prefect_server():
        yield


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """A suite whose first setting fails every trial: preflight refuses random models that nobody accepts."""
    monkeypatch.setenv("OPD_HOME", str(tmp_path / "home"))
    file = tmp_path / "tuned.yaml"
    file.write_text(json.dumps({"name": "tuned", "variants": ["opd_reverse_kl", "shuffled_teacher"], "seeds": [0],
                                "baseline": "start", "set": TINY, "validation": {"first": 2_000_000},
                                "tune": {"accepts.shift": ["", "random models"]}}))
    return str(file)


def quietly(*arguments) -> tuple[dict, str]:
    with contextlib.redirect_stderr(io.StringIO()) as said:
        return compare(*arguments), said.getvalue()


def test_trials_choose_for_every_variant_and_a_second_run_makes_nothing(suite):
    result, _ = quietly(suite)
    tuning = result["comparison"]["tuning"]
    assert list(tuning) == ["opd_reverse_kl", "shuffled_teacher"] and result["failed"] == []
    for found in tuning.values():
        assert found["chosen"] == {"accepts.shift": "random models"} and found["mean"] == 0
        assert "preflight is red" in found["trials"][0]["error"] and found["costs"]["tokens"]["trained_tokens"] > 0
    assert "1 of 2" in result["text"]
    asked = {json.loads((report / "report.json").read_text())["benchmark"]["name"]
             for report in artifacts.home().glob("artifacts/report/*")}
    assert asked == {"tiny", "tiny-validation"}
    assert garbage.survey().garbage == []
    again, said = quietly(suite)
    assert "made 0 artifacts" in said and again["comparison"] == result["comparison"]


def test_validation_questions_may_not_be_the_benchmarks(suite):
    with pytest.raises(DataError, match="prompts of tiny-validation are also trained on or tested"):
        quietly(suite, ["validation={first: 1000003}"])
