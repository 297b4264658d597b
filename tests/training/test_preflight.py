"""Preflight is green on a sound pair and red on each of the silent mistakes."""
import json
from pathlib import Path

import pytest
import torch

from tasks.opd.core.entries import Entry
from tasks.opd.core.errors import OpdError, TokenizerMismatch
from tasks.opd.core.records import Prompt, write_rows
from tasks.opd.engines.pool import Session
from tasks.opd.models.heads import wide
from tasks.opd.objective import divergences
from tasks.opd.training import preflight as rooms
from tasks.opd.training.forward import Forward
from tests.tiny_models import random_rollouts, rollout, term, tiny_llama, train_spec, write_tokenizer

SAMPLED = term(advantage="teacher_gap", estimator="policy_gradient")
ENGINE = {"name": "torch", "dtype": "float32", "batch_tokens": 4096}
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
    prompts = [Prompt(prompt_id=f"p{i}", index=i, text="", token_ids=[2 + i, 5, 7], answer="", solution=None,
                      entry="{}", domain="") for i in range(4)]
    write_rows(tmp_path / "prompts" / "prompts.parquet", prompts, Prompt)
    return {"prompts": tmp_path / "prompts", "student": model_artifact(tmp_path, "student", 1),
            "teacher": model_artifact(tmp_path, "teacher", 1, noise=0.01, **teacher)}


def spec_of(terms, **changes):
    return train_spec(terms, num_prompts=4, accepts=[], filters=[],
                      top_k=max(t["support"]["params"].get("k", 0) for t in terms),
                      sampling={"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 12},
                      engine=ENGINE, scoring_engine=ENGINE, **changes)


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
    assert found["shift"]["measured"] > rooms.SHIFT_MARGIN and found["identity"]["measured"] < 1e-6
    assert set(found) == {"masks", "engine_agreement", "vocabulary", "template", "stop_tokens", "shift", "identity",
                          "pull"}


def test_terms_without_a_teacher_need_none(tmp_path):
    inputs = artifacts(tmp_path)
    del inputs["teacher"]
    found = run(tmp_path, inputs, [term(divergence="nll", rows="all")])
    assert set(found) == {"masks", "engine_agreement"}


def test_a_divergence_that_is_not_zero_at_equality_is_red(tmp_path, monkeypatch):
    def cross_entropy(teacher, student, fold):
        return -(teacher.exp() * student).sum(-1) - student.sum(-1) * 0.01
    monkeypatch.setitem(divergences.DIVERGENCES, "forward_kl", Entry(cross_entropy))
    with pytest.raises(OpdError, match="identity"):
        run(tmp_path, artifacts(tmp_path), [FULL])


def test_where_no_token_counts_the_minimum_cannot_be_judged(tmp_path):
    late = term(support="full", divergence="reverse_kl", weights=[{"name": "skip_first", "tokens": 16}])
    found = run(tmp_path, artifacts(tmp_path), [late])["identity"]
    assert found["status"] == "yellow" and "no token of these few, short rollouts counts" in found["message"]


def test_what_a_recipe_accepts_is_yellow(tmp_path, monkeypatch):
    monkeypatch.setitem(rooms.AGREEMENT, "float32", -1.0)
    with pytest.raises(OpdError, match="engine_agreement"):
        run(tmp_path, artifacts(tmp_path), [FULL])
    spec = spec_of([FULL]) | {"accepts": ["engine_agreement"]}
    with Session() as session:
        assert rooms.preflight({n: tmp_path / n for n in ("prompts", "student", "teacher")}, spec, tmp_path / "out",
                               session)["engine_agreement"] == "yellow"


def test_another_vocabulary_is_named_by_its_first_differing_id(tmp_path):
    with pytest.raises(TokenizerMismatch, match="token id 20 is None to the student and 'w20'"):
        run(tmp_path, artifacts(tmp_path, vocabulary=23), [FULL])


def far(tmp_path: Path) -> dict[str, Path]:
    """A teacher whose student is another model altogether, as far from it as from the teacher moved by a token."""
    inputs = artifacts(tmp_path)
    return inputs | {"student": model_artifact(tmp_path, "stranger", 2)}


@pytest.mark.parametrize("pair", [artifacts, far])
@pytest.mark.parametrize("moved", [-1, 1])
def test_a_teacher_off_by_one_is_red_either_way_however_far_the_student(tmp_path, monkeypatch, pair, moved):
    """The mistake itself: an engine that takes the hidden state of the token after, or before, the right one."""
    from tasks.opd.engines import torch_engine
    sound = torch_engine.TorchEngine.score

    def off_by_one(engine, prompts, completions, want, **ask):
        if not want.hidden:                                     # the student's own scores stay right
            return sound(engine, prompts, completions, want, **ask)
        found = sound(engine, [p[:len(p) - (moved > 0)] for p in prompts],
                      [p[len(p) - (moved > 0):] + c + c[-1:] for p, c in zip(prompts, completions)], want, **ask)
        head = wide(engine.head)
        for signal, completion in zip(found, completions):
            signal.hidden = signal.hidden[:len(completion)] if moved > 0 else signal.hidden[1:]
            signal.sampled = head.logprobs(signal.hidden).gather(1, torch.tensor(completion)[:, None])[:, 0].detach()
        return found
    inputs = pair(tmp_path)
    assert run(tmp_path, inputs, [SAMPLED])["shift"]["status"] == "green"
    monkeypatch.setattr(torch_engine.TorchEngine, "score", off_by_one)
    with pytest.raises(OpdError, match=r"shift: the teacher gives .* -\d.* more than .*Below 0: its engine or server"):
        run(tmp_path, inputs, [SAMPLED])


def test_a_teacher_that_was_never_trained_cannot_be_told_apart_from_a_shifted_one(tmp_path):
    inputs = artifacts(tmp_path)
    model = tiny_llama(1, dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data *= 0.01
    model.save_pretrained(inputs["teacher"] / "model")
    with pytest.raises(OpdError, match="shift: .*Near 0: it was never trained"):
        run(tmp_path, inputs, [SAMPLED])


def test_an_engine_with_other_weights_is_red():
    logprobs = torch.full((50,), -1.0)
    assert rooms.check_agreement(logprobs, logprobs + 5e-4, "float32").status == "green"
    assert rooms.check_agreement(logprobs, logprobs + 5e-3, "float32").status == "red"
    assert rooms.check_agreement(logprobs, logprobs + 0.04, "bfloat16").status == "green"
    assert rooms.check_agreement(logprobs, logprobs + 0.2, "bfloat16").status == "red"


def test_other_stop_tokens_are_red_unless_masked():
    assert rooms.check_stops({1}, {1, 2}, [FULL]).status == "green"
    assert rooms.check_stops({1}, {2}, [FULL]).status == "red"
    masked = term(divergence="forward_kl", support="full", weights=["special_token_mask"])
    assert rooms.check_stops({1}, {2}, [masked]).status == "green"


def test_masks_hold_on_random_rollouts():
    rollouts = random_rollouts([(3, 5), (1, 1), (7, 2)])
    same_prompt = rollouts[0].prompt_token_ids
    rollouts.append(rollout(3, same_prompt, [4, 1]))
    assert all(rooms.check_masks(rollouts, shared).status == "green" for shared in (True, False))


TOP = {"name": "teacher_top_k", "k": 4}
ONE = {"name": "student_top_k", "k": 1, "renormalise": "both"}


def test_a_term_that_teaches_nothing_is_red_although_the_others_hide_it(tmp_path):
    with pytest.raises(OpdError, match=r"pull: terms\.1: the gradient is exactly zero") as caught:
        run(tmp_path, artifacts(tmp_path), [FULL, term(divergence="reverse_kl", support=ONE)])
    assert "identity" not in str(caught.value)  # their sum is as it should be


def test_terms_that_all_teach_pull(tmp_path):
    tail = term(divergence="reverse_kl", support=ONE | {"renormalise": "tail"})
    found = run(tmp_path, artifacts(tmp_path), [FULL, term(divergence="forward_kl", support=TOP), tail])
    assert found["pull"]["status"] == "green" and found["pull"]["measured"] > 0


def test_empty_completions_in_a_group_with_a_baseline_are_yellow_unless_a_filter_drops_them():
    rows = [rollout(0, [5], [7, 1]), rollout(1, [5], [1]), rollout(2, [5], [1, 1]), rollout(3, [5], [1])]
    grpo = term(advantage="grpo", estimator="policy_gradient")
    found, = rooms.check_empty(rows, [FULL, grpo], [])
    assert found.status == "yellow" and found.measured == 0.5 and "2 of 4 completions are empty" in found.message
    malformed = {"name": "malformed", "params": {}}
    assert [f.status for f in rooms.check_empty(rows, [grpo], [malformed])] == ["green"]
    assert [f.status for f in rooms.check_empty(rows[::2], [grpo], [])] == ["green"]
    assert rooms.check_empty(rows, [FULL], []) == []


def test_the_students_body_reads_once_in_the_recipes_own_batches(tmp_path, monkeypatch):
    """What else is looked for is in the hidden states; other batches find the same."""
    inputs, found = artifacts(tmp_path), []
    for effort in ({"micro_batch_tokens": 10_000, "chunk_tokens": 1000}, {"micro_batch_tokens": 20, "chunk_tokens": 5}):
        bodies, heads = [], []
        whole, head = Forward.micro_batches, Forward.student

        def read(forward, batch, wanted, whole=whole, bodies=bodies):
            bodies.append([])
            for hidden, flat in whole(forward, batch, wanted):
                bodies[-1].append(len(flat))
                yield hidden, flat

        def student(forward, hidden, flat, head=head, heads=heads):
            heads.append(len(flat))
            return head(forward, hidden, flat)
        with monkeypatch.context() as patch:
            patch.setattr(Forward, "micro_batches", read)
            patch.setattr(Forward, "student", student)
            found.append(run(tmp_path, inputs, [SAMPLED, FULL], effort=effort))
        assert len(bodies) == 1
        assert (len(bodies[0]) > 1, max(heads) <= 5) == (effort["chunk_tokens"] == 5,) * 2
    for name in ("engine_agreement", "identity", "pull"):
        assert found[0][name]["measured"] == pytest.approx(found[1][name]["measured"], rel=1e-6, abs=1e-9)


def test_completions_are_short_whatever_the_recipe_writes():
    assert [rooms.limit_of({"sampling": {"max_new_tokens": asked}}) for asked in (512, 4)] == [16, 4]


def test_each_tokenizer_is_read_once_and_every_models_is_compared(tmp_path, monkeypatch):
    from transformers import AutoTokenizer
    inputs, read, sound = artifacts(tmp_path), [], AutoTokenizer.from_pretrained
    inputs |= {"model:self": inputs["student"], "model:expert": model_artifact(tmp_path, "expert", 3, vocabulary=23)}
    monkeypatch.setattr(AutoTokenizer, "from_pretrained",
                        lambda folder, **options: read.append(Path(folder).parent.name) or sound(folder, **options))
    assert set(rooms.tokenizers_of(inputs)) == {"student", "teacher", "model:self", "model:expert"}
    assert sorted(read) == ["expert", "student", "teacher"]
    with pytest.raises(TokenizerMismatch, match="token id 20"):
        run(tmp_path, inputs, [FULL])


def test_another_chat_template_is_yellow(tmp_path):
    inputs = artifacts(tmp_path)
    (inputs["teacher"] / "model" / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    assert run(tmp_path, inputs, [FULL])["template"]["status"] == "yellow"
