"""How a worker ends when its flow goes away."""
import json
import select
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_worker_whose_flow_leaves_a_reply_unread_ends_without_a_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)             # the address of a Unix socket is short
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind("flow")
        listener.listen()
        command = [sys.executable, "-m", "tasks.opd.runtime.worker", "--socket", str(tmp_path / "flow")]
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        connection = listener.accept()[0]
    connection.sendall((json.dumps({"stage": "none of ours"}) + "\n").encode())
    assert select.select([connection], [], [], 300)[0]  # its reply, an error
    connection.close()
    assert worker.wait(300) == 0
    said = worker.stderr.read()
    worker.stdin.close(), worker.stderr.close()
    assert "Traceback" not in said
