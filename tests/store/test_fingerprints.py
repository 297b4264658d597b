"""Fingerprints: what is inside, and what is not."""
import textwrap

import pytest

from tasks.opd.runtime.stages import STAGES, entry_of
from tasks.opd.store import fingerprints
from tasks.opd.store.fingerprints import fingerprint, source_hash

MODULES = {
    "__init__": "",
    "stage": '''
        """Makes things."""
        from tinyroom import middle
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            from tinyroom.typed import T
        TABLE = {"other": "tinyroom.named:f"}

        def make():
            """Make."""
            return middle.double(1)  # twice
        ''',
    "middle": '''
        def double(x):
            from .deep import two
            return two() * x
        ''',
    "deep": "def two():\n    return 2\n",
    "typed": "T = int\n",
    "named": "def f():\n    return 0\n",
    "alone": "def g():\n    return 0\n",
}


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A package of six modules; `room(module, old, new)` edits one and returns the hash of `stage` then."""
    folder = tmp_path / "tinyroom"
    folder.mkdir()
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(str(tmp_path))

    def edit(module="stage", old="", new=""):
        file = folder / f"{module}.py"
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new) if old else file.read_text() + new)
        source_hash.cache_clear()
        return source_hash("tinyroom.stage", "tinyroom")
    return edit


@pytest.mark.parametrize("module, old, new", [
    ("stage", "# twice", "# two times, that is"), ("stage", '"""Make."""', '"""Make a thing."""'),
    ("stage", '"""Makes things."""', ""), ("deep", "", "\n# the end\n"), ("deep", "return 2", "return  (2)"),
    ("typed", "int", "str"), ("named", "0", "1"), ("alone", "0", "1")])
def test_comments_docstrings_layout_and_modules_not_imported_do_not_count(room, module, old, new):
    before = room()
    assert room(module, old, new) == before


@pytest.mark.parametrize("module, old, new", [
    ("stage", "double(1)", "double(2)"), ("middle", "* x", "+ x"), ("deep", "return 2", "return 3"),
    ("__init__", "", "LIMIT = 3\n")])
def test_editing_code_anywhere_in_the_import_closure_counts(room, module, old, new):
    before = room()
    assert room(module, old, new) != before


def test_nothing_is_imported_to_read_its_source(room):
    assert room("deep", "", "\nraise SystemExit('imported')\n")  # a hash, where an import would have ended the test


def test_a_stage_that_uses_an_engine_has_the_engines_in_its_closure(tmp_path, monkeypatch):
    lines = {"direct": "session.engine('a', i, s)", "held": "self.session.engine('a', i, s)", "none": "s.engine.name"}
    for name, line in lines.items():
        (tmp_path / f"uses_{name}.py").write_text(f"def make(i, s, o, session):\n    {line}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    used = {name: "tasks.opd.engines.pool" in fingerprints.read_module(f"uses_{name}")[1] for name in lines}
    assert used == {"direct": True, "held": True, "none": False}


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_stages_that_compute_with_a_model_have_the_engines_in_their_closure(stage):
    closure, waiting = set(), [entry_of(stage)[0]]
    while waiting:
        module = waiting.pop()
        if module not in closure and fingerprints.source_file(module):
            closure.add(module)
            waiting += [name for name in fingerprints.read_module(module)[1] if fingerprints.within(name, "tasks.opd")]
    if stage in ("rollouts", "refined", "scores", "report", "divergence", "preflight"):
        assert {f"tasks.opd.engines.{module}" for module in (
            "pool", "torch_engine", "vllm_engine", "vllm_settings", "http.server_engine", "canary")} < closure
    if stage in ("prompts", "grades"):
        assert "tasks.opd.engines.torch_engine" not in closure  # editing an engine does not remake them


def test_a_module_without_source_is_refused():
    with pytest.raises(ValueError, match="tasks.opd.nowhere has no source"):
        source_hash("tasks.opd.nowhere")


def fp(spec=None, inputs=None, source="s", environment=None, stage="scores"):
    return fingerprint(stage, spec or {}, inputs or {}, source=source, environment=environment or {"device": "cpu"})


def test_each_part_of_the_derivation_changes_the_fingerprint():
    names = {fp(), fp({"k": 1}), fp({"k": 2}), fp(inputs={"a": "1"}), fp(inputs={"b": "1"}), fp(source="t"),
             fp(environment={"device": "cuda"}), fp(stage="rollouts")}
    assert len(names) == 8
    assert all(len(name) == 32 and int(name, 16) >= 0 for name in names)


def test_effort_and_batch_sizes_are_outside_the_fingerprint_at_any_depth():
    engine = {"dtype": "float32", "batch_tokens": 8}
    small = {"seed": 1, "engine": engine, "effort": {"cores": 2}, "l": [{"chunk_tokens": 1}]}
    large = {"seed": 1, "engine": {**engine, "batch_tokens": 9}, "effort": {"cores": 64}, "l": [{}]}
    assert fp(small) == fp(large)
    assert fp(small) != fp({**small, "engine": {"dtype": "bfloat16", "batch_tokens": 8}})


def test_the_order_of_keys_does_not_count_and_nan_is_refused():
    assert fp({"a": 1, "b": 2}) == fp({"b": 2, "a": 1})
    with pytest.raises(ValueError):
        fp({"a": float("nan")})


def test_hidden_devices_are_no_devices(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert fingerprints.device_kind() == "cpu"
    versions = fingerprints.environment({})["versions"]
    assert set(versions) == {"torch", "transformers", "tokenizers", "numpy", "peft"} and all(versions.values())
