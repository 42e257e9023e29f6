"""Packed volume rendering against dense float64 loops, ray by ray."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from radcomp_plugins.core.volume import accumulate, ray_index, render_weights

COUNTS = [3, 0, 1, 7, 0, 0, 4, 0]


def offsets_of(counts: list[int]) -> Tensor:
    return torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()])


def dense_weights(depth: Tensor, counts: list[int]) -> Tensor:
    """Front to back, one sample at a time, in Python's own floats."""
    weights, at = [], 0
    for count in counts:
        reaching = 1.0
        for value in depth[at : at + count].tolist():
            weights.append(reaching * -math.expm1(-value))
            reaching *= math.exp(-value)
        at += count
    return torch.tensor(weights, dtype=torch.float64)


def test_weights_by_hand():
    depth = torch.tensor([math.log(2), math.log(4), math.inf, 5.0, math.log(2)])
    weights = render_weights(depth, torch.tensor([0, 4, 5]))
    torch.testing.assert_close(weights, torch.tensor([1 / 2, 3 / 8, 1 / 8, 0, 1 / 2]))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=8), st.integers(0, 1000))
def test_weights_are_those_of_each_ray_alone(counts, seed):
    torch.manual_seed(seed)
    depth = torch.rand(sum(counts), dtype=torch.float64) * 10 ** torch.randint(-6, 3, (sum(counts),))
    offsets = offsets_of(counts)
    weights = render_weights(depth, offsets)
    torch.testing.assert_close(weights, dense_weights(depth, counts), rtol=1e-9, atol=1e-12)
    total = accumulate(weights, None, ray_index(offsets), len(counts))[:, 0]
    expected = -torch.expm1(-accumulate(depth, None, ray_index(offsets), len(counts))[:, 0])
    torch.testing.assert_close(total, expected, rtol=1e-9, atol=1e-12)


def test_walls_before_a_thin_ray_cost_it_no_digits():
    counts = [20] * 3000
    depth = torch.full((60_000,), 1e30)
    depth[-20:] = 1e-6
    weights = render_weights(depth, offsets_of(counts))
    torch.testing.assert_close(weights[-20:], torch.full((20,), 1e-6), rtol=1e-4, atol=0)
    assert weights[::20][:-1].eq(1).all() and weights.isfinite().all()


def test_gradient_of_weights():
    depth = torch.rand(sum(COUNTS), dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: render_weights(x, offsets_of(COUNTS)), depth)


def test_a_wall_has_a_finite_gradient():
    depth = torch.tensor([0.5, math.inf, 2.0], requires_grad=True)
    render_weights(depth, torch.tensor([0, 3])).square().sum().backward()
    assert depth.grad is not None and depth.grad.isfinite().all() and depth.grad[0] != 0


@pytest.mark.parametrize("channels", [None, 1, 3, 14])
def test_accumulate_sums_over_each_ray(channels):
    weights = torch.rand(sum(COUNTS))
    values = None if channels is None else torch.rand(sum(COUNTS), channels)
    weighted = weights[:, None] if values is None else weights[:, None] * values
    expected = torch.stack([part.sum(dim=0) for part in weighted.split(COUNTS)])
    result = accumulate(weights, values, ray_index(offsets_of(COUNTS)), len(COUNTS))
    torch.testing.assert_close(result, expected)


def test_gradient_of_accumulate():
    weights = torch.rand(sum(COUNTS), dtype=torch.float64, requires_grad=True)
    values = torch.rand(sum(COUNTS), 2, dtype=torch.float64, requires_grad=True)
    index = ray_index(offsets_of(COUNTS))
    assert gradcheck(lambda w, v: accumulate(w, v, index, len(COUNTS)), (weights, values))
    assert gradcheck(lambda w: accumulate(w, None, index, len(COUNTS)), weights)


def test_no_samples_at_all():
    offsets = torch.zeros(4, dtype=torch.int64)
    weights = render_weights(torch.zeros(0, requires_grad=True), offsets)
    picture = accumulate(weights, torch.zeros(0, 3), ray_index(offsets), 3)
    assert picture.shape == (3, 3) and picture.eq(0).all()
    picture.sum().backward()


def test_ray_index():
    assert ray_index(torch.tensor([0, 2, 2, 3])).tolist() == [0, 0, 2]


@pytest.mark.gpu
def test_the_gpu_gives_the_same():
    depth, offsets = torch.rand(sum(COUNTS)), offsets_of(COUNTS)
    values, index = torch.rand(sum(COUNTS), 3), ray_index(offsets)
    here = accumulate(render_weights(depth, offsets), values, index, len(COUNTS))
    there = accumulate(
        render_weights(depth.cuda(), offsets.cuda()), values.cuda(), ray_index(offsets.cuda()), len(COUNTS)
    )
    torch.testing.assert_close(there.cpu(), here)
