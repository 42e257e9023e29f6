"""Turning scenes: signs worked out by hand, and pictures that do not change when the camera turns along."""

import math

import numpy as np
import pytest
import torch

from radcomp_plugins.splats.frames import HALF_TURN_ABOUT_X, rotate, rotation_matrix, sh_basis, sh_rotation
from radcomp_plugins.splats.gaussians import Gaussians
from radcomp_plugins.splats.sh import sh_to_colors


def scene(n: int, degree: int, seed: int = 0) -> Gaussians:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"means": (n, 3), "quats": (n, 4), "scales": (n, 3), "opacities": (n,), "sh0": (n, 3)}
    shapes["shN"] = (n, (degree + 1) ** 2 - 1, 3)
    tensors = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    return Gaussians(**tensors, antialiased=False)


def colours(g: Gaussians, viewmat: torch.Tensor) -> torch.Tensor:
    radii = torch.ones(1, len(g), dtype=torch.int32)
    return sh_to_colors(g.sh_degree, g.means, (g.sh0 + 3.0, 0.3 * g.shN), viewmat[None], radii)[0]


def test_the_basis_is_the_renderers() -> None:
    directions = torch.nn.functional.normalize(torch.randn(40, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    values = sh_basis(3, directions.double().numpy())
    for k in range(16):
        coefficients = torch.zeros(40, 16, 3)
        coefficients[:, k] = 1.0
        drawn = sh_to_colors(3, directions, coefficients, torch.eye(4)[None], torch.ones(1, 40, dtype=torch.int32))[0]
        np.testing.assert_allclose(drawn[:, 0].numpy(), np.maximum(values[:, k] + 0.5, 0), atol=2e-6)


def test_half_turn_about_x_by_hand() -> None:
    g = scene(5, 3)
    turned = rotate(g, HALF_TURN_ABOUT_X)
    assert torch.equal(turned.means, g.means * torch.tensor([1.0, -1.0, -1.0]))
    # x (w + xi + yj + zk) with the unit i in front: i w - x + k y - j z.
    w, x, y, z = g.quats.T
    assert torch.equal(turned.quats, torch.stack([-x, w, -z, y], dim=1))
    # (x, y, z) to (x, -y, -z): -y and z change sign, x does not; then xy, yz, zz, xz, xx-yy; then degree 3.
    signs = [-1, -1, 1] + [-1, 1, 1, -1, 1] + [-1, 1, -1, -1, 1, -1, 1]
    assert torch.equal(turned.shN, g.shN * torch.tensor(signs, dtype=torch.float32)[:, None])
    assert torch.equal(turned.scales, g.scales) and torch.equal(turned.opacities, g.opacities)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_a_camera_that_turns_along_sees_the_same(degree: int) -> None:
    g = scene(60, degree)
    quat = (0.3, -0.8, 0.4, 0.2)
    matrix = torch.from_numpy(rotation_matrix(np.array(quat) / np.linalg.norm(quat)))
    turn = torch.eye(4, dtype=torch.float64)
    turn[:3, :3] = matrix
    view = torch.eye(4, dtype=torch.float64)
    view[:3, 3] = torch.tensor([0.2, -0.1, 0.5])
    turned = rotate(g, quat)
    seen = colours(turned, (view @ turn.T).float())
    torch.testing.assert_close(seen, colours(g, view.float()), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(turned.means, (g.means.double() @ matrix.T).float(), atol=1e-6, rtol=1e-5)


def test_ellipsoids_turn_with_the_scene() -> None:
    g = scene(20, 0)
    quat = np.array([0.1, 0.7, -0.5, 0.3])
    matrix = rotation_matrix(quat / np.linalg.norm(quat))
    turned = rotate(g, tuple(quat.tolist()))
    for i in range(20):
        a, b = (q[i].double().numpy() / float(q[i].double().norm()) for q in (g.quats, turned.quats))
        np.testing.assert_allclose(rotation_matrix(b), matrix @ rotation_matrix(a), atol=1e-6)


def test_band_matrices_are_orthogonal_and_compose() -> None:
    a = rotation_matrix(np.array([math.cos(0.3), math.sin(0.3), 0, 0]))
    b = rotation_matrix(np.array([0.5, 0.5, -0.5, 0.5]))
    for degree in (1, 2, 3):
        d = sh_rotation(degree, a)
        np.testing.assert_allclose(d @ d.T, np.eye(2 * degree + 1), atol=1e-12)
        np.testing.assert_allclose(d @ sh_rotation(degree, b), sh_rotation(degree, a @ b), atol=1e-12)
