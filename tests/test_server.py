"""A command's own Prefect server: who reaches it, by what way, and what of it others of this machine can read."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks import server
from tasks.opd.core.errors import EngineError

ROOT = Path(__file__).resolve().parents[1]
DEAD = "http://127.0.0.1:9"             # a port at which nobody listens
ASK = """
import argparse, json, os, sys, urllib.request
from flows.cli.runs import prepare
prepare(argparse.Namespace(verbose=False))
from prefect.blocks.system import Secret
Secret(value="sk-tests-only").save("opd-tests-only-key")
def code_of(path, body=None):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        return opener.open(urllib.request.Request(os.environ["PREFECT_API_URL"] + path, body,
                                                  {"content-type": "application/json"}), timeout=600).status
    except urllib.error.HTTPError as error:
        return error.code
body = json.dumps({"include_secrets": True}).encode()
print(json.dumps({"own": Secret.load("opd-tests-only-key").get(), "health": code_of("/health"),
                  "anonymous": code_of("/block_documents/filter", body)}))
"""


def test_a_commands_own_server_is_reached_past_a_proxy_and_gives_a_strangers_request_no_secret(opd_home):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"), DEAD)
    environment |= {"NO_PROXY": "cluster.local", "PREFECT_SERVER_API_AUTH_STRING": "some:body"}
    (opd_home / "prefect").mkdir(parents=True, mode=0o755)  # as a run of before left it
    asked = subprocess.run([sys.executable, "-c", ASK], cwd=ROOT, env=environment, capture_output=True, text=True,
                           timeout=600)
    assert asked.returncode == 0, asked.stderr
    assert json.loads(asked.stdout) == {"own": "sk-tests-only", "health": 200, "anonymous": 401}
    assert (opd_home / "prefect").stat().st_mode & 0o777 == 0o700  # prefect.db lies in it


def test_a_password_in_prefects_address_is_moved_to_the_variable_that_is_not_shown(monkeypatch):
    monkeypatch.setattr(os, "environ", {"PREFECT_API_URL": "https://me:p%40ss@prefect.local:4200/api"})
    server.start()  # one is named: none is started
    assert os.environ == {"PREFECT_API_URL": "https://prefect.local:4200/api", "PREFECT_API_AUTH_STRING": "me:p@ss"}


def test_while_the_server_starts_its_address_is_known_and_something_else_is_done(opd_home, monkeypatch):
    for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", server.OWN):
        monkeypatch.setenv(name, "")
    known = []
    with pytest.raises(EngineError, match="did not start within 0 s"):  # it is waited for afterwards
        server.start(0, meanwhile=lambda: known.append(os.environ["PREFECT_API_URL"]))
    assert known == [os.environ[server.OWN]] and known[0].startswith("http://127.0.0.1:")
