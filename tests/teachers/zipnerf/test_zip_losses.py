"""The losses against slow definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from radcomp_plugins.teachers.zipnerf import losses


def histogram(intervals: int, rays: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    edges = torch.sort(torch.rand(rays, intervals + 1), dim=-1).values
    edges[:, 0], edges[:, -1] = 0, 1
    return edges, torch.rand(rays, intervals) / intervals


@pytest.mark.parametrize("half_width", [0.03, 0.3])
def test_blurring_is_a_convolution_with_a_box(half_width: float) -> None:
    """Mass between two edges of the convolution: the mean over all shifts of the mass between the shifted edges."""
    (edges, weights), (query, _) = histogram(6), histogram(9)
    found = losses.blurred_weights(query, edges, weights, half_width)
    shifts = (np.arange(100_000) + 0.5) / 50_000 * half_width - half_width
    for ray in range(3):
        cumulative = np.concatenate([[0], np.cumsum(weights[ray].double().numpy())])
        below = [np.interp(float(q) - shifts, edges[ray].double().numpy(), cumulative).mean() for q in query[ray]]
        np.testing.assert_allclose(found[ray], np.diff(below), atol=1e-6)


@given(st.integers(0, 1000), st.floats(0.001, 0.2))
def test_blurring_keeps_the_weight(seed: int, half_width: float) -> None:
    torch.manual_seed(seed)
    edges, weights = histogram(5)
    query = torch.tensor([-1.0, 0.2, 0.4, 2.0]).expand(3, 4)
    found = losses.blurred_weights(query, edges, weights, half_width)
    torch.testing.assert_close(found.sum(dim=-1), weights.sum(dim=-1), atol=1e-5, rtol=1e-5)
    assert found.min() > -1e-6


def test_a_narrow_blur_is_plain_resampling() -> None:
    edges, weights = histogram(4)
    torch.testing.assert_close(losses.blurred_weights(edges, edges, weights, 1e-5), weights, atol=1e-3, rtol=0)


def test_no_loss_where_the_proposal_bounds_the_weights() -> None:
    edges, weights = histogram(6)
    query, _ = histogram(4)
    bound = losses.blurred_weights(query, edges, weights, 0.03) + 1e-4
    assert losses.interlevel_loss(query, bound, edges, weights, 0.03) == 0


def test_loss_and_gradient_where_it_does_not() -> None:
    """Barron et al. 2023, Eq. 12, by hand: one interval wants 0.5 and the proposal has 0.2."""
    edges, weights = torch.tensor([[0.0, 0.4, 0.6, 1.0]]), torch.tensor([[0.0, 0.5, 0.0]], requires_grad=True)
    proposal = torch.tensor([[0.0, 0.2, 0.0]], requires_grad=True)
    query = torch.tensor([[0.0, 0.3, 0.7, 1.0]])
    loss = losses.interlevel_loss(query, proposal, edges, weights, 0.01)
    assert float(loss.detach()) == pytest.approx(0.3**2 / 0.2, rel=1e-3)
    loss.backward()
    assert weights.grad is None and proposal.grad is not None
    # d/dp of (w - p)^2 / p is -2 (w - p) / p - (w - p)^2 / p^2.
    assert float(proposal.grad[0, 1]) == pytest.approx(-2 * 0.3 / 0.2 - 0.3**2 / 0.2**2, rel=1e-3)


def test_a_shift_changes_the_loss_smoothly() -> None:
    """Fig. 5 of Barron et al. 2023: what the unblurred loss does in steps, the blurred one does gradually."""
    query, proposal = torch.tensor([[0.0, 0.5, 1.0]]), torch.tensor([[0.5, 1e-3]])
    values = []
    for shift in torch.linspace(-0.06, 0.06, 25):
        edges = torch.tensor([[0.0, 0.499, 0.501, 1.0]]) + torch.tensor([0.0, 1.0, 1.0, 0.0]) * shift
        values.append(float(losses.interlevel_loss(query, proposal, edges, torch.tensor([[0.0, 0.5, 0.0]]), 0.03)))
    changes = np.diff(values)
    assert (changes >= -1e-6).all() and changes.max() < 0.25 * (values[-1] - values[0])


def test_distortion_is_the_double_sum() -> None:
    edges, weights = histogram(7)
    expected = torch.zeros(3)
    middle = (edges[:, 1:] + edges[:, :-1]) / 2
    for i in range(7):
        for j in range(7):
            expected += weights[:, i] * weights[:, j] * (middle[:, i] - middle[:, j]).abs()
        expected += weights[:, i] ** 2 * (edges[:, i + 1] - edges[:, i]) / 3
    torch.testing.assert_close(losses.distortion_loss(edges, weights), expected.mean())


def test_hash_decay_is_the_sum_of_the_levels_means() -> None:
    """Barron et al. 2023, Sec. 3.4: each level counts the same, however many entries it has."""
    table = torch.randn(3 * 8, 2, requires_grad=True)
    expected = sum(table[8 * level : 8 * level + 8].square().mean() for level in range(3))
    torch.testing.assert_close(losses.hash_decay(table, 3), torch.as_tensor(expected))
    (found,) = torch.autograd.grad(losses.hash_decay(table, 3), table)
    torch.testing.assert_close(found, 2 * table.detach() / 16)
