"""One device, one run: a lock that the kernel frees however its holder dies.

GPUs belong to the machine, so their locks lie in one folder for all users, named by UUID. A CPU can be shared: it is
locked, for one OPD_HOME, only by runs that a worker of Prefect starts. A run that finds all devices in use waits for
the first that becomes free. Left out: what other programs do with a GPU; a worker for some of them only is started with
CUDA_VISIBLE_DEVICES.
"""
import contextlib
import fcntl
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tasks.opd.core.files import room_to_write
from tasks.opd.store.artifacts import home
from tasks.opd.store.fingerprints import device_kind

GPU_LOCKS = Path(tempfile.gettempdir()) / "opd-devices"
POLL_SECONDS = 0.5


@contextlib.contextmanager
def held(name: str, log: Callable[[str], None], *, share_cpu: bool) -> Iterator[str]:
    """Hold one device as long as this is open, for the run `name`; yields which, or `cpu` where it is shared.

    Of several GPUs the one held is the only one that the run's workers see. `log` gets a line about what is waited for.
    """
    gpus = visible_gpus() if device_kind() == "cuda" else {}
    if not gpus and share_cpu:
        yield "cpu"
        return
    places = {gpu: GPU_LOCKS / f"{gpu}.lock" for gpu in gpus} or {"cpu": home() / "devices" / "cpu.lock"}
    device, file = first_free(places, log)
    try:
        with contextlib.suppress(OSError):  # another user's file; who holds it is only for people to read
            places[device].write_text(f"{name}, process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        with only_visible(gpus[device]) if len(gpus) > 1 else contextlib.nullcontext():
            yield device
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)  # a forked process may hold a copy of the descriptor
        os.close(file)


@contextlib.contextmanager
def only_visible(gpu: str) -> Iterator[None]:
    """CUDA shows processes that start meanwhile this GPU alone, counted as nvidia-smi counts."""
    before = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")}
    os.environ.update(CUDA_VISIBLE_DEVICES=gpu, CUDA_DEVICE_ORDER="PCI_BUS_ID")
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def first_free(places: dict[str, Path], log: Callable[[str], None]) -> tuple[str, int]:
    """The first device whose lock can be had, and its locked file."""
    files, told, started = {device: opened(place) for device, place in places.items()}, "", time.monotonic()
    while (device := next(filter(lambda device: locked(files[device]), files), None)) is None:
        holders = "; ".join(f"{device}: {place.read_text() or 'in use'}" for device, place in places.items())
        if holders != told:
            log(f"waiting for a device, one run has each ({holders})")
            told = holders
        time.sleep(POLL_SECONDS)
    for other in files.keys() - {device}:
        os.close(files[other])
    if told:
        log(f"{device} is free after {time.monotonic() - started:.0f} s; this run goes on")
    return device, files[device]


def locked(file: int) -> bool:
    """Lock a file if nobody has; whether it is ours now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def opened(place: Path) -> int:
    """A lock's file, open; made, for all users to read, where there is none. Raises DiskFull."""
    with room_to_write(place):
        if not place.parent.exists():
            place.parent.mkdir(parents=True)
            place.parent.chmod(0o1777 if place.parent == GPU_LOCKS else 0o755)
        with contextlib.suppress(FileNotFoundError):
            return os.open(place, os.O_RDONLY)
        return os.open(place, os.O_RDONLY | os.O_CREAT, 0o644)


def visible_gpus() -> dict[str, str]:
    """UUID -> what CUDA_VISIBLE_DEVICES calls it, of the GPUs that it leaves; what it names otherwise (MIG) is kept."""
    command = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        said = ""
    uuids = dict(line.split(", ") for line in said.splitlines() if ", " in line)
    words = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(uuids) or "0").split(",")
    return {uuids.get(word.strip(), word.strip()): word.strip() for word in words if word.strip()}
