"""The hub's refusals, by a server of the test's own or without any, become errors that name the way out."""
import errno
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tasks.opd.core.errors import DataError, DiskFull
from tasks.opd.makers.hub import download

REFUSALS = {"/api/models/no/body/": (401, "RepoNotFound"), "/api/models/gated/model/": (403, "GatedRepo"),
            "/api/models/some/model/": (404, "RevisionNotFound")}


class Hub(BaseHTTPRequestHandler):
    """Refuses as the hub does."""

    def do_GET(self):
        code, reason = next((refusal for path, refusal in REFUSALS.items() if self.path.startswith(path)), (500, ""))
        self.send_response(code)
        self.send_header("X-Error-Code", reason)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Its address, with an empty cache and the switch for offline use off."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("model, revision, way", [
    ("no/body", "main", "look at the spelling of `model`; if it is private, set HF_TOKEN"),
    ("gated/model", "main", "accept its terms on its page on the hub, and set HF_TOKEN"),
    ("some/model", "v9", "`revision` is one of its branches, tags or commits"),
    ("a//b", "main", "`model` is the name of its page on the hub"),
    ("../etc", "main", "`model` is the name of its page on the hub")])
def test_what_the_hub_refuses_is_named_with_the_way_out(hub, model, revision, way):
    with pytest.raises(DataError) as caught:
        download(model, revision, ["*.json"])
    said = str(caught.value)
    assert said.startswith(f"model {model} at {revision} cannot be had from the hub: ") and "\n" not in said
    assert f"Way out: {way}" in said and said.endswith("or give a folder instead ({name: folder, path: ...})")


def test_without_network_or_with_a_hub_that_fails_it_is_the_network(hub, monkeypatch):
    with pytest.raises(DataError, match="broken/model at main .*Way out: look at the network"):
        download("broken/model", "main", ["*.json"])
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(DataError, match="no/body at main .*Way out: look at the network"):
        download("no/body", "main", ["*.json"])


def test_offline_a_revision_without_local_copy_names_the_switch(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="some/model at v9 .*Way out: HF_HUB_OFFLINE is set, .*HF_HUB_OFFLINE=0"):
        download("some/model", "v9", ["*.json"])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_disk_that_takes_no_download_is_the_disks_error(hub, monkeypatch, number):
    def full(*given, **options):
        raise OSError(number, "the disk says no")
    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    with pytest.raises(DiskFull, match="some/model cannot be kept in .*cache.*point HF_HOME"):
        download("some/model", "main", ["*.json"])


def test_a_lack_of_memory_is_not_blamed_on_the_hub(hub, monkeypatch):
    def short(*given, **options):
        raise MemoryError("no more")
    monkeypatch.setattr("huggingface_hub.snapshot_download", short)
    with pytest.raises(MemoryError):
        download("some/model", "main", ["*.json"])
