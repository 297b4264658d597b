"""Bad days, end to end through the console command: exit codes, what is said, and that nothing finished is lost."""
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from prefect.settings import PREFECT_API_URL
from safetensors.torch import load_file, save_file

from flows.cli import main as cli
from tasks.opd.core.records import Prompt, Quarantined, Rollout, read_rows
from tasks.opd.store import artifacts
from tasks.opd.store.artifacts import Artifact, read_record
from tests import prefect_harness

ROOT = Path(__file__).resolve().parents[2]
NOISE = {
    "pair": {"name": "noise", "student": "random", "teacher": {"name": "random", "hidden": 96}, "context_tokens": 160},
    "prompts": {"name": "tiny", "source": "tiny", "count": 16, "max_prompt_tokens": 64, "grader": "tiny"},
    "benchmarks": [{"name": "tiny", "source": "tiny", "first": 1000000, "count": 4, "max_prompt_tokens": 64,
                    "grader": "tiny", "sampling": {"temperature": 0.0, "max_new_tokens": 8}}],
    "rounds": 2, "rollout": {"prompts_per_round": 4, "sampling": {"max_new_tokens": 8}}, "workers": "inline",
    "accepts": {"shift": "random models"}}
WHOLE = 18                          # artifacts of the whole run
QUESTION = "Ada in Rome has 12 eggs. Monday finds 3. How many eggs?"


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory):
    """One Prefect server and one MLflow store for all; what a command sets in the environment ends with the module."""
    before = dict(os.environ)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    with prefect_harness.prefect_server():
        os.environ["PREFECT_API_URL"] = PREFECT_API_URL.value()
        yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> str:
    """The pair's file."""
    file = tmp_path_factory.mktemp("pair") / "noise.yaml"
    file.write_text(yaml.safe_dump(NOISE))
    return str(file)


@pytest.fixture(scope="module")
def whole(pair, tmp_path_factory) -> Path:
    """A home with a finished run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPD_HOME", str(tmp_path_factory.mktemp("whole")))
        assert cli.main(["distill", "opd_reverse_kl", f"pair={pair}"]) == 0
        return artifacts.home()


@pytest.fixture
def run(whole, pair, opd_home, capsys):
    """Runs the pair's recipe with overrides, in a copy of the finished run's home."""
    shutil.copytree(whole / "artifacts", opd_home / "artifacts")
    capsys.readouterr()

    def run(*overrides: str) -> SimpleNamespace:
        code = cli.main(["distill", "opd_reverse_kl", f"pair={pair}", *overrides])
        return ended(code, capsys.readouterr().err)
    return run


def ended(code: int, said: str) -> SimpleNamespace:
    """How a command ended: its code, its words, and how many artifacts it made and reused."""
    assert "Traceback" not in said, said
    counts = re.findall(r"opd: made (\d+) artifacts, reused (\d+)", said)
    made, reused = map(int, counts[-1]) if counts else (0, 0)
    return SimpleNamespace(code=code, said=said, made=made, reused=reused)


def records(kind: str) -> list[dict]:
    """The records of all artifacts of a kind, from old to new; none is damaged and nothing unfinished lies beside."""
    folders = sorted((artifacts.home() / "artifacts" / kind).iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert not [path for path in folders if path.name.startswith(".tmp-")]
    found = [read_record(path) for path in folders if path.name[0] != "."]
    for record in found:
        artifacts.verify(Artifact.from_json(record))
    return found


def model_of(name: str) -> Path:
    """The folder of the finished run's student (hidden 64) or teacher (hidden 96)."""
    hidden = {"student": 64, "teacher": 96}[name]
    [record] = [record for record in records("model") if record["spec"]["maker"]["params"].get("hidden") == hidden]
    return artifacts.place("model", record["fingerprint"]) / "model"


def changed(folder: Path, to: Path, change) -> str:
    """A copy of a model's folder with other weights, as an override's value; `change(tensors)` works in place."""
    shutil.copytree(folder, to)
    tensors = load_file(to / "model.safetensors")
    change(tensors)
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return f"{{name: folder, path: {to}}}"


def questions(file: Path, *rows: str) -> str:
    """A JSON Lines file of questions, and the override that trains on it."""
    file.write_text("".join(json.dumps({"question": row, "answer": "15"}) + "\n" for row in rows))
    return f"prompts={{name: mine, source: {{name: jsonl, path: {file}}}, count: 16, grader: numeric, " \
           "max_prompt_tokens: 64}"


def quarantined(kind: str, name: str) -> list[str]:
    """The reasons in the one artifact of that kind whose spec has that name."""
    [record] = [record for record in records(kind) if record["spec"]["name"] == name]
    rows = read_rows(artifacts.place(kind, record["fingerprint"]) / "quarantined.parquet", Quarantined)
    assert record["counts"]["quarantined"] == len(rows)
    return [row.reason for row in rows]


@pytest.fixture
def mounted(tmp_path):
    """A file system in memory of 9 MB, as small disks are; `mounted(options)` mounts it anew."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", disk], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"mounting a small tmpfs is not permitted here: {made.stderr.strip()}")

    def mounted(options: str = "") -> Path:
        if options:
            subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)
        return disk
    yield mounted
    subprocess.run(["umount", "--lazy", disk], check=True)


def alone(home: Path, pair: str) -> SimpleNamespace:
    """The recipe as a person runs it: a process, a Prefect server and an MLflow store of its own under `home`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_TRACKING"))}
    done = subprocess.run([sys.executable, "-m", "flows.cli", "distill", "opd_reverse_kl", f"pair={pair}"], cwd=ROOT,
                          env={**kept, "OPD_HOME": str(home), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    return ended(done.returncode, done.stderr)


def test_on_a_full_disk_a_run_ends_with_14_and_goes_on_once_there_is_room(mounted, pair, run, monkeypatch):
    home = mounted() / "home"  # room for Prefect's and MLflow's databases and the models, not for two checkpoints
    full = alone(home, pair)
    assert full.code == 14 and "No space left on device" in full.said and "bytes are free" in full.said
    assert "Free space or point OPD_HOME" in full.said and str(home) in full.said
    monkeypatch.setenv("OPD_HOME", str(home))
    assert len(records("model")) == 2 and full.made >= 4
    mounted("size=64m")
    again = run()
    assert again.code == 0 and (again.made, again.reused) == (WHOLE - full.made, full.made), again.said
    assert len(records("checkpoint")) == 2


def test_a_disk_with_no_byte_left_is_named_before_anything_starts(mounted, run, monkeypatch):
    home, filler = mounted() / "home", mounted() / "filler"
    home.mkdir()
    with pytest.raises(OSError), open(filler, "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    monkeypatch.setenv("OPD_HOME", str(home))
    full = run()
    assert full.code == 14 and f"cannot write {home}" in full.said and "Free space" in full.said


def test_where_prefects_database_finds_no_room_the_disk_is_blamed(mounted, pair):
    full = alone(mounted("size=512k") / "home", pair)
    assert full.code == 14 and "Prefect's server" in full.said and "Free space" in full.said


def test_a_read_only_home_is_14_and_reused_once_it_can_be_written(mounted, run, opd_home, monkeypatch):
    home = mounted("size=64m") / "home"
    shutil.copytree(opd_home, home)
    monkeypatch.setenv("OPD_HOME", str(home))
    mounted("ro")
    refused = run()
    assert refused.code == 14 and f"cannot write {home}" in refused.said and "point OPD_HOME to" in refused.said
    mounted("rw")
    again = run()
    assert (again.code, again.made, again.reused) == (0, 0, WHOLE)


@pytest.mark.parametrize("home", ["/proc/nowhere", "/dev/null/home", "/sys/home"])
def test_a_home_where_nothing_can_be_is_14(home, run, monkeypatch):
    monkeypatch.setenv("OPD_HOME", home)
    refused = run()
    assert refused.code == 14 and f"cannot write {home}" in refused.said and "point OPD_HOME to" in refused.said


def spoilt_at(token_ids: set[int]):
    """A change of weights: the embeddings of these tokens become NaN, the head, no longer tied to them, stays."""
    def change(tensors: dict) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.embed_tokens.weight"][sorted(token_ids)] = float("nan")
    return change


@pytest.mark.parametrize("stage, finished", [("preflight", 3), ("divergence", 5), ("scores", 8)])
def test_a_teacher_with_nan_weights_is_13_at_the_first_stage_that_meets_them(stage, finished, run, tmp_path):
    held_out, train = sorted(records("prompts"), key=lambda record: record["counts"]["prompts"])
    asked = [read_rows(artifacts.place("prompts", record["fingerprint"]) / "prompts.parquet", Prompt)
             for record in (train, held_out)]
    [first] = [record for record in records("rollouts") if record["spec"]["round"] == 0]
    written = read_rows(artifacts.place("rollouts", first["fingerprint"]) / "rollouts.parquet", Rollout)
    seen, met = set(), {}
    for name, some in (("preflight", [p.token_ids for p in asked[0][:4]]),
                       ("divergence", [p.token_ids for p in asked[1]]),
                       ("scores", [r.prompt_token_ids for r in written])):
        met[name] = {token for ids in some for token in ids} - seen
        seen |= met[name]
    value = changed(model_of("teacher"), tmp_path / "nan", spoilt_at({min(met[stage])}))
    config = json.loads((tmp_path / "nan" / "config.json").read_text())
    (tmp_path / "nan" / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    spoilt = run(f"pair.teacher={value}")
    assert spoilt.code == 13 and "the teacher's" in spoilt.said and "not finite" in spoilt.said
    assert "look at the teacher's weights, or use engine.dtype: float32" in spoilt.said
    assert spoilt.made + spoilt.reused == finished + 1  # its folder is one
    assert run().made == 0


def test_a_student_with_nan_weights_is_13_and_its_folder_is_named(run, tmp_path):
    value = changed(model_of("student"), tmp_path / "nan",
                    lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))
    spoilt = run(f"pair.student={value}")
    assert spoilt.code == 13 and str(tmp_path / "nan") in spoilt.said and "look at its weights" in spoilt.said
    assert run().made == 0


def test_a_gradient_that_is_not_finite_in_the_second_round_is_13_and_names_the_first_rounds_checkpoint(run):
    wild = run("schedule=[{round: 1, set: {terms.0.coefficient: 1.0e+37}}]")
    [first] = [record for record in records("checkpoint") if record["spec"]["round"] == 0]
    assert wild.code == 13 and "round 1" in wild.said and "lower train.learning_rate" in wild.said
    assert str(artifacts.place("checkpoint", first["fingerprint"])) in wild.said
    assert run().made == 0


def test_weights_that_overflow_are_13_and_never_become_a_checkpoint(run):
    wild = run("train.learning_rate=1", "train.weight_decay=1e39")
    assert wild.code == 13 and "weights of" in wild.said and "train.weight_decay" in wild.said
    assert len(records("checkpoint")) == 2 and run().made == 0  # those of the finished run


def test_prompts_that_are_too_long_are_quarantined_and_counted_and_the_run_goes_on(run, tmp_path):
    short = [f"{QUESTION} Monday finds {i}." for i in range(8)]
    some = run(questions(tmp_path / "some.jsonl", QUESTION * 9, *short, QUESTION * 8))
    assert some.code == 0 and "prompts 8, quarantined 2" in some.said
    reasons = quarantined("prompts", "mine")
    assert len(reasons) == 2 and all(reason.startswith("too_long: ") and "at most 64" in reason for reason in reasons)


def test_where_all_prompts_are_too_long_the_run_ends_with_11_and_an_edited_file_is_read_again(run, tmp_path):
    file = tmp_path / "mine.jsonl"
    none = run(questions(file, QUESTION * 9, QUESTION * 8))
    assert none.code == 11 and str(file) in none.said and "{'too_long': 2}" in none.said
    assert "max_prompt_tokens" in none.said and "at most 64" in none.said
    fixed = run(questions(file, QUESTION, QUESTION * 8))
    assert fixed.code == 0 and "prompts 1, quarantined 1" in fixed.said
    edited = run(questions(file, QUESTION, QUESTION.replace("12", "13")))
    assert edited.code == 0 and "prompts 2, quarantined 0" in edited.said


def test_a_file_without_questions_is_11_and_with_one_the_run_goes_on(run, tmp_path):
    file = tmp_path / "mine.jsonl"
    override = questions(file)
    for text, why in (("", "the source has no such items"), ("\n\n", "not JSON"),
                      ('{"text": "?"}\n', "has no 'question'")):
        file.write_text(text)
        empty = run(override)
        assert empty.code == 11 and str(file) in empty.said and why in empty.said and "look at first" in empty.said
        assert (empty.made, empty.reused) == (0, 2)  # the models
    assert run(questions(file, QUESTION)).code == 0


def test_a_damaged_file_of_the_first_round_is_named_set_aside_and_remade_alone(run, opd_home):
    before = records("rollouts")
    [first] = [record for record in before if record["spec"]["round"] == 0]
    file = artifacts.place("rollouts", first["fingerprint"]) / "rollouts.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    artifacts._verified.clear()  # as in a new process
    again = run()
    assert (again.code, again.made, again.reused) == (0, 1, WHOLE - 1)
    assert f"damaged rollouts {first['fingerprint'][:8]}: {file}: sha256 is" in again.said and "moved to" in again.said
    assert {r["digest"] for r in records("rollouts")} == {r["digest"] for r in before}  # the same bytes again
    [aside] = file.parent.parent.glob(".corrupt-*")
    assert (aside / "rollouts.parquet").read_bytes() == content


def test_a_teacher_whose_tokens_have_other_ids_is_12(run, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(model_of("teacher"), folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    ids = tokenizer["model"]["vocab"]
    ids["0"], ids["1"] = ids["1"], ids["0"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    other = run(f"pair.teacher={{name: folder, path: {folder}}}")
    assert other.code == 12 and f"token id {ids['1']} is '0' to the student and '1' to the teacher" in other.said
    assert "choose a teacher with the student's tokenizer" in other.said
    assert run().made == 0
