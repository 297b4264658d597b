"""What stays in memory, how often and until when; and what a stage's peak is said to be."""
import gc
import weakref

import torch
from test_training import LENGTHS, checkpoint_inputs, rounds, scored_set, signal_of
from tiny_models import random_rollouts, tiny_llama

from tasks.opd import training
from tasks.opd.session import Session
from tasks.opd.trainer import resume


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
    monkeypatch.setattr(training, "resume", load)
    rounds(tmp_path, "second", inputs, lambda r: session, count=1, ema_decay=0.9)
    assert left == [0]


def test_no_gradient_stays_after_a_round(tmp_path):
    session, inputs = Session(), checkpoint_inputs(tmp_path, random_rollouts(LENGTHS))
    rounds(tmp_path, "r", inputs, lambda r: session, count=1)
    assert session.trainer.step == 3 and all(p.grad is None for p in session.trainer.model.parameters())
