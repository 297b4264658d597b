"""Fingerprints: what is inside, and what is not."""
import pytest

from tasks.opd.store import fingerprints
from tasks.opd.store.fingerprints import fingerprint


def fp(spec=None, inputs=None, source="s", environment=None, stage="scores"):
    return fingerprint(stage, spec or {}, inputs or {}, source=source, environment=environment or {"device": "cpu"})


def test_each_part_of_the_derivation_changes_the_fingerprint():
    names = {fp(), fp({"k": 1}), fp({"k": 2}), fp(inputs={"a": "1"}), fp(inputs={"b": "1"}), fp(source="t"),
             fp(environment={"device": "cuda"}), fp(stage="rollouts")}
    assert len(names) == 8
    assert all(len(name) == 32 and int(name, 16) >= 0 for name in names)


def test_the_order_of_keys_does_not_count_and_nan_is_refused():
    assert fp({"a": 1, "b": 2}) == fp({"b": 2, "a": 1})
    with pytest.raises(ValueError):
        fp({"a": float("nan")})


def test_hidden_devices_are_no_devices(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert fingerprints.device_kind() == "cpu"
    versions = fingerprints.environment({})["versions"]
    assert set(versions) == {"torch", "transformers", "tokenizers", "numpy", "peft"} and all(versions.values())
