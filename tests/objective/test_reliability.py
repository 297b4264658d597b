"""Reliability of a teacher's advice: worked values, its ends, and the two halves into which it splits tokens."""
import math

import pytest
import torch

from tasks.opd.models.heads import Head
from tasks.opd.objective.reliability import reliability
from tasks.opd.objective.supports import StudentTokens, TeacherTokens
from tasks.opd.objective.weights import WEIGHTS
from tests.column_fixtures import columns

INF = math.inf


def of(student: list[float], teacher: list[float], k: int) -> float:
    """Reliability at one token, of probabilities."""
    logs = torch.tensor([teacher], dtype=torch.float64).log()
    head = Head(weight=torch.eye(len(teacher), dtype=torch.float64), bias=None, scale=1.0, softcap=None,
                num_valid=len(teacher))
    said = TeacherTokens(hidden=logs.clamp(min=-800), head=head, num_tokens=1)
    ours = StudentTokens(logits=torch.tensor([student], dtype=torch.float64).log(), token_ids=torch.tensor([0]))
    return float(reliability(ours, said, k))


@pytest.mark.parametrize("student, teacher, k, expected", [
    ([0.6, 0.3, 0.1], [0.0, 1.0, 0.0], 2, 1.0),                  # it means the student's second choice: within reach
    ([0.6, 0.3, 0.1], [0.0, 0.0, 1.0], 2, 0.0),                  # it means what the student does not consider
    ([0.6, 0.3, 0.1], [0.5, 0.5, 0.0], 2, 0.0),                  # it prefers neither
    ([0.6, 0.3, 0.1], [0.6, 0.2, 0.2], 2, 0.8 * (1 - 0.562335 / math.log(2))),
    ([0.6, 0.3, 0.1], [0.6, 0.2, 0.2], 1, 0.6),                  # of one candidate it is the mass
    ([0.6, 0.3, 0.1], [0.7, 0.2, 0.1], 9, 1 - 0.801819 / math.log(3))])  # no more candidates than tokens
def test_worked_values(student, teacher, k, expected):
    assert of(student, teacher, k) == pytest.approx(expected, abs=1e-6)


def test_a_threshold_parts_tokens_in_two_and_its_ends_leave_one_part_empty():
    given = {"reliability:16": [0.2, 0.5, 0.9, math.nan], "mask": [True, True, True, False]}

    def kept(**params):
        weight, found = WEIGHTS["reliable"](columns([4], **given), **params)
        return weight.tolist(), found
    assert kept(threshold=0.5) == ([0, 1, 1, 0], {"kept_share": pytest.approx(2 / 3),
                                                  "reliability_mean": pytest.approx(1.6 / 3)})
    assert kept(threshold=0.5, keep="rest")[0] == [1, 0, 0, 0]
    assert kept(threshold=0.0)[0] == [1, 1, 1, 0] and kept(threshold=0.0, keep="rest")[0] == [0] * 4
    assert kept(threshold=1.1)[0] == [0] * 4 and kept(threshold=1.1, keep="rest")[0] == [1, 1, 1, 0]
