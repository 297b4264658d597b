"""Muon in float32: momentum whose matrix is made orthogonal before each step.

torch's own multiplies in bfloat16, at 20 to 40 times the price on a CPU that has no instructions for it, where it took
two thirds of a step of pretraining. Left out: weight decay, and other ways to scale the rate.
"""
import torch
from torch import Tensor

A, B, C = 3.4445, -4.7750, 2.0315   # of the quintic x -> A x + B x^3 + C x^5, as torch's
ROUNDS = 5
MOMENTUM = 0.95


class Muon(torch.optim.Optimizer):
    """For matrices [m, n]: w -= lr * sqrt(max(1, m / n)) * orthogonalised(Nesterov's momentum of the gradient).

    Source: Jordan et al., 2024 (kellerjordan.github.io/posts/muon), and torch.optim.Muon without weight decay.
    """

    def __init__(self, matrices: list[Tensor], lr: float):
        super().__init__(matrices, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:
        """One step on the gradients at hand."""
        for group in self.param_groups:
            for matrix in group["params"]:
                state, (rows, columns) = self.state[matrix], matrix.shape
                mean = state.setdefault("mean", torch.zeros_like(matrix)).lerp_(matrix.grad, 1 - MOMENTUM)
                update = orthogonalised(matrix.grad.lerp(mean, MOMENTUM))
                matrix.sub_(update, alpha=group["lr"] * max(1.0, rows / columns) ** 0.5)


def orthogonalised(matrix: Tensor) -> Tensor:
    """A matrix [m, n] with its singular vectors, and singular values near one (0.7 to 1.2): Newton-Schulz rounds."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x.T if matrix.shape[0] > matrix.shape[1] else x
