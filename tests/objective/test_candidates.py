"""Normalised candidates have the gradient of their formula, with the candidates chosen by the sets' own operations."""
import pytest
import torch
from torch import Tensor

from tests.limits import THINK
from tests.objective.test_equivalences import by_hand, gradient


def chosen(how: str, student: Tensor, teacher: Tensor, k: int) -> list[int]:
    """The candidates at one token, by the sets' own operations."""
    ours, theirs = (set(x.topk(k).indices.tolist()) for x in (student, teacher))
    return sorted({"only_student": ours, "only_teacher": theirs, "union": ours | theirs,
                   "intersection": ours & theirs}[how])


@pytest.mark.parametrize("how", ["only_student", "only_teacher", "union", "intersection"])
def test_normalised_candidates_have_the_formulas_gradient(how):
    def loss(teacher, student):
        parts = []
        for aimed, live in zip(teacher, student):
            own = chosen(how, live, aimed, 4)
            old = live[own].detach()
            parts.append(-(old.softmax(-1) * (aimed[own] - old) * live[own]).sum())
        return torch.stack(parts)

    value = gradient(THINK + how, ["terms.0.support.k=4"], "plain", False)
    assert (value - by_hand(loss)).abs().max() < 1e-10 < value.abs().max()
