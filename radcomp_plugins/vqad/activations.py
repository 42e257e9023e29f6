"""What turns the decoder's density output into a density."""

import torch
from jaxtyping import Float
from torch import Tensor

from radcomp_plugins.vqad.scene import DENSITY_ACTIVATIONS, DensityActivation

ACTIVATION_CODES = {name: number for number, name in enumerate(DENSITY_ACTIVATIONS)}
"""Numbers that kernels know the activations by."""

MAX_EXPONENT = 15.0
"""`exp` grows no further from here: 3.3 million per side of the box is opaque in any voxel."""


def density(raw: Float[Tensor, " N"], activation: DensityActivation, bias: float, scale: float) -> Float[Tensor, " N"]:
    """Density per side of the box.

    Args:
        raw: the decoder's output.
        activation: the paper: `relu`.
        bias: added before it.
        scale: multiplied after it.
    """
    x = raw + bias
    if activation == "relu":
        return torch.relu(x) * scale
    if activation == "softplus":
        return torch.nn.functional.softplus(x) * scale
    return torch.exp(x.clamp(max=MAX_EXPONENT)) * scale
