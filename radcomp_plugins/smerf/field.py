"""The student's field: hash-encoded texels, quantised as they will be stored, interpolated, merged and activated."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from radcomp_plugins.core.contraction import contract
from radcomp_plugins.core.gather import gather
from radcomp_plugins.core.hashgrid import HashGrid
from radcomp_plugins.smerf.corners import VOXEL_CORNERS, corners_of, texel_centres
from radcomp_plugins.smerf.free_texels import FreeTexels
from radcomp_plugins.smerf.layout import DENSITY, GATE, NUM_CHANNELS, RANGE_DENSITY, RANGE_FEATURES, Layout
from radcomp_plugins.smerf.sight import Sight

MAX_LOG_DENSITY = 88.0
"""exp of more than this is infinite in float32."""
HASH_OUTPUT_SCALE = 10.0
"""The tables hold a tenth of what the network sees, which makes Adam's steps ten times larger (the authors' value)."""


def quantise(raw: Float[Tensor, "*batch 8"], levels: int = 255) -> Float[Tensor, "*batch 8"]:
    """What a texel is worth once it has been stored: its sigmoid, rounded to a byte; gradients pass the rounding by."""
    value = raw.sigmoid()
    return value + ((value.detach() * levels).round() / levels - value.detach())


def denormalise(value: Float[Tensor, "*batch 8"]) -> Float[Tensor, "*batch 8"]:
    """Features in [-7, 7] and density in [-14, 14] from shares of 255 in [0, 1]."""
    scale = value.new_full((NUM_CHANNELS,), RANGE_FEATURES)
    scale[DENSITY] = RANGE_DENSITY
    return (2.0 * value - 1.0) * scale


def density_of(pre: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Density per unit-frame distance from what is interpolated: exp(x - 1)."""
    return (pre - 1.0).clamp(max=MAX_LOG_DENSITY).exp()


_CHUNK = 2**18
"""Texels that the network is asked for at a time."""
FIRST_GATE = 1.0
"""The gate of every voxel at first. From 0 neither the planes nor the gate would have a gradient: each weighs the
other's, and the planes would join in only after the voxels had learned what they can alone."""


def first_values(layout: Layout) -> Float[Tensor, " 8"]:
    """What the network gives every texel at first, before the sigmoid: no colour, an open gate, and so much density
    that a voxel of the linear region has an optical depth of 0.1.

    Density is the exponential of what is stored. From nothing it does not grow, because its gradient is as small as
    itself, and before a white background all of the scene then ends up as nothing.
    """
    density = 0.1 * layout.submodel_scale / layout.triplane_voxel
    gate = FIRST_GATE if layout.feature_gating else 1.0
    value = torch.zeros(NUM_CHANNELS)
    value[DENSITY] = (1.0 + math.log(density)) / (1.0 + 3.0 * gate) / RANGE_DENSITY
    if layout.feature_gating:
        value[GATE] = FIRST_GATE / RANGE_FEATURES
    return torch.logit(0.5 + 0.5 * value)


@dataclass(frozen=True)
class FieldValues:
    """The field at M points.

    Attributes:
        density: [M] per unit-frame distance.
        features: [M, 7 or 14] in [0, 1]: planes and voxels merged, then, with concatenation, the voxels alone.
    """

    density: Float[Tensor, " M"]
    features: Float[Tensor, "M channels"]


class SmerfField(nn.Module):
    """One hash grid per live submodel and one network that all of them share."""

    def __init__(
        self,
        layout: Layout,
        *,
        num_levels: int = 20,
        min_res: int = 16,
        max_res: int = 8192,
        log2_table_size: int = 21,
        features_per_level: int = 2,
        hidden_layers: int = 2,
        hidden_width: int = 64,
    ) -> None:
        super().__init__()
        self.layout = layout
        self.quantised = True
        self.grids = nn.ModuleList(
            HashGrid(num_levels, min_res, max_res, log2_table_size, features_per_level, init_scale=1e-5)
            for _ in layout.alive
        )
        layers: list[nn.Module] = []
        width = num_levels * features_per_level
        for _ in range(hidden_layers):
            layers += [nn.Linear(width, hidden_width), nn.ReLU()]
            nn.init.kaiming_uniform_(layers[-2].weight, nonlinearity="relu")  # type: ignore[arg-type]
            nn.init.zeros_(layers[-2].bias)  # type: ignore[arg-type]
            width = hidden_width
        last = nn.Linear(width, NUM_CHANNELS)
        with torch.no_grad():
            last.bias.copy_(first_values(layout))
        self.network = nn.Sequential(*layers, last)
        self.free = FreeTexels()
        self.sight = Sight(layout)

    def let_go(self, codes: Int[Tensor, " U"]) -> None:
        """Make texels parameters of their own, at the values that the network gives them; codes ascending."""
        with torch.no_grad():
            values = [self.computed(part) for part in codes.split(_CHUNK)]
        self.free.let_go(codes, torch.cat(values))

    def texels(self, codes: Int[Tensor, " U"]) -> Float[Tensor, "U 8"]:
        """The raw values of texels, before the sigmoid."""
        return self.free.look_up(codes, self.computed) if len(self.free) else self.computed(codes)

    def computed(self, codes: Int[Tensor, " U"]) -> Float[Tensor, "U 8"]:
        """What the network gives to texels."""
        centres, row = texel_centres(codes, self.layout)
        position = (centres + 2.0) * 0.25
        if len(self.grids) == 1 or len(codes) == 0:
            return self.network(HASH_OUTPUT_SCALE * self.grids[0](position))
        encoded: Any = None
        for index, grid in enumerate(self.grids):
            chosen = torch.where(row == index)[0]
            if len(chosen) == 0:
                continue
            part = grid(position[chosen])
            if encoded is None:
                encoded = part.new_zeros(len(codes), part.shape[1])
            encoded = encoded.index_copy(0, chosen, part)
        return self.network(HASH_OUTPUT_SCALE * encoded)

    def forward(self, submodel: Float[Tensor, "M 3"], row: Int[Tensor, " M"]) -> FieldValues:
        """Density and features at points.

        Args:
            submodel: submodel frame.
            row: of each point's submodel among the live ones.
        """
        corners = corners_of(contract(submodel), row, self.layout)
        raw = self.texels(corners.codes)
        if self.training:
            self.sight.remember(corners.codes, raw)
        values = denormalise(quantise(raw) if self.quantised else raw.sigmoid())
        voxels = gather(values, corners.index[:, :VOXEL_CORNERS], corners.weights[:, :VOXEL_CORNERS])
        planes = gather(values, corners.index[:, VOXEL_CORNERS:], corners.weights[:, VOXEL_CORNERS:])
        return merge(voxels, planes, self.layout)


def merge(voxels: Float[Tensor, "M 8"], planes: Float[Tensor, "M 8"], layout: Layout) -> FieldValues:
    """Density and features from what the sparse grid and the three planes (summed) are worth at the same points.

    With feature gating the voxels' last feature weighs the planes, so that a coarse voxel decides how much of the fine
    planes is meant for it.
    """
    gated = planes * voxels[:, GATE : GATE + 1] if layout.feature_gating else planes
    merged = gated + voxels
    features = merged[:, :DENSITY].sigmoid()
    if layout.feature_concat:
        features = torch.cat([features, voxels[:, :DENSITY].sigmoid()], dim=-1)
    return FieldValues(density=density_of(merged[:, DENSITY]), features=features)
