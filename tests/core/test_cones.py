"""Cone samples: moments, contraction and the kernel against torch."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from radcomp_plugins.core import cones

BOX = torch.tensor([[-1.0, -2.0, 0.0], [1.0, 1.0, 2.5]])


def rays(count: int = 5, intervals: int = 4) -> dict[str, Any]:
    directions = torch.nn.functional.normalize(torch.randn(count, 3), dim=-1)
    directions[0] = torch.tensor([0.0, 0.0, 1.0])
    return {
        "origins": torch.randn(count, 3),
        "directions": directions,
        "radii": torch.rand(count, 1) * 0.05,
        "edges": (torch.rand(count, intervals + 1) + 0.05).cumsum(dim=-1),
        "turns": torch.rand(count, intervals) * 6,
    }


def test_points_have_the_mean_and_the_variance_of_the_frustum() -> None:
    """mip-NeRF (Barron et al. 2021), Eq. 7, which the six points of Barron et al. 2023, Eq. 1 and 2, reproduce."""
    given = {name: value.double() for name, value in rays().items()}
    points = cones.cone_samples(**given)
    axis = given["directions"][:, None, None]
    offset = points[:3].movedim(0, -1) - given["origins"][:, None, None]
    along = (offset * axis).sum(dim=-1)
    across = offset - along[..., None] * axis
    t0, t1 = given["edges"][:, :-1], given["edges"][:, 1:]
    m, h = (t0 + t1) / 2, (t1 - t0) / 2
    mean = m + 2 * m * h**2 / (3 * m**2 + h**2)
    variance = h**2 / 3 - 4 / 15 * h**4 * (12 * m**2 - h**2) / (3 * m**2 + h**2) ** 2
    torch.testing.assert_close(along.mean(dim=-1), mean)
    torch.testing.assert_close(along.var(dim=-1, unbiased=False), variance)
    radial = given["radii"] ** 2 * (m**2 / 4 + 5 * h**2 / 12 - 4 / 15 * h**4 / (3 * m**2 + h**2))
    torch.testing.assert_close(across.square().sum(dim=-1).mean(dim=-1), 2 * radial)
    # The pattern turns about the axis, so its centre stays close to it: well within the cone.
    assert (across.mean(dim=2).norm(dim=-1) < 0.25 * given["radii"] * m).all()


def test_deviation_is_half_of_the_points_distance_from_the_axis() -> None:
    """Barron et al. 2023, Eq. 3 and Sec. 3.2: sigma_j = r t_j / sqrt(2), times 1/2."""
    given = rays()
    points = cones.cone_samples(**given)
    offset = points[:3].movedim(0, -1) - given["origins"][:, None, None]
    along = (offset * given["directions"][:, None, None]).sum(dim=-1)
    torch.testing.assert_close(points[3], 0.5 * given["radii"][:, None] * along / math.sqrt(2), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("num_points", [1, 2, 3, 6])
@pytest.mark.parametrize("box", [None, BOX])
def test_the_kernel_agrees_with_torch(num_points: int, box: torch.Tensor | None) -> None:
    given = rays(400)
    expected = cones.to_grid(cones.cone_samples(**given, num_points=num_points), box)
    found = cones.grid_points(**given, box=box, num_points=num_points)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("num_points", [2, 3])
def test_fewer_points_keep_mean_and_variance_along_the_axis(num_points: int) -> None:
    places, angles = cones.pattern(num_points)
    full, _ = cones.pattern(6)
    assert sum(places) == pytest.approx(0)
    assert np.mean(np.square(places)) == pytest.approx(np.mean(np.square(full)))
    assert sum(math.cos(angle) for angle in angles) == pytest.approx(0)


def test_contraction_scales_deviations_by_the_jacobian() -> None:
    """The cube root of the determinant of C's Jacobian (Barron et al. 2023, Sec. 3.2), by automatic differentiation."""

    def contraction(x: torch.Tensor) -> torch.Tensor:
        r = x.norm()
        return x if r <= 1 else (2 - 1 / r) * x / r

    for x in (torch.tensor([0.3, -0.5, 0.2]), torch.tensor([1.5, 0.3, -2.0]), torch.tensor([40.0, 0.0, -7.0])):
        x = x.double()
        jacobian = torch.autograd.functional.jacobian(contraction, x)
        point = torch.cat([x, torch.tensor([0.1]).double()])
        found = cones.contract_ball(point)
        torch.testing.assert_close(found[:3], contraction(x))
        torch.testing.assert_close(found[3], 0.1 * torch.linalg.det(jacobian).abs() ** (1 / 3))


def test_a_box_fills_the_unit_cube_along_its_longest_side() -> None:
    corners = torch.cat([BOX.T, torch.tensor([[3.0, 0.3]])])  # both corners, with deviations 3 and 0.3
    grid = cones.to_grid(corners, BOX)
    torch.testing.assert_close(grid[1], torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(grid[0], torch.tensor([0.5 - 1 / 3, 0.5 + 1 / 3]))
    torch.testing.assert_close(grid[3], torch.tensor([1.0, 0.1]))


def test_a_ray_that_ends_where_it_begins_gives_finite_points() -> None:
    given = rays()
    given["edges"][:] = 0.0
    assert torch.isfinite(cones.grid_points(**given, box=BOX)).all()
