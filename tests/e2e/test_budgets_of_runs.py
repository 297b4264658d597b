"""Whole runs under a budget, on random tiny models through the tasks, in this process."""
import shutil
from types import SimpleNamespace

import pytest

from tasks.bootstrap import make_models, models_needed
from tasks.grade import grade_rollouts
from tasks.history import round_record
from tasks.opd.core import metrics
from tasks.opd.evaluation.cell_costs import costs_of
from tasks.opd.recipe import loading
from tasks.opd.store import artifacts
from tasks.prompts import make_prompts
from tasks.rollout import write_rollouts
from tasks.score import score_rollouts
from tasks.stage import rounds
from tasks.train import train_student
from tasks.workers import pools

TINY = ["workers=inline", "pair.student=random", "pair.teacher.name=random", "pair.teacher.hidden=96", "rounds=20",
        "prompts.count=64", "rollout.prompts_per_round=8", "rollout.sampling.max_new_tokens=16", "benchmarks=[]"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("OPD_HOME", str(tmp_path))


def run(*overrides: str, variant: str = "opd_reverse_kl") -> SimpleNamespace:
    """A run's checkpoints, what it cost, its learning rates, and the artifacts that it had to make."""
    recipe, history, checkpoints = loading.load(variant, [*TINY, *overrides]), [], []
    with pools.for_run(recipe) as pool:
        models = make_models.fn(recipe.pair, models_needed(recipe), pool)
        student = models["student"]
        prompts = make_prompts.fn(recipe.prompts, student, pool, context_tokens=512, use="train")
        for index in rounds(recipe, pool, history):
            now = recipe.at(index, history)
            written = write_rollouts.fn(now, models, student, prompts, pool, index, history)
            graded = grade_rollouts.fn(now, prompts, written, pool, index)
            scores = score_rollouts.fn(now, models, student, prompts, graded, pool, index)
            student = train_student.fn(now, models, student, graded, scores, pool, index, history)
            history.append(round_record(student, history))
            checkpoints.append(student)
    rates = [point["value"] for one in checkpoints for point in metrics.read(one.path / metrics.FILE)
             if point["key"] == "train/learning_rate"]
    return SimpleNamespace(checkpoints=checkpoints, costs=costs_of(student, []), rates=rates, made=pool.made)


@pytest.mark.parametrize("currency", ["student_written_tokens", "teacher_read_tokens", "trained_tokens"])
def test_every_currency_of_tokens_is_spent_exactly_and_the_learning_rate_runs_over_it(currency):
    found = run(f"budget.{currency}=300", "train.schedule=linear")      # at most 128 a round
    assert found.costs.tokens[currency] == 300 and 2 < len(found.checkpoints) < 20
    peak = found.rates[0]
    assert found.rates == sorted(found.rates, reverse=True) and len({*found.rates}) == len(found.rates)
    spent = costs_of(found.checkpoints[0], []).tokens[currency]         # a step a round: at what the first one left
    assert found.rates[1] == pytest.approx(peak * (1 - spent / 300))


def test_what_the_teacher_writes_is_a_budget_too():
    found = run("budget.teacher_written_tokens=200", variant="seqkd")
    assert found.costs.tokens["teacher_written_tokens"] == 200


def test_seconds_end_a_run_with_the_first_round_past_them_and_a_resumed_run_makes_the_same_rounds():
    found = run("rounds=3")
    first, last = (sum(costs_of(one, []).seconds.values()) for one in (found.checkpoints[0], found.checkpoints[-1]))
    again = run("rounds=3", f"budget.seconds={(first + last) / 2}")     # nothing is made: the records have the seconds
    assert again.made == 0 and again.checkpoints == found.checkpoints[:len(again.checkpoints)]
    spent = [sum(costs_of(one, []).seconds.values()) for one in again.checkpoints]
    assert spent[-1] >= (first + last) / 2 > spent[-2]


def test_a_decay_over_seconds_goes_on_by_the_seconds_of_the_records():
    asked = ["rounds=3", "budget.seconds=1000", "train.schedule=linear"]
    found = run(*asked)
    shutil.rmtree(artifacts.place("checkpoint", found.checkpoints[-1].fingerprint))     # stopped in the last round
    again = run(*asked)
    assert again.made == 1 and again.checkpoints == found.checkpoints and again.rates == found.rates
