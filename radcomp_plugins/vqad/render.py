"""Rays through a field: samples in the voxels they hit, packed compositing, an end where they are opaque.

On the CPU one kernel does it (`vqad.render_cpu`) where the field has the shape it is made for; this module has the same
in plain torch, for GPUs and for all other shapes.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from radcomp_plugins.core.octree_lookup import locate, vertices_read
from radcomp_plugins.core.octree_rays import intersect, rays_within, split_evenly
from radcomp_plugins.core.volume import accumulate, ray_index, render_weights
from radcomp_plugins.vqad import render_cpu
from radcomp_plugins.vqad.field import VqadField


@dataclass(frozen=True)
class Drawn:
    """What rays look like.

    Attributes:
        rgb: [R, 3] colour without any background.
        accumulation: [R] share of the light that the scene sends.
        depth: [R] expected distance in scene units, no gradients; 0 where nothing is hit.
        weights: [N] share of its ray's light that each sample sends, no gradients.
        nodes: [N] node of the finest level looked up that each sample lies in; -1 where there is none, and for samples
            that were not evaluated.
        rays: R, how many of the given rays were drawn.
        samples: how many samples were evaluated.
        ray_offsets: first sample of each ray, and one past the last.
    """

    rgb: Float[Tensor, "R 3"]
    accumulation: Float[Tensor, " R"]
    depth: Float[Tensor, " R"]
    weights: Float[Tensor, " N"]
    nodes: Int[Tensor, " N"]
    rays: int
    samples: int
    ray_offsets: Int[Tensor, " R_plus_1"]


@dataclass(frozen=True)
class _Samples:
    """Samples of rays in the box frame: distances are in scene units, lengths in sides of the box."""

    origins: Float[Tensor, "R 3"]
    directions: Float[Tensor, "R 3"]
    at: Float[Tensor, " N"]
    lengths: Float[Tensor, " N"]
    ray_offsets: Int[Tensor, " R_plus_1"]


def draw(
    field: VqadField,
    origins: Float[Tensor, "R 3"],
    directions: Float[Tensor, "R 3"],
    *,
    level: int | None = None,
    jitter: bool = False,
    max_samples: int | None = None,
    kernel: bool = True,
) -> Drawn:
    """Colours of rays.

    Args:
        field: on the rays' device.
        origins: scene frame.
        directions: scene frame, unit length.
        level: level of detail: the finest that is looked up; None is all.
        jitter: draw the place of each sample in its part of the voxel; False is the middle.
        max_samples: draw only the first rays, as many as have no more samples than this together.
        kernel: False draws with plain torch also where the kernel could.
    """
    sampled = field.sampled_level(level)
    extent = field.box[1] - field.box[0]
    starts, along = field.to_box(origins), directions / extent
    near = torch.full_like(starts[:, 0], field.near)
    hits = intersect(field.octree, starts, along, near, sampled)
    if max_samples is not None:
        rays = rays_within(hits, max(1, max_samples // field.samples_per_voxel))
        hits, starts, along, directions = hits.first_rays(rays), starts[:rays], along[:rays], directions[:rays]
    count = len(hits.starts) * field.samples_per_voxel
    noise = torch.rand(count, device=starts.device) if jitter else None
    at, lengths, offsets = split_evenly(hits, field.samples_per_voxel, noise)
    samples = _Samples(starts, along, at, lengths / field.side, offsets)
    base = field.decoder.ray_base(directions)
    depth = field.finest(level) - field.octree.coarsest + 1
    if kernel and render_cpu.fits(field.encoding, field.decoder.feature_weight()):
        return _draw_with_kernel(field, samples, base, depth)
    return _draw_with_torch(field, samples, base, depth)


def _draw_with_kernel(field: VqadField, samples: _Samples, base: Tensor, depth: int) -> Drawn:
    decoder = field.decoder
    rays = samples.origins, samples.directions, samples.at, samples.lengths, samples.ray_offsets
    drawn, weights, used, nodes = render_cpu.draw_rays(
        _table_for(field, samples, depth),
        base,
        decoder.feature_weight(),
        decoder.last.weight,
        decoder.last.bias,
        field.octree,
        rays,
        (decoder.activation, decoder.density_bias, decoder.density_scale),
        depth,
        field.opaque,
    )
    accumulation = drawn[:, 3]
    return Drawn(
        rgb=drawn[:, :3],
        accumulation=accumulation,
        depth=drawn[:, 4].detach() / accumulation.detach().clamp(min=1e-6),
        weights=weights,
        nodes=nodes[:, -1],
        rays=len(drawn),
        samples=int(used.sum()),
        ray_offsets=samples.ray_offsets,
    )


def _table_for(field: VqadField, samples: _Samples, depth: int) -> Tensor:
    """Features of the vertices that the samples may read."""
    encoding = field.encoding
    if encoding.mode in ("full", "fixed"):
        return encoding.table()
    points = _points(samples, ray_index(samples.ray_offsets))
    nodes = locate(field.octree, points, field.octree.coarsest + depth - 1)
    return encoding.table(vertices_read(field.octree, nodes))


def _points(samples: _Samples, rays: Tensor) -> Tensor:
    return samples.origins[rays] + samples.at[:, None] * samples.directions[rays]


def _draw_with_torch(field: VqadField, samples: _Samples, base: Tensor, depth: int) -> Drawn:
    count = len(base)
    rays, offsets = ray_index(samples.ray_offsets), samples.ray_offsets
    points = _points(samples, rays)
    nodes = locate(field.octree, points, field.octree.coarsest + depth - 1)
    table = field.encoding.table(vertices_read(field.octree, nodes))
    with torch.no_grad():
        seen = _before_opaque(field, table, points, nodes, base, samples, rays)
    total = len(seen)
    rays, points, lengths, at = rays[seen], points[seen], samples.lengths[seen], samples.at[seen]
    density, colour = field.sample(table, points, nodes[seen], base[rays])
    offsets = torch.nn.functional.pad(torch.bincount(rays, minlength=count).cumsum(0), (1, 0))
    weights = render_weights(density * lengths, offsets)
    channels = torch.cat([colour, torch.ones_like(at)[:, None], at[:, None].detach()], dim=1)
    summed = accumulate(weights, channels, rays, count)
    accumulation = summed[:, 3]
    all_weights = weights.new_zeros(total).masked_scatter(seen, weights.detach())
    return Drawn(
        rgb=summed[:, :3],
        accumulation=accumulation,
        depth=summed[:, 4].detach() / accumulation.detach().clamp(min=1e-6),
        weights=all_weights,
        nodes=torch.where(seen, nodes[:, -1], -1),
        rays=count,
        samples=len(rays),
        ray_offsets=samples.ray_offsets,
    )


def _before_opaque(
    field: VqadField, table: Tensor, points: Tensor, nodes: Tensor, base: Tensor, samples: _Samples, rays: Tensor
) -> Bool[Tensor, " N"]:
    """Samples that light still reaches; what is behind them needs no gradients, and no memory for them."""
    density, _ = field.sample(table.detach(), points, nodes, base[rays])
    weights = render_weights(density * samples.lengths, samples.ray_offsets).double()
    summed = torch.nn.functional.pad(weights.cumsum(0), (1, 0))
    before = summed[:-1] - summed[samples.ray_offsets[:-1]][rays]
    # Rounding may leave a little less than nothing.
    return (1.0 - before).clamp(min=0.0) >= field.opaque
