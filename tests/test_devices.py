"""One device, one run: who waits for what, and that a lock ends with its holder."""
import os
import signal
import subprocess
import sys

import pytest

from tasks import devices
from tasks.workers.launchers import ROOT

HOLD = """
import sys, time
from pathlib import Path
from tasks import devices
devices.GPU_LOCKS = Path(sys.argv[1])
devices.device_kind = lambda: "cuda" if sys.argv[2:] else "cpu"
devices.visible_gpus = lambda: {name: str(i) for i, name in enumerate(sys.argv[2:])}
with devices.held("first", print, share_cpu=False) as device:
    print(device, flush=True)
    time.sleep(600)
"""


def holding(folder, *gpus) -> subprocess.Popen:
    """A process that holds a device, once it has printed which."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), *gpus], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE)
    process.device = process.stdout.readline().strip()
    return process


@pytest.fixture
def two_gpus(tmp_path, monkeypatch) -> dict[str, str]:
    """A machine with two GPUs, as far as locks are concerned."""
    gpus = {"GPU-a": "0", "GPU-b": "1"}
    monkeypatch.setattr(devices, "GPU_LOCKS", tmp_path / "gpus")
    monkeypatch.setattr(devices, "device_kind", lambda: "cuda")
    monkeypatch.setattr(devices, "visible_gpus", lambda: gpus)
    return gpus


def test_a_run_waits_for_the_device_says_for_whom_and_goes_on_when_the_holder_is_killed(opd_home, tmp_path):
    holder, said = holding(tmp_path), []

    def hear(line: str) -> None:
        said.append(line)
        if line.startswith("waiting"):
            holder.send_signal(signal.SIGKILL)
    with devices.held("second", hear, share_cpu=False) as device:
        assert device == "cpu" and len(said) == 2
        assert f"cpu: first, process {holder.pid}, since " in said[0] and said[1].startswith("cpu is free after ")
        assert (opd_home / "devices/cpu.lock").read_text().startswith(f"second, process {os.getpid()}")
    holder.communicate()


def test_a_cpu_is_shared_by_those_who_may_and_another_home_has_its_own(tmp_path, monkeypatch):
    holder = holding(tmp_path)
    try:
        with devices.held("from a terminal", pytest.fail, share_cpu=True) as device:
            assert device == "cpu"
        monkeypatch.setenv("OPD_HOME", str(tmp_path / "other"))
        with devices.held("elsewhere", pytest.fail, share_cpu=False):
            pass
    finally:
        holder.kill()
        holder.communicate()


def test_each_run_takes_a_free_gpu_and_its_workers_see_no_other(two_gpus, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    holder = holding(tmp_path / "gpus", *two_gpus)
    try:
        assert holder.device == "GPU-a"
        with devices.held("second", pytest.fail, share_cpu=True) as device:  # a GPU is never shared
            assert (device, os.environ["CUDA_VISIBLE_DEVICES"], os.environ["CUDA_DEVICE_ORDER"]) == (
                "GPU-b", "1", "PCI_BUS_ID")
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1" and "CUDA_DEVICE_ORDER" not in os.environ
    finally:
        holder.kill()
        holder.communicate()


def test_a_lock_is_free_again_after_an_error_too(two_gpus):
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), devices.held("run", pytest.fail, share_cpu=False):
            raise KeyboardInterrupt


def test_gpus_are_named_by_uuid_whatever_cuda_visible_devices_calls_them(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '0, GPU-a'\necho '1, GPU-b'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for named, found in ((None, {"GPU-a": "0", "GPU-b": "1"}), ("1", {"GPU-b": "1"}), ("GPU-a", {"GPU-a": "GPU-a"}),
                         ("MIG-7", {"MIG-7": "MIG-7"})):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if named:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        assert devices.visible_gpus() == found
