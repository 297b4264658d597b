"""A proxy in front of a server that fails on command, for tests of whoever asks; and a small server to stand behind it.

`FaultProxy(url).fail("500", times=3)` spoils the next three answers (of POST; `everything` spoils GET too) and counts
what it spoiled in `fired`. Each `name` of FAULTS is what really happens on the wire.
"""
import abc
import contextlib
import hashlib
import json
import math
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tasks.opd.engines.pool import Session
from tasks.opd.makers.models import make_model

FAULTS = ("500", "501", "503", "505", "429", "400", "hang", "drip", "reset", "truncated", "not_json", "nan", "null",
          "floor", "positive", "short", "other_prompt", "empty", "abort", "echo_headers", "echo_late", "echo_number")
BEFORE = ("500", "501", "503", "505", "429", "400", "echo_headers", "echo_late", "hang", "reset",
          "not_json")  # of them, those for which nothing needs to be asked
QUICK = {"timeout_seconds": 0.8, "patience_seconds": 6.0, "tries": 4, "backoff_seconds": 0.02, "concurrency": 8}


def make(out, urls, tokenizer, **params) -> dict:
    """The artifact of a model behind servers, as the stage `model` makes it; returns its counts."""
    out.mkdir(parents=True)
    given = {"urls": urls, "model": "tiny", "tokenizer": str(tokenizer), **params}
    return make_model({}, {"maker": {"name": "server", "params": given}, "seed": 0}, out, Session())


@contextlib.contextmanager
def listening(*servers):
    """Servers that end with the test."""
    try:
        yield servers[0] if len(servers) == 1 else servers
    finally:
        for server in servers:
            server.stop()


class Server(ThreadingHTTPServer):
    """Threads die with the test; many connections may wait."""
    daemon_threads, request_queue_size, block_on_close = True, 128, False

    def handle_error(self, request, client_address):
        """A client that went away is what these tests are about."""


class Listening(abc.ABC):
    """An HTTP server on a port of its own, in this process; `stop` refuses connections, `start` takes them again."""

    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.lock, self.server = f"http://127.0.0.1:{self.port}", threading.Lock(), None
        self.connections: list[socket.socket] = []
        self.asked: list[tuple[str, dict | None, dict]] = []  # path, body, headers
        self.start()

    def start(self) -> None:
        """Take connections."""
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self):
                super().setup()
                owner.connections.append(self.connection)

            def log_message(self, *_):
                """Nothing."""

            def do_GET(self):
                self.answer(None)

            def do_POST(self):
                self.answer(self.rfile.read(int(self.headers["content-length"])))

            def answer(self, raw: bytes | None):
                with owner.lock:
                    owner.asked.append((self.path, json.loads(raw) if raw else None, dict(self.headers)))
                owner.handle(self, raw)
        self.server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections, and break those there are."""
        if self.server is None:
            return
        self.server.shutdown()
        self.server.server_close()
        self.server = None
        for connection in self.connections:
            with contextlib.suppress(OSError):  # closed already
                connection.shutdown(socket.SHUT_RDWR)
        self.connections.clear()

    @abc.abstractmethod
    def handle(self, handler: BaseHTTPRequestHandler, raw: bytes | None) -> None:
        """Answer a request."""


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, *, length: int | None = None, **headers) -> None:
    """An answer; `length` is what it claims to have."""
    handler.send_response(status)
    handler.send_header("content-length", str(len(body) if length is None else length))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


class FaultProxy(Listening):
    """Passes requests on to `behind`, unless told to fail."""

    def __init__(self, behind: str):
        self.behind, self.fault, self.left, self.fired, self.everything = behind, "", 0, 0, False
        self.after, self.hang_seconds, self.retry_after = 0, 30.0, None
        super().__init__()

    def fail(self, fault: str, times: int = 10**9, *, after: int = 0, everything: bool = False) -> "FaultProxy":
        """Spoil `times` answers, `after` so many good ones."""
        assert fault in FAULTS, fault
        self.fault, self.left, self.after, self.everything, self.fired = fault, times, after, everything, 0
        return self

    def handle(self, handler: BaseHTTPRequestHandler, raw: bytes | None) -> None:
        with self.lock:
            mine = self.fault and self.left > 0 and (raw is not None or self.everything)
            if mine and self.after > 0:
                self.after, mine = self.after - 1, False
            if mine:
                self.left, self.fired = self.left - 1, self.fired + 1
        if mine and self.fault in BEFORE:
            self.spoil_before(handler)
            return
        headers = {name: value for name, value in handler.headers.items() if name.lower() in (
            "authorization", "content-type")}
        asked = urllib.request.Request(self.behind + handler.path, raw, headers)
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                status, body = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, body = error.code, error.read()
        if mine and status == 200:
            self.spoil(handler, body)
        else:
            send(handler, status, body)

    def spoil_before(self, handler: BaseHTTPRequestHandler) -> None:
        """Faults for which nothing needs to be asked."""
        if self.fault == "hang":
            time.sleep(self.hang_seconds)
            handler.close_connection = True
        elif self.fault == "reset":
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()
            handler.close_connection = True
        elif self.fault == "not_json":
            send(handler, 200, b"<html>gateway</html>")
        elif self.fault == "echo_headers":
            send(handler, 400, json.dumps({"error": str(dict(handler.headers))}).encode())
        elif self.fault == "echo_late":  # the key goes across the 300th character
            send(handler, 400, b"x" * 280 + handler.headers["authorization"].encode())
        else:
            more = {"retry_after": self.retry_after} if self.retry_after else {}
            send(handler, int(self.fault), b'{"error": {"message": "on command"}}', **more)

    def spoil(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        """Faults of an answer that was good."""
        if self.fault == "truncated":
            with contextlib.suppress(OSError):
                send(handler, 200, body[:len(body) // 2], length=len(body))
                handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
        elif self.fault == "drip":
            send(handler, 200, b"", length=len(body))
            with contextlib.suppress(OSError):
                for byte in body:
                    handler.wfile.write(bytes([byte]))
                    handler.wfile.flush()
                    time.sleep(0.02)
        else:
            given = handler.headers.get("authorization", "")
            send(handler, 200, json.dumps(misshapen(json.loads(body), self.fault, given)).encode())


def misshapen(answer: dict, fault: str, given: str = "") -> dict:
    """An answer of /v1/completions with one thing wrong."""
    choice = answer["choices"][0]
    if fault == "empty":
        return {**answer, "choices": []}
    if fault == "abort":
        choice["finish_reason"] = "abort"
    elif fault == "echo_number":             # what was given as a key stands where an id should
        choice["prompt_logprobs"][-1] |= {given: {"logprob": -1.0}}
    elif fault == "other_prompt":
        choice["prompt_token_ids"] = choice["prompt_token_ids"][1:]
    elif fault == "short" and choice["prompt_logprobs"]:
        choice["prompt_logprobs"].pop()
    elif fault == "short":
        choice["logprobs"]["token_logprobs"].pop()
    else:
        value = {"nan": math.nan, "null": None, "floor": -9999.0, "positive": 0.5}[fault]
        if choice["prompt_logprobs"]:
            for entry in choice["prompt_logprobs"][-1].values():
                entry["logprob"] = value
        else:
            choice["logprobs"]["token_logprobs"][-1] = value
    return answer


class FakeServer(Listening):
    """Answers like vLLM's /v1/completions: log-probabilities are a hash of (salt, token, the one before).

    `padding` ids after the vocabulary have no spelling and are never written; `ends` writes nothing but the end.
    """

    def __init__(self, vocabulary: int = 64, salt: str = "", max_top_k: int = 20, key: str = "", padding: int = 0,
                 ends: bool = False):
        self.vocabulary, self.salt, self.max_top_k, self.key = vocabulary, salt, max_top_k, key
        self.padding, self.ends = padding, ends
        self.rows: dict[tuple[str, int], list[float]] = {}
        super().__init__()

    def row(self, before: int) -> list[float]:
        """Log-probabilities [V] of the token after `before`."""
        if (self.salt, before) not in self.rows:
            digest = hashlib.blake2b(f"{self.salt}:{before}".encode(), digest_size=64).digest()
            logits = [4 * digest[i % 64] / 255 + (i % 7) / 10 for i in range(self.vocabulary)] + [5.0] * self.padding
            total = math.log(sum(map(math.exp, logits)))
            self.rows[self.salt, before] = [logit - total for logit in logits]
        return self.rows[self.salt, before]

    def handle(self, handler: BaseHTTPRequestHandler, raw: bytes | None) -> None:
        body, path = json.loads(raw) if raw else {}, handler.path
        if self.key and path.startswith("/v1") and handler.headers.get("authorization") != f"Bearer {self.key}":
            answer, status = {"error": "Unauthorized"}, 401
        elif path == "/v1/models":
            answer, status = {"data": [{"id": "tiny", "max_model_len": 128}]}, 200
        elif path == "/detokenize":
            spelled = ["<eos>" if i == 2 else f"w{i}" for i in body["tokens"] if i < self.vocabulary]
            answer, status = {"prompt": " ".join(spelled)}, 200
        elif path == "/v1/completions" and (body.get("prompt_logprobs") or 0) <= self.max_top_k:
            answer, status = {"choices": [self.choice(body)]}, 200
        else:
            answer, status = {"error": "not so"}, 400 if path == "/v1/completions" else 404
        send(handler, status, json.dumps(answer).encode())

    def choice(self, body: dict) -> dict:
        """One completion, drawn with its seed by hash; or the log-probabilities of the prompt."""
        prompt, k = body["prompt"], body.get("prompt_logprobs")
        if k is not None:
            rows = [None]
            for before, token in zip(prompt, prompt[1:]):
                lps = self.row(before)
                best = sorted(range(len(lps)), key=lambda i: -lps[i])[:k]
                rows.append({str(i): {"logprob": lps[i]} for i in {token, *best}})
            return {"prompt_token_ids": prompt, "prompt_logprobs": rows, "token_ids": [1], "finish_reason": "length"}
        written, logprobs = [], []
        while len(written) < body["max_tokens"] and 2 not in written:
            seed = hashlib.blake2b(f"{body['seed']}:{len(written)}".encode(), digest_size=4).digest()
            written.append(2 if self.ends else seed[0] % self.vocabulary)
            logprobs.append(self.row(([*prompt, *written])[-2])[written[-1]])
        return {"prompt_token_ids": prompt, "prompt_logprobs": None, "token_ids": written,
                "logprobs": {"token_logprobs": logprobs}, "finish_reason": "stop" if 2 in written else "length"}
