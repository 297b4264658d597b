"""`opd serve`: the champion's command line, started, swapped after a promotion, and left as it was when that fails.

The server is a small program called vllm: it answers /health with the folder that it serves, unless that lacks a model.
"""
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from flows.cli import main as cli
from flows.cli.serving import LOCAL, command_for
from tasks.opd.core.errors import DataError
from tasks.opd.recipe import refreshes
from tasks.opd.refresh import gate, journal
from tasks.opd.store import artifacts
from tasks.tracking import registry
from tasks.tracking.registry import promote, register

ROOT = Path(__file__).resolve().parents[2]
NAME = "tiny_nightly"
SERVER = f"""#!{sys.executable}
import http.server, pathlib, sys
place = pathlib.Path(sys.argv[2])
if not (place / "config.json").exists():
    sys.exit("no model")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(place.name.encode())
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


def champion(tick: int, *, whole: bool = True) -> registry.Version:
    """The version of a tick, promoted; one that is not `whole` cannot be served."""
    place = journal.folder(NAME) / "models" / f"{tick:032x}"
    place.mkdir(parents=True)
    if whole:
        (place / "config.json").write_text("{}")
    tags = {"tick": str(tick), "fingerprint": place.name, "folder": str(place), "parent": "", "gate": gate.PASSED,
            "recipe": json.dumps({"pair": {"context_tokens": 320}}),
            "table": gate.to_json([gate.check("target/tiny", True, "+1.0", "> +0.0", "here")])}
    return promote(NAME, register(NAME, tags, "", None).number, by="Ada", reason="it is better")


def test_without_a_champion_there_is_nothing_to_serve(capsys):
    assert cli.main(["serve", NAME]) == DataError.exit_code
    assert "no champion yet" in capsys.readouterr().err


def test_an_adapter_is_served_over_the_model_that_it_stands_on(opd_home):
    version, base = champion(1), artifacts.place("model", "f" * 32)
    (base / "model").mkdir(parents=True)
    (base / "model" / "config.json").write_text("{}")
    (version.folder / "base.json").write_text(json.dumps({"kind": "model", "fingerprint": "f" * 32}))
    (version.folder / "adapter_config.json").write_text(json.dumps({"r": 16}))
    command = command_for(refreshes.load(NAME), version, 8000)
    assert command[:3] == ["vllm", "serve", str(base / "model")]
    assert command[3:8] == ["--enable-lora", "--max-lora-rank", "16", "--lora-modules", f"{NAME}={version.folder}"]


@pytest.fixture
def served(tmp_path, opd_home):
    """`opd serve --follow` of version 1 on a free port: (process, what is asked there)."""
    champion(1)
    (tmp_path / "vllm").write_text(SERVER)
    (tmp_path / "vllm").chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "serve", NAME, "--follow", "--port", str(port)], cwd=ROOT,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}, stderr=subprocess.PIPE, text=True)

    def answers(wanted: int, seconds: float = 600) -> bool:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                if LOCAL.open(f"http://127.0.0.1:{port}/health", timeout=5).read().decode() == f"{wanted:032x}":
                    return True
            time.sleep(0.2)
        return False
    yield process, answers
    process.kill()
    process.wait()
    process.stderr.close()


def test_the_champion_is_served_swapped_after_a_promotion_and_gone_with_the_command(served):
    process, answers = served
    assert answers(1)
    champion(2)
    assert answers(2)
    champion(3, whole=False)                    # it does not start: the one before it goes on
    time.sleep(5)
    assert answers(2)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=600)[1]
    assert "the server of version 3 did not answer" in said and "version 2 goes on" in said
    assert not answers(2, seconds=2)


def test_no_proxy_stands_between_us_and_our_own_server(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert not any(isinstance(handler, urllib.request.ProxyHandler) and handler.proxies for handler in LOCAL.handlers)
