"""Where a test kills a refresh, as a crash would: $OPD_FAILPOINT names one of POINTS."""
import os
import signal

from tasks.opd.core.errors import OpdError

POINTS = ("planned", "decided", "distilled", "kept", "registered", "tagged", "half_moved", "moved", "announced",
          "ended")


def failpoint(name: str) -> None:
    """Kill this process with SIGKILL when the environment asks for it here. Raises OpdError for a point unknown."""
    wanted = os.environ.get("OPD_FAILPOINT")
    assert name in POINTS, f"{name} is not among POINTS"
    if wanted and wanted not in POINTS:
        raise OpdError(f"OPD_FAILPOINT={wanted} is not one of {', '.join(POINTS)}")
    if wanted == name:
        os.kill(os.getpid(), signal.SIGKILL)
