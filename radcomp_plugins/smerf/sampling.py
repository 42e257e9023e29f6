"""Where along its rays the student is evaluated: steps of one voxel through occupied cells, or the teacher's intervals.

The paper evaluates the student at the teacher's intervals, and the baked scene by stepping from voxel to voxel; what
the two quadratures make of the same density differs. Here the student steps in training as it will in the viewer.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numba import njit
from torch import Tensor

from radcomp_plugins.core.contraction import contract, contracted_speed
from radcomp_plugins.core.threads import claim, new_counter, run_striped
from radcomp_plugins.smerf.occupancy import Occupancy
from radcomp_plugins.smerf.submodels import Submodels, rotate

OUTERMOST = 2.0 - 1e-3
"""A ray ends where a contracted coordinate reaches this, as in the viewer."""
_RAYS_PER_BLOCK = 64


@dataclass(frozen=True)
class PackedSamples:
    """Intervals along many rays, one ray after the other, each ray's from near to far.

    Attributes:
        starts: [M] where an interval begins, unit-frame distance along its ray.
        ends: [M] where it ends.
        ray_index: [M] the ray it belongs to.
        ray_offsets: [R + 1] a ray's intervals are those from its offset up to the next ray's.
    """

    starts: Float[Tensor, " M"]
    ends: Float[Tensor, " M"]
    ray_index: Int[Tensor, " M"]
    ray_offsets: Int[Tensor, " R1"]


def march(
    origins: Float[Tensor, "R 3"],
    directions: Float[Tensor, "R 3"],
    row: Int[Tensor, " R"],
    near: Float[Tensor, " R"],
    far: Float[Tensor, " R"],
    phase: Float[Tensor, " R"],
    submodels: Submodels,
    occupancy: Occupancy,
    step: float,
) -> PackedSamples:
    """Steps of equal length in contracted space through the occupied cells.

    Args:
        origins: unit frame.
        directions: unit length, unit axes.
        row: of each ray's submodel.
        near: unit-frame distance where marching begins.
        far: unit-frame distance where it ends.
        phase: share of a step, in [0, 1), by which the first one is shifted.
        submodels: the frames.
        occupancy: the cells.
        step: contracted units.
    """
    start = submodels.to_submodel(origins, row)
    along = rotate(directions) * submodels.layout.submodel_scale
    if origins.is_cuda:
        return _march_torch(start, along, row, near, far, phase, occupancy, step)
    rays = [np.ascontiguousarray(t.detach().numpy()) for t in (start, along, near, far, phase)]
    rows = row.numpy().astype(np.int64)
    cells, distance = occupancy.cells.numpy(), occupancy.distance.numpy()
    counts = np.zeros(len(rows) + 1, np.int64)
    empty = np.zeros(0, np.float32)
    run_striped(_march, new_counter(), *rays, rows, cells, distance, np.float32(step), counts, False, empty, empty)
    offsets = np.cumsum(counts)
    starts, ends = np.empty(offsets[-1], np.float32), np.empty(offsets[-1], np.float32)
    run_striped(_march, new_counter(), *rays, rows, cells, distance, np.float32(step), offsets, True, starts, ends)
    ray_offsets = torch.from_numpy(offsets)
    return PackedSamples(
        starts=torch.from_numpy(starts),
        ends=torch.from_numpy(ends),
        ray_index=torch.repeat_interleave(ray_offsets.diff()),
        ray_offsets=ray_offsets,
    )


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _march(
    start, step, counter, origins, directions, near, far, phase, rows, cells, distance, voxel, offsets, fill, t0s, t1s
) -> None:  # fmt: skip
    """Count the steps of each ray into offsets[1:], or, with offsets summed up, fill them in."""
    n = cells.shape[1]
    to_cell = np.float32(0.25 * n)
    cell_size = np.float32(4.0 / n)
    num_blocks = (len(origins) + _RAYS_PER_BLOCK - 1) // _RAYS_PER_BLOCK
    while True:
        block = claim(counter)
        if block >= num_blocks:
            break
        for ray in range(block * _RAYS_PER_BLOCK, min((block + 1) * _RAYS_PER_BLOCK, len(origins))):
            ox, oy, oz = origins[ray, 0], origins[ray, 1], origins[ray, 2]
            dx, dy, dz = directions[ray, 0], directions[ray, 1], directions[ray, 2]
            row = rows[ray]
            fastest = max(abs(dx), abs(dy), abs(dz))
            t, end = near[ray], far[ray]
            count = 0
            at = offsets[ray] if fill else 0
            first = True
            while t < end:
                x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
                m = max(abs(x), abs(y), abs(z))
                if m > np.float32(1.0):
                    inv = np.float32(1.0) / m
                    if np.float32(2.0) - inv >= np.float32(OUTERMOST) and x * dx + y * dy + z * dz > 0:
                        break
                    shell = (np.float32(2.0) - inv) * inv
                    # Rate of the largest coordinate's magnitude along the ray, then of all three contracted ones.
                    if abs(x) == m:
                        rate = dx if x > 0 else -dx
                        cx, cy, cz = x * shell, y * inv, z * inv
                        rx, ry, rz = rate * inv * inv, (dy - cy * rate) * inv, (dz - cz * rate) * inv
                    elif abs(y) == m:
                        rate = dy if y > 0 else -dy
                        cx, cy, cz = x * inv, y * shell, z * inv
                        rx, ry, rz = (dx - cx * rate) * inv, rate * inv * inv, (dz - cz * rate) * inv
                    else:
                        rate = dz if z > 0 else -dz
                        cx, cy, cz = x * inv, y * inv, z * shell
                        rx, ry, rz = (dx - cx * rate) * inv, (dy - cy * rate) * inv, rate * inv * inv
                    speed = np.float32(np.sqrt(rx * rx + ry * ry + rz * rz))
                else:
                    cx, cy, cz = x, y, z
                    speed = np.float32(np.sqrt(dx * dx + dy * dy + dz * dz))
                length = voxel / max(speed, np.float32(1e-12))
                ix = min(max(int((cx + np.float32(2.0)) * to_cell), 0), n - 1)
                iy = min(max(int((cy + np.float32(2.0)) * to_cell), 0), n - 1)
                iz = min(max(int((cz + np.float32(2.0)) * to_cell), 0), n - 1)
                skip = distance[row, ix, iy, iz]
                if skip > 0:
                    # No further than to the next region: there contracted space begins anew somewhere else. Outside of
                    # the linear region a contracted coordinate moves at most twice as fast as the fastest coordinate
                    # (each of the two terms of the quotient rule is at most that), as do two coordinates' magnitudes
                    # relative to one another.
                    reach = skip * cell_size
                    if m <= np.float32(1.0):
                        advance = min(reach, np.float32(1.0) - m) / fastest
                    else:
                        least = min(abs(x), abs(y), abs(z))
                        second = abs(x) + abs(y) + abs(z) - m - least
                        advance = np.float32(0.5) * min(reach, m - second) / fastest
                    t += max(advance, length)
                    continue
                if first:
                    t += phase[ray] * length
                    first = False
                    continue
                if cells[row, ix, iy, iz]:
                    if fill:
                        t0s[at] = t
                        t1s[at] = min(t + length, end)
                        at += 1
                    count += 1
                t += length
            if not fill:
                offsets[ray + 1] = count


def _march_torch(
    start: Tensor,
    along: Tensor,
    row: Tensor,
    near: Tensor,
    far: Tensor,
    phase: Tensor,
    occupancy: Occupancy,
    step: float,
) -> PackedSamples:
    """The twin of `_march`: all rays take their next step together until all have ended."""
    t, first = near.clone(), torch.ones_like(near, dtype=torch.bool)
    ray = torch.arange(len(t), device=t.device)
    fastest = along.abs().amax(dim=-1)
    cell_size = 4.0 / occupancy.resolution
    cells, distance = occupancy.cells.flatten(), occupancy.distance.flatten()
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    while len(ray):
        x = start[ray] + t[ray, None] * along[ray]
        largest = x.abs().amax(dim=-1)
        gone = (2.0 - 1.0 / largest >= OUTERMOST) & ((x * along[ray]).sum(dim=-1) > 0)
        going = ~gone & (t[ray] < far[ray])
        ray, x, largest = ray[going], x[going], largest[going]
        now = t[ray]
        length = step / contracted_speed(x, along[ray]).clamp(min=1e-12)
        cell = occupancy.cell_of(contract(x), row[ray])
        reach = distance[cell].float() * cell_size
        ordered = x.abs().sort(dim=-1).values
        outside = torch.minimum(reach, ordered[:, 2] - ordered[:, 1]) * 0.5
        skip = torch.where(largest > 1.0, outside, torch.minimum(reach, 1.0 - largest)) / fastest[ray]
        empty, begins = distance[cell] > 0, first[ray]
        emits = ~empty & ~begins & cells[cell]
        found.append((ray[emits], now[emits], torch.minimum(now + length, far[ray])[emits]))
        first[ray[~empty]] = False
        advance = torch.where(empty, torch.maximum(skip, length), torch.where(begins, phase[ray] * length, length))
        t[ray] = now + advance
    return _packed(found, len(t), t)


def _packed(found: list[tuple[Tensor, Tensor, Tensor]], rays: int, like: Tensor) -> PackedSamples:
    if not found:
        none = like.new_zeros(0)
        return PackedSamples(none, none, none.long(), torch.zeros(rays + 1, dtype=torch.long, device=like.device))
    ray, starts, ends = (torch.cat(parts) for parts in zip(*found, strict=True))
    order = torch.argsort(ray, stable=True)
    counts = torch.bincount(ray, minlength=rays)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return PackedSamples(starts[order], ends[order], ray[order], offsets)


def teacher_intervals(
    edges: Float[Tensor, "R edges"],
    origins: Float[Tensor, "R 3"],
    directions: Float[Tensor, "R 3"],
    row: Int[Tensor, " R"],
    submodels: Submodels,
    occupancy: Occupancy,
) -> PackedSamples:
    """The teacher's intervals whose middle lies in an occupied cell, as in the paper.

    Args:
        edges: unit-frame distances.
        origins: unit frame.
        directions: unit length, unit axes.
        row: of each ray's submodel.
        submodels: the frames.
        occupancy: the cells.
    """
    middles = cone_mean(edges[:, :-1], edges[:, 1:])
    rays, intervals = middles.shape
    points = origins[:, None] + middles[..., None] * directions[:, None]
    rows = row[:, None].expand(rays, intervals).flatten()
    inside = occupancy.contains(contract(submodels.to_submodel(points.view(-1, 3), rows)), rows).view(rays, intervals)
    counts = inside.sum(dim=-1)
    return PackedSamples(
        starts=edges[:, :-1][inside],
        ends=edges[:, 1:][inside],
        ray_index=torch.repeat_interleave(counts),
        ray_offsets=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
    )


def cone_mean(starts: Tensor, ends: Tensor) -> Tensor:
    """Mean distance of a conical frustum between two distances (Barron et al. 2021, Eq. 7)."""
    total, length = starts + ends, ends - starts
    square = length.square()
    return total * (0.5 + square / (3.0 * total.square() + square).clamp(min=1e-20))


def sum_over_intervals(
    values: Float[Tensor, " M"], samples: PackedSamples, edges: Float[Tensor, "R edges"]
) -> Float[Tensor, "R intervals"]:
    """What the samples of each ray add up to in each of its intervals.

    Args:
        values: one per sample; differentiable.
        samples: on the same rays.
        edges: ascending unit-frame distances; what lies outside of them counts to the first or last interval.
    """
    middle = 0.5 * (samples.starts + samples.ends)
    intervals = edges.shape[1] - 1
    inner: Any = edges[samples.ray_index, 1:-1]
    interval = torch.searchsorted(inner.contiguous(), middle[:, None], right=True)[:, 0]
    flat = values.new_zeros(edges.shape[0] * intervals)
    return flat.index_add(0, samples.ray_index * intervals + interval, values).view(-1, intervals)
