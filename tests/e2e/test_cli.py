"""The console command: exit codes, what goes to which stream, one real run that is interrupted and taken up again."""
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from flows.cli import main as cli
from tasks.opd.recipe import loading
from tasks.opd.store import artifacts
from tasks.opd.store.run_records import recorded, refer
from tasks.tracking.client import client_at
from tests.e2e.test_flows import TINY

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def environment():
    """Commands set environment variables; no test sees those of another."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def last_line(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("argv, code, told", [
    (["check", "opd_reverse_kl", "rouns=3"], 10, "did you mean rounds?"),
    (["check", "opd_reverse_kl", "train.learning_rate=fast"], 10, "train.learning_rate"),
    (["check", "no_such_recipe"], 10, "no such file"),
    (["check", "gkd", "terms.0.divergence.beta=7", "seed=-1"], 10, "beta"),
    (["distill", "opd_reverse_kl", "rounds=0"], 10, "rounds"),
    (["compare", "no_such_suite"], 10, "no such file"),
    (["evaluate", "somewhere", "--benchmark", "no_such_benchmark"], 10, "no such file"),
    (["check", "opd_reverse_kl", "rounds"], 1, "unknown arguments: rounds; settings are key=value"),
    (["doctor", "rounds=3"], 1, "unknown arguments: rounds=3"),
    (["gc"], 11, "holds no artifacts; set OPD_HOME"),
    (["gc", "--older-than", "7"], 1, "'7' is no age; give a number and m, h, d or w"),
    (["frobnicate"], 1, "invalid choice"),
    ([], 1, "required"),
])
def test_bad_input_ends_with_its_code_and_a_word_on_standard_error(argv, code, told, capsys):
    assert cli.main(argv) == code
    streams = capsys.readouterr()
    assert told in streams.err and "Traceback" not in streams.err and streams.out == ""


def test_all_that_is_wrong_is_said_at_once(capsys):
    assert cli.main(["check", "gkd", "rouns=3", "seed=-1", "train.epochs=0"]) == 10
    said = capsys.readouterr().err
    assert all(key in said for key in ("rouns", "seed", "train.epochs"))


def test_an_unwritable_home_is_exit_14_before_anything_starts(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OPD_HOME", str(tmp_path / "file" / "home"))
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    assert cli.main(["distill", "opd_reverse_kl"]) == 14
    assert "OPD_HOME" in capsys.readouterr().err


@pytest.mark.parametrize("error, stopped, code, word", [
    (KeyboardInterrupt(), [], 130, "interrupted"), (RuntimeError("on its way"), [signal.SIGINT], 130, "interrupted"),
    (SystemExit(3), [signal.SIGTERM, signal.SIGINT], 143, "terminated"), (RuntimeError("x"), [], 1, "RuntimeError: x")])
def test_whatever_a_signal_became_on_its_way_the_first_one_is_told(error, stopped, code, word):
    got, message = cli.explained(error, stopped)
    assert got == code and message.startswith(word)


def test_json_is_one_object_also_for_errors(capsys):
    assert cli.main(["check", "gkd", "rouns=3", "--json"]) == 10
    assert last_line(capsys)["exit_code"] == 10


def test_verbose_shows_the_traceback(capsys):
    assert cli.main(["check", "gkd", "rouns=3", "--verbose"]) == 10
    assert "Traceback" in capsys.readouterr().err


def test_check_says_what_the_teachers_give(capsys):
    assert cli.main(["check", "gkd", "--json", "rounds=2"]) == 0
    report = last_line(capsys)
    assert report["problems"] == [] and report["needs"]["teacher"]["hidden"] is True


def test_variants_lists_every_file_with_paper_idea_and_slots(capsys):
    assert cli.main(["variants", "--json"]) == 0
    found = {variant["name"]: variant for variant in last_line(capsys)["variants"]}
    assert set(found) == {file.stem for file in (loading.CONFIGS / "variants").glob("*.yaml")}
    assert found["gkd"]["arxiv"] == "2306.13649" and all(variant["idea"] for variant in found.values())
    assert found["opd_reverse_kl"]["slots"]["terms.0.advantage"] == "teacher_gap"


def test_doctor_reports_versions_and_switches(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    report = last_line(capsys)
    assert report["versions"]["torch"] and report["telemetry"]["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_gc_lists_removes_and_then_finds_nothing(opd_home, capsys):
    def gc(*options) -> str:
        assert cli.main(["gc", *options]) == 0
        return capsys.readouterr().out
    with recorded("gkd-seed0", suite="demo"):
        for kind, num_bytes in (("model", 3_000_000), ("rollouts", 5000)):
            refer(kind, kind[0] * 32)
            folder = artifacts.begin(kind, kind[0] * 32)
            (folder / "rows").write_bytes(bytes(num_bytes))
            artifacts.seal(folder, {"kind": kind, "fingerprint": kind[0] * 32, "counts": {}, "inputs": {}})
    lines = gc().splitlines()
    assert lines[0] == f"{opd_home}, recorded runs: 1" and lines[-1] == "there is nothing to remove"
    assert [line.split() for line in lines[1:-1]] == [["kept", "2", "3.0", "MB"], ["garbage", "0", "0", "B"]]
    lines = gc("--forget", "demo").splitlines()
    assert "forgotten     gkd-seed0" in lines and lines[-1] == "nothing was removed; --delete removes it"
    assert ["model", "1", "3.0", "MB"] in [line.split() for line in lines]
    assert lines[-2].split() == ["garbage", "2", "3.0", "MB"]
    assert "there is nothing to remove" in gc("--forget", "demo", "--older-than", "1d", "--delete")
    assert gc("--forget", "demo", "--delete").splitlines()[-1] == "3.0 MB freed"
    assert not list(opd_home.glob("artifacts/*/*")) and not list(opd_home.glob("runs/*"))
    result = json.loads(gc("--json").splitlines()[-1])
    assert result["garbage"] == [] and result["kept"] == {"number": 0, "bytes": 0} and result["runs"] == []


def started(argv: list[str], home: Path) -> subprocess.Popen:
    """`opd` in a process of its own, with a person's empty home."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    return subprocess.Popen([sys.executable, "-m", "flows.cli", *argv], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env={**kept, "HOME": str(home), "OMP_NUM_THREADS": "1"})


def of_home(home: Path) -> list[str]:
    """The processes that write to a home."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"OPD_HOME={home}\0" in (process / "environ").read_text() and process.name != str(os.getpid()):
                found.append((process / "cmdline").read_text())
    return found


def hung_up(argv: list[str], home: Path) -> int:
    """`opd` in a terminal that goes away once a checkpoint is made, with the kernel's SIGHUP; its exit code."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    ours, terminal = os.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)    # the tests may run under nohup
    run = subprocess.Popen([sys.executable, "-m", "flows.cli", *argv], cwd=ROOT, stdin=terminal, stdout=terminal,
                           stderr=terminal, env={**kept, "HOME": str(home), "OMP_NUM_THREADS": "1"},
                           start_new_session=True, preexec_fn=take_terminal)
    os.close(terminal)
    said = b""
    while b"opd: made checkpoint" not in said:
        said += os.read(ours, 1 << 16)
    os.close(ours)
    return run.wait(600)


def test_a_stopped_run_leaves_no_process_says_so_and_is_taken_up_where_it_was(tmp_path, opd_home):
    person, recipe = tmp_path / "person", ["distill", "opd_reverse_kl", *TINY, "rounds=12", "workers=process", "--json"]
    person.mkdir()

    def nothing_is_left(status: str) -> None:
        time.sleep(1)
        assert of_home(opd_home) == []
        client = client_at(f"sqlite:///{opd_home}/mlflow.db")
        [found] = client.search_runs([client.get_experiment_by_name("opd").experiment_id])
        assert found.info.status == status
    for sent, code, word in ((signal.SIGTERM, 143, "terminated"), (signal.SIGKILL, -signal.SIGKILL, None)):
        run = started(recipe, person)
        next(line for line in run.stderr if line.startswith("opd: made checkpoint"))
        assert len(of_home(opd_home)) >= 3  # the command, the worker and Prefect's server, the last two supervised
        run.send_signal(sent)
        out, said = run.communicate(timeout=600)
        assert run.returncode == code, said
        nothing_is_left("KILLED" if word else "RUNNING")  # nobody can say that for a run that was killed
        if word:
            assert said.splitlines()[-1].startswith(f"opd: {word}; finished stages are kept"), said
            assert "Traceback" not in said
            assert json.loads(out.splitlines()[-1])["exit_code"] == code
    assert hung_up(recipe, person) == 129
    nothing_is_left("KILLED")

    last = started(recipe, person)
    out, said = last.communicate(timeout=600)
    assert last.returncode == 0, said
    result = json.loads(out.splitlines()[-1])
    assert len(out.splitlines()) == 1 and result["recipe"] == "opd_reverse_kl"
    assert Path(result["checkpoint"]["path"], "model").is_dir()
    assert result["comparison"]["tiny"]["rows"][1]["interval"]
    assert result["mlflow"].startswith("MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow server --workers 1 ")
    assert f"--backend-store-uri sqlite:///{opd_home}/mlflow.db" in result["mlflow"]
    assert result["mlflow_page"].endswith("?workflowType=machine_learning")
    reused = int(said.rpartition("reused ")[2].split()[0])
    assert reused >= 12, said  # models, prompts, preflight, a report, its divergence, two rounds less what was cut off
