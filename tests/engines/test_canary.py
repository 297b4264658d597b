"""Digests of tensors and known log-probabilities: what tells fresh weights from stale ones."""
import json

import pytest
import torch

from tasks.opd.core.errors import EngineError
from tasks.opd.core.records import Rollout, write_rows
from tasks.opd.engines.api import Want
from tasks.opd.engines.canary import check_canary, write_canary
from tasks.opd.engines.pool import Session
from tasks.opd.engines.torch_engine import TorchEngine
from tasks.opd.models.digests import check_digests, digest, digests_of, elements, write_digests
from tasks.opd.models.heads import load_model
from tasks.opd.training import round
from tests.tiny_models import random_rollouts, term, tiny_llama, train_spec, write_tokenizer


@pytest.fixture
def folder(tmp_path):
    model = tiny_llama(1, dtype=torch.float32)
    model.save_pretrained(tmp_path / "model")
    write_tokenizer(tmp_path / "model")
    write_digests(model, tmp_path / "model")
    return tmp_path / "model"


def test_a_digest_is_of_the_numbers_not_of_their_precision_or_the_sign_of_zero():
    numbers = torch.tensor([0.5, -0.0, 3.0])
    assert digest(numbers) == digest(numbers.double()) == digest(numbers.bfloat16()) == digest(torch.tensor([.5, 0, 3]))
    assert digest(numbers) != digest(torch.tensor([0.5, 0.0, 3.0 + 1e-6]))


def test_of_a_wide_matrix_whole_columns_are_looked_at():
    matrix = torch.arange(200.0).expand(7, 200)
    assert elements(matrix).shape == (7, 32) and elements(matrix)[0, [0, -1]].tolist() == [0, 199]
    assert elements(matrix[:, :20]).shape == (7, 20) and elements(matrix[0]).shape == (200,)


def test_float32_digests_are_recorded_for_both_precisions(folder):
    recorded = json.loads((folder / "digests.json").read_text())
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        assert recorded[name] == digests_of(load_model(folder, dtype).state_dict().items())
    check_digests(TorchEngine(folder, "float64").load(folder), folder, "float64")


def test_a_stale_tensor_is_named_and_a_name_the_engine_cannot_read_is_said(folder, capsys):
    held = TorchEngine(folder).load(folder)
    stale = held | {"model.norm.weight": "0" * 16}
    with pytest.raises(EngineError, match="in model.norm.weight: 1 of .* tensors are stale"):
        check_digests(stale, folder, "float32")
    held.pop("model.norm.weight")
    check_digests(held, folder, "float32")
    assert "1 of" in (told := capsys.readouterr().err) and "model.norm.weight among them" in told


def test_a_canary_is_the_longest_completions_up_to_its_tokens_under_the_weights_saved(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(round, "CANARY_TOKENS", 20)
    (tmp_path / "rollouts").mkdir()
    rows = random_rollouts([(3, 5), (2, 9), (4, 1), (3, 12), (1, 7)])
    write_rows(tmp_path / "rollouts" / "rollouts.parquet", rows, Rollout)
    (tmp_path / "out").mkdir()
    spec = train_spec([term(divergence="nll", rows="all")], train={"learning_rate": 1e-2})
    with Session() as session:
        round.train_student({"student": folder.parent, "rollouts": tmp_path / "rollouts"}, spec, tmp_path / "out",
                               session)
    new = tmp_path / "out" / "model"
    known = json.loads((new / "canary.json").read_text())
    assert known["completions"] == [rows[3].token_ids, rows[1].token_ids[:8]]
    scored = TorchEngine(new).score(known["prompts"], known["completions"], Want())
    assert [s.sampled.tolist() for s in scored] == [pytest.approx(logprobs, abs=1e-5) for logprobs in known["logprobs"]]
    check_canary(TorchEngine(new), new, "float32")
    with pytest.raises(EngineError, match="nats a token on known completions"):
        check_canary(TorchEngine(folder), new, "float32")  # the weights of before


def test_a_canary_of_nan_does_not_pass(folder):
    write_canary(folder, [[3]], [[4, 5]], [[float("nan"), -1.0]])
    with pytest.raises(EngineError, match="nan nats a token"):
        check_canary(TorchEngine(folder), folder, "float32")


def test_a_session_looks_at_the_canary_of_an_engine_it_opens_too(folder):
    write_canary(folder, [[3]], [[4, 5]], [[-9.0, -9.0]])
    with Session() as session:
        for _ in range(2):  # and again, for what failed is not kept as loaded
            with pytest.raises(EngineError, match="known completions"):
                session.engine("student", folder, {"name": "torch", "dtype": "float32", "batch_tokens": 99})
