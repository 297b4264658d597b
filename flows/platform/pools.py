"""The work pool: its runs are processes of this machine, at most one a device at once."""
import os
import subprocess

import httpx

from flows.platform.api import Api
from flows.platform.servers import POOL

DESCRIPTION = "Runs of this machine: one at a time on each device. Workers elsewhere take a pool of their own."


def num_devices() -> int:
    """How many GPUs there are, those hidden by CUDA_VISIBLE_DEVICES apart; 1 on a machine without."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return max(1, len([name for name in visible.split(",") if name.strip() not in ("", "-1")]))
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return 1
    return max(1, len(listed.stdout.splitlines())) if listed.returncode == 0 else 1


def ensure(prefect: Api, slots: int) -> None:
    """The pool with that many slots; the worker writes what a run of it may ask for."""
    try:
        prefect.get(f"/work_pools/{POOL}")
    except httpx.HTTPStatusError as error:
        if error.response.status_code != 404:
            raise
        prefect.post("/work_pools/", {"name": POOL, "type": "process", "description": DESCRIPTION,
                                      "concurrency_limit": slots})
    else:
        prefect.patch(f"/work_pools/{POOL}", {"concurrency_limit": slots, "description": DESCRIPTION})


def is_served(prefect: Api) -> bool:
    """Whether a worker has reported, and written the pool's template."""
    pool = prefect.get(f"/work_pools/{POOL}")
    return bool(pool["base_job_template"]) and pool["status"] == "READY"
