"""Zip-NeRF's fields: grids of cone features, and the small networks that read them."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from nerfstudio.field_components.activations import trunc_exp
from nerfstudio.utils.math import components_from_spherical_harmonics
from torch import Tensor, nn

from radcomp_plugins.core.hashgrid_cone import cone_encode
from radcomp_plugins.core.small_mlp import small_mlp

_SMALL_WIDTH = 32
"""Widest hidden layer for which one kernel beats matrix products."""
_INIT_RANGE = 1e-4
"""Features start uniform in +-this (Mueller et al. 2022, Sec. 4)."""


class ConeGrid(nn.Module):
    """A multiresolution hash grid that is asked about cones; each level has twice the resolution of the one before.

    Attributes:
        table: [L * T, F] features.
        resolutions: [L] cells along the unit cube.
    """

    resolutions: Tensor

    def __init__(self, num_levels: int, base_resolution: int, log2_size: int, features: int) -> None:
        super().__init__()
        self.log2_size, self.num_levels = log2_size, num_levels
        table = torch.empty(num_levels << log2_size, features).uniform_(-_INIT_RANGE, _INIT_RANGE)
        self.table = nn.Parameter(table)
        self.register_buffer("resolutions", torch.empty(num_levels), persistent=False)
        self.set_base_resolution(base_resolution)

    def set_base_resolution(self, base_resolution: int) -> None:
        """Cells along the unit cube of the coarsest level; each next one has twice as many."""
        for level in range(self.num_levels):
            self.resolutions[level] = float(base_resolution << level)

    @property
    def out_dim(self) -> int:
        """Number of features of a sample."""
        return self.num_levels * self.table.shape[1]

    def forward(self, points: Float[Tensor, "4 N M"]) -> Float[Tensor, "N features"]:
        """Features of cone samples given in grid coordinates."""
        return cone_encode(points, self.table, self.resolutions, self.log2_size)


def _activation(name: Literal["softplus", "exp"]) -> Callable[[Tensor], Tensor]:
    return nn.functional.softplus if name == "softplus" else trunc_exp


class DensityField(nn.Module):
    """Grid, one hidden layer, density; and what the colour network needs to know about the place.

    Args:
        grid: the features it reads.
        hidden_dim: width.
        bottleneck_dim: further outputs; 0 for a proposal field.
        activation: of the density.
        bias: added before it.
    """

    def __init__(
        self,
        grid: ConeGrid,
        hidden_dim: int,
        bottleneck_dim: int,
        activation: Literal["softplus", "exp"],
        bias: float,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.hidden = nn.Linear(grid.out_dim, hidden_dim)
        self.out = nn.Linear(hidden_dim, 1 + bottleneck_dim)
        self._is_small = bottleneck_dim == 0 and hidden_dim <= _SMALL_WIDTH
        self._activation, self._bias = _activation(activation), bias

    def forward(self, points: Float[Tensor, "4 N M"]) -> tuple[Float[Tensor, " N"], Float[Tensor, "N bottleneck"]]:
        """Density, per scene unit, and the bottleneck."""
        features = self.grid(points)
        if self._is_small:
            raw = small_mlp(features, self.hidden.weight, self.hidden.bias, self.out.weight, self.out.bias)
            return self._activation(raw + self._bias), features[:, :0]
        out = self.out(torch.relu(self.hidden(features)))
        return self._activation(out[:, 0] + self._bias), out[:, 1:]


class ColorNetwork(nn.Module):
    """Bottleneck, viewing direction and, where there are any, the image's appearance numbers, to a colour in [0, 1].

    Args:
        bottleneck_dim: numbers from the density network.
        hidden_dim: width.
        num_layers: hidden layers.
        direction_degree: of the spherical harmonics.
        appearance_dim: numbers per image.
    """

    _PADDING = 0.001  # colours reach a little beyond [0, 1], so that black and white need no infinite logit

    def __init__(
        self, bottleneck_dim: int, hidden_dim: int, num_layers: int, direction_degree: int, appearance_dim: int
    ) -> None:
        super().__init__()
        self.direction_degree = direction_degree
        width = bottleneck_dim + direction_degree**2 + appearance_dim
        layers: list[nn.Module] = []
        for _ in range(num_layers):
            layers += [nn.Linear(width, hidden_dim), nn.ReLU(inplace=True)]
            width = hidden_dim
        self.layers = nn.Sequential(*layers, nn.Linear(width, 3))

    def encode(self, directions: Float[Tensor, "R 3"]) -> Float[Tensor, "R components"]:
        """Spherical harmonics of unit directions."""
        return components_from_spherical_harmonics(self.direction_degree, directions)

    def forward(self, *inputs: Float[Tensor, "N _"]) -> Float[Tensor, "N 3"]:
        """Colours from the parts of the input, side by side."""
        rgb = self.layers(torch.cat(inputs, dim=-1)).sigmoid()
        return rgb * (1 + 2 * self._PADDING) - self._PADDING
