"""Worker processes: they are started late, report what went wrong, and never outlive their run."""
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from types import SimpleNamespace

import pytest

from tasks.opd.core.errors import EngineError, EngineLost, NonFinite
from tasks.opd.engines.pool import Session
from tasks.opd.runtime.stages import STAGES, entry_of
from tasks.opd.store import artifacts
from tasks.stage import fingerprint_of, halved, run_stage
from tasks.workers import launchers, pools
from tests.stages_for_tests import HERE, WHOLE_BATCH, chain, run_with

ROOT = launchers.ROOT
CHAIN = [sys.executable, "-m", "tests.stages_for_tests", "process"]


@pytest.fixture
def process_pool():
    """A pool with a worker process."""
    with pools.for_run(run_with("process")) as pool:
        yield pool


def processes_of(home) -> dict[int, str]:
    """The living processes that have this OPD_HOME in their environment, but for this one: pid -> command."""
    found = {}
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()):
        try:
            environment = open(f"/proc/{pid}/environ", "rb").read()
            state = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0]
            command = open(f"/proc/{pid}/cmdline", "rb").read().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if f"OPD_HOME={home}".encode() in environment.split(b"\0") and state != "Z":
            found[pid] = command
    return found


def wait_for(condition, seconds=300):
    """The first true value of `condition()` within `seconds`; fails the test otherwise."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    pytest.fail(f"not within {seconds} s: {condition.__name__}")


def run_chain(effort):
    """Run the chain in a process of its own; returns what it printed last, as JSON."""
    result = subprocess.run(CHAIN, cwd=ROOT, env={**os.environ, "CHAIN_EFFORT": json.dumps(effort)}, timeout=600,
                            capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("victim, trouble", [("flow", "hang"), ("flow", "leave"), ("supervisor", "hang"),
                                             ("both", "hang"), ("both", "leave")])
def test_after_kill_9_nothing_survives_and_the_next_run_goes_on(opd_home, tmp_path, victim, trouble):
    effort = {"journal": str(tmp_path / "journal"), "trouble": f"doubled:{trouble}"}
    flow = subprocess.Popen(CHAIN, cwd=ROOT, env={**os.environ, "CHAIN_EFFORT": json.dumps(effort)},
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)

    def all_are_there():
        found = processes_of(opd_home)
        many = 3 + (trouble == "leave")  # sh and two sleeps
        return found if sum("sleep 600" in command for command in found.values()) >= many else None
    found = wait_for(all_are_there)
    assert sum("tasks.opd.runtime.worker" in command for command in found.values()) == 2  # the supervisor names it too
    supervisor = next(pid for pid, command in found.items() if "tasks.opd.runtime.supervisor" in command)
    for pid in {"flow": [flow.pid], "supervisor": [supervisor], "both": [supervisor, flow.pid]}[victim]:
        os.kill(pid, signal.SIGKILL)

    def nothing_survives():
        return not processes_of(opd_home)
    if victim == "supervisor":
        os.kill(flow.pid, signal.SIGINT)
    wait_for(nothing_survives)
    flow.communicate(timeout=600)
    (tmp_path / "journal").unlink()
    result = run_chain({"journal": str(tmp_path / "journal")})
    assert (result["total"], result["made"], result["reused"]) == (12, 2, 1)
    assert (tmp_path / "journal").read_text().split() == ["doubled", "total"]
    assert not list(opd_home.glob("artifacts/*/.tmp-*"))


def test_a_stage_whose_supervisor_is_killed_is_made_in_a_second_attempt(opd_home, process_pool, capfd):
    def kill_it():
        def hanging():
            return [pid for pid, command in processes_of(opd_home).items() if "sleep 600" in command]
        wait_for(hanging)
        process_pool.supervisor.kill()
    killer = threading.Thread(target=kill_it)
    killer.start()
    doubled = chain(process_pool, effort={"micro_batch_tokens": WHOLE_BATCH, "trouble_once": "doubled:hang"})[1]
    killer.join()
    assert artifacts.read_record(doubled.path)["attempts"] == 2
    assert "That its supervisor died too, without a word, means that the machine's memory" in capfd.readouterr().err


def test_a_temporary_folder_may_lie_as_deep_as_a_path_may(tmp_path, monkeypatch):
    deep = tmp_path / ("a" * 100) / ("b" * 100)
    deep.mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(deep))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.delenv("VLLM_RPC_BASE_PATH", raising=False)
    with pools.for_run(run_with("process")) as pool:
        assert chain(pool)[2].counts == {"total": 12}
    assert list(deep.iterdir()) == [] and os.environ["VLLM_RPC_BASE_PATH"] == "/tmp"


def test_an_interrupt_ends_everything(opd_home):
    flow = subprocess.Popen(CHAIN, cwd=ROOT, env={**os.environ, "CHAIN_EFFORT": '{"trouble": "numbers:hang"}'},
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)

    def hanging():
        return sum("sleep 600" in command for command in processes_of(opd_home).values()) >= 3
    wait_for(hanging)
    flow.send_signal(signal.SIGINT)
    assert b"KeyboardInterrupt" in flow.communicate(timeout=600)[0]

    def nothing_survives():
        return not processes_of(opd_home)
    wait_for(nothing_survives)
    assert not list(opd_home.glob("artifacts/*/.tmp-*"))


def test_what_ends_with_its_parent_is_interrupted_when_that_is_killed(tmp_path):
    child = (f"import sys, time; from pathlib import Path; from tasks.workers.launchers import end_with_parent\n"
             f"end_with_parent()\ntry:\n  print('ready', flush=True); time.sleep(600)\n"
             f"except KeyboardInterrupt:\n  print('to nobody', flush=True)\n"
             f"  Path({str(tmp_path / 'why')!r}).write_text('interrupted')\n")
    parent = subprocess.Popen([sys.executable, "-c", f"import subprocess, sys, time\nchild = subprocess.Popen([sys."
                               f"executable, '-c', {child!r}], stdout=subprocess.PIPE)\n"
                               "print(child.stdout.readline().decode(), flush=True)\ntime.sleep(600)"],
                              cwd=ROOT, stdout=subprocess.PIPE)
    assert parent.stdout.readline() == b"ready\n"
    parent.kill()
    parent.communicate()

    def it_wrote():
        return (tmp_path / "why").exists() and (tmp_path / "why").read_text() == "interrupted"
    wait_for(it_wrote)


def test_a_run_that_reuses_everything_starts_no_worker(process_pool, opd_home):
    chain(process_pool)
    with pools.for_run(run_with("process")) as pool:
        chain(pool)
        assert pool.supervisor is None and (pool.made, pool.reused) == (0, 3)


def test_one_worker_serves_the_whole_run_and_ends_with_it(opd_home):
    with pools.for_run(run_with("process")) as pool:
        chain(pool)
        assert len(processes_of(opd_home)) == 2  # supervisor and worker
        assert len(list(opd_home.glob("logs/worker-*.log"))) == 1
    assert not processes_of(opd_home)


def test_a_dead_worker_is_an_engine_error_with_its_last_words_and_is_replaced(process_pool):
    words = r"(?s)worker died in stage .*numbers.*last words before dying.*SIGKILL"
    with pytest.raises(EngineError, match=words) as caught:
        chain(process_pool, effort={"trouble": "numbers:die"})
    assert caught.value.exit_code == 20
    assert not list(artifacts.home().glob("artifacts/*/.tmp-*"))
    assert chain(process_pool)[2].counts == {"total": 12}


@pytest.mark.parametrize("kind, trouble, told", [
    ("process", "die", "the worker died in stage"), ("process", "hang", "hung: neither progress nor a result for 4 s"),
    ("process", "memory", "out of memory in stage"), ("inline", "memory", "out of memory in stage"),
    ("process", "engine", "the engine's process died in stage")])
def test_a_lost_stage_is_made_in_a_second_attempt_with_half_the_batch(opd_home, tmp_path, capfd, kind, trouble, told):
    effort = {"journal": str(tmp_path / "journal"), "micro_batch_tokens": WHOLE_BATCH,
              "trouble_once": f"doubled:{trouble}"}
    with pools.for_run(run_with(kind, patience_seconds=4)) as pool:
        _, doubled, total = chain(pool, effort=effort)
    said, record = capfd.readouterr().err, artifacts.read_record(doubled.path)
    assert told in said and "doubled is tried once more with half the batch: train.micro_batch_tokens 64 -> 32" in said
    assert (tmp_path / "journal").read_text().split() == ["numbers", "doubled", "doubled", "total"]
    assert record["attempts"] == 2 and artifacts.read_record(total.path)["attempts"] == 1
    assert record["spec"]["effort"] == effort and total.counts == {"total": 12}  # the spec that was asked for
    assert sorted(record["files"]) == ["doubled.json"]  # nothing of the first attempt
    assert not processes_of(opd_home)


@pytest.mark.parametrize("trouble, way_out", [("hang", "raise engine.patience_seconds"),
                                              ("die", "lower engine.batch_tokens")])
def test_a_stage_that_is_lost_twice_fails_with_code_20_and_names_what_to_change(opd_home, tmp_path, trouble, way_out):
    effort = {"journal": str(tmp_path / "journal"), "trouble": f"doubled:{trouble}", "chunk_tokens": 7}
    with pools.for_run(run_with("process", patience_seconds=600)) as pool:
        run_stage(f"{HERE}:numbers", {"count": 1}, {}, pool)
        pool.patience = 4  # of the next recipe, with the worker of the one before
        told = f"(?s)^doubled was tried twice, .*chunk_tokens 7 -> 3.*{way_out}"
        with pytest.raises(EngineLost, match=told) as caught:
            chain(pool, effort=effort)
        assert caught.value.exit_code == 20 and not processes_of(opd_home)
    assert (tmp_path / "journal").read_text().split() == ["numbers", "doubled", "doubled"]
    assert not list(opd_home.glob("artifacts/*/.tmp-*"))


def test_a_worker_that_lives_but_never_connects_is_given_up_after_the_patience(opd_home, monkeypatch):
    def idle(path, log):
        log.write_text("no way in\n")
        return subprocess.Popen([sys.executable, "-m", "tasks.opd.runtime.supervisor", "sleep", "600"], cwd=ROOT,
                                env={**os.environ, "OPD_WORKER_LOG": str(log)}, stdin=subprocess.PIPE,
                                start_new_session=True)
    monkeypatch.setattr(pools, "launch", idle)
    with pools.for_run(run_with("process", patience_seconds=1)) as pool:
        told = r"(?s)did not connect within 1 s .*network file system.*raise engine.patience_seconds\n.*no way in"
        with pytest.raises(EngineLost, match=told):
            pool.make(f"{HERE}:numbers", {"count": 1}, {}, opd_home)
        assert pool.supervisor is None and not processes_of(opd_home)


def test_what_is_not_lost_is_not_tried_again(tmp_path):
    for kind, trouble, error in (("inline", "nan", NonFinite), ("process", "unforeseen", pools.WorkerFailed)):
        journal = tmp_path / f"journal-{trouble}"
        with pools.for_run(run_with(kind)) as pool, pytest.raises(error):
            chain(pool, effort={"journal": str(journal), "trouble": f"numbers:{trouble}"})
        assert journal.read_text().split() == ["numbers"]


def test_half_a_batch_is_half_of_all_that_a_stage_holds_at_once_and_at_least_one():
    spec = {"engine": {"batch_tokens": 9, "name": "torch"}, "scoring_engine": {"batch_tokens": 2, "name": "vllm"},
            "effort": {"micro_batch_tokens": 1, "cores": 2}, "train": {"batch_rollouts": 8}}
    smaller, told = halved(spec)
    assert smaller == {"engine": {"batch_tokens": 4, "name": "torch"}, "effort": {"micro_batch_tokens": 1, "cores": 2},
                       "scoring_engine": {"batch_tokens": 1, "name": "vllm"}, "train": {"batch_rollouts": 8}}
    assert spec["engine"]["batch_tokens"] == 9 and told == "engine.batch_tokens 9 -> 4"
    assert fingerprint_of("rollouts", smaller, {}) == fingerprint_of("rollouts", spec, {})  # it is the same artifact
    assert halved({"seed": 1}) == ({"seed": 1}, "")


@pytest.mark.parametrize("kind", ["inline", "process"])
def test_a_stage_at_work_reports_progress_and_counts_as_alive_for_as_long_as_it_does(kind):
    heard = []
    with pools.for_run(run_with(kind, patience_seconds=3)) as pool:
        pool.listener.stage_progress = heard.append
        run_stage(f"{HERE}:long", {"seconds": 3.5}, {}, pool)  # longer than the patience, but not silent
    assert {(p["label"], p["total"], p["unit"]) for p in heard} == {("counting", 35, "units")}
    done = [p["done"] for p in heard]
    assert len(done) >= 3 and done == sorted(done) and done[-1] == 35  # one a second, and the last
    assert all(p["tokens"] == 5 * p["done"] for p in heard)
    assert all(0 < p["done"] / p["seconds"] < 10.5 for p in heard)


@pytest.mark.parametrize("kind", ["inline", "process"])
def test_errors_keep_their_class_and_message_across_processes(kind):
    with pools.for_run(run_with(kind)) as pool:
        with pytest.raises(NonFinite) as caught:
            chain(pool, effort={"trouble": "numbers:nan"})
        assert str(caught.value) == "loss is nan in step 3"
        with pytest.raises(EngineError, match=r"out of memory .*batch_tokens.*micro_batch_tokens"):
            chain(pool, effort={"trouble": "numbers:memory"})
        unforeseen = KeyError if kind == "inline" else pools.WorkerFailed
        with pytest.raises(unforeseen, match="nobody thought of this") as caught:
            chain(pool, effort={"trouble": "numbers:unforeseen"})
        assert kind == "inline" or "in unforeseen" in str(caught.value)  # the worker's traceback
        assert chain(pool)[2].counts == {"total": 12}


def test_a_worker_goes_on_after_an_error_it_foresaw_and_ends_after_any_other():
    with pools.for_run(run_with("process")) as pool:
        chain(pool, count=3)
        first = pool.supervisor.pid
        with pytest.raises(NonFinite):
            chain(pool, effort={"trouble": "numbers:nan"}, count=4)
        assert pool.supervisor.pid == first
        with pytest.raises(pools.WorkerFailed):
            chain(pool, effort={"trouble": "numbers:unforeseen"}, count=5)
        assert pool.supervisor is None
        chain(pool, count=6)
        assert pool.supervisor.pid != first


def test_inline_and_process_make_the_same_bytes(process_pool, pool, tmp_path, monkeypatch):
    first = chain(process_pool)
    monkeypatch.setenv("OPD_HOME", str(tmp_path / "other"))
    assert chain(pool) == first and pool.made == 3


def test_once_runs_one_command_and_exits_with_the_errors_code(tmp_path):
    def once(stage, spec):
        (tmp_path / "out").mkdir(exist_ok=True)
        command = {"stage": f"{HERE}:{stage}", "spec": spec, "inputs": {}, "out": str(tmp_path / "out")}
        (tmp_path / "command.json").write_text(json.dumps(command))
        result = subprocess.run([sys.executable, "-m", "tasks.opd.runtime.worker", "--once", tmp_path / "command.json"],
                                cwd=ROOT, capture_output=True, text=True, timeout=600)
        return result.returncode, json.loads(result.stdout)
    code, reply = once("numbers", {"count": 3})
    assert (code, reply.pop("peak_memory_bytes").keys()) == (0, {"process"})
    assert reply == {"ok": True, "counts": {"count": 3}}
    assert (tmp_path / "out" / "numbers.json").read_text() == "[0, 1, 2]"
    code, reply = once("numbers", {"count": 3, "effort": {"trouble": "numbers:nan"}})
    assert (code, reply["error"], reply["message"]) == (13, "NonFinite", "loss is nan in step 3")


def test_nothing_here_imports_torch_before_a_stage_needs_it():
    code = ("import sys, tasks.stage, tasks.workers.pools, tasks.opd.runtime.worker; "
            "heavy = ('torch', 'transformers', 'vllm', 'mlflow', 'datasets', 'prefect'); "
            "print([module for module in heavy if module in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout.strip() == "[]"


def test_telemetry_is_off_and_threads_wait_awake_briefly_unless_the_user_said_otherwise(monkeypatch):
    monkeypatch.setattr(os, "environ", {"OMP_WAIT_POLICY": "ACTIVE", "VLLM_NO_USAGE_STATS": "0",
                                        "NO_PROXY": "a.local, 127.0.0.1", "no_proxy": "b.local"})
    launchers.quiet_environment()
    spared = "a.local,127.0.0.1,b.local,localhost,::1"
    assert os.environ.pop("NO_PROXY") == os.environ.pop("no_proxy") == spared
    assert os.environ == {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "MLFLOW_DISABLE_TELEMETRY": "true",
                          "HF_HUB_DISABLE_TELEMETRY": "1", "VLLM_NO_USAGE_STATS": "0", "OMP_WAIT_POLICY": "ACTIVE",
                          "TORCH_CPP_LOG_LEVEL": "ERROR"}
    del os.environ["OMP_WAIT_POLICY"]
    launchers.quiet_environment()
    assert os.environ["GOMP_SPINCOUNT"] == launchers.SPIN
    monkeypatch.setenv("NO_PROXY", "*")
    assert launchers.without_proxy() == {"NO_PROXY": "*", "no_proxy": "*"}  # in a list it would mean nothing


def test_a_stage_is_a_name_of_the_table_or_given_in_full(pool):
    assert entry_of("scores") == ("tasks.opd.scoring.score", "score_rollouts")
    assert entry_of("some.where:make") == ("some.where", "make")
    with pytest.raises(ValueError, match="stage is 'score'; allowed: model, context, prompts,"):
        run_stage("score", {}, {}, pool)
    assert all(len(entry.split(":")) == 2 for entry in STAGES.values())


def test_a_closed_session_can_be_used_again_and_closes_its_engines(tmp_path):
    closed = []
    with Session() as session:
        session._engines["student", "torch"] = SimpleNamespace(close=lambda: closed.append(1)), "", ()
        session.trainer = object()
        session.close()
        assert closed == [1] and session.trainer is None
        session.log(tmp_path, 0, {"a/b": 1.0})
        with session.progress(3, "scoring", "rollouts") as bar:
            bar.update(3)
    assert closed == [1] and (tmp_path / "metrics.jsonl").exists()


def test_an_engine_is_kept_until_something_changes_that_it_is_bound_to(tmp_path, monkeypatch):
    opened, closed = [], []

    def fake(folder, kind, settings):
        opened.append(kind)
        return SimpleNamespace(sleep=lambda: None, close=lambda: closed.append(kind), load=lambda folder: {})
    monkeypatch.setattr("tasks.opd.engines.pool.open_engine", fake)
    told = {"name": "vllm", "dtype": "float32", "batch_tokens": 64, "longest_tokens": 129, "patience_seconds": 9}
    (tmp_path / "served").mkdir()
    (tmp_path / "served/server.json").touch()
    with Session() as session:
        for change, kinds in (({}, 1), ({"batch_tokens": 32, "patience_seconds": 8}, 1), ({"longest_tokens": 257}, 2),
                              ({"longest_tokens": 257, "lora_rank": 4}, 3), ({"name": "torch"}, 4),
                              ({"name": "torch", "longest_tokens": 257}, 4)):
            session.engine("student", tmp_path, told | change)
            assert len(opened) == kinds, change
        assert closed == opened[:2]
        for change, kinds in (({}, 5), ({"dtype": "bfloat16"}, 5), ({"patience_seconds": 8}, 6)):
            session.engine("teacher", tmp_path / "served", told | change)
            assert len(opened) == kinds, change
        with pytest.raises(ValueError, match="engine name is 'vlm'; allowed: torch, vllm"):
            session.engine("student", tmp_path, told | {"name": "vlm"})


def test_one_engine_a_role_whose_weights_are_swapped_in_place(tmp_path):
    """With a real tiny model: same folder, same engine and weights; other folder, same engine, other weights."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                                      num_attention_heads=1, eos_token_id=1)
    for seed in (0, 1):
        torch.manual_seed(seed)
        transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / str(seed))
    from tasks.opd.engines.api import Want
    settings = {"name": "torch", "dtype": "float32", "batch_tokens": 256}
    with Session() as session:
        def score(folder, **changed):
            engine = session.engine("student", tmp_path / folder, {**settings, **changed})
            return engine, engine.score([[2, 3]], [[4, 5, 1]], Want())[0].sampled
        engine, first = score("0")
        assert score("0", batch_tokens=128)[0] is engine and engine.batch_tokens == 128
        same, other = score("1")
        assert same is engine and not torch.allclose(first, other)
        assert torch.equal(score("0")[1], first)
        (tmp_path / "0").rename(tmp_path / "old")
        (tmp_path / "1").rename(tmp_path / "0")  # remade at the same path, with other weights
        assert torch.equal(score("0")[1], other)
        assert score("0", dtype="float64")[0] is not engine
