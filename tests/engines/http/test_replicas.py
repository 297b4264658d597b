"""What fails is tried again within bounds, at another replica first, or ends the whole batch; no key is ever told."""
import json
import random
import threading
import time

import pytest
import torch

from tasks.opd.core.errors import EngineError, EngineLost, NonFinite
from tasks.opd.engines.api import Want
from tasks.opd.engines.http.replicas import Declined, Replicas, seconds_of
from tasks.opd.engines.http.server_engine import ServerEngine
from tests.fault_proxy import QUICK, FakeServer, FaultProxy, listening, make
from tests.small_llama import save_llama

SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 12}
SECRET = "sk-7c1e9f-nobody-may-see-this"
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
def proxy(fake):
    with listening(FaultProxy(fake.url)) as proxy:
        yield proxy


@pytest.fixture
def opened(proxy, llama, tmp_path):
    """An engine that asks the fake server through the proxy."""
    make(tmp_path / "a", [proxy.url], llama)
    engine = ServerEngine(tmp_path / "a" / "model", **QUICK)
    yield engine
    engine.close()


PASSING = ["500", "503", "429", "hang", "drip", "reset", "truncated", "not_json", "null", "short", "other_prompt",
           "empty", "abort"]


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_leaves_no_trace(opened, proxy, fault):
    scored = opened.score(PROMPTS, COMPLETIONS, Want(top_k=2))
    written = opened.generate(PROMPTS, SAMPLING, [0, 1, 2, 3])
    proxy.fail(fault, times=2)
    again = opened.score(PROMPTS, COMPLETIONS, Want(top_k=2))
    assert proxy.fired == 2
    assert all(torch.equal(a.logprobs, b.logprobs) for a, b in zip(again, scored, strict=True))
    proxy.fail(fault, times=2)
    assert opened.generate(PROMPTS, SAMPLING, [0, 1, 2, 3]) == written and proxy.fired == 2


class Counting:
    """A progress bar that only counts."""
    done = 0

    def update(self, n: int) -> None:
        self.done += n


@pytest.mark.parametrize("fault", PASSING)
def test_what_does_not_pass_ends_all_within_bounds(opened, proxy, fault):
    proxy.fail(fault, after=2)
    bar, began = Counting(), time.monotonic()
    with pytest.raises(EngineLost) as caught:
        opened.score(PROMPTS * 5, COMPLETIONS * 5, Want(), progress=bar)
    assert time.monotonic() - began < 60 and proxy.fired >= 1       # patience is 6 s, a busy machine slow
    assert bar.done < 15                                                  # 15 of the 20 have tokens: not all were had
    for part in (proxy.url, "tries", "Nothing was kept of the batch", "start it again or name another"):
        assert part in str(caught.value)


@pytest.mark.parametrize("fault, error, part", [
    ("nan", NonFinite, "no numbers"), ("floor", NonFinite, "no numbers"), ("positive", EngineError, "0.5, above 0")])
def test_what_is_no_log_probability_is_an_error_and_not_tried_again(opened, proxy, fault, error, part):
    for ask in (lambda: opened.score([[3]], [[4, 5]], Want(top_k=2)), lambda: opened.generate([[3]], SAMPLING, [0])):
        proxy.fail(fault)
        with pytest.raises(error, match=part):
            ask()
        assert proxy.fired == 1


@pytest.mark.parametrize("status", ["400", "501", "505"])
def test_a_wrong_request_is_not_tried_again(opened, proxy, status):
    proxy.fail(status)
    with pytest.raises(Declined, match=f"answers {status}.*on command"):
        opened.score([[3]], [[4]], Want())
    assert proxy.fired == 1


def test_a_server_that_refuses_connections_is_waited_for_and_asked_who_it_is(opened, proxy, fake):
    good = opened.score([[3]], [[4]], Want())
    proxy.stop()
    opened.replicas.patience_seconds = 0.6
    began = time.monotonic()
    with pytest.raises(EngineLost, match="in 0 tries .*Connect.*patience is 0.6 s"):
        opened.score([[3]], [[4]], Want())
    assert time.monotonic() - began > 0.6
    opened.replicas.patience_seconds, opened.replicas.tries, fake.asked[:] = 6.0, 1, []
    threading.Timer(0.5, proxy.start).start()
    opened.replicas.known_seconds = 0.0                                   # as if ten seconds passed after each answer
    assert torch.equal(opened.score([[3]], [[4]], Want())[0].sampled, good[0].sampled)
    assert len(fake.asked) == 3 + 1                                       # the canary's three, and ours
    proxy.stop()
    fake.salt = "another model"
    proxy.start()
    with pytest.raises(EngineError, match="another model than tiny was"):
        opened.score([[3]], [[4]], Want())


def test_patience_bounds_the_wait_whatever_the_server_asks_for(opened, proxy):
    proxy.retry_after, opened.replicas.patience_seconds = "3600", 0.5
    proxy.fail("429", times=1)
    began = time.monotonic()
    with pytest.raises(EngineLost, match="answers 429.*patience is 0.5 s"):
        opened.score([[3]], [[4]], Want())
    assert time.monotonic() - began < 600 and proxy.fired == 1   # and not the hour asked for


def test_retry_after_is_heard(opened, proxy):
    proxy.retry_after = "1"
    proxy.fail("429", times=1)
    began = time.monotonic()
    opened.score([[3]], [[4]], Want())
    assert time.monotonic() - began >= 1.0 and proxy.fired == 1
    assert seconds_of("Wed, 21 Oct 2015 07:28:00 GMT") == 0 and seconds_of("soon") == 0 and seconds_of(None) == 0


def test_another_replica_takes_over_and_the_first_is_asked_again_later(fake, llama, tmp_path):
    with listening(FaultProxy(fake.url), FaultProxy(fake.url)) as (one, two):
        make(tmp_path / "a", [one.url, two.url], llama)
        engine = ServerEngine(tmp_path / "a" / "model", **{**QUICK, "timeout_seconds": 5})
        many = PROMPTS * 6, COMPLETIONS * 6
        good = engine.score(*many, Want())
        assert min(len(one.asked), len(two.asked)) > 3                   # both work
        one.stop()                                                        # dies
        again = engine.score(*many, Want())
        assert all(torch.equal(a.sampled, b.sampled) for a, b in zip(good, again, strict=True))
        one.start()                                                       # comes back
        one.asked.clear()
        until = time.monotonic() + 300
        while len(one.asked) <= 3 and time.monotonic() < until:           # the canary's three, and work
            engine.score(*many, Want())
        assert len(one.asked) > 3
        engine.close()


def test_a_replica_that_serves_another_model_is_found_before_it_answers_for_this_one(fake, llama, tmp_path):
    with listening(FakeServer(), FakeServer(salt="finetuned")) as (same, other):
        make(tmp_path / "a", [same.url], llama)
        file = tmp_path / "a" / "model" / "server.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "urls": [same.url, other.url]}))
        engine = ServerEngine(tmp_path / "a" / "model", **QUICK)
        with pytest.raises(EngineError, match="another model than tiny was is behind one of its urls"):
            engine.score(PROMPTS * 6, COMPLETIONS * 6, Want())
        engine.close()


def test_a_server_that_fails_at_random_half_the_time_changes_nothing(opened, proxy, monkeypatch):
    many, opened.replicas.tries = (PROMPTS * 5, COMPLETIONS * 5), 40
    good, chance = opened.score(*many, Want(top_k=3)), random.Random(0)
    opened.replicas.patience_seconds = 30
    plain = proxy.handle

    def handle(handler, raw):
        if chance.random() < 0.3:
            proxy.fail(chance.choice(["500", "reset", "truncated", "short", "empty"]), times=1)
        plain(handler, raw)
    monkeypatch.setattr(proxy, "handle", handle)
    again = opened.score(*many, Want(top_k=3))
    assert all(torch.equal(a.logprobs, b.logprobs) and torch.equal(a.ids, b.ids) for a, b in zip(good, again))


def test_no_key_is_ever_told(llama, opd_home, monkeypatch, capfd):
    monkeypatch.setenv("OPD_TEACHER_KEY", SECRET)
    said = []
    with listening(FakeServer(key=SECRET)) as server, listening(FaultProxy(server.url)) as proxy:
        make(opd_home / "a", [proxy.url], llama, key="OPD_TEACHER_KEY")
        assert any(headers.get("Authorization") == f"Bearer {SECRET}" for _, _, headers in server.asked)
        engine = ServerEngine(opd_home / "a" / "model", **{**QUICK, "tries": 2})
        said += [repr(engine), str(vars(engine)), repr(engine.replicas), str(engine.replicas.replicas)]
        for fault in ("echo_headers", "echo_late", "echo_number", "500", "not_json", "reset"):
            with pytest.raises(EngineError) as caught:
                proxy.fail(fault)
                engine.score([[3]], [[4]], Want())
            said += [str(caught.value), repr(caught.value)]
        assert "***" in said[4] and "***" in said[8]                      # the server said it, we did not
        assert SECRET[:5] not in said[6]                                  # nor a part of it
        proxy.left = 0
        monkeypatch.setenv("OPD_TEACHER_KEY", "wrong")
        with pytest.raises(EngineError, match="OPD_TEACHER_KEY holds another key") as caught:
            ServerEngine(opd_home / "a" / "model", **QUICK)
        engine.close()
    said += [str(caught.value), *capfd.readouterr()]
    files = [file.read_bytes().decode(errors="replace") for file in opd_home.rglob("*") if file.is_file()]
    assert len(files) >= 3 and not any(SECRET in text for text in [*said, *files])


def test_what_is_no_name_of_a_variable_is_not_told(monkeypatch):
    with pytest.raises(EngineError, match="must name an environment variable that begins with OPD_") as caught:
        Replicas(["http://127.0.0.1:1"], "SK7C1E9F")
    assert "SK7C1E9F" not in str(caught.value)
    with pytest.raises(EngineError, match="variable that `key` names is not set") as caught:
        Replicas(["http://127.0.0.1:1"], "OPD_7C1E9F")
    assert "7C1E9F" not in str(caught.value)
    with pytest.raises(EngineError, match="variable OPD_NO_KEY is not set"):
        Replicas(["http://127.0.0.1:1"], "OPD_NO_KEY")


def test_no_other_variable_than_ours_is_sent_to_a_server(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    with pytest.raises(EngineError, match="begins with OPD_") as caught:
        Replicas(["http://127.0.0.1:1"], "HF_TOKEN")
    assert SECRET not in str(caught.value)
