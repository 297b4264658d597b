"""Preflight is green on a sound pair and red on each of the silent mistakes."""
import json
from pathlib import Path

import pytest
import torch
from tiny_models import random_rollouts, term, tiny_llama, train_spec, write_tokenizer

from tasks.opd import preflight as rooms
from tasks.opd.errors import OpdError, TokenizerMismatch
from tasks.opd.records import Prompt, write_rows
from tasks.opd.session import Session

SAMPLED = term(advantage="teacher_gap", estimator="policy_gradient")
FULL = term(divergence="forward_kl", support="full")


def model_artifact(tmp_path: Path, name: str, seed: int, *, vocabulary: int = 20, noise: float = 0.0) -> Path:
    folder = tmp_path / name / "model"
    folder.mkdir(parents=True)
    model = tiny_llama(seed, vocabulary=vocabulary, dtype=torch.float32)
    if noise:
        for parameter in model.parameters():
            parameter.data += noise * torch.randn_like(parameter)
    model.save_pretrained(folder)
    write_tokenizer(folder, vocabulary)
    return folder.parent


def artifacts(tmp_path: Path, **teacher) -> dict[str, Path]:
    """A student, a teacher near it (as far as pairs are in practice), and four prompts."""
    (tmp_path / "prompts").mkdir()
    prompts = [Prompt(prompt_id=f"p{i}", index=i, text="", token_ids=[2 + i, 5, 7], answer="", solution=None, entry="{}",
                      domain="") for i in range(4)]
    write_rows(tmp_path / "prompts" / "prompts.parquet", prompts, Prompt)
    return {"prompts": tmp_path / "prompts", "student": model_artifact(tmp_path, "student", 1),
            "teacher": model_artifact(tmp_path, "teacher", 1, noise=0.01, **teacher)}


def spec_of(terms, **changes):
    return train_spec(terms, num_prompts=4, sampling={"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 12},
                      engine={"name": "torch", "dtype": "float32", "batch_tokens": 4096}, accepts=[], top_k=0, **changes)


def run(tmp_path, inputs, terms, **changes):
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    with Session() as session:
        rooms.preflight(inputs, spec_of(terms, **changes), out, session)
    return {f["check"]: f for f in json.loads((out / "preflight.json").read_text())}


@pytest.mark.parametrize("terms", [[SAMPLED], [FULL]], ids=["sampled", "full"])
def test_a_sound_pair_is_green(tmp_path, terms):
    found = run(tmp_path, artifacts(tmp_path), terms)
    assert {f["status"] for f in found.values()} == {"green"}
    assert found["shift"]["measured"] > 2 and found["identity"]["measured"] < 1e-6
    assert set(found) == {"masks", "engine against trainer", "vocabulary", "template", "stop tokens", "shift", "identity"}


def test_terms_without_a_teacher_need_none(tmp_path):
    inputs = artifacts(tmp_path)
    del inputs["teacher"]
    found = run(tmp_path, inputs, [term(divergence="nll", rows="all")])
    assert set(found) == {"masks", "engine against trainer"}


def test_a_divergence_that_is_not_zero_at_equality_is_red(tmp_path, monkeypatch):
    def cross_entropy(teacher, student, fold):
        return -(teacher.exp() * student).sum(-1) - student.sum(-1) * 0.01
    monkeypatch.setitem(__import__("tasks.opd.divergences", fromlist=["x"]).DIVERGENCES, "forward_kl", cross_entropy)
    with pytest.raises(OpdError, match="identity"):
        run(tmp_path, artifacts(tmp_path), [FULL])


def test_another_vocabulary_is_named_by_its_first_differing_id(tmp_path):
    with pytest.raises(TokenizerMismatch, match="token id 20 is None to the student and 'w20'"):
        run(tmp_path, artifacts(tmp_path, vocabulary=23), [FULL])


def test_a_teacher_off_by_one_is_red():
    student = [torch.tensor([-0.1, -3.0, -0.2, -5.0]), torch.tensor([-2.0, -0.1, -4.0])]
    near = [s - 0.05 for s in student]
    assert rooms.check_shift(near, student).status == "green"
    assert rooms.check_shift([n.roll(1) for n in near], student).status == "red"


def test_an_engine_with_other_weights_is_red():
    logprobs = torch.full((50,), -1.0)
    assert rooms.check_agreement(logprobs, logprobs + 5e-4, "float32").status == "green"
    assert rooms.check_agreement(logprobs, logprobs + 5e-3, "float32").status == "red"
    assert rooms.check_agreement(logprobs, logprobs + 0.04, "bfloat16").status == "green"
    assert rooms.check_agreement(logprobs, logprobs + 0.2, "bfloat16").status == "red"


def test_other_stop_tokens_are_red_unless_masked_or_accepted():
    assert rooms.check_stops({1}, {1, 2}, [FULL], []).status == "green"
    assert rooms.check_stops({1}, {2}, [FULL], []).status == "red"
    assert rooms.check_stops({1}, {2}, [FULL], ["stop_tokens"]).status == "green"
    masked = term(divergence="forward_kl", support="full", weights=["special_token_mask"])
    assert rooms.check_stops({1}, {2}, [masked], []).status == "green"


def test_masks_hold_on_random_rollouts():
    assert rooms.check_masks(random_rollouts([(3, 5), (1, 1), (7, 2)])).status == "green"
