"""The exact divergences of two models on given answers: their values, which answers count, and what lives at once."""
import gc
import json

import pytest
import torch

from tasks.bootstrap import make_models
from tasks.evaluate import evaluate_student
from tasks.opd.core.errors import NonFinite
from tasks.opd.core.records import Sample, read_rows
from tasks.opd.core.seeds import derive_seed
from tasks.opd.engines.torch_engine import TorchEngine
from tasks.opd.evaluation import teacher_divergence as module
from tasks.opd.evaluation.teacher_divergence import chosen_answers, slices, teacher_divergence
from tasks.opd.recipe import loading
from tasks.opd.store import artifacts
from tasks.prompts import make_prompts
from tasks.workers import pools
from tests.tiny_models import random_rollouts, tiny_llama, write_tokenizer


@pytest.fixture
def engines(tmp_path):
    out = []
    for seed in (1, 2):
        tiny_llama(seed, dtype=torch.float32).save_pretrained(tmp_path / str(seed))
        write_tokenizer(tmp_path / str(seed))
        out.append(TorchEngine(tmp_path / str(seed), dtype="float64", device="cpu"))
    return out


def asked(lengths: list[tuple[int, int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Random prompts and completions of these lengths."""
    rows = random_rollouts(lengths)
    return [r.prompt_token_ids for r in rows], [r.token_ids for r in rows]


def test_means_are_those_of_the_models_own_logits(engines):
    student, teacher = engines
    prompts, completions = asked([(3, 5), (2, 2)])
    values = teacher_divergence(student, teacher, prompts, completions)
    kls, tokens = 0.0, 0
    for prompt, completion in zip(prompts, completions):               # by transformers' own logits, one row at a time
        ids = torch.tensor([prompt + completion])
        with torch.no_grad():
            q, p = (e.model(ids).logits[0, len(prompt) - 1:-1].log_softmax(-1) for e in (student, teacher))
        kls, tokens = kls + (q.exp() * (q - p)).sum().item(), tokens + len(completion)
    assert values["reverse_kl_mean_nats"] == pytest.approx(kls / tokens, abs=1e-9)
    assert values["reverse_kl_mean_nats"] != pytest.approx(values["forward_kl_mean_nats"], abs=1e-3)
    assert values["divergence_tokens"] == tokens == 7


def test_a_model_is_at_distance_zero_from_itself(engines):
    values = teacher_divergence(engines[0], engines[0], *asked([(3, 5)]))
    assert abs(values["reverse_kl_mean_nats"]) < 1e-12 and values["student_entropy_mean_nats"] > 0


def test_without_a_token_there_is_no_mean(engines):
    alone = {"divergence_tokens": 0}
    assert teacher_divergence(*engines, [], []) == teacher_divergence(*engines, [[5], [6]], [[], []]) == alone


def test_slices_change_nothing(engines, monkeypatch):
    given = asked([(3, 5), (2, 2), (4, 1), (1, 9), (3, 3)])
    whole = teacher_divergence(*engines, *given)
    for tokens in (1, 4, 10):
        monkeypatch.setattr(module, "SLICE_TOKENS", tokens)
        monkeypatch.setattr(module, "chunk_tokens", lambda vocabulary: 3)
        assert teacher_divergence(*engines, *given) == pytest.approx(whole, abs=1e-12)


def test_a_slice_holds_whole_completions_and_a_longer_one_goes_alone(monkeypatch):
    monkeypatch.setattr(module, "SLICE_TOKENS", 10)
    assert slices([4, 6, 1, 30, 0, 10, 5]) == [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 6), slice(6, 7)]
    assert slices([10]) == [slice(0, 1)] and slices([]) == []


def hidden_states(width: int) -> list[torch.Tensor]:
    """What is alive of the shape [n, width]; weights are parameters."""
    gc.collect()
    found = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor]
    return [t for t in found if t.ndim == 2 and t.shape[1] == width]


def rows_of(tensors: list[torch.Tensor]) -> int:
    """Tokens whose hidden states these are, those of views once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() // (t.shape[1] * t.element_size())
                for t in tensors}.values())


class Watched:
    """An engine that notes how many tokens' hidden states live whenever it has scored."""

    def __init__(self, engine, seen: list[int]):
        self.engine, self.head, self.seen = engine, engine.head, seen

    def score(self, *given, **options):
        signals = self.engine.score(*given, **options)
        self.seen.append(rows_of(hidden_states(signals[0].hidden.shape[1])))
        return signals


def test_hidden_states_of_one_slice_live_at_once(engines, monkeypatch):
    monkeypatch.setattr(module, "SLICE_TOKENS", 10)
    seen, before = [], hidden_states(64)            # held: none of another test's goes meanwhile
    teacher_divergence(*(Watched(engine, seen) for engine in engines), *asked([(2, 5)] * 4))
    # two slices of 10 tokens: the student's, then with them the teacher's
    assert [rows - rows_of(before) for rows in seen] == [10, 20] * 2


def test_a_student_that_is_not_finite_is_named(engines):
    student, teacher = engines
    student.model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(NonFinite, match="the student's log-probabilities of the student's answers are not finite"):
        teacher_divergence(student, teacher, *asked([(3, 5)]))


def answers(*given: tuple[str, int, int]) -> list[Sample]:
    """Answers of (question, sample, tokens)."""
    return [Sample(benchmark="b", prompt_id=name, sample_index=index, token_ids=[5] * tokens, text="", reward=0.0,
                   feedback=None, finish_reason="stop") for name, index, tokens in given]


def test_answers_are_taken_whole_in_an_order_of_questions_that_is_not_the_files():
    samples = answers(*((f"q{i}", k, 4) for i in range(50) for k in range(2)))

    def taken(samples: list[Sample], max_tokens: int) -> list[tuple[str, int]]:
        return [(samples[i].prompt_id, samples[i].sample_index) for i in chosen_answers(samples, max_tokens)]
    few = taken(samples, 43)                                            # ten answers of 4 tokens, not an eleventh
    assert len(few) == 10 and {index for _, index in few} == {0}
    assert [name for name, _ in few] != [f"q{i}" for i in range(10)]
    assert sorted(taken(samples[::-1], 43)) == sorted(few)              # whatever the order of the file
    more = taken(samples, 4 * 60)
    assert set(few) < set(more) and sum(index == 0 for _, index in more) == 50 and len(more) == 60
    assert chosen_answers(samples, 0) == chosen_answers(samples, 400) == list(range(100))


def test_the_first_answer_that_does_not_fit_ends_the_subset():
    one, two, three = (name for name, _, _ in sorted(
        (("a", 0, 1), ("b", 0, 1), ("c", 0, 1)), key=lambda given: derive_seed(given[0])))
    samples = answers((one, 0, 6), (two, 0, 5), (three, 0, 1))
    assert chosen_answers(samples, 10) == [0] and chosen_answers(samples, 11) == [0, 1]


RECIPE = ["workers=inline", "pair.student=random", "pair.teacher={name: random, hidden: 96}", "benchmarks.0.count=6",
          "benchmarks.0.sampling.max_new_tokens=8", "benchmarks.0.samples=2"]


@pytest.fixture
def report_on():
    """Reports of a random student, with its divergence to a random teacher, through the task."""
    def report(*overrides: str):
        recipe = loading.load("opd_reverse_kl", [*RECIPE, *overrides])
        with pools.for_run(recipe) as pool:
            models = make_models.fn(recipe.pair, {"student", "teacher"}, pool)
            prompts = make_prompts.fn(recipe.benchmarks[0], models["student"], pool, context_tokens=128, use="test")
            reports, _ = evaluate_student.fn(recipe, models["student"], {"tiny": prompts}, pool, when="end",
                                             teacher=models["teacher"])
            return reports["tiny"], pool.made
    return report


def test_answers_outlive_a_divergence_that_fails_and_are_not_written_again(report_on, monkeypatch):
    measure = module.teacher_divergence

    def fail(*given, **options):
        raise NonFinite("the teacher's log-probabilities are not finite")
    monkeypatch.setattr(module, "teacher_divergence", fail)
    with pytest.raises(NonFinite):
        report_on()
    [kept] = (artifacts.home() / "artifacts/report").glob("[!.]*")
    assert len(read_rows(kept / "samples.parquet", Sample)) == 12
    monkeypatch.setattr(module, "teacher_divergence", measure)
    report, made = report_on()
    assert made == 1 and report.path == kept                            # the divergence alone
    assert report.counts["reverse_kl_mean_nats"] > 0 and report.counts["avg"] == 0


def test_a_limit_on_tokens_is_kept_told_and_makes_no_answer_anew(report_on):
    whole, _ = report_on()
    samples = read_rows(whole.path / "samples.parquet", Sample)
    assert whole.counts["divergence_tokens"] == sum(len(sample.token_ids) for sample in samples)
    few, made = report_on("benchmarks.0.divergence_max_tokens=20")
    assert made == 1 and few.path == whole.path and 12 < few.counts["divergence_tokens"] <= 20
    assert few.counts["reverse_kl_mean_nats"] != whole.counts["reverse_kl_mean_nats"]
    told = [json.loads((path / "divergence.json").read_text())
            for path in (artifacts.home() / "artifacts/divergence").glob("[!.]*")]
    least = min(told, key=lambda part: part["counts"]["divergence_tokens"])
    lengths = {(sample.prompt_id, sample.sample_index): len(sample.token_ids) for sample in samples}
    assert sum(lengths[name, index] for name, index in least["answers"]) == few.counts["divergence_tokens"]
    assert {index for _, index in least["answers"]} == {0}
