"""Virtual cameras for a scene that comes without any: around what it paints, and inside where it is hollow."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from radcomp_plugins.splats.gaussians import Gaussians
from radcomp_plugins.splats.views import PinholeView

FIELD_OF_VIEW = math.radians(50.0)
EXTENT_QUANTILE = 0.85
DISTANCE = 1.1
"""Of the cameras around the scene, in units of the distance from which its radius just fits the picture."""

UP = {
    **{"x": (1.0, 0.0, 0.0), "y": (0.0, 1.0, 0.0), "z": (0.0, 0.0, 1.0)},
    **{"x-down": (-1.0, 0.0, 0.0), "y-down": (0.0, -1.0, 0.0), "z-down": (0.0, 0.0, -1.0)},
}
"""Directions that may be up: nerfstudio's scenes have z, most files on the web y-down; no file says."""

HOLLOW_RADIUS, HOLLOW_SHARE = 0.35, 0.04
"""A scene with less than this share of its paint within this share of its radius surrounds the camera that took it."""


def painted_extent(gaussians: Gaussians) -> tuple[Float[Tensor, " 3"], float, bool]:
    """Centre and radius of what a scene paints, and whether it is hollow.

    Gaussians count by alpha times the area of their widest section, which is cut at the 90th percentile so that a sky
    of a few huge ones does not decide alone.
    """
    means = gaussians.means.detach().cpu().double()
    widest = gaussians.scales.detach().cpu().double().sort(dim=1).values[:, 1:].sum(dim=1).clamp(-60, 60).exp()
    weight = gaussians.opacities.detach().cpu().double().sigmoid() * widest
    weight = weight.minimum(_quantile(weight, torch.ones_like(weight), 0.9)) + 1e-300
    center = torch.stack([_quantile(means[:, k], weight, 0.5) for k in range(3)])
    away = (means - center).norm(dim=1)
    radius = float(_quantile(away, weight, EXTENT_QUANTILE))
    size = float(gaussians.scales.detach().double().max(dim=1).values.clamp(max=60).median().exp())
    radius = max(radius, 3 * size, 1e-12)
    share = float(weight[away < HOLLOW_RADIUS * radius].sum() / weight.sum())
    return center, radius, len(gaussians) >= 1000 and share < HOLLOW_SHARE


def virtual_views(gaussians: Gaussians, count: int, size: int, seed: int = 0, up: str = "z") -> list[PinholeView]:
    """Cameras that see the whole scene between them; the same arguments give the same cameras.

    Args:
        gaussians: The scene, on any device, on which the cameras will be too.
        count: Number of cameras, at least 1. In a hollow scene every other one stands inside and looks outward.
        size: Width and height of the pictures in pixels.
        seed: Turns the directions, so that other seeds give views to test on.
        up: Which way the pictures' upper edge points, a key of `UP`; it only rolls the cameras.
    """
    if count < 1 or size < 1:
        raise ValueError(f"{count} views of {size} pixels, expected 1 or more of both")
    center, radius, hollow = painted_extent(gaussians)
    directions = _sphere(count, seed)
    focal = 0.5 * size / math.tan(0.5 * FIELD_OF_VIEW)
    intrinsics = torch.tensor([[focal, 0, 0.5 * size], [0, focal, 0.5 * size], [0, 0, 1]], dtype=torch.float32)
    distance = DISTANCE * radius / math.sin(0.5 * FIELD_OF_VIEW)
    views = []
    for k, direction in enumerate(directions):
        if hollow and k % 2 == 1:
            # A little off the centre, or all inner views would share their parallax.
            viewmat = _look_along(center - 0.15 * radius * direction, direction, UP[up])
        else:
            viewmat = _look_along(center + distance * direction, -direction, UP[up])
        views.append(PinholeView(viewmat, intrinsics, size, size))
    device = gaussians.means.device
    return [PinholeView(v.viewmat.to(device), v.K.to(device), size, size) for v in views]


def _look_along(eye: Tensor, forward: Tensor, up: tuple[float, float, float]) -> Float[Tensor, "4 4"]:
    """World-to-camera, OpenCV, float32: y of the picture as far down from `up` as can be."""
    upward = torch.tensor(up, dtype=torch.float64)
    if abs(float(forward @ upward)) >= 0.95:
        upward = upward.roll(-1).abs()
    right = torch.linalg.cross(forward, upward)
    right = right / right.norm()
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward])
    viewmat = torch.eye(4, dtype=torch.float64)
    viewmat[:3, :3] = rotation
    viewmat[:3, 3] = -rotation @ eye
    return viewmat.float()


def _sphere(count: int, seed: int) -> Float[Tensor, "count 3"]:
    """Directions spread evenly by the golden angle, float64."""
    golden = math.pi * (3.0 - math.sqrt(5.0))
    turn = float(torch.rand(1, generator=torch.Generator().manual_seed(seed))) * 2 * math.pi
    k = torch.arange(count, dtype=torch.float64)
    z = 1.0 - (2.0 * k + 1.0) / count
    ring = (1.0 - z * z).clamp(min=0).sqrt()
    return torch.stack([ring * torch.cos(golden * k + turn), ring * torch.sin(golden * k + turn), z], dim=1)


def _quantile(values: Tensor, weights: Tensor, q: float) -> Tensor:
    """Weighted quantile of values [N]."""
    order = values.argsort(stable=True)
    total = weights[order].cumsum(dim=0)
    place = int(torch.searchsorted(total, q * total[-1]))
    return values[order[min(place, len(values) - 1)]]
