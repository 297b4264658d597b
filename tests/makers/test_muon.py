"""Muon in float32 does what torch's does in bfloat16, but for bfloat16's rounding."""
import pytest
import torch

from tasks.opd.makers.muon import Muon, orthogonalised


def matrix(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(24, 24), (16, 48), (48, 16)])
def test_singular_vectors_stay_and_singular_values_come_near_one(shape):
    given = matrix(*shape, seed=0)
    left, _, right = torch.linalg.svd(given, full_matrices=False)
    inner = left.T @ orthogonalised(given) @ right.T
    values = inner.diagonal()
    assert torch.allclose(inner, torch.diag(values), atol=1e-4)
    assert 0.6 < values[:-2].min() and values.max() < 1.3    # the smallest of a square one need more rounds
    assert orthogonalised(given * 1e3).dtype == torch.float32
    assert torch.allclose(orthogonalised(given * 1e3), orthogonalised(given), atol=1e-4)


def test_a_gradient_of_zeros_moves_nothing():
    weights = torch.nn.Parameter(matrix(4, 8, seed=0))
    before, weights.grad = weights.detach().clone(), torch.zeros(4, 8)
    Muon([weights], lr=0.1).step()
    assert torch.equal(weights, before)


def test_steps_are_those_of_torchs_muon_but_for_rounding():
    ours, theirs = ([torch.nn.Parameter(matrix(m, n, seed=m)) for m, n in ((16, 48), (48, 16), (32, 32))] for _ in "ab")
    start = [weights.detach().clone() for weights in ours]
    optimizers = Muon(ours, lr=0.02), torch.optim.Muon(theirs, lr=0.02, weight_decay=0.0)
    for step in range(5):
        for optimizer, group in zip(optimizers, (ours, theirs)):
            for i, weights in enumerate(group):
                weights.grad = matrix(*weights.shape, seed=10 * step + i)
            optimizer.step()
    for one, other, before in zip(ours, theirs, start):
        # bfloat16 has 8 bits: a percent or two of what was moved; without momentum or the rate's scale 30 and more
        assert (one - other).norm() < 0.03 * (other - before).norm()
