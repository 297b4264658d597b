"""The sampling distribution, the decode loop, scoring, and swapping weights, on a Llama of two layers."""
import weakref

import pytest
import torch

from tasks.opd.engines.api import Want
from tasks.opd.engines.sampling import draw, sampling_logprobs, uniforms_of
from tasks.opd.engines.torch_engine import TorchEngine
from tasks.opd.models.digests import digests_of
from tasks.opd.models.heads import head_of, load_model
from tests.small_llama import save_llama

PROMPTS = [[5, 9, 11], [7], [20, 21, 22, 23, 24, 25, 26, 27], [5, 9, 11], [3, 4, 5, 6]]
SEEDS = [11, 12, 13, 14, 15]
SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def engine(folder):
    return TorchEngine(folder, "float64")


def completions_of(written):
    return [c.token_ids for c in written]


# ---- the distribution

def test_law_top_p_keeps_the_smallest_set_that_reaches_the_mass():
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    # 0.5 + 0.25 = 0.75 >= 0.7: two tokens stay, renormalised to 2/3 and 1/3
    assert sampling_logprobs(logits, top_p=0.7).exp()[0].tolist() == pytest.approx([0, 2 / 3, 0, 1 / 3])
    assert sampling_logprobs(logits, top_p=0.45).exp()[0].tolist() == pytest.approx([0, 1, 0, 0])


def test_law_applies_temperature_then_top_k_then_top_p():
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    # temperature 1/2 squares: 0.01 0.25 0.0225 0.0625; the top 2 stay: 0.8 and 0.2
    assert sampling_logprobs(logits, temperature=0.5, top_k=2).exp()[0].tolist() == pytest.approx([0, 0.8, 0, 0.2])
    one = sampling_logprobs(logits, temperature=0.5, top_k=2, top_p=0.8)
    assert one.exp()[0].tolist() == pytest.approx([0, 1, 0, 0])


def test_draw_is_the_inverse_of_the_cumulative_law_and_never_an_excluded_token():
    logprobs = torch.tensor([0.25, 0.0, 0.5, 0.25, 0.0]).log().expand(6, 5)
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-53], dtype=torch.float64)
    assert draw(logprobs, uniforms).tolist() == [0, 0, 2, 2, 3, 3]


def test_uniforms_depend_on_their_own_seed_only():
    assert torch.equal(uniforms_of([1, 2], 5)[1], uniforms_of([2], 5)[0])
    assert torch.equal(uniforms_of([2], 3)[0], uniforms_of([2], 5)[0, :3])


# ---- generate

def test_generated_logprobs_equal_scored_ones_at_temperature_one(engine):
    written = engine.generate(PROMPTS, SAMPLING, SEEDS)
    scored = engine.score(PROMPTS, completions_of(written), Want())
    for completion, signal in zip(written, scored):
        assert completion.logprobs == pytest.approx(signal.sampled.tolist(), abs=1e-9)


def test_generated_logprobs_are_of_the_law_sampled_from(engine):
    sampling = {**SAMPLING, "temperature": 0.7, "top_k": 5, "top_p": 0.9}
    for prompt, completion in zip(PROMPTS, engine.generate(PROMPTS, sampling, SEEDS)):
        with torch.no_grad():
            logits = engine.model(torch.tensor([prompt + completion.token_ids])).logits[0, len(prompt) - 1:-1, :60]
        expected = sampling_logprobs(logits, 0.7, 0.9, 5).gather(-1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        assert completion.logprobs == pytest.approx(expected.tolist(), abs=1e-9)
        assert torch.isfinite(expected).all()  # nothing excluded was ever drawn


def test_a_completion_does_not_depend_on_its_batch(folder):
    engine = TorchEngine(folder, "float32")
    together = engine.generate(PROMPTS, SAMPLING, SEEDS)
    alone = [engine.generate([p], SAMPLING, [s])[0] for p, s in zip(PROMPTS, SEEDS)]
    small = TorchEngine(folder, "float32", batch_tokens=30).generate(PROMPTS, SAMPLING, SEEDS)
    backwards = engine.generate(PROMPTS[::-1], SAMPLING, SEEDS[::-1])[::-1]
    assert completions_of(together) == completions_of(alone) == completions_of(small) == completions_of(backwards)
    for one, other in zip(together, alone):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_seeds_repeat_and_differ(engine):
    first, again = engine.generate(PROMPTS, SAMPLING, SEEDS), engine.generate(PROMPTS, SAMPLING, SEEDS)
    assert first == again
    assert first[0].token_ids != first[3].token_ids  # one prompt, two seeds


def test_a_lower_limit_gives_the_beginning_of_the_same_completion(engine):
    short = engine.generate(PROMPTS, {**SAMPLING, "max_new_tokens": 4}, SEEDS)
    long = engine.generate(PROMPTS, SAMPLING, SEEDS)
    assert [c.token_ids[:4] for c in long] == completions_of(short)
    assert all(len(c.token_ids) <= 4 for c in short)


def test_greedy_equals_transformers_generate_and_has_logprob_zero(engine):
    for prompt, completion in zip(PROMPTS, engine.generate(PROMPTS, {**SAMPLING, "temperature": 0.0}, SEEDS)):
        out = engine.model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=12, eos_token_id=2,
                                    suppress_tokens=[60, 61, 62, 63])
        assert completion.token_ids == out[0, len(prompt):].tolist()
        assert set(completion.logprobs) == {0.0}


def test_completions_end_with_the_first_of_any_eos_id(tmp_path):
    engine = TorchEngine(save_llama(tmp_path, eos=[2, 17, 30]), "float64")
    assert engine.eos_ids == {2, 17, 30}
    written = engine.generate(PROMPTS * 20, SAMPLING, list(range(100)))
    stopped = [c for c in written if c.finish_reason == "stop"]
    assert {c.token_ids[-1] for c in stopped} == {2, 17, 30}
    assert not any(set(c.token_ids[:-1]) & engine.eos_ids for c in written)
    assert all(len(c.token_ids) == 12 and c.token_ids[-1] not in engine.eos_ids
               for c in written if c.finish_reason == "length")


def test_rows_that_end_early_leave_the_others_unchanged(folder):
    engine = TorchEngine(folder, "float64")
    engine.eos_ids = set()
    endless = engine.generate(PROMPTS * 8, SAMPLING, list(range(40)))
    engine.eos_ids = set(range(0, 60, 3))  # a third of all tokens: rows are dropped at nearly every step
    for full, short in zip(endless, engine.generate(PROMPTS * 8, SAMPLING, list(range(40)))):
        assert short.token_ids == full.token_ids[:len(short.token_ids)]
        assert short.logprobs == pytest.approx(full.logprobs[:len(short.token_ids)], abs=1e-9)


def test_padding_of_the_vocabulary_is_never_written(folder, tmp_path):
    engine = TorchEngine(save_llama(tmp_path, valid=8), "float32")
    written = engine.generate(PROMPTS[:2] * 50, {**SAMPLING, "temperature": 5.0}, list(range(100)))
    assert {t for c in written for t in c.token_ids} == set(range(8))


def test_frequencies_match_the_probabilities(engine):
    written = engine.generate([[5, 9, 11]] * 4000, {**SAMPLING, "max_new_tokens": 1}, list(range(4000)))
    counts = torch.bincount(torch.tensor([c.token_ids[0] for c in written]), minlength=60)
    with torch.no_grad():
        expected = engine.model(torch.tensor([[5, 9, 11]])).logits[0, -1, :60].softmax(-1) * 4000
    # 4 standard deviations of a binomial, at each token
    assert ((counts - expected).abs() <= 4 * expected.sqrt() + 1).all()


def test_generate_refuses_an_empty_prompt(engine):
    with pytest.raises(ValueError, match="no empty prompt"):
        engine.generate([[]], SAMPLING, [0])


def test_a_sliding_window_model_generates_what_it_scores(tmp_path):
    from transformers import MistralConfig, MistralForCausalLM
    torch.manual_seed(0)
    MistralForCausalLM(MistralConfig(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                                     num_attention_heads=2, num_key_value_heads=1, sliding_window=6,
                                     bos_token_id=None, eos_token_id=2, pad_token_id=None)).save_pretrained(tmp_path)
    engine = TorchEngine(tmp_path, "float64")
    written = engine.generate(PROMPTS, SAMPLING, SEEDS)
    for completion, signal in zip(written, engine.score(PROMPTS, completions_of(written), Want())):
        assert completion.logprobs == pytest.approx(signal.sampled.tolist(), abs=1e-9)


# ---- score

def test_score_does_not_depend_on_padding_batching_or_chunks(engine, folder, monkeypatch):
    completions = completions_of(engine.generate(PROMPTS, SAMPLING, SEEDS))
    want = Want(top_k=4, entropy=True, hidden=True)
    together = engine.score(PROMPTS, completions, want)
    alone = [engine.score([p], [c], want)[0] for p, c in zip(PROMPTS, completions)]
    monkeypatch.setattr("tasks.opd.engines.torch_engine.chunk_tokens", lambda vocabulary: 3)
    chunked = TorchEngine(folder, "float64", batch_tokens=40).score(PROMPTS, completions, want)
    for other in (alone, chunked):
        for one, two in zip(together, other):
            for name in ("sampled", "logprobs", "tail", "entropy", "hidden"):
                assert torch.allclose(getattr(one, name), getattr(two, name), atol=1e-9, rtol=0)
            assert torch.equal(one.ids, two.ids)


def test_top_k_and_tail_sum_to_one(engine):
    signal = engine.score(PROMPTS, PROMPTS, Want(top_k=5))[2]
    total = signal.logprobs.exp().sum(-1) + signal.tail.exp()
    assert signal.ids.shape == (8, 5)
    assert total.tolist() == pytest.approx([1.0] * 8, abs=1e-9)
    assert (signal.logprobs.diff(dim=-1) <= 0).all()


def test_a_top_k_of_the_whole_vocabulary_leaves_a_finite_tail(engine):
    signal = engine.score(PROMPTS, PROMPTS, Want(top_k=500))[0]
    assert signal.ids.shape[-1] == 60
    # log(1 - exp(-1e-7)) = -16.118
    assert signal.tail.tolist() == pytest.approx([-16.118] * 3, abs=1e-3)


def test_columns_agree_with_the_model_at_a_temperature(engine):
    prompt, completion = PROMPTS[2], [1, 2, 3]
    with torch.no_grad():
        logits = engine.model(torch.tensor([prompt + completion])).logits[0, 7:10, :60]
    logprobs = torch.log_softmax(logits / 2.0, -1)
    signal = engine.score([prompt], [completion], Want(entropy=True), temperature=2.0)[0]
    assert signal.sampled.tolist() == pytest.approx([logprobs[i, t].item() for i, t in enumerate(completion)], abs=1e-9)
    assert signal.entropy.tolist() == pytest.approx((-(logprobs.exp() * logprobs).sum(-1)).tolist(), abs=1e-9)


def test_hidden_states_through_the_head_give_the_sampled_logprobs(engine, folder):
    signal = engine.score(PROMPTS, PROMPTS, Want(hidden=True))[2]
    head = head_of(load_model(folder, torch.float64), 60)
    logprobs = head.logprobs(signal.hidden)  # with the live weight: gradients may flow
    assert logprobs.gather(-1, torch.tensor(PROMPTS[2])[:, None])[:, 0].tolist() == \
        pytest.approx(signal.sampled.tolist(), abs=1e-9)


def test_bfloat16_hidden_states_are_kept_in_float16_and_agree_with_sampled(folder):
    engine = TorchEngine(folder, "bfloat16")
    signal = engine.score(PROMPTS, PROMPTS, Want(hidden=True))[2]
    assert (signal.hidden.dtype, signal.sampled.dtype) == (torch.float16, torch.float32)
    with torch.no_grad():
        logprobs = head_of(engine.model, 60).to(torch.float32).logprobs(signal.hidden)
    assert logprobs.gather(-1, torch.tensor(PROMPTS[2])[:, None])[:, 0].tolist() == \
        pytest.approx(signal.sampled.tolist(), abs=1e-4)


def test_a_token_outside_the_vocabulary_scores_minus_infinity(engine):
    sampled = engine.score([[5]], [[3, 61, 4]], Want())[0].sampled
    assert torch.isfinite(sampled).tolist() == [True, False, True]


def test_an_empty_completion_has_empty_columns(engine):
    signal = engine.score([[5, 6], [7]], [[], [8, 9]], Want(top_k=3, hidden=True))[0]
    assert (signal.sampled.shape, signal.ids.shape, signal.hidden.shape) == ((0,), (0, 3), (0, 64))


# ---- sleep

def answers(engine):
    """Completions and scores of an engine, all that can be compared to the bit."""
    written = engine.generate(PROMPTS, SAMPLING, SEEDS)
    scored = engine.score(PROMPTS, completions_of(written), Want(top_k=3))
    return written, [column.tolist() for s in scored for column in (s.sampled, s.ids, s.logprobs)]


def answers_around_sleep(engine):
    """What an engine answers before it sleeps, and after it slept twice: whatever is asked next wakes it."""
    told = [answers(engine)]
    for _ in range(2):
        engine.sleep()
        engine.sleep()
        told.append(answers(engine))
    return told


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_engine_that_slept_answers_as_before_to_the_bit(folder, dtype):
    before, *after = answers_around_sleep(TorchEngine(folder, dtype))
    assert after == [before, before]


def test_a_sleeping_engine_gives_up_what_was_made_of_its_weights(folder):
    engine = TorchEngine(folder, "bfloat16")
    answers(engine)
    wide = weakref.ref(engine.scoring_head.weight)  # float32: twice as large as the head itself
    engine.sleep()
    assert wide() is None and engine.model.model.norm.weight.device == engine.device


def test_other_weights_can_be_loaded_into_a_sleeping_engine(folder, tmp_path):
    engine = TorchEngine(folder)
    engine.sleep()
    engine.load(save_llama(tmp_path, seed=1))
    assert answers(engine) == answers(TorchEngine(tmp_path))


# ---- weights

def test_load_copies_weights_into_the_same_tensors(folder, tmp_path):
    engine = TorchEngine(folder)
    before, place = digests_of(engine.model.state_dict().items()), engine.model.model.norm.weight.data_ptr()
    digest = engine.load(save_llama(tmp_path, seed=1))
    assert digest != before and engine.model.model.norm.weight.data_ptr() == place
    assert digest == TorchEngine(tmp_path).load(tmp_path)
    fresh = TorchEngine(tmp_path).score(PROMPTS, PROMPTS, Want())
    assert all(torch.equal(a.sampled, b.sampled) for a, b in zip(engine.score(PROMPTS, PROMPTS, Want()), fresh))


def test_load_of_tied_weights_moves_the_head_too(tmp_path):
    one = save_llama(tmp_path / "one", tie_word_embeddings=True)
    two = save_llama(tmp_path / "two", seed=1, tie_word_embeddings=True)
    engine, fresh = TorchEngine(one), TorchEngine(two)
    place = engine.model.model.norm.weight.data_ptr()
    assert engine.load(two) == digests_of(fresh.model.state_dict().items())
    assert engine.model.model.norm.weight.data_ptr() == place
    assert torch.equal(engine.head.weight, fresh.head.weight)


def test_load_of_another_architecture_builds_anew(folder, tmp_path):
    engine = TorchEngine(folder)
    engine.load(save_llama(tmp_path, num_hidden_layers=3))
    assert len(engine.model.model.layers) == 3
    assert engine.score([[5]], [[6]], Want())[0].sampled.tolist() == \
        TorchEngine(tmp_path).score([[5]], [[6]], Want())[0].sampled.tolist()


def test_the_digest_of_float32_weights_cast_is_that_of_the_cast_model(folder):
    wide, narrow = load_model(folder, torch.float32), load_model(folder, torch.bfloat16)
    assert digests_of(wide.state_dict().items(), torch.bfloat16) == digests_of(narrow.state_dict().items())
    assert digests_of(wide.state_dict().items()) != digests_of(narrow.state_dict().items())
