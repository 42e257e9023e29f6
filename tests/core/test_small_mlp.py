"""The fused network against plain torch."""

import pytest
import torch

from radcomp_plugins.core import threads
from radcomp_plugins.core.small_mlp import small_mlp


def parameters(depth: int, width: int) -> list[torch.Tensor]:
    shapes = [(width, depth), (width,), (1, width), (1,)]
    return [torch.randn(shape).requires_grad_() for shape in shapes]


def plain(x: torch.Tensor, w1: torch.Tensor, b1: torch.Tensor, w2: torch.Tensor, b2: torch.Tensor) -> torch.Tensor:
    return (torch.relu(x @ w1.T + b1) @ w2.T + b2).squeeze(-1)


@pytest.mark.parametrize("count", [0, 1, 127, 128, 5000])
def test_values_and_gradients_are_those_of_torch(count: int) -> None:
    x = torch.randn(count, 5).requires_grad_()
    weights = parameters(5, 16)
    grad = torch.randn(count)
    grad[::3] = 0
    found, expected = small_mlp(x, *weights), plain(x, *weights)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    first = torch.autograd.grad(found, [x, *weights], grad)
    second = torch.autograd.grad(expected, [x, *weights], grad)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=1e-4)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    x, weights, count, results = torch.randn(3001, 4), parameters(4, 8), threads.get_num_threads(), []
    x.requires_grad_()
    try:
        for number in (1, 2, 7):
            threads.set_num_threads(number)
            out = small_mlp(x, *weights)
            results.append([out.detach(), *torch.autograd.grad(out.square().sum(), [x, *weights])])
    finally:
        threads.set_num_threads(count)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_other_float_types_take_the_plain_path() -> None:
    x = torch.randn(7, 3, dtype=torch.float64)
    weights = [tensor.detach().double() for tensor in parameters(3, 4)]
    torch.testing.assert_close(small_mlp(x, *weights), plain(x, *weights))
