"""Cameras: view matrices, what cameras look at, seeds and pseudo views."""

import math

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from tiny_runs import orbit

from radcomp_plugins.splats.views import (
    common_view_points,
    focus_of_cameras,
    jitter_positions,
    pinhole_views,
    viewmats_from_c2w,
)


def looking_at(target: torch.Tensor, eyes: torch.Tensor) -> torch.Tensor:
    """Cameras [C, 3, 4] at `eyes` that look at `target`."""
    back = torch.nn.functional.normalize(eyes - target, dim=-1)
    up = torch.tensor([0.1, 0.2, 1.0]).expand_as(back)
    right = torch.nn.functional.normalize(torch.linalg.cross(up, back), dim=-1)
    return torch.stack([right, torch.linalg.cross(back, right), back, eyes], dim=-1)


@pytest.mark.parametrize("rows", [3, 4])
def test_view_matrix_takes_the_world_to_x_right_y_down_z_forward(rows):
    c2w = torch.cat([orbit(), torch.tensor([[[0.0, 0.0, 0.0, 1.0]]]).expand(9, 1, 4)], dim=1)[:, :rows]
    points = torch.randn(30, 3)
    for pose, viewmat in zip(c2w, viewmats_from_c2w(c2w), strict=True):
        right, up, back, eye = pose[:3].unbind(dim=1)
        for point in points:
            offset = point - eye
            expected = torch.stack([offset @ right, -(offset @ up), -(offset @ back), torch.tensor(1.0)])
            torch.testing.assert_close(viewmat @ torch.cat([point, torch.ones(1)]), expected, atol=1e-5, rtol=1e-5)


def test_views_have_each_cameras_own_intrinsics_and_size():
    cameras = Cameras(
        orbit(2), fx=torch.tensor([[30.0], [40.0]]), fy=torch.tensor([[31.0], [41.0]]),
        cx=torch.tensor([[12.0], [16.0]]), cy=torch.tensor([[10.0], [15.0]]),
        width=torch.tensor([[24], [32]]), height=torch.tensor([[20], [30]]),
    )  # fmt: skip
    first, second = pinhole_views(cameras)
    assert (first.width, first.height, second.width, second.height) == (24, 20, 32, 30)
    assert first.K.tolist() == [[30, 0, 12], [0, 31, 10], [0, 0, 1]]
    assert second.K.tolist() == [[40, 0, 16], [0, 41, 15], [0, 0, 1]]
    assert torch.equal(second.viewmat, viewmats_from_c2w(orbit(2))[1])


@pytest.mark.parametrize("target", [[0.0, 0.0, 0.0], [3.0, -2.0, 7.0]])
def test_focus_is_the_point_all_cameras_look_at(target):
    target = torch.tensor(target)
    eyes = target + 4 * torch.nn.functional.normalize(torch.randn(12, 3), dim=-1)
    torch.testing.assert_close(focus_of_cameras(looking_at(target, eyes)), target, atol=1e-4, rtol=1e-4)


def test_focus_of_parallel_cameras_stays_with_them():
    c2w = torch.eye(4)[None, :3].repeat(5, 1, 1)
    c2w[:, :3, 3] = torch.randn(5, 3)
    focus = focus_of_cameras(c2w)
    torch.testing.assert_close(focus[:2], c2w[:, :2, 3].mean(dim=0), atol=1e-4, rtol=1e-4)
    assert abs(float(focus[2] - c2w[:, 2, 3].mean())) < 1e-3
    torch.testing.assert_close(focus_of_cameras(c2w[:1]), c2w[0, :, 3])


def test_seed_points_fill_the_cube_that_fills_the_images():
    c2w = orbit(12) + torch.tensor([0.0, 0.0, 0.0, 1.0]) * torch.tensor([[5.0], [0.0], [-2.0]])
    tangent = torch.full((12,), 0.4)
    points = common_view_points(c2w, tangent, 4000, torch.Generator().manual_seed(1))
    focus = torch.tensor([5.0, 0.0, -2.0])
    half = 3.0 * 0.4
    assert float((points - focus).abs().max()) <= half * 1.001
    assert (points - focus).abs().amax(dim=0).tolist() == pytest.approx([half] * 3, rel=0.02)
    assert (points - focus).std(dim=0).tolist() == pytest.approx([half / math.sqrt(3)] * 3, rel=0.05)
    # Most of them lie in most of the images.
    local = torch.cat([points, torch.ones(4000, 1)], dim=1) @ viewmats_from_c2w(c2w).transpose(1, 2)
    inside = (local[..., :2].abs() <= 0.4 * local[..., 2:3]).all(dim=-1)
    assert float(inside.float().mean()) > 0.5
    again = common_view_points(c2w, tangent, 4000, torch.Generator().manual_seed(1))
    assert torch.equal(points, again)


def test_jitter_moves_the_cameras_as_far_as_sigma_says_and_turns_none():
    c2w = orbit(2000)
    before = c2w.clone()
    moved = jitter_positions(c2w, 0.3, torch.Generator().manual_seed(2))
    assert torch.equal(moved[:, :, :3], c2w[:, :, :3]) and torch.equal(c2w, before)
    noise = moved[:, :, 3] - c2w[:, :, 3]
    assert noise.std(dim=0).tolist() == pytest.approx([0.3] * 3, rel=0.06)
    assert noise.mean(dim=0).abs().max() < 0.03
    correlation = torch.corrcoef(noise.T) - torch.eye(3)
    assert correlation.abs().max() < 0.1
    assert torch.equal(moved, jitter_positions(c2w, 0.3, torch.Generator().manual_seed(2)))
    assert not torch.equal(moved, jitter_positions(c2w, 0.3, torch.Generator().manual_seed(3)))
    assert torch.equal(c2w, jitter_positions(c2w, 0.0, torch.Generator().manual_seed(2)))
