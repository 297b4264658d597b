"""Processes and their records: whose a pid is, and that nothing of a child is left."""
import dataclasses
import os
import signal
import subprocess
import sys
import time

import pytest

from flows.platform import children, processes
from tests.platform.runs_for_tests import wait_for

DETACHING = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("grandchild", child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def child():
    """A child that ignores SIGTERM, with a grandchild in a session of its own."""
    child = children.start("worker", [sys.executable, "-c", DETACHING], dict(os.environ), 4321)
    wait_for(lambda: "grandchild" in children.last_lines("worker"), "the grandchild")
    yield child
    children.stop("worker", grace_seconds=0)


def grandchild() -> int:
    """The pid that the child printed."""
    return int(children.last_lines("worker").split()[-1])


def test_a_record_says_what_was_started(child):
    read = children.read("worker")
    assert read == child and read.port == 4321 and read.command[0] == sys.executable
    assert children.living("worker") == child and child.pid == os.getsid(child.pid)  # a session of its own


def test_a_pid_that_was_given_out_again_is_not_ours(child):
    recycled = dataclasses.replace(child, started=child.started - 1)  # the pid lives, what we started did not
    assert child.is_alive() and not recycled.is_alive()
    children.write(recycled)
    assert children.living("worker") is None


def test_a_pid_of_an_earlier_boot_is_not_ours(child):
    assert not dataclasses.replace(child, boot="another").is_alive()


def test_a_dead_child_that_nobody_waited_for_is_dead():
    process = subprocess.Popen([sys.executable, "-c", ""])
    wait_for(lambda: processes.started(process.pid) is None, "its end")
    assert os.path.exists(f"/proc/{process.pid}")  # a zombie, until somebody takes its exit code
    process.wait()


def test_stop_ends_what_ignores_sigterm_and_what_left_the_session(child):
    inner = grandchild()
    assert processes.started(inner) and os.getsid(inner) == inner
    assert children.stop("worker", grace_seconds=0.2)
    assert processes.started(child.pid) is None and processes.started(inner) is None
    assert children.read("worker") is None and children.family() == {}


def test_stop_ends_the_orphans_of_a_child_that_was_killed(child):
    inner = grandchild()
    os.kill(child.pid, signal.SIGKILL)
    wait_for(lambda: children.living("worker") is None, "its death")
    assert set(children.family_of("worker")) == {inner}
    assert children.stop("worker", grace_seconds=0) and processes.started(inner) is None


def test_only_processes_of_this_home_are_ours(child, monkeypatch, tmp_path):
    assert {child.pid, grandchild()} == set(children.family())
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("OPD_HOME", str(tmp_path / "another"))
        assert children.family() == {}


def test_a_half_written_record_is_none():
    children.record_of("mlflow").parent.mkdir(parents=True)
    children.record_of("mlflow").write_text('{"name": "mlflow", "pi')
    assert children.read("mlflow") is None


def test_a_long_log_is_set_aside(monkeypatch):
    monkeypatch.setattr(children, "LOG_BYTES", 1000)
    log = children.log_of("mlflow")
    log.parent.mkdir(parents=True)
    log.write_text("x" * 1001)
    children.start("mlflow", [sys.executable, "-c", "print('new')"], dict(os.environ))
    wait_for(lambda: "new" in log.read_text(), "its output")
    assert "x" not in log.read_text().replace("started", "") and len((log.parent / "mlflow.log.1").read_text()) == 1001


def test_a_signal_does_not_reach_another_process_of_that_pid():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    known = processes.Process(pid=process.pid, parent=0, started=processes.started(process.pid) - 1, environment={})
    processes.send(known, signal.SIGKILL)
    time.sleep(0.1)
    assert process.poll() is None
    process.kill()
    process.wait()
