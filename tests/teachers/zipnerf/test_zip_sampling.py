"""The curve of distances, the box, and resampling."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from radcomp_plugins.teachers.zipnerf import sampling


@given(st.floats(0, 50), st.sampled_from([-3.0, -1.5, -1.0, 0.5, 2.0]))
def test_the_power_transform_has_its_inverse(x: float, power: float) -> None:
    value = torch.tensor([x], dtype=torch.float64)
    found = sampling.inverse_power_transform(sampling.power_transform(value, power), power)
    torch.testing.assert_close(found, value, atol=1e-8, rtol=1e-8)


def test_the_power_transform_begins_as_the_identity_and_is_bounded() -> None:
    """Barron et al. 2023, supplement: P'(0) = 1; with lambda = -1.5 it tends to 2.5 / 1.5."""
    small, far = torch.tensor([1e-7, 1e12], dtype=torch.float64)
    assert sampling.power_transform(small, -1.5) == pytest.approx(1e-7, rel=1e-5)
    assert sampling.power_transform(far, -1.5) == pytest.approx(2.5 / 1.5)


@pytest.mark.parametrize("power", [-1.5, None])
def test_the_curve_has_its_inverse(power: float | None) -> None:
    near, far = torch.tensor([[0.05], [0.5]], dtype=torch.float64), torch.tensor([[1000.0], [3.0]], dtype=torch.float64)
    s = torch.linspace(0, 1, 9, dtype=torch.float64).expand(2, 9)
    t = sampling.curve_to_distance(s, near, far, power)
    torch.testing.assert_close(t[:, :1], near)
    torch.testing.assert_close(t[:, -1:], far, rtol=1e-6, atol=0)
    assert (t.diff(dim=-1) > 0).all()
    torch.testing.assert_close(sampling.distance_to_curve(t, near, far, power), s)
    if power is None:
        torch.testing.assert_close(t.diff(dim=-1).std(dim=-1), torch.zeros(2, dtype=torch.float64), atol=1e-9, rtol=0)
    else:
        assert (t[0].diff().diff() > 0).all()  # ever longer intervals


def test_rays_are_cut_by_the_box() -> None:
    box = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 2.0, 1.0]])
    origins = torch.tensor([[-3.0, 0, 0], [0.0, 0, 0], [0.0, 5, 0], [3.0, 0, 0]])
    directions = torch.tensor([[1.0, 0, 0], [0.0, 1, 0], [1.0, 0, 0], [1.0, 0, 0]])
    near, far = sampling.box_bounds(origins, directions, box)
    # Through it; from inside; past it; away from it.
    assert near[:2].flatten().tolist() == pytest.approx([2, 0])
    assert far[:2].flatten().tolist() == pytest.approx([4, 2])
    torch.testing.assert_close(near[2:], far[2:])


def brute_force(edges: torch.Tensor, weights: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Points where the normalised cumulative weight reaches u, interval by interval."""
    out = torch.zeros_like(u)
    for ray in range(len(edges)):
        share = weights[ray] / weights[ray].sum()
        for k, target in enumerate(u[ray].tolist()):
            before = 0.0
            for i in range(weights.shape[1]):
                if before + share[i] >= target or i == weights.shape[1] - 1:
                    inside = (target - before) / float(share[i])
                    out[ray, k] = edges[ray, i] + inside * (edges[ray, i + 1] - edges[ray, i])
                    break
                before += float(share[i])
    return out


def test_resampling_puts_points_at_equal_shares_of_the_weight() -> None:
    edges = torch.sort(torch.rand(5, 8), dim=-1).values
    edges[:, 0], edges[:, -1] = 0, 1
    weights = torch.rand(5, 7) + 0.05
    found = sampling.resample(edges, weights, 6, jitter=False)
    points = brute_force(edges, weights, ((torch.arange(6) + 0.5) / 6).expand(5, 6))
    torch.testing.assert_close(found[:, 1:-1], (points[:, 1:] + points[:, :-1]) / 2, atol=2e-4, rtol=1e-3)
    assert (found[:, :-1] <= points + 2e-4).all() and (points <= found[:, 1:] + 2e-4).all()
    assert (found.diff(dim=-1) >= 0).all() and found.min() >= 0 and found.max() <= 1


def test_a_ray_that_sees_nothing_is_divided_evenly() -> None:
    edges = torch.tensor([[0.0, 0.1, 0.2, 1.0]])
    found = sampling.resample(edges, torch.zeros(1, 3), 4, jitter=False)
    torch.testing.assert_close(found, torch.linspace(0, 1, 5)[None], atol=1e-3, rtol=0)


def test_jitter_moves_edges_and_keeps_their_density() -> None:
    edges, weights = torch.tensor([[0.0, 0.5, 1.0]]).expand(4000, 3), torch.tensor([[0.75, 0.25]]).expand(4000, 2)
    found = sampling.resample(edges.contiguous(), weights.contiguous(), 8, jitter=True)
    assert found.std(dim=0).min() > 1e-3 and (found.diff(dim=-1) >= 0).all()
    # With the offset o the sixth of the seven inner edges lies at 0.458 + o / 6: below a half in a quarter of cases.
    assert float((found[:, 1:-1] < 0.5).float().mean()) == pytest.approx((5 + 0.25) / 7, abs=0.01)


def test_the_median_interval_lies_on_a_spike() -> None:
    edges = torch.linspace(0, 1, 11)[None]
    weights = torch.zeros(1, 10)
    weights[0, 6] = 1.0
    found = sampling.resample(edges, weights, 16, jitter=False)
    assert found[0, 1:-1].min() >= 0.6 - 1e-4 and found[0, 1:-1].max() <= 0.7 + 1e-4
