"""One pass of rays through the proposal levels and the final field."""

import math
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

from radcomp_plugins.core.cones import grid_points
from radcomp_plugins.teachers.zipnerf import sampling
from radcomp_plugins.teachers.zipnerf.field import ColorNetwork, DensityField


@dataclass(frozen=True)
class Cones:
    """Rays with a width.

    Attributes:
        origins: scene frame.
        directions: unit vectors.
        radii: of the cones at distance 1.
        near: where sampling begins, scene units.
        far: where it ends; equal to near for a ray that meets nothing.
    """

    origins: Float[Tensor, "R 3"]
    directions: Float[Tensor, "R 3"]
    radii: Float[Tensor, "R 1"]
    near: Float[Tensor, "R 1"]
    far: Float[Tensor, "R 1"]

    def select(self, index: Int[Tensor, " S"]) -> "Cones":
        """Some of the rays."""
        return Cones(*(getattr(self, name.name)[index] for name in fields(self)))


@dataclass(frozen=True)
class Space:
    """What space the grids span and how rays are divided.

    Attributes:
        box: the scene box of a bounded scene; None for all of space, contracted.
        power: lambda of the distance curve; None for an even division.
        num_points: points per conical frustum at each level.
    """

    box: Float[Tensor, "2 3"] | None
    power: float | None
    num_points: tuple[int, ...]


@dataclass(frozen=True)
class Level:
    """Intervals of one level.

    Attributes:
        edges: normalised distances in [0, 1], ascending.
        distances: the same edges along the unit direction, scene units.
        weights: share of the ray's light each interval sends.
        bottleneck: what the density network says about each interval, [R * intervals, B].
        rays: which rays of the batch these are; None for all. The others have no weight.
    """

    edges: Float[Tensor, "R edges"]
    distances: Float[Tensor, "R edges"]
    weights: Float[Tensor, "R intervals"]
    bottleneck: Float[Tensor, "samples B"]
    rays: Int[Tensor, " R"] | None = None

    def spread(self, values: Float[Tensor, "R *rest"], count: int, fill: float = 0.0) -> Float[Tensor, "count *rest"]:
        """Values of this level's rays among those of all `count` rays of the batch."""
        if self.rays is None:
            return values
        return values.new_full((count, *values.shape[1:]), fill).index_copy(0, self.rays, values)

    def among(self, values: Float[Tensor, "count *rest"]) -> Float[Tensor, "R *rest"]:
        """The rows of all rays' values that belong to this level's rays."""
        return values if self.rays is None else values[self.rays]


def weights_from_density(
    density: Float[Tensor, "R intervals"], distances: Float[Tensor, "R edges"], opaque_end: bool
) -> Float[Tensor, "R intervals"]:
    """alpha times transmittance of each interval (Mildenhall et al. 2020, Eq. 3).

    Args:
        density: per scene unit.
        distances: along the unit direction, scene units.
        opaque_end: let the last interval take all light that is left, so that weights sum to 1.
    """
    depth = density * (distances[:, 1:] - distances[:, :-1])
    through = torch.exp(-(depth.cumsum(dim=-1) - depth))
    alpha = 1 - torch.exp(-depth)
    if opaque_end:
        alpha = torch.cat([alpha[:, :-1], torch.ones_like(alpha[:, -1:])], dim=-1)
    return alpha * through


def march_level(
    field: DensityField,
    cones: Cones,
    space: Space,
    edges: Float[Tensor, "R edges"],
    num_points: int,
    opaque_end: bool,
    jitter: bool,
    rays: Int[Tensor, " R"] | None = None,
) -> Level:
    """Ask a field about the intervals between normalised edges."""
    distances = sampling.curve_to_distance(edges, cones.near, cones.far, space.power)
    shape = (len(edges), edges.shape[1] - 1)
    if jitter:
        turns = 2 * math.pi * torch.rand(shape, device=edges.device)
    else:  # neighbours are turned by half the angle between points
        turns = (torch.arange(shape[1], device=edges.device) % 2 * (math.pi / 6)).expand(shape)
    points = grid_points(cones.origins, cones.directions, cones.radii, distances, turns, space.box, num_points)
    density, bottleneck = field(points.flatten(1, 2))
    weights = weights_from_density(density.view(shape), distances, opaque_end)
    return Level(edges, distances, weights, bottleneck, rays)


def march(
    proposals: list[DensityField],
    field: DensityField,
    cones: Cones,
    space: Space,
    counts: tuple[int, ...],
    *,
    opaque_end: bool,
    jitter: bool,
    anneal: float = 1.0,
    skip_below: float = 0.0,
    keep: float = 0.0,
) -> list[Level]:
    """Levels of a batch of rays, the final one last.

    Args:
        proposals: coarse fields, first to last.
        field: the final one.
        cones: R rays.
        space: see `Space`.
        counts: intervals of each level.
        opaque_end: see `weights_from_density`.
        jitter: place points at random.
        anneal: power that weights are raised to before they are resampled; below 1 flattens them.
        skip_below: rays to which a level gives less than this weight in total are left out of all later levels.
        keep: share of them that is looked at all the same, at random.
    """
    edges = cones.origins.new_tensor([0.0, 1.0]).expand(len(cones.origins), 2)
    weights = cones.origins.new_ones(len(cones.origins), 1)
    rays: Tensor | None = None
    levels: list[Level] = []
    for level_field, count, num_points in zip([*proposals, field], counts, space.num_points, strict=True):
        with torch.no_grad():
            if skip_below > 0 and levels:
                seen = weights.sum(dim=-1) > skip_below
                if keep > 0:
                    seen |= torch.rand_like(weights[:, 0]) < keep
                chosen = seen.nonzero().squeeze(-1)
                if len(chosen) < len(seen):
                    edges, weights, cones = edges[chosen], weights[chosen], cones.select(chosen)
                    rays = chosen if rays is None else rays[chosen]
            flat = weights if anneal == 1.0 else weights.clamp_min(1e-30) ** anneal
            edges = sampling.resample(edges, flat, count, jitter)
        levels.append(march_level(level_field, cones, space, edges, num_points, opaque_end, jitter, rays))
        weights = levels[-1].weights.detach()
    return levels


def colors(
    network: ColorNetwork,
    level: Level,
    directions: Float[Tensor, "R 3"],
    appearance: Float[Tensor, "R A"] | None,
    threshold: float,
) -> Float[Tensor, "R 3"]:
    """Sum over intervals of weight times colour: premultiplied, nothing behind it.

    Args:
        network: gives an interval's colour.
        level: the final level.
        directions: unit vectors.
        appearance: numbers of each ray's image, where the network takes any.
        threshold: intervals of a smaller weight count as black and cost nothing.
    """
    rays, count = level.weights.shape
    flat = level.weights.flatten()
    if threshold > 0:
        index = (flat.detach() > threshold).nonzero().squeeze(-1)
        bottleneck, flat = level.bottleneck[index], flat[index]
        ray = index // count
    else:
        bottleneck, ray = level.bottleneck, torch.arange(rays, device=flat.device).repeat_interleave(count)
    parts = [bottleneck, network.encode(directions)[ray]]
    if appearance is not None:
        parts.append(appearance[ray])
    rgb = network(*parts) * flat[:, None]
    return torch.zeros(rays, 3, dtype=rgb.dtype, device=rgb.device).index_add(0, ray, rgb)
