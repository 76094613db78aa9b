"""Templates that every operator's test calls: adjointness, gradients, isometry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

SHARED = Path(__file__).parents[2] / "shared"


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Real inner product ``Re <a, b>`` in double precision."""
    product = a.conj().to(torch.complex128) * b.to(torch.complex128)
    return product.real.sum()


def assert_adjoint(forward: Callable, adjoint: Callable, x: Tensor, y: Tensor, rtol: float = 1e-10) -> None:
    """``<A x, y> = <x, A* y>`` for a linear operator and what claims to be its adjoint."""
    left, right = inner(forward(x), y), inner(x, adjoint(y))
    scale = forward(x).norm() * y.norm()
    assert abs(left - right) <= rtol * scale, f"<Ax, y> = {left:.12g}, <x, A*y> = {right:.12g}"


def assert_backward_is_adjoint(operator: Callable, x: Tensor, rtol: float = 1e-10) -> None:
    """The backward pass of a linear operator is its adjoint."""
    y = torch.randn_like(operator(x))

    def backward(cotangent: Tensor) -> Tensor:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(operator(leaf), leaf, cotangent)[0]

    assert_adjoint(operator, backward, x, y, rtol)


def assert_gradients(function: Callable, *inputs: Tensor, **kwargs) -> None:
    """Numerical derivatives agree with the backward pass for every input that wants one."""
    assert any(x.requires_grad for x in inputs), "nothing to differentiate"
    assert torch.autograd.gradcheck(function, inputs, **kwargs)


def assert_isometry(operator: Callable, x: Tensor, rtol: float = 1e-10) -> None:
    """``|A x| = |x|``."""
    torch.testing.assert_close(operator(x).norm(), x.norm(), rtol=rtol, atol=0.0)


def relative_error(found: Tensor, truth: Tensor) -> float:
    """``|found - truth| / |truth|``."""
    return float((found - truth).norm() / truth.norm())


def random_complex(*shape: int) -> Tensor:
    """Complex normal numbers in double precision."""
    return torch.randn(*shape, dtype=torch.complex128)
