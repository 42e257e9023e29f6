"""Losses of KiloNeRF (Reiser et al. 2021)."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

LEAK = 0.01
"""Slope of the density's ReLU below 0 in distillation: a network that has gone empty still learns what it misses."""


def alpha_of(raw: Float[Tensor, "*batch"], depth_of_one: float) -> Float[Tensor, "*batch"]:
    """Opacity of raw densities over a distance, negative where they are.

    Args:
        raw: density outputs before their ReLU.
        depth_of_one: optical depth of an output of 1 over that distance.
    """
    depth = torch.nn.functional.leaky_relu(raw, LEAK) * depth_of_one
    # Below 0 in a straight line: exponentially, a network far off would run away.
    return torch.where(depth > 0, -torch.expm1(-depth.clamp(min=0.0)), depth)


def distillation(
    alpha: Float[Tensor, "N P"],
    rgb: Float[Tensor, "N P 3"],
    taught_alpha: Float[Tensor, "N P"],
    taught_rgb: Float[Tensor, "N P 3"],
    color_floor: float,
) -> Float[Tensor, " N"]:
    """Mean square error of opacity and colour, for each network by itself.

    Args:
        alpha: of the networks.
        rgb: of the networks.
        taught_alpha: of the teacher.
        taught_rgb: of the teacher.
        color_floor: f in the weight (a + f) / (1 + f) of the colour where the teacher's opacity is a.

    Note:
        The paper weighs all colours alike (a large f). Where there is nothing to see the teacher's colour is noise that
        the networks would spend themselves on.
    """
    weight = (taught_alpha + color_floor) / (1.0 + color_floor)
    color = (rgb - taught_rgb).square().sum(dim=-1) * weight
    return ((alpha - taught_alpha).square() + color).mean(dim=-1) / 4.0


def view_dependence(parameters: Iterable[Tensor]) -> Tensor:
    """Sum of the norms, not squared, of whole parameter tensors (the authors' configs: times 1e-6)."""
    return torch.stack([parameter.norm() for parameter in parameters]).sum()
