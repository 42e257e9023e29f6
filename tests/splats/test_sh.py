"""Colours from spherical harmonics against the definition, and their gradients against finite differences."""

import math

import numpy as np
import pytest
import torch
from scipy.special import lpmv
from torch import Tensor

from radcomp_plugins.splats.sh import sh_to_colors


def basis(direction: np.ndarray) -> np.ndarray:
    """Real SH [N, 16] from associated Legendre functions (with the Condon-Shortley phase), as 3DGS orders them."""
    x, y, z = direction.T
    phi = np.arctan2(y, x)
    columns = []
    for l in range(4):  # noqa: E741
        for m in range(-l, l + 1):
            k = math.sqrt((2 * l + 1) / (4 * math.pi) * math.factorial(l - abs(m)) / math.factorial(l + abs(m)))
            angular = np.cos(m * phi) if m >= 0 else np.sin(-m * phi)
            columns.append((math.sqrt(2) if m != 0 else 1.0) * k * lpmv(abs(m), l, z) * angular)
    return np.stack(columns, -1)


def cameras(count: int) -> tuple[Tensor, np.ndarray]:
    """viewmats [C, 4, 4] and the centres [C, 3] they stand for."""
    rng = np.random.default_rng(1)
    viewmats, centers = np.tile(np.eye(4), (count, 1, 1)), rng.normal(size=(count, 3)) * 4
    for view, center in zip(viewmats, centers, strict=True):
        view[:3, :3] = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        view[:3, 3] = -view[:3, :3] @ center
    return torch.tensor(viewmats, dtype=torch.float32), centers


def reference(
    degree: int, means: np.ndarray, coefficients: np.ndarray, centers: np.ndarray, radii: np.ndarray
) -> np.ndarray:
    terms, colors = (degree + 1) ** 2, []
    for center in centers:
        direction = means - center
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        colors.append(np.einsum("nk,nkc->nc", basis(direction)[:, :terms], coefficients[:, :terms]) + 0.5)
    return np.maximum(np.stack(colors), 0) * (radii > 0)[..., None]


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("stored", [None, 3])
def test_colours_and_gradients(degree, stored):
    count, generator = 40, torch.Generator().manual_seed(0)
    means = torch.randn(count, 3, generator=generator)
    terms = ((stored if stored is not None else degree) + 1) ** 2
    coefficients = torch.randn(count, terms, 3, generator=generator)
    radii = (torch.rand(2, count, generator=generator) > 0.3).int()
    viewmats, centers = cameras(2)
    weights = torch.randn(2, count, 3, generator=generator)
    leaves = [means.clone().requires_grad_(), coefficients.clone().requires_grad_()]
    colors = sh_to_colors(degree, leaves[0], leaves[1], viewmats, radii)
    arrays = (means.double().numpy(), coefficients.double().numpy())
    np.testing.assert_allclose(colors.detach(), reference(degree, *arrays, centers, radii.numpy()), atol=5e-6)
    assert (colors[radii > 0] == 0).any(), "some colours have to be clamped, to test that they pass no gradient"

    (colors * weights).sum().backward()
    step = 1e-6
    for index, leaf in enumerate(leaves):
        direction = np.random.default_rng(index).normal(size=arrays[index].shape)
        moved = []
        for s in (step, -step):
            inputs = [array + s * direction if i == index else array for i, array in enumerate(arrays)]
            colors = reference(degree, inputs[0], inputs[1], centers, radii.numpy())
            moved.append((colors * weights.double().numpy()).sum())
        slope = (moved[0] - moved[1]) / (2 * step)
        ours = float((leaf.grad.double() * torch.tensor(direction)).sum()) if leaf.grad is not None else 0.0
        assert ours == pytest.approx(slope, rel=1e-4, abs=1e-4)


def test_coefficients_apart_give_the_same_bits():
    generator = torch.Generator().manual_seed(2)
    means = torch.randn(30, 3, generator=generator)
    coefficients = torch.randn(30, 16, 3, generator=generator)
    viewmats, radii = cameras(1)[0], torch.ones(1, 30, dtype=torch.int32)
    whole = coefficients.clone().requires_grad_()
    low, high = coefficients[:, 0].clone().requires_grad_(), coefficients[:, 1:].clone().requires_grad_()
    one, two = sh_to_colors(3, means, whole, viewmats, radii), sh_to_colors(3, means, (low, high), viewmats, radii)
    assert torch.equal(one, two)
    one.square().sum().backward()
    two.square().sum().backward()
    assert whole.grad is not None and low.grad is not None and high.grad is not None
    assert torch.equal(whole.grad, torch.cat([low.grad[:, None], high.grad], dim=1))


def test_what_is_not_a_number_stays_so():
    """It is left out of the picture; a black Gaussian would not be."""
    coefficients = torch.full((1, 1, 3), float("nan"))
    colors = sh_to_colors(0, torch.ones(1, 3), coefficients, torch.eye(4)[None], torch.ones(1, 1).int())
    assert bool(colors.isnan().all())


@pytest.mark.parametrize(("degree", "terms"), [(4, 25), (3, 9), (-1, 1)])
def test_a_degree_without_coefficients_is_refused(degree, terms):
    with pytest.raises(ValueError, match=f"SH degree {degree}"):
        sh_to_colors(degree, torch.zeros(2, 3), torch.zeros(2, terms, 3), torch.eye(4)[None], torch.ones(1, 2).int())
