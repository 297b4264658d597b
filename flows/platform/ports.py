"""Ports: which are taken, and by whom."""
import contextlib
import socket

import psutil

from flows.platform.settings import PlatformError


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


def holder(port: int) -> str:
    """Who listens on a port: pid and command, as far as this user may see."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                command = " ".join(psutil.Process(connection.pid).cmdline())
                return f"pid {connection.pid}: {command[:200]}"
    return "a process that this user may not see"


def demand(name: str, host: str, port: int) -> None:
    """Raises PlatformError, which says who holds it, when a port is taken."""
    if not is_free(host, port):
        raise PlatformError(f"port {port} of {host} is taken, by {holder(port)}. End it, or give another: "
                            f"opd up --{name}-port N")
