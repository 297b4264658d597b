"""The main job as a person runs it, on the demo's pair made from nothing: it learns."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MINUTES_WITHOUT_PROGRESS = 10


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "flows.cli", "compare", "configs/suites/demo.yaml", "--json", *words]


def start(home: Path, *words: str) -> subprocess.Popen:
    environment = {**os.environ, "OPD_HOME": str(home), "OPD_PROGRESS": "0"}
    return subprocess.Popen(command(*words), cwd=ROOT, env=environment, text=True, start_new_session=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finished(home: Path, *words: str) -> tuple[dict, str]:
    """The JSON object a suite ends with, and what it said."""
    process, seen, idle = start(home, *words), None, 0
    while idle < MINUTES_WITHOUT_PROGRESS:  # a machine may be slow; a job that is stuck writes nothing
        try:
            out, said = process.communicate(timeout=60)
            break
        except subprocess.TimeoutExpired:
            state = {file: file.stat().st_mtime_ns for file in home.rglob("*") if file.exists()}
            seen, idle = state, idle + 1 if state == seen else 0
    else:
        process.kill()
        pytest.fail(f"no file has changed for {idle} minutes: {process.communicate()[1][-3000:]}")
    assert process.returncode == 0, said[-3000:]
    return json.loads(out.splitlines()[-1]), said


@pytest.fixture(scope="module")
def learnt(tmp_path_factory) -> tuple[Path, dict]:
    """A home with the demo's pair in it, and the comparison of the start with more rounds of opd_reverse_kl."""
    home = tmp_path_factory.mktemp("main") / "opd"
    return home, finished(home, "variants=[opd_reverse_kl]", "seeds=[0]", "rounds=40")[0]["comparison"]


def row_of(comparison: dict, variant: str) -> dict:
    return next(row for row in comparison["rows"] if row["variant"] == variant)


def test_the_sampled_reverse_kl_ends_25_points_above_the_start_interval_included(learnt):
    _, comparison = learnt
    row = row_of(comparison, "opd_reverse_kl")
    assert row["interval"][0] >= 0.25 and row["verdict"] == "better"


def test_the_teacher_is_at_95_percent_and_the_student_starts_between_10_and_40(learnt):
    home, _ = learnt
    records = [json.loads(file.read_text()) for file in home.glob("artifacts/model/*/artifact.json")]
    accuracy = {record["spec"]["maker"]["name"]: record["counts"]["accuracy"] for record in records}
    assert accuracy["tiny_teacher"] >= 0.95 and 0.10 <= accuracy["tiny_student"] <= 0.40
