"""Weighted sums of table rows against embedding_bag and finite differences."""

import numpy as np
import pytest
import torch

from radcomp_plugins.core import threads
from radcomp_plugins.core.gather import gather


@pytest.mark.parametrize("columns", [1, 8, 70])
def test_gather_is_embedding_bag(columns: int) -> None:
    values = torch.randn(40, columns, requires_grad=True)
    index, weights = torch.randint(40, (300, 5)), torch.randn(300, 5)
    out = gather(values, index, weights)
    out.square().sum().backward()
    ours, values.grad = values.grad, None
    bag = torch.nn.functional.embedding_bag(index, values, per_sample_weights=weights, mode="sum")
    bag.square().sum().backward()
    torch.testing.assert_close(out, bag)
    torch.testing.assert_close(ours, values.grad, rtol=1e-4, atol=1e-4)


def test_gradient() -> None:
    index, weights = torch.randint(6, (7, 3)), torch.rand(7, 3, dtype=torch.float64)
    values = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: gather(v, index, weights), values)


@pytest.mark.parametrize("columns", [8, 70])
def test_same_bits_for_any_number_of_threads(columns: int) -> None:
    before = threads.get_num_threads()
    index, weights, results = torch.randint(50, (2000, 4)), torch.rand(2000, 4), []
    start = torch.randn(50, columns)
    for count in (1, 2, 4):
        threads.set_num_threads(count)
        values = start.clone().requires_grad_()
        gather(values, index, weights).square().sum().backward()
        results.append(values.grad)
    threads.set_num_threads(before)
    for other in results[1:]:
        np.testing.assert_array_equal(results[0].numpy(), other.numpy())
