"""Ports: which are taken, and by whom."""
import contextlib
import socket
import time

import psutil

from flows.platform.settings import PlatformError

CLOSING_SECONDS = 5                     # that a killed process's threads may take to let go of its port


def is_free(host: str, port: int) -> bool:
    """Whether a server could bind there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do: a closed one lingers
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port(host: str) -> int:
    """A port that nobody has."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def holder(port: int) -> str | None:
    """Who listens on a port: pid and command; None as far as this user may not see it."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                command = " ".join(psutil.Process(connection.pid).cmdline())
                return f"pid {connection.pid}: {command[:200]}"
    return None


def demand(name: str, host: str, port: int) -> None:
    """Raises PlatformError, which says who holds it, when a port is taken; by nobody, it may be free in a moment."""
    until = time.monotonic() + CLOSING_SECONDS
    while not is_free(host, port):
        who = holder(port)
        if who or time.monotonic() > until:
            raise PlatformError(f"port {port} of {host} is taken, by {who or 'a process that this user may not see'}. "
                                f"End it, or give another: opd up --{name}-port N")
        time.sleep(0.1)
