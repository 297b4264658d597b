"""A head's own gradients against autograd, with everything that may follow the product, and its products' precision."""
import pytest
import torch

from tasks.opd.models.heads import Head, float32_products

V, D, N = 11, 6, 5


def head_of_shape(dtype=torch.float64, **changes) -> Head:
    """A head with a live weight; ids from 9 on are padding."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(V, D, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()
    bias = torch.randn(V, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()
    return Head(**{"weight": weight, "bias": bias, "scale": 1.0, "softcap": None, "num_valid": 9, **changes})


@pytest.mark.parametrize("changes", [{}, {"scale": 0.5}, {"softcap": 3.0}, {"bias": None, "softcap": 2., "scale": 2.}])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_gradients_are_those_of_autograd_and_are_added(changes, temperature):
    head, hidden = head_of_shape(**changes), torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    own = [p for p in (head.weight, head.bias) if p is not None]
    logits, slope = head.logits(hidden, temperature), torch.randn(N, 9, dtype=torch.float64)
    expected = torch.autograd.grad(logits, [hidden, *own], slope)
    found = head.backward(hidden.detach(), logits.detach(), slope.clone(), temperature)
    assert torch.allclose(found, expected[0], atol=1e-12)
    assert all(torch.allclose(p.grad, g, atol=1e-12) for p, g in zip(own, expected[1:]))
    head.backward(hidden.detach(), logits.detach(), slope.clone(), temperature)
    assert all(torch.allclose(p.grad, 2 * g, atol=1e-12) for p, g in zip(own, expected[1:]))


def test_a_frozen_head_gets_no_gradient():
    head = head_of_shape(bias=None)
    head.weight.requires_grad_(False)
    assert head.backward(torch.ones(N, D).double(), torch.zeros(N, 9), torch.ones(N, 9).double()).abs().sum() > 0
    assert head.weight.grad is None


def test_the_precision_of_products_is_as_before_afterwards():
    before = torch.get_float32_matmul_precision()
    with pytest.raises(RuntimeError), float32_products(may_round=True):
        assert torch.get_float32_matmul_precision() == "medium"
        raise RuntimeError
    assert torch.get_float32_matmul_precision() == before
    with float32_products(may_round=False):
        assert torch.get_float32_matmul_precision() == before


def test_rounded_factors_move_logits_by_a_share_of_their_size():
    generator = torch.Generator().manual_seed(1)
    weight, hidden = torch.randn(500, 64, generator=generator), torch.randn(40, 64, generator=generator)
    heads = (Head(weight=weight, bias=None, scale=1.0, softcap=None, num_valid=500, products=how)
             for how in ("own", "bfloat16"))
    exact, rounded = (head.logits(hidden) for head in heads)
    # a factor moves by at most 2^-9 of itself, a product of two by 2^-8, and the 64 products' errors do not line up
    assert rounded.dtype == torch.float32 and (exact - rounded).abs().max() < 2 ** -8 * exact.abs().max()
