"""A suite as a person runs it, killed in every stage and with damaged files: run again, it is what it would have been.

The models are random, so that the runs are short; the sizes keep every stage at work for long enough to be caught.
"""
import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.test_main_job import finished, start

SHORT = ["pair=smoke", "variants=[gkd]", "seeds=[0]", "rounds=2", "rollout.prompts_per_round=32",
         "rollout.sampling.max_new_tokens=96", "benchmarks.0.count=50", "benchmarks.0.sampling.max_new_tokens=96"]
STAGES = ["rollouts", "scores", "checkpoint", "report"]
PATIENCE_SECONDS = 600


def without_seconds(comparison: dict) -> dict:
    """A comparison but for what may differ between equal runs: seconds, and the bytes that spell measured numbers."""
    rows = [{**row, "costs": {**row["costs"], "seconds": {}, "size": {}}} for row in comparison["rows"]]
    return {**comparison, "rows": rows}


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


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> tuple[Path, dict]:
    """A home with a short run that nobody disturbed, and its comparison."""
    home = tmp_path_factory.mktemp("short") / "opd"
    return home, finished(home, *SHORT)[0]["comparison"]


def complete(home: Path, *kinds: str) -> set[str]:
    return {path.name for kind in kinds for path in (home / "artifacts" / kind).glob("[!.]*")}


def records(home: Path) -> dict[Path, dict]:
    return {file.parent: json.loads(file.read_text()) for file in home.glob("artifacts/*/[!.]*/artifact.json")}


def digests(home: Path) -> dict[tuple[str, str], str]:
    """(kind, fingerprint) of every artifact -> the hash of its bytes."""
    return {(path.parent.name, path.name): record["digest"] for path, record in records(home).items()}


def test_kill_9_in_any_stage_then_run_again_gives_the_same_table_and_bytes(short, tmp_path):
    """Every kill is in another stage; what was finished is reused, and no process of the killed run is left."""
    home = tmp_path / "opd"
    for stage in STAGES:
        before = complete(home, "model", *STAGES)
        assert kill_in(home, stage, len(complete(home, stage))), f"never caught in {stage}"
        deadline = time.monotonic() + PATIENCE_SECONDS
        while processes_of(home) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert processes_of(home) == []
        assert before <= complete(home, "model", *STAGES)           # nothing that was finished is lost
    table, _ = finished(home, *SHORT)
    assert without_seconds(table["comparison"]) == without_seconds(short[1])
    assert not list(home.glob("artifacts/*/.tmp-*"))
    assert digests(home) == digests(short[0])


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
