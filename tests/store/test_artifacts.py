"""Artifacts: what is written is what is read, or it is named."""
import hashlib
import json
import shutil

import pytest

from tasks.opd.core.errors import CorruptArtifact, DataError, DiskFull
from tasks.opd.store import artifacts
from tasks.opd.store.artifacts import Artifact, begin, find, retire, seal, sweep, verify

NAME = "0123456789abcdef" * 2


def made(files, name=NAME, kind="checkpoint"):
    """An artifact with these files, not yet verified by this process."""
    folder = begin(kind, name)
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    artifact = seal(folder, {"kind": kind, "fingerprint": name, "counts": {"n": len(files)}, "inputs": {}})
    artifacts._verified.clear()
    return artifact


def test_an_artifact_is_found_by_name_and_survives_json(opd_home):
    artifact = made({"model/w": "123", "trainer.safetensors": "4"})
    assert artifact.path == opd_home / "artifacts" / "checkpoint" / NAME
    assert find("checkpoint", NAME) == artifact == Artifact.from_json(json.loads(json.dumps(artifact.to_json())))
    assert artifact.counts == {"n": 2}
    verify(artifact)
    files = artifacts.read_record(artifact.path)["files"]
    assert files["model/w"] == {"sha256": hashlib.sha256(b"123").hexdigest(), "bytes": 3}


def test_no_record_no_artifact(opd_home):
    folder = begin("checkpoint", NAME)
    (folder / "w").write_text("1")
    assert find("checkpoint", NAME) is None
    assert not artifacts.place("checkpoint", NAME).exists()


def test_the_digest_is_of_bytes_and_names_without_metrics():
    first = made({"w": "1", "metrics.jsonl": "10:00"}, "a" * 32)
    later = made({"w": "1", "metrics.jsonl": "11:00"}, "b" * 32)
    assert first.digest == later.digest
    assert made({"w": "2"}, "c" * 32).digest != first.digest != made({"v": "1"}, "d" * 32).digest


@pytest.mark.parametrize("name", ["model/w", "metrics.jsonl"])
def test_a_flipped_byte_is_named_with_both_hashes(name):
    artifact = made({"model/w": "123", "metrics.jsonl": "abc"})
    file = artifact.path / name
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    with pytest.raises(CorruptArtifact) as caught:
        verify(artifact)
    old = {"model/w": b"123", "metrics.jsonl": b"abc"}[name]
    for part in (str(file), hashlib.sha256(old).hexdigest(), hashlib.sha256(file.read_bytes()).hexdigest()):
        assert part in str(caught.value)


def test_a_missing_file_and_a_changed_record_are_named():
    artifact = made({"w": "1"})
    (artifact.path / "w").unlink()
    with pytest.raises(CorruptArtifact, match="w: sha256 is that of no file: it is missing"):
        verify(artifact)
    record = artifact.path / "artifact.json"
    record.write_text(record.read_text().replace('"n": 1', '"n": 7'))
    with pytest.raises(CorruptArtifact, match="artifact.json: sha256 of its contents is"):
        find("checkpoint", NAME)
    record.write_text(record.read_text()[:-5])
    with pytest.raises(CorruptArtifact, match="artifact.json is not JSON"):
        find("checkpoint", NAME)


def test_files_are_hashed_once_a_process():
    artifact = made({"w": "1"})
    verify(artifact)
    (artifact.path / "w").write_text("2")
    verify(artifact)  # a second look would have raised
    artifacts._verified.clear()
    with pytest.raises(CorruptArtifact):
        verify(artifact)


def test_a_model_outside_is_verified_where_it_lies(tmp_path):
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "w").write_text("1")
    location = {"path": str(tmp_path / "hub"), "files": {"w": hashlib.sha256(b"1").hexdigest()}}
    artifact = made({"location.json": json.dumps(location)}, kind="model")
    verify(artifact)
    assert artifacts.model_folder(artifact.path) == tmp_path / "hub"
    artifacts._verified.clear()
    (tmp_path / "hub" / "w").write_text("2")
    with pytest.raises(CorruptArtifact, match="hub/w: sha256 is"):
        verify(artifact)
    (tmp_path / "hub" / "w").write_text("1")
    for name in ("preprocessor_config.json", "consolidated.safetensors", "._model.safetensors"):
        (tmp_path / "hub" / name).write_text("another program's, of the same snapshot")
    verify(artifact)
    for name in ("chat_template.jinja", "tokenizer_config.json", "model-00002.safetensors"):
        artifacts._verified.clear()
        (tmp_path / "hub" / name).write_text("planted")
        with pytest.raises(CorruptArtifact, match=f"hub/{name} is not among the files that were written"):
            verify(artifact)
        (tmp_path / "hub" / name).unlink()


@pytest.mark.parametrize("planted", ["chat_template.jinja", "model/chat_template.jinja", "additional/a.jinja"])
def test_a_file_that_nobody_wrote_is_named_in_a_retired_artifact_too(planted):
    artifact = made({"model/w": "123", "metrics.jsonl": "5"})
    (artifact.path / ".nfs0001").touch()        # hidden, of the file system: nobody reads it
    verify(artifact)
    retire(artifact)
    for there in (False, True):
        artifacts._verified.clear()
        if not there:
            verify(artifact)
            (artifact.path / planted).parent.mkdir(exist_ok=True)
            (artifact.path / planted).write_text("planted")
            continue
        with pytest.raises(DataError, match=f"{planted} is not among the files that were written") as caught:
            verify(artifact)
        assert not isinstance(caught.value, CorruptArtifact)    # for which the artifact would be made again


def test_a_link_to_a_folder_is_refused_whatever_its_name_and_one_to_a_file_by_its_own(tmp_path, capfd):
    artifact = made({"model/w": "123"})
    (artifact.path / "notes").symlink_to(tmp_path / "nowhere")
    verify(artifact)
    assert f"{artifact.path / 'notes'} is not among the files that were written; nothing" in capfd.readouterr().err
    artifacts._verified.clear()
    (artifact.path / "model" / "more").symlink_to(tmp_path)
    with pytest.raises(DataError, match="model/more is not among the files that were written, and what reads"):
        verify(artifact)


def test_a_retired_checkpoint_keeps_its_record_and_loses_its_weights():
    artifact = made({"model/w": "123", "trainer.safetensors": "4", "metrics.jsonl": "5"})
    assert artifacts.model_folder(artifact.path) == artifact.path / "model"
    retire(artifact)
    retire(artifact)  # again is nothing
    assert find("checkpoint", NAME) == artifact and artifacts.is_retired(artifact)
    assert not list(artifact.path.glob("model/*")) and not (artifact.path / "trainer.safetensors").exists()
    verify(artifact)
    artifacts._verified.clear()
    (artifact.path / "metrics.jsonl").write_text("6")
    with pytest.raises(CorruptArtifact, match=r"metrics\.jsonl"):
        verify(artifact)
    (artifact.path / "metrics.jsonl").unlink()
    with pytest.raises(CorruptArtifact, match=r"metrics\.jsonl: sha256 is that of no file"):
        verify(artifact)


def test_what_somebody_put_beside_the_weights_is_neither_retired_nor_a_model():
    artifact = made({"model/w": "123", "metrics.jsonl": "5"})
    (artifact.path / "model" / "x.gguf").write_text("of a conversion")
    (artifact.path / "model" / "notes").mkdir()
    assert retire(artifact) and [path.name for path in artifact.path.glob("model/*.*")] == ["x.gguf"]
    with pytest.raises(DataError, match="neither model/ nor location.json"):
        artifacts.model_folder(artifact.path)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(DataError, match="neither ema/ nor location.json"):
        artifacts.model_folder(tmp_path, "ema")


def test_sweep_removes_what_the_dead_left_and_nothing_else():
    left, busy = begin("checkpoint", "a" * 32), begin("checkpoint", "b" * 32)
    kept = made({"w": "1"})
    with artifacts.lock("checkpoint", "b" * 32):
        assert sweep() == 1
    assert not left.exists() and busy.exists() and kept.path.exists()


def test_sealing_replaces_what_stood_there():
    made({"w": "1", "old": "1"})
    artifact = made({"w": "2"})
    assert sorted(p.name for p in artifact.path.iterdir()) == ["artifact.json", "w"]
    assert [p.name for p in artifact.path.parent.iterdir()] == [NAME]


def test_a_place_that_cannot_be_written_is_named_with_its_free_bytes(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("OPD_HOME", str(tmp_path / "file"))
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(DiskFull, match=r"file/artifacts/checkpoint.*bytes are free there.*OPD_HOME") as caught:
        begin("checkpoint", NAME)
    assert caught.value.exit_code == 14
    said = int(str(caught.value).split(" bytes are free")[0].split()[-1].replace(",", ""))
    assert abs(said - free) < 1 << 30
