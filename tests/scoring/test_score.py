"""A teacher's signal as a stage: what it sees, what is left without, and that files give back what was scored."""
import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.opd.core.errors import CorruptArtifact, NonFinite, TokenizerMismatch
from tasks.opd.core.records import Prompt, Rollout, write_rows
from tasks.opd.engines.api import Signal, Want
from tasks.opd.engines.pool import Session
from tasks.opd.engines.torch_engine import TorchEngine
from tasks.opd.scoring.contexts import CONTEXTS
from tasks.opd.scoring.score import read_signal, score_rollouts, write_signal
from tests.rollouts.test_filters import ROLLOUT
from tests.scoring.test_contexts import PROMPT
from tests.small_llama import save_llama

ENGINE = {"name": "torch", "dtype": "float64", "batch_tokens": 65536}
PROMPTS = [dataclasses.replace(PROMPT, solution="w9 w10"),
           dataclasses.replace(PROMPT, prompt_id="b", token_ids=[11], solution=None)]
ROLLOUTS = [dataclasses.replace(ROLLOUT, prompt_token_ids=[7, 8], token_ids=[5, 6, 2]),
            dataclasses.replace(ROLLOUT, rollout_id="0:b:student:0", prompt_id="b", group_id="0:b",
                                prompt_token_ids=[11], token_ids=[3, 4]),
            dataclasses.replace(ROLLOUT, rollout_id="0:b:student:1", prompt_id="b", group_id="0:b",
                                prompt_token_ids=[11], token_ids=[9, 8, 2], teacher_prompt_ids=[30, 31, 32])]


@pytest.fixture(scope="module")
def session():
    with Session() as session:
        yield session


@pytest.fixture
def inputs(tmp_path):
    paths = {name: tmp_path / "artifacts" / name / f"{name}0" for name in ("prompts", "rollouts", "model")}
    save_llama(paths["model"] / "model")
    for name in ("prompts", "rollouts"):
        paths[name].mkdir(parents=True)
    write_rows(paths["prompts"] / "prompts.parquet", PROMPTS, Prompt)
    write_rows(paths["rollouts"] / "rollouts.parquet", ROLLOUTS, Rollout)
    return paths


def score(inputs, out, session, context="same", **other):
    want = {"sampled": True, "top_k": 3, "entropy": True, "hidden": True}
    spec = {"context": {"name": context, "params": {}}, "want": want, "folder": "model", "temperature": 1.0,
            "engine": ENGINE, "domains": None, "context_tokens": 64, "vocabulary": 60, **other}
    out.mkdir(parents=True, exist_ok=True)
    return score_rollouts(inputs, spec, out, session), read_signal(out)


def test_every_rollout_is_scored_after_the_prompt_its_teacher_sees(inputs, session, tmp_path):
    counts, signals = score(inputs, tmp_path / "out", session)
    assert counts == {"rollouts": 3, "scored": 3, "teacher_read_tokens": 8, "without_context": 0, "too_long": 0}
    seen = [[7, 8], [11], [30, 31, 32]]  # what a refiner stored wins
    want = Want(top_k=3, entropy=True, hidden=True)
    expected = TorchEngine(inputs["model"] / "model", "float64").score(seen, [r.token_ids for r in ROLLOUTS], want)
    for one, two in zip(signals, expected):
        for name in ("sampled", "ids", "logprobs", "tail", "entropy", "hidden"):
            assert torch.allclose(getattr(one, name), getattr(two, name), atol=1e-9, rtol=0)


def test_a_rollout_whose_context_is_none_has_no_signal(inputs, session, tmp_path):
    counts, signals = score(inputs, tmp_path / "out", session, context="solution")
    assert [s is not None for s in signals] == [True, False, True]
    assert (counts["scored"], counts["without_context"], counts["teacher_read_tokens"]) == (2, 1, 6)
    same = score(inputs, tmp_path / "same", session)[1]
    assert not torch.allclose(signals[0].sampled, same[0].sampled)
    assert torch.allclose(signals[2].sampled, same[2].sampled, atol=1e-9)  # its own prompt either way


def test_a_context_that_shows_the_students_own_prompt_needs_no_tokenizer(inputs, session, tmp_path, monkeypatch):
    for file in (inputs["model"] / "model").glob("tokenizer*"):
        file.unlink()
    assert score(inputs, tmp_path / "out", session, vocabulary=64)[0]["scored"] == 3
    monkeypatch.setitem(CONTEXTS, "same", dataclasses.replace(CONTEXTS["same"], own_prompt=False))
    with pytest.raises((OSError, ValueError), match="tokenizer"):
        score(inputs, tmp_path / "again", session, vocabulary=64)


def test_what_exceeds_the_context_is_counted_and_left_without_signal(inputs, session, tmp_path):
    counts, signals = score(inputs, tmp_path / "out", session, context_tokens=5)
    assert [s is not None for s in signals] == [True, True, False]  # 2 + 3, 1 + 2, 3 + 3
    assert counts["too_long"] == 1


def test_only_the_columns_asked_for_are_there(inputs, session, tmp_path):
    want = {"sampled": True, "top_k": 0, "entropy": False, "hidden": False}
    signal = score(inputs, tmp_path / "out", session, want=want)[1][0]
    assert signal.sampled is not None
    assert [signal.ids, signal.logprobs, signal.tail, signal.entropy, signal.hidden] == [None] * 5
    assert not (tmp_path / "out" / "hidden.safetensors").exists()


def test_a_temperature_divides_the_teachers_logits(inputs, session, tmp_path):
    hot = score(inputs, tmp_path / "out", session, temperature=1000.0)[1][0]
    # nearly uniform over 60 ids: ln 60 = 4.0943
    assert hot.entropy.tolist() == pytest.approx([4.0943] * 3, abs=1e-3)


def test_a_nan_in_the_teacher_names_the_rollout(inputs, session, tmp_path):
    file = inputs["model"] / "model" / "model.safetensors"
    weights = load_file(file)
    weights["model.embed_tokens.weight"][4] = torch.nan  # in the completion of 0:b:student:0
    save_file(weights, file, metadata={"format": "pt"})
    rollouts = [dataclasses.replace(r, token_ids=[*r.token_ids, 3], logprobs=[0.0] * 4) for r in ROLLOUTS]
    write_rows(inputs["rollouts"] / "rollouts.parquet", rollouts, Rollout)
    with pytest.raises(NonFinite, match="sampled of rollout 0:b:student:0 is not finite"):
        score(inputs, tmp_path / "out", session)


def test_another_vocabulary_is_refused(inputs, session, tmp_path):
    with pytest.raises(TokenizerMismatch, match="the teacher names 60 token ids, the student 61"):
        score(inputs, tmp_path / "out", session, vocabulary=61)


def test_a_signal_without_any_row_and_an_empty_completion_come_back(tmp_path):
    empty = Signal(sampled=torch.zeros(0), ids=torch.zeros(0, 3, dtype=torch.long), logprobs=torch.zeros(0, 3),
                   tail=torch.zeros(0))
    write_signal(tmp_path, ["a", "b"], [None, empty], [None, [1]])
    nothing, back = read_signal(tmp_path)
    assert nothing is None and len(back.sampled) == len(back.ids) == 0


def test_float32_stays_float32_and_float16_hidden_stays_float16(tmp_path):
    torch.manual_seed(0)
    signal = Signal(sampled=torch.randn(2), hidden=torch.randn(2, 4).half())
    write_signal(tmp_path, ["a"], [signal], [[1]])
    back = read_signal(tmp_path)[0]
    assert (back.sampled.dtype, back.hidden.dtype) == (torch.float32, torch.float16)
    assert torch.equal(back.sampled, signal.sampled) and torch.equal(back.hidden, signal.hidden)


def test_a_damaged_signal_is_refused(tmp_path):
    write_signal(tmp_path, ["a"], [Signal(sampled=torch.randn(1000))], [[1]])
    data = bytearray((tmp_path / "signal.parquet").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "signal.parquet").write_bytes(data)
    with pytest.raises(CorruptArtifact, match="cannot be read"):
        read_signal(tmp_path)


def test_only_rollouts_of_the_domains_named_are_scored(inputs, session, tmp_path):
    rollouts = [dataclasses.replace(r, domain=domain) for r, domain in zip(ROLLOUTS, ("four", "five", "four"))]
    write_rows(inputs["rollouts"] / "rollouts.parquet", rollouts, Rollout)
    everyone = score(inputs, tmp_path / "all", session)[1]
    for domains, there in ((["four"], [True, False, True]), (["five", "six"], [False, True, False]), ([], [False] * 3)):
        counts, signals = score(inputs, tmp_path / "-".join(["some", *domains]), session, domains=domains)
        assert [s is not None for s in signals] == there
        assert counts["scored"] == sum(there) and counts["rollouts"] == 3 and counts["without_context"] == 0
        tokens = sum(len(r.token_ids) for r, has in zip(rollouts, there) if has)
        assert counts["teacher_read_tokens"] == tokens
        assert all(torch.allclose(one.sampled, two.sampled, atol=1e-9) for one, two in zip(signals, everyone) if one)


def test_damaged_hidden_states_are_refused(tmp_path):
    write_signal(tmp_path, ["a"], [Signal(sampled=torch.randn(2), hidden=torch.randn(2, 4))], [[1]])
    data = (tmp_path / "hidden.safetensors").read_bytes()
    for spoilt in (data[:-1], data[:12] + b"\xff" + data[13:], b""):
        (tmp_path / "hidden.safetensors").write_bytes(spoilt)
        with pytest.raises(CorruptArtifact, match="hidden.safetensors cannot be read as safetensors"):
            read_signal(tmp_path)


@pytest.mark.parametrize("reader", ["pyarrow.parquet.read_table", "tasks.opd.scoring.score.safe_open"])
def test_a_lack_of_memory_or_a_fault_of_our_own_is_no_damage(tmp_path, monkeypatch, reader):
    write_signal(tmp_path, ["a"], [Signal(sampled=torch.randn(2), hidden=torch.randn(2, 4))], [[1]])
    for error in (MemoryError("no more"), KeyError("a slip")):
        def fail(*given, error=error, **options):
            raise error
        monkeypatch.setattr(reader, fail)
        with pytest.raises(type(error)):
            read_signal(tmp_path)
