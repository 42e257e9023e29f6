"""Virtual cameras see the scene, all round, and from inside where it is hollow."""

import math

import numpy as np
import pytest
import torch

from radcomp_plugins.splats.draw import draw
from radcomp_plugins.splats.gaussians import Gaussians
from radcomp_plugins.splats.virtual_views import UP, painted_extent, virtual_views


def scene(means: torch.Tensor, scale: float = -2.5) -> Gaussians:
    n = len(means)
    quats = torch.tensor([[1.0, 0, 0, 0]]).repeat(n, 1)
    colours = torch.ones(n, 3), torch.ones(n, 0, 3)
    return Gaussians(means, quats, torch.full((n, 3), scale), torch.full((n,), 2.0), *colours)


def blob(n: int = 1500, center: float = 0.0) -> torch.Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(0)) * 0.5 + center


def shell(n: int = 1500) -> torch.Tensor:
    return torch.nn.functional.normalize(blob(n), dim=1) * 4.0


def test_extent_ignores_a_few_far_and_huge_ones() -> None:
    g = scene(blob(center=7.0))
    g.means[0] = 1e6
    g.scales[1] = 12.0
    center, radius, hollow = painted_extent(g)
    assert (center - 7.0).abs().max() < 0.1 and 0.8 < radius < 1.4 and not hollow


def test_a_gaussian_counts_by_its_widest_section() -> None:
    """A flat one of area 1 at x = 10 has more paint than two round ones of exp(-2) at 0."""
    g = scene(torch.tensor([[0.0, 0, 0], [0.0, 0, 0], [10.0, 0, 0]]), -1.0)
    g.scales[2] = torch.tensor([0.0, -9.0, 0.0])
    assert painted_extent(g)[0].tolist() == [10.0, 0.0, 0.0]


def test_cameras_lie_on_a_sphere_by_hand() -> None:
    """As far out as a ball of the radius fits 50 degrees and a tenth more, in layers of equal height."""
    g = scene(blob())
    center, radius, _ = painted_extent(g)
    views = virtual_views(g, 6, 16)
    away = torch.stack([-(v.viewmat[:3, :3].T @ v.viewmat[:3, 3]) for v in views]) - center
    distance = 1.1 * radius / math.sin(math.radians(25))
    np.testing.assert_allclose(away.norm(dim=1), distance, rtol=1e-5)
    np.testing.assert_allclose(away[:, 2] / distance, np.array([5, 3, 1, -1, -3, -5]) / 6, atol=1e-5)
    focal = 8 / math.tan(math.radians(25))
    np.testing.assert_allclose(views[0].K, [[focal, 0, 8], [0, focal, 8], [0, 0, 1]], rtol=1e-6)


def test_a_shell_is_hollow_and_a_small_scene_never() -> None:
    assert painted_extent(scene(shell()))[2]
    assert not painted_extent(scene(shell(500)))[2]


@pytest.mark.parametrize("points", [blob(), blob(center=50.0), shell()])
def test_every_camera_sees_a_good_part_of_the_scene(points: torch.Tensor) -> None:
    g = scene(points)
    for view in virtual_views(g, 6, 48):
        rotation = view.viewmat[:3, :3]
        assert torch.allclose(rotation @ rotation.T, torch.eye(3), atol=1e-5) and torch.det(rotation) > 0.99
        assert 0.1 < float(draw(g, view)[1].mean()) <= 1.0


def test_hollow_scenes_are_seen_from_inside_too() -> None:
    centers = [-v.viewmat[:3, :3].T @ v.viewmat[:3, 3] for v in virtual_views(scene(shell()), 8, 16)]
    inside = [bool(c.norm() < 2.0) for c in centers]
    assert inside == [False, True] * 4


def test_the_same_seed_gives_the_same_cameras_and_another_others() -> None:
    g = scene(blob())
    a, b, c = (virtual_views(g, 5, 20, seed) for seed in (0, 0, 1))
    assert all(torch.equal(x.viewmat, y.viewmat) for x, y in zip(a, b, strict=True))
    assert not any(torch.equal(x.viewmat, y.viewmat) for x, y in zip(a, c, strict=True))
    with pytest.raises(ValueError, match="0 views"):
        virtual_views(g, 0, 10)


@pytest.mark.parametrize("up", sorted(UP))
def test_up_is_up_in_every_picture_and_moves_no_camera(up: str) -> None:
    g = scene(blob(60))
    for turned, plain in zip(virtual_views(g, 5, 16, up=up), virtual_views(g, 5, 16), strict=True):
        upward = turned.viewmat[:3, :3] @ torch.tensor(UP[up])
        if abs(float(upward[2])) < 0.94:
            assert abs(float(upward[0])) < 1e-5 and float(upward[1]) < -0.3
        eyes = [-(view.viewmat[:3, :3].T @ view.viewmat[:3, 3]) for view in (turned, plain)]
        assert torch.allclose(eyes[0], eyes[1], atol=1e-4)
        assert torch.allclose(turned.viewmat[2, :3], plain.viewmat[2, :3], atol=1e-5)
        assert float(torch.linalg.det(turned.viewmat[:3, :3])) == pytest.approx(1, abs=1e-5)
