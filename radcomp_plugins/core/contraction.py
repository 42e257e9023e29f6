"""MERF's piecewise-projective contraction: all of space into the cube [-2, 2]^3 (Reiser et al. 2023, Eq. 5).

Unlike mip-NeRF 360's contraction, a straight ray stays straight inside each of its seven regions, which is what lets a
viewer march through the contracted cube with straight steps and intersect its voxels in closed form.
"""

import torch
from jaxtyping import Float
from torch import Tensor

_OUTERMOST = 2.0 - 1e-6
"""Contracted coordinates beyond this lie at more than 10^6 units, where the inverse has no digits left."""


def contract(x: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """Points of the submodel frame in contracted coordinates.

    The cube of half side 1 stays as it is. Outside, every coordinate is divided by the largest one's magnitude m, and
    that one becomes 2 - 1/m.

    Args:
        x: submodel frame, any range.

    Returns:
        Contracted frame, in (-2, 2).
    """
    magnitude = x.abs()
    largest = magnitude.amax(dim=-1, keepdim=True)
    outer = largest.clamp(min=1.0)
    projected = x / outer
    shell = x.sign() * (2.0 - 1.0 / outer)
    return torch.where((magnitude == largest) & (largest > 1.0), shell, projected)


def uncontract(y: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """The inverse of `contract`.

    Args:
        y: contracted frame, in [-2, 2]; what lies further out than 2 - 1e-6 is moved there first.

    Returns:
        Submodel frame.
    """
    y = y.clamp(-_OUTERMOST, _OUTERMOST)
    magnitude = y.abs()
    largest = magnitude.amax(dim=-1, keepdim=True)
    scale = 1.0 / (2.0 - largest.clamp(min=1.0))
    return torch.where((magnitude == largest) & (largest > 1.0), y.sign() * scale, y * scale)


def contracted_speed(x: Float[Tensor, "*batch 3"], directions: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch"]:
    """Length of the contraction's derivative at x along a direction: contracted units per unit of `directions`.

    A voxel of side v in contracted space is v / speed long on the ray.

    Args:
        x: submodel frame.
        directions: submodel frame, any length.

    Returns:
        The directional derivative's Euclidean norm, above 0 where the direction is not 0 and the point is finite.
    """
    magnitude = x.abs()
    largest, axis = magnitude.max(dim=-1, keepdim=True)
    outer = largest.clamp(min=1.0)
    along = directions.gather(-1, axis) * x.gather(-1, axis).sign()  # rate of the largest coordinate's magnitude
    projected = directions / outer - x * along / outer**2
    shell = directions / outer**2
    is_axis = torch.zeros_like(x, dtype=torch.bool).scatter(-1, axis, True)
    inside = largest <= 1.0
    rate = torch.where(inside, directions, torch.where(is_axis, shell, projected))
    return rate.norm(dim=-1)
