"""The student's losses against values worked out by hand, slow references and finite differences."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from radcomp_plugins.smerf import losses


def random_rays(rays: int, intervals: int) -> tuple[Tensor, Tensor]:
    """Float64 edges [N, n + 1] in [0, 1] and weights [N, n] that sum to less than 1."""
    edges = torch.rand(rays, intervals + 1, dtype=torch.float64).sort(dim=-1).values
    weights = torch.rand(rays, intervals, dtype=torch.float64)
    return edges, weights / (weights.sum(dim=-1, keepdim=True) + 0.3)


def check_gradient(function, *tensors: Tensor) -> None:
    assert gradcheck(function, tuple(t.detach().double().requires_grad_() for t in tensors))


def test_robust_rgb_is_an_absolute_error_with_a_round_bottom():
    student = torch.tensor([[0.5, 0.5, 0.5], [0.0, 0.0, 1.0]])
    target = torch.tensor([[0.5, 0.5, 0.5], [0.0, 0.3, 0.6]])
    by_hand = (4 * 1e-3 + math.sqrt(1e-6 + 0.09) + math.sqrt(1e-6 + 0.16)) / 6
    assert losses.robust_rgb(student, target).item() == pytest.approx(by_hand, rel=1e-6)
    check_gradient(losses.robust_rgb, student, target)


def test_dssim_of_equal_patches_is_zero_and_of_negatives_nearly_one():
    pattern = torch.tensor([1.0, -1, 1, -1, 0, 1, -1, 1, -1])[None, :, None].expand(2, 9, 3)
    patch = 0.5 + 0.5 * pattern
    assert losses.patch_dssim(patch, patch).item() == pytest.approx(0, abs=1e-7)
    # Equal means: SSIM is (2 cov + C2) / (2 var + C2) with cov = -var and var = 8/9 * 0.25 = 2/9.
    by_hand = (1 - (-4 / 9 + 9e-4) / (4 / 9 + 9e-4)) / 2
    assert losses.patch_dssim(patch, 1 - patch).item() == pytest.approx(by_hand, rel=1e-6)


def test_dssim_of_flat_patches_compares_their_means():
    student, target = torch.full((1, 9, 3), 0.2), torch.full((1, 9, 3), 0.6)
    by_hand = (1 - (2 * 0.12 + 1e-4) / (0.04 + 0.36 + 1e-4)) / 2
    assert losses.patch_dssim(student, target).item() == pytest.approx(by_hand, rel=1e-5)


def test_dssim_sees_each_patch_and_channel_by_itself():
    student, target = torch.rand(4, 9, 3), torch.rand(4, 9, 3)
    single = [losses.patch_dssim(student[i : i + 1], target[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(losses.patch_dssim(student, target), torch.stack(single).mean())
    for channel in range(3):
        grey = losses.patch_dssim(*(t[:, :, [channel] * 3] for t in (student, target)))
        c = [t[:, :, channel].double().numpy() for t in (student, target)]
        mean = [x.mean(1) for x in c]
        cov = (c[0] * c[1]).mean(1) - mean[0] * mean[1]
        var = [(x * x).mean(1) - m * m for x, m in zip(c, mean, strict=True)]
        ssim = (2 * mean[0] * mean[1] + 1e-4) * (2 * cov + 9e-4)
        ssim /= (mean[0] ** 2 + mean[1] ** 2 + 1e-4) * (var[0] + var[1] + 9e-4)
        assert grey.item() == pytest.approx((1 - ssim).mean() / 2, rel=1e-5)


def test_dssim_gradient():
    check_gradient(losses.patch_dssim, torch.rand(2, 9, 3), torch.rand(2, 9, 3))


def test_geometry_counts_misplaced_weight():
    student = torch.tensor([[0.5, 0.25, 0.0], [0.0, 0.0, 1.0]])
    teacher = torch.tensor([[0.25, 0.25, 0.5], [0.0, 0.0, 1.0]])
    assert losses.geometry(student, teacher).item() == pytest.approx((0.25 + 0.5) / 2)
    check_gradient(losses.geometry, torch.rand(3, 5), torch.rand(3, 5))


def bounds_reference(
    student_edges: Tensor, student_weights: Tensor, teacher_edges: Tensor, teacher_weights: Tensor
) -> float:
    """The formula in loops, with open intervals: what only shares an edge does not overlap."""
    total = 0.0
    for ray in range(len(student_edges)):
        t0, t1 = teacher_edges[ray, :-1], teacher_edges[ray, 1:]
        for i, w in enumerate(student_weights[ray]):
            a, b = student_edges[ray, i], student_edges[ray, i + 1]
            low = teacher_weights[ray][(t0 >= a) & (t1 <= b)].sum()
            high = teacher_weights[ray][(t0 < b) & (t1 > a)].sum()
            total += float((low - w).clamp(min=0) + (w - high).clamp(min=0))
    return total / len(student_edges)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
def test_geometry_bounds_follow_the_formula(student, teacher, seed):
    torch.manual_seed(seed)
    rays = (*random_rays(3, student), *random_rays(3, teacher))
    assert losses.geometry_bounds(*rays).item() == pytest.approx(bounds_reference(*rays), abs=1e-12)


def test_geometry_bounds_by_hand():
    teacher_edges, teacher_weights = torch.tensor([[0.0, 1.0, 2.0, 3.0]]), torch.tensor([[0.2, 0.5, 0.1]])
    student_edges = torch.tensor([[0.0, 1.5, 3.0]])
    # First interval: between 0.2 (what it holds) and 0.7 (what it touches); second: between 0.1 and 0.6.
    for weights, expected in [([0.7, 0.1], 0.0), ([0.1, 0.9], 0.1 + 0.3), ([0.9, 0.0], 0.2 + 0.1)]:
        loss = losses.geometry_bounds(student_edges, torch.tensor([weights]), teacher_edges, teacher_weights)
        assert loss.item() == pytest.approx(expected, abs=1e-6)


@given(st.integers(1, 20), st.integers(0, 1000))
def test_geometry_bounds_with_shared_intervals_are_the_geometry_loss(intervals, seed):
    torch.manual_seed(seed)
    edges, teacher = random_rays(4, intervals)
    student = random_rays(4, intervals)[1].requires_grad_()
    general = losses.geometry_bounds(edges, student, edges, teacher)
    (slope,) = torch.autograd.grad(general, student)
    simple = losses.geometry(student, teacher)
    torch.testing.assert_close(general, simple, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slope, torch.autograd.grad(simple, student)[0])


def distortion_reference(starts: Tensor, ends: Tensor, weights: Tensor) -> Tensor:
    """Eq. 15 of one ray, as it is written."""
    middles = (starts + ends) / 2
    pairs = weights[:, None] * weights[None, :] * (middles[:, None] - middles[None, :]).abs()
    return pairs.sum() + (weights.square() * (ends - starts)).sum() / 3


def test_distortion_by_hand():
    edges, weights = torch.tensor([[0.0, 0.2, 0.6, 1.0]]), torch.tensor([[0.5, 0.0, 0.5]])
    by_hand = 2 * 0.25 * (0.8 - 0.1) + 0.25 * (0.2 + 0.4) / 3
    assert losses.distortion(edges, weights).item() == pytest.approx(by_hand, rel=1e-6)


@given(st.integers(1, 12), st.integers(0, 1000))
def test_distortion_is_that_of_all_pairs(intervals, seed):
    torch.manual_seed(seed)
    edges, weights = random_rays(4, intervals)
    expected = torch.stack([distortion_reference(e[:-1], e[1:], w) for e, w in zip(edges, weights, strict=True)])
    torch.testing.assert_close(losses.distortion(edges, weights), expected.mean())
    packed = losses.distortion_packed(
        edges[:, :-1].flatten(),
        edges[:, 1:].flatten(),
        weights.flatten(),
        torch.arange(4).repeat_interleave(intervals),
        torch.arange(5) * intervals,
    )
    torch.testing.assert_close(packed, expected.mean())


def test_packed_distortion_takes_rays_of_any_length_and_gaps():
    counts = [3, 0, 1, 5, 0]
    offsets = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()])
    points = [torch.rand(2 * n, dtype=torch.float64).sort().values for n in counts]
    starts, ends = torch.cat([p[::2] for p in points]), torch.cat([p[1::2] for p in points])
    weights = torch.rand(len(starts), dtype=torch.float64)
    index = torch.arange(5).repeat_interleave(torch.tensor(counts))
    parts = [slice(a, b) for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]
    expected = sum(float(distortion_reference(starts[p], ends[p], weights[p])) for p in parts) / 5
    assert losses.distortion_packed(starts, ends, weights, index, offsets).item() == pytest.approx(expected)
    check_gradient(lambda w: losses.distortion_packed(starts, ends, w, index, offsets), weights)


def test_packed_distortion_keeps_its_digits_in_a_large_batch():
    # After a million units of weight, float32 sums would have lost what a ray of weight 1e-3 adds.
    rays, n = 20_000, 50
    edges, weights = random_rays(rays, n)
    weights[-1] = 1e-3 / n
    edges, weights = edges.float(), weights.float()
    slope = torch.zeros_like(weights)
    leaf = weights.flatten().requires_grad_()
    offsets = torch.arange(rays + 1) * n
    index = torch.arange(rays).repeat_interleave(n)
    packed = losses.distortion_packed(edges[:, :-1].flatten(), edges[:, 1:].flatten(), leaf, index, offsets)
    slope = torch.autograd.grad(packed, leaf)[0].reshape(rays, n)[-1] * rays
    last = weights[-1:].double().requires_grad_()
    expected = torch.autograd.grad(losses.distortion(edges[-1:].double(), last), last)[0][0]
    torch.testing.assert_close(slope.double(), expected, rtol=1e-3, atol=1e-9)


def test_distortion_gradient():
    edges, weights = random_rays(2, 6)
    check_gradient(losses.distortion, edges, weights)


def test_sparsity_is_the_opacity_of_a_step():
    density, step = torch.tensor([0.0, 2.0, 1e6]), torch.tensor([0.1, 0.5, 1.0])
    assert losses.sparsity(density, step).item() == pytest.approx((0 + 1 - math.exp(-1) + 1) / 3, rel=1e-6)
    # Where almost nothing is there, the opacity is the optical depth, not what is left of 1 - (1 - 1e-9).
    assert losses.sparsity(torch.tensor([1e-8]), torch.tensor([0.1])).item() == pytest.approx(1e-9, rel=1e-5)
    check_gradient(losses.sparsity, torch.rand(5), torch.rand(5))


def test_hash_decay_adds_up_the_levels_means():
    table = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 0.0], [0.0, 2.0]])
    assert losses.hash_decay(table).item() == pytest.approx(0.5 * 18 / 8)
    by_level = sum(losses.hash_decay(level) for level in table.split(2))
    torch.testing.assert_close(losses.hash_decay(table, levels=2), by_level)
    check_gradient(losses.hash_decay, torch.rand(4, 2))


def test_network_variation_by_hand():
    parameter = torch.zeros(1, 2, 2, 2, 1)
    parameter[0, 1, 0, 0, 0] = 3.0
    # One corner of a cube differs: 3 of its 12 edges have a squared difference of 9.
    assert losses.network_variation(parameter).item() == pytest.approx(27 / 12)


def test_network_variation_sees_every_axis_and_pools_parameters():
    values = torch.arange(3.0)
    ramps = [values.reshape([-1 if a == axis else 1 for a in range(3)]).expand(3, 3, 3) for axis in range(3)]
    for slope, ramp in enumerate(ramps, start=1):
        kernel = (slope * ramp)[None, ..., None, None].expand(2, 3, 3, 3, 4, 5)
        assert losses.network_variation(kernel).item() == pytest.approx(slope**2 / 3, rel=1e-5)
        bias = torch.zeros(2, 3, 3, 3, 10)
        # The mean is over all numbers: the kernel has 20 a network, the bias 10.
        assert losses.network_variation(kernel, bias).item() == pytest.approx(slope**2 / 3 * 20 / 30, rel=1e-5)


def test_network_variation_of_one_network_is_zero_and_trains():
    parameter = torch.rand(3, 1, 1, 1, 4, requires_grad=True)
    loss = losses.network_variation(parameter)
    loss.backward()
    assert loss.item() == 0
    assert parameter.grad is not None and parameter.grad.abs().max() == 0
    check_gradient(losses.network_variation, torch.rand(2, 3, 3, 3, 2), torch.rand(2, 3, 3, 3))


def test_opacity_likelihood_by_hand():
    # The teacher stops half of the light in the first interval and half of what is left in the second; so does the
    # student. Each then costs the entropy of a coin, ln 2, times the light that reaches it.
    weights, depth = torch.tensor([[0.5, 0.25]]), torch.full((1, 2), math.log(2))
    everything = torch.ones(1, 2, dtype=torch.bool)
    assert losses.opacity_likelihood(depth, weights, everything).item() == pytest.approx(1.5 * math.log(2), rel=1e-6)
    first = torch.tensor([[True, False]])
    assert losses.opacity_likelihood(depth, weights, first).item() == pytest.approx(math.log(2), rel=1e-6)
    wall, clear = torch.tensor([[1.0]]), torch.tensor([[0.0]])
    one = torch.ones(1, 1, dtype=torch.bool)
    assert losses.opacity_likelihood(torch.tensor([[0.25]]), clear, one).item() == pytest.approx(0.25)
    assert losses.opacity_likelihood(torch.tensor([[30.0]]), wall, one).item() == pytest.approx(0, abs=1e-6)


def test_opacity_likelihood_is_least_where_the_opacities_agree_and_pulls_from_almost_nothing():
    weights = torch.tensor([[0.3, 0.2, 0.4]], dtype=torch.float64)
    reaching = torch.tensor([[1.0, 0.7, 0.5]], dtype=torch.float64)
    seen = torch.ones(1, 3, dtype=torch.bool)
    agreed = (-torch.log1p(-weights / reaching)).requires_grad_()
    (slope,) = torch.autograd.grad(losses.opacity_likelihood(agreed, weights, seen), agreed)
    torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-9, rtol=0)
    thin = torch.full((1, 3), 1e-5, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(losses.opacity_likelihood(thin, weights, seen), thin)
    assert (slope < -1e4).all()
    check_gradient(lambda depth: losses.opacity_likelihood(depth, weights, seen), torch.rand(1, 3) + 0.1)
