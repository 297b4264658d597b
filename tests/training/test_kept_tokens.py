"""What training keeps of single tokens: the weights and advantages that it multiplied with, of some rollouts."""
import math
from dataclasses import replace

import pytest
import torch

from tasks.opd.core.token_columns import FILE, SCHEMA, TokenColumns, evenly, read, write
from tasks.opd.objective.columns import Candidates
from tasks.opd.objective.terms import bind_terms
from tasks.opd.training import kept_tokens as module
from tasks.opd.training.kept_tokens import advantage_written, kept_tokens
from tests.tiny_models import prepared, rollout, term, with_teacher

ROLLOUTS = [rollout(0, [2], [3, 4, 1], reward=1.0), rollout(1, [2], [5, 1], reward=0.0)]
TEACHER = [torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-0.5, -1.5])]
TERMS = [term(advantage="teacher_gap", estimator="policy_gradient", weights=[{"name": "skip_first", "tokens": 1}]),
         term(divergence="nll", rows="succeeded")]


def kept(rollouts=ROLLOUTS) -> list[TokenColumns]:
    columns = with_teacher(rollouts, teacher=TEACHER, old_logprobs=torch.full((5,), -1.0))
    terms = bind_terms(TERMS)
    return kept_tokens(terms, [prepared(one, columns) for one in terms], columns, rollouts)


def test_a_terms_weights_and_advantages_are_kept_for_the_rollouts_that_it_learns_of():
    first, succeeded, second = kept()
    # the gap is teacher - student, -1 each; the first token of a completion weighs nothing
    assert (first.rollout_id, first.term, first.weight) == ("r0", "teacher_gap", [0, 1, 1])
    assert first.advantage == pytest.approx([0.0, -1.0, -2.0])
    assert (succeeded.rollout_id, succeeded.term, succeeded.weight, succeeded.advantage) == ("r0", "nll", [1] * 3, None)
    assert (second.rollout_id, second.weight) == ("r1", [0, 1]) and second.advantage == pytest.approx([0.5, -0.5])


def test_tokens_that_a_term_does_not_learn_have_no_advantage_and_no_weight():
    mixed = [rollout(0, [2], [3, 4, 1], author=[0, 1, 0], reward=1.0), ROLLOUTS[1]]
    first = kept(mixed)[0]
    assert first.weight == [0, 0, 1] and [math.isnan(value) for value in first.advantage] == [False, True, False]


def test_of_candidates_the_token_written_has_its_own_advantage_or_none():
    columns = with_teacher(ROLLOUTS, teacher=TEACHER, old_logprobs=torch.full((5,), -1.0))
    took = prepared(bind_terms(TERMS[:1])[0], columns)
    ids = torch.tensor([[3, 9], [9, 4], [9, 8], [5, 9], [1, -1]])
    blank = torch.zeros(5, 2)
    took = replace(took, advantage=torch.arange(10.0).view(5, 2),
                   candidates=Candidates(ids=ids, student=blank, target=blank))
    found = advantage_written(took, columns, slice(0, 5))
    assert found[[0, 1, 3, 4]].tolist() == [0, 3, 6, 8] and found[2].isnan()


def test_few_rollouts_and_only_their_beginnings_are_kept(monkeypatch):
    monkeypatch.setattr(module, "COUNT", 1)
    monkeypatch.setattr(module, "TOKENS", 2)
    assert [(one.rollout_id, one.term, len(one.weight)) for one in kept()] == [("r0", "teacher_gap", 2),
                                                                               ("r0", "nll", 2)]
    assert evenly(list(range(10)), 4) == [0, 2, 5, 7] and evenly([1], 4) == [1]


def test_what_is_written_is_read_in_single_precision(tmp_path):
    rows = [TokenColumns(rollout_id="a", term="nll", weight=[0.5, 0.25], advantage=None),
            TokenColumns(rollout_id="a", term="gap", weight=[1.0], advantage=[0.1])]
    write(tmp_path / FILE, rows)
    again = read(tmp_path / FILE)
    assert again[0] == rows[0] and again[1].advantage == pytest.approx([0.1])
    assert SCHEMA.field("weight").type.value_type.bit_width == 32 and read(tmp_path / "none") == []
