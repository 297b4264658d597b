"""What a round of training reports: weights, advantages, ratios and gaps, under the same names in every variant."""
import copy
import math

import pytest
import torch

from tasks.opd.engines.pool import Session
from tasks.opd.objective.columns import columns_of
from tasks.opd.objective.loss import Stats, note_ratio
from tasks.opd.objective.terms import bind_terms
from tasks.opd.objective.weights import WEIGHTS
from tasks.opd.training.forward import Forward
from tasks.opd.training.prepass import collect
from tasks.opd.training.round import start_round, train_round
from tasks.opd.training.trainer import Trainer, new_optimizer
from tests.tiny_models import random_rollouts, term, tiny_llama, train_spec
from tests.training.test_round import LENGTHS, scored_by, scored_set, signal_of, specs_of


@pytest.fixture(scope="module")
def pair():
    return tiny_llama(1), tiny_llama(2), random_rollouts(LENGTHS)


def trained(student, scored, terms, **train):
    """The metrics of one round of training a copy of a student: [(step, values)]."""
    spec, points = train_spec(terms, train=train), []
    model = copy.deepcopy(student)
    trainer = Trainer(model=model, optimizer=new_optimizer(model, spec["train"]), average=None, step=0, tokens_seen=0,
                      source=("", 0), settings={})
    with Session().progress(1, "train", "steps") as bar:
        counts = train_round(trainer, scored, spec, frozenset({1}), lambda step, values: points.append((step, values)),
                             bar)
    return counts, points, model


@pytest.mark.parametrize("name", [name for name in WEIGHTS if name != "uniform"])
def test_every_weight_reports_its_mean_its_largest_value_and_its_share_of_zeros(pair, name):
    student, teacher, rollouts = pair
    spec = term(divergence="reverse_kl", support="full", weights=["uniform", name], rows="failed")
    spec["weights"] = [{"name": "uniform", "params": {}}, {"name": name, "params": {}}]
    _, points, _ = trained(student, scored_by(teacher, rollouts), [spec])
    columns_spec = train_spec([spec])
    _, (took,) = start_round(student, scored_by(teacher, rollouts), bind_terms([spec]), columns_spec, frozenset({1}))
    own, report = took.weight[took.mask], points[0][1]
    said = {key: report.get(f"train/reverse_kl/{name}_{key}") for key in ("mean", "largest", "zero_share")}
    assert said == pytest.approx({"mean": own.mean().item(), "largest": own.max().item(),
                                  "zero_share": (own == 0).double().mean().item()})
    assert report["train/reverse_kl/row_share"] == pytest.approx(3 / 5)             # rewards 0, 1, 0, 1, 0
    assert not any("uniform" in key for _, values in points for key in values)


def test_what_a_weight_found_arrives_in_the_rounds_metrics(pair):
    student, teacher, rollouts = pair
    weights = [{"name": "high_entropy", "share": 0.5}, {"name": "perplexity", "model": "teacher", "power": -1.0}]
    spec = term(divergence="nll", weights=weights)
    report = trained(student, scored_by(teacher, rollouts), [spec])[1][0][1]
    (columns,) = collect(Forward(student, rollouts, columns_of(rollouts), train_spec([spec])), bind_terms([spec]),
                          scored_by(teacher, rollouts))
    entropy = columns.entropy.sort().values
    assert report["train/nll/high_entropy_threshold_nats"] == pytest.approx(entropy[len(entropy) // 2].item())
    means = columns.per_rollout(columns.teacher) / columns.lengths
    assert report["train/nll/perplexity_of_rollouts"] == pytest.approx((-means).exp().mean().item())


def test_weights_of_one_name_report_apart(pair):
    student, teacher, rollouts = pair
    twice = [{"name": "skip_first", "tokens": 1}, {"name": "skip_first", "tokens": 2}]
    report = trained(student, scored_by(teacher, rollouts), [term(divergence="nll", weights=twice)])[1][0][1]
    # of 24 tokens in 5 rollouts, one of which has a single token
    assert report["train/nll/skip_first_zero_share"] == pytest.approx(5 / 24)
    assert report["train/nll/skip_first_1_zero_share"] == pytest.approx(9 / 24)


@pytest.mark.parametrize("spec", [
    {"advantage": "teacher_gap", "estimator": "policy_gradient"},
    {"advantage": "candidate_gap", "estimator": "candidate_policy_gradient", "support": {"name": "union", "k": 3}}])
def test_advantages_report_mean_size_and_share_of_negative_ones(pair, spec):
    student, teacher, rollouts = pair
    report = trained(student, scored_by(teacher, rollouts), [term(**spec, rows="succeeded")])[1][0][1]
    _, (took,) = start_round(student, scored_by(teacher, rollouts), bind_terms([term(**spec, rows="succeeded")]),
                             train_spec([]), frozenset())
    worth, label = took.advantage[took.mask], f"train/{spec['advantage']}"
    assert report[f"{label}/advantage_mean"] == pytest.approx(worth.mean().item())
    assert report[f"{label}/advantage_size"] == pytest.approx(worth.abs().mean().item())
    assert report[f"{label}/advantage_negative_share"] == pytest.approx((worth < 0).double().mean().item())
    largest = worth.abs().flatten().sort(descending=True).values[:math.ceil(worth.numel() / 100)].sum()
    assert report[f"{label}/advantage_top1_share"] == pytest.approx((largest / worth.abs().sum()).item())
    assert report[f"{label}/row_share"] == pytest.approx(2 / 5) and 0 < report[f"{label}/advantage_negative_share"] < 1


@pytest.mark.parametrize("spec", [
    {"advantage": "teacher_gap", "estimator": {"name": "policy_gradient", "clip_low": 0.2}},
    {"advantage": "candidate_gap", "support": {"name": "intersection", "k": 4},
     "estimator": {"name": "candidate_policy_gradient", "clip_low": 0.2, "clip_high": 0.3}},
    {"divergence": "reverse_kl", "support": "full", "estimator": {"name": "exact", "ratio_cap": 1.1}}])
def test_ratios_are_one_at_first_and_clipped_after_several_steps(pair, spec):
    student, teacher, rollouts = pair
    _, points, _ = trained(student, scored_by(teacher, rollouts), [term(**spec)], learning_rate=3e-4, epochs=4)
    label = f"train/{spec.get('advantage') or spec.get('divergence')}"
    means, shares = ([values[f"{label}/{key}"] for _, values in points if f"{label}/{key}" in values]
                     for key in ("ratio_mean", "ratio_clipped_share"))
    assert len(means) == len(shares) == 4
    assert means[0] == pytest.approx(1, abs=1e-12) and shares[0] == 0
    assert abs(means[-1] - 1) > 1e-3 and 0 < shares[-1] < 1


def test_the_share_of_clipped_candidates_is_of_those_that_are_there():
    bound, = bind_terms([term(advantage="candidate_gap", support="union",
                              estimator={"name": "candidate_policy_gradient", "clip_low": 0.2})])
    old = torch.tensor([[0.5, 0.25, 0.0, 0.0]]).log()
    live, worth, stats = torch.tensor([[0.75, 0.25, 0.0, 0.0]]).log(), torch.tensor([[1.0, 1.0, 0.0, 0.0]]), Stats()
    note_ratio(bound, worth, live, old, stats)
    assert stats.means()["candidate_gap/ratio_clipped_share"] == 0.5                # one of two, not of four
    assert stats.means()["candidate_gap/ratio_mean"] == pytest.approx(1.25)


def test_full_support_terms_tell_the_teachers_gap(pair):
    student, teacher, rollouts = pair
    spec = term(divergence="forward_kl", support="full")
    values = trained(student, scored_by(teacher, rollouts), [spec])[1][1][1]
    gap = torch.cat([t.sampled - s.sampled for t, s in zip(signal_of(teacher, rollouts), signal_of(student, rollouts))])
    found = {key: value for key, value in values.items() if "teacher_gap" in key}
    assert found == pytest.approx({"train/forward_kl/teacher_gap_mean_nats": gap.mean().item(),
                                   "train/forward_kl/teacher_gap_size_nats": gap.abs().mean().item()})


def test_a_round_in_which_nobody_had_a_signal_leaves_the_student_as_it_was(pair):
    student, teacher, rollouts = pair
    silent = scored_set(rollouts, [None] * 5, teacher)
    sdpo = specs_of("sdpo", "teacher.model=teacher", "teacher.refresh=frozen")
    counts, points, model = trained(student, silent, sdpo, weight_decay=0.0)
    assert counts["trained_tokens"] == 0 and counts["loss"] == 0 and points[0][1]["train/jsd/row_share"] == 0
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), student.parameters()))
