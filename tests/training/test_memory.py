"""What stays in memory, how often and until when; and what a stage's peak is said to be."""
import gc
import os
import weakref

import pytest
import torch

from tasks.opd.engines.pool import Session
from tasks.opd.runtime import worker
from tasks.opd.store import artifacts
from tasks.opd.training import round
from tasks.opd.training.trainer import resume
from tasks.stage import run_stage
from tasks.workers import pools
from tests.stages_for_tests import HERE, run_with
from tests.tiny_models import random_rollouts, tiny_llama
from tests.training.test_round import LENGTHS, checkpoint_inputs, rounds, scored_set, signal_of


def test_a_scored_set_keeps_a_signal_once():
    teacher, rollouts = tiny_llama(2), random_rollouts(LENGTHS)
    signal = signal_of(teacher, rollouts)
    given = [weakref.ref(getattr(s, name)) for s in signal for name in ("sampled", "logprobs", "hidden")]
    scored = scored_set(rollouts, signal, teacher)
    expected = torch.cat([s.hidden for s in signal])
    del signal
    gc.collect()
    assert not any(ref() is not None for ref in given)
    assert torch.equal(scored.tokens(torch.arange(24), "cpu")["teacher"].hidden, expected)


def test_a_resident_trainer_is_gone_before_another_is_loaded(tmp_path, monkeypatch):
    session, inputs = Session(), checkpoint_inputs(tmp_path, random_rollouts(LENGTHS))
    rounds(tmp_path, "first", inputs, lambda r: session, count=1, ema_decay=0.9)
    old, left = session.trainer, []
    state = [value for moments in old.optimizer.state.values() for value in moments.values()]
    held = [weakref.ref(tensor) for tensor in (*old.model.parameters(), *state, *old.average.values())]
    del old, state

    def load(*arguments, **options):
        left.append(sum(ref() is not None for ref in held))
        return resume(*arguments, **options)
    monkeypatch.setattr(round, "resume", load)
    rounds(tmp_path, "second", inputs, lambda r: session, count=1, ema_decay=0.9)
    assert left == [0]


def test_no_gradient_stays_after_a_round(tmp_path):
    session, inputs = Session(), checkpoint_inputs(tmp_path, random_rollouts(LENGTHS))
    rounds(tmp_path, "r", inputs, lambda r: session, count=1)
    assert session.trainer.step == 3 and all(p.grad is None for p in session.trainer.model.parameters())


@pytest.mark.parametrize("kind", ["inline", "process"])
def test_an_artifact_states_the_peak_of_its_own_stage(kind):
    with pools.for_run(run_with(kind)) as pool:
        made = [run_stage(f"{HERE}:hungry", {"megabytes": size, "turn": turn}, {}, pool)
                for turn, size in enumerate((1, 200, 1))]
    records = [artifacts.read_record(artifact.path) for artifact in made]
    before, large, after = (record["peak_memory_bytes"]["process"] for record in records)
    assert 180 << 20 <= large - before <= 240 << 20
    if os.access("/proc/self/clear_refs", os.W_OK):
        assert large - after > 150 << 20                             # what was freed is not in the next stage's
    assert made[0].digest == made[2].digest                          # the same bytes, whatever they took to make
    assert worker.device_memory() is not None or "device" not in records[1]["peak_memory_bytes"]


def test_without_proc_the_peak_is_that_of_the_whole_process(monkeypatch):
    def refuse(path, *_):
        raise PermissionError(path)
    monkeypatch.setattr(worker.Path, "read_text", refuse)
    monkeypatch.setattr(worker.Path, "write_text", refuse)
    worker.reset_peak_memory()
    assert worker.peak_memory()["process"] > 10 << 20
