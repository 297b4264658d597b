"""The main job as a person runs it, on the demo's pair made from nothing: it learns, and survives any kill."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHORT = ["variants=[gkd]", "seeds=[0]", "rounds=3", "rollout.prompts_per_round=32", "benchmarks.0.count=50"]
MINUTES_WITHOUT_PROGRESS = 10
STAGES = ["rollouts", "scores", "checkpoint", "report"]


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


def without_seconds(comparison: dict) -> dict:
    """A comparison but for what may differ between equal runs: seconds, and the bytes that spell measured numbers."""
    rows = [{**row, "costs": {**row["costs"], "seconds": {}, "size": {}}} for row in comparison["rows"]]
    return {**comparison, "rows": rows}


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


def processes_of(home: Path) -> list[int]:
    """Processes whose environment names this home."""
    found = []
    for place in Path("/proc").iterdir():
        try:
            if place.name.isdigit() and f"OPD_HOME={home}\0".encode() in (place / "environ").read_bytes() + b"\0":
                found.append(int(place.name))
        except OSError:
            continue
    return found


def kill_in(home: Path, stage: str, already: int) -> bool:
    """Start the suite, kill its flow with SIGKILL in the `already`-th round's stage; whether it was caught there."""
    process, folder = start(home, *SHORT), home / "artifacts" / stage
    try:
        while process.poll() is None:
            names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
            if any(name.startswith(".tmp-") for name in names) and len(names) > already:
                os.kill(process.pid, signal.SIGKILL)
                return True
            time.sleep(0.005)
        return False
    finally:
        process.kill()
        process.communicate()


def with_models_of(learnt: tuple[Path, dict], home: Path) -> Path:
    """A new home that has the pair and its prompts and nothing else."""
    for kind in ("model", "prompts"):
        shutil.copytree(learnt[0] / "artifacts" / kind, home / "artifacts" / kind)
    return home


@pytest.fixture(scope="module")
def short(learnt, tmp_path_factory) -> tuple[Path, dict]:
    """A home with a short run that nobody disturbed, and its comparison."""
    home = with_models_of(learnt, tmp_path_factory.mktemp("short") / "opd")
    return home, finished(home, *SHORT)[0]["comparison"]


def complete(home: Path, *kinds: str) -> set[str]:
    return {path.name for kind in kinds for path in (home / "artifacts" / kind).glob("[!.]*")}


def test_kill_9_in_any_stage_then_run_again_gives_the_same_table(learnt, short, tmp_path):
    """Every kill is in another stage; what was finished is reused, and no process of the killed run is left."""
    home = with_models_of(learnt, tmp_path / "opd")
    models = complete(home, "model")
    for stage in STAGES:
        before = complete(home, *STAGES)
        assert kill_in(home, stage, len(complete(home, stage))), f"never caught in {stage}"
        deadline = time.monotonic() + 120
        while processes_of(home) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert processes_of(home) == []
        assert before <= complete(home, *STAGES)                    # nothing that was finished is lost
    table, _ = finished(home, *SHORT)
    assert without_seconds(table["comparison"]) == without_seconds(short[1])
    assert complete(home, "model") == models and not list(home.glob("artifacts/*/.tmp-*"))
    assert complete(home, *STAGES) == complete(short[0], *STAGES)


def records(home: Path) -> dict[Path, dict]:
    return {file.parent: json.loads(file.read_text()) for file in home.glob("artifacts/*/[!.]*/artifact.json")}


def test_a_flipped_byte_is_named_before_use_and_only_what_must_be_is_remade(short):
    """The last round's artifacts, one by one. Its checkpoint needs the teacher's hidden states, and the state of the
    optimizer before it, which were not kept."""
    home, table = short
    for kind, file, also in (("rollouts", "rollouts.parquet", set()), ("report", "samples.parquet", set()),
                             ("checkpoint", "model/model.safetensors", {"scores", "checkpoint"})):
        before = records(home)
        folder = max((p for p in before if p.parent.name == kind), key=lambda p: before[p]["spec"].get("round", 0))
        data = bytearray((folder / file).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / file).write_bytes(bytes(data))
        result, said = finished(home, *SHORT)
        assert Path(file).name in said and "damaged" in said
        assert without_seconds(result["comparison"]) == without_seconds(table)
        after = records(home)
        assert {p: r["digest"] for p, r in after.items()} == {p: r["digest"] for p, r in before.items()}
        remade = {p for p, r in after.items() if any(r[key] != before[p][key] for key in ("created", "seconds"))}
        assert folder in remade and {p.parent.name for p in remade - {folder}} <= also
