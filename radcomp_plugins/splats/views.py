"""Cameras for splats: nerfstudio poses as view matrices, the volume cameras look at, jittered pseudo views."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor


@dataclass(frozen=True)
class PinholeView:
    """One camera without distortion, ready for the rasterizer.

    Attributes:
        viewmat: [4, 4] world-to-camera, OpenCV convention.
        K: [3, 3] intrinsics in pixels.
        width: image width in pixels.
        height: image height in pixels.
    """

    viewmat: Float[Tensor, "4 4"]
    K: Float[Tensor, "3 3"]
    width: int
    height: int


def viewmats_from_c2w(c2w: Float[Tensor, "C rows 4"]) -> Float[Tensor, "C 4 4"]:
    """World-to-camera matrices in the OpenCV convention the rasterizer takes.

    Args:
        c2w: [C, 3 or 4, 4] camera-to-world in nerfstudio's OpenGL convention: x right, y up, looking along -z.

    Returns:
        [C, 4, 4] world-to-camera: x right, y down, looking along +z.
    """
    flip = c2w.new_tensor([1.0, -1.0, -1.0])
    rotation = (c2w[:, :3, :3] * flip).transpose(1, 2)
    viewmats = torch.zeros(c2w.shape[0], 4, 4, dtype=c2w.dtype, device=c2w.device)
    viewmats[:, :3, :3] = rotation
    viewmats[:, :3, 3:] = -rotation @ c2w[:, :3, 3:]
    viewmats[:, 3, 3] = 1.0
    return viewmats


def pinhole_views(cameras: Cameras) -> list[PinholeView]:
    """The cameras of a dataset, one by one; distortion has been taken out of the images by the datamanager."""
    viewmats = viewmats_from_c2w(cameras.camera_to_worlds)
    intrinsics = cameras.get_intrinsics_matrices().to(viewmats.device)
    sizes = zip(cameras.width.reshape(-1).tolist(), cameras.height.reshape(-1).tolist(), strict=True)
    return [PinholeView(v, k, w, h) for v, k, (w, h) in zip(viewmats, intrinsics, sizes, strict=True)]


def focus_of_cameras(c2w: Float[Tensor, "C rows 4"]) -> Float[Tensor, " 3"]:
    """The point nearest to all optical axes in the least-squares sense, world frame.

    Parallel axes leave the depth along them open; the pseudo-inverse then takes the point nearest to the cameras.
    """
    origins, forward = c2w[:, :3, 3], -c2w[:, :3, 2]
    forward = forward / forward.norm(dim=-1, keepdim=True)
    across = torch.eye(3, dtype=c2w.dtype, device=c2w.device) - forward[:, :, None] * forward[:, None, :]
    center = origins.mean(dim=0)
    offset = torch.einsum("cij,cj->i", across, origins - center)
    return center + torch.linalg.pinv(across.sum(dim=0)) @ offset


def common_view_points(
    c2w: Float[Tensor, "C rows 4"],
    tan_half_fov: Float[Tensor, " C"],
    count: int,
    generator: torch.Generator,
) -> Float[Tensor, "count 3"]:
    """Uniform random points in the cube that fills an average image, for scenes that come without points.

    Args:
        c2w: [C, 3 or 4, 4] camera-to-world, OpenGL convention.
        tan_half_fov: [C] tangent of half the smaller field of view.
        count: number of points.
        generator: source of randomness, on the CPU.

    Returns:
        [count, 3] points in the world frame, in a cube around the point the cameras look at.
    """
    focus = focus_of_cameras(c2w)
    half_side = ((c2w[:, :3, 3] - focus).norm(dim=-1) * tan_half_fov).median()
    unit = torch.rand(count, 3, generator=generator, dtype=torch.float32) * 2 - 1
    return focus + half_side * unit.to(c2w)


def jitter_positions(
    c2w: Float[Tensor, "C rows 4"], sigma: float, generator: torch.Generator
) -> Float[Tensor, "C rows 4"]:
    """Pseudo views: each camera moved by Gaussian noise, its viewing direction kept (Fan et al. 2024, Eq. 6).

    Args:
        c2w: [C, 3 or 4, 4] camera-to-world.
        sigma: standard deviation of the move along each axis, world units.
        generator: source of randomness, on the CPU.
    """
    moved = c2w.clone()
    noise = torch.randn(c2w.shape[0], 3, generator=generator, dtype=torch.float32)
    moved[:, :3, 3] += sigma * noise.to(c2w)
    return moved
