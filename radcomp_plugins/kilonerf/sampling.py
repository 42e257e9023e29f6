"""The samples that fine-tuning asks the networks about: those in occupied voxels, up to where the ray ends.

Which voxels end a ray is estimated from the opacities that they had some hundred steps ago; a network is asked about a
sample only once, with gradients. Drawing, which has to be exact, uses the renderers instead.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numba import njit
from torch import Tensor

from radcomp_plugins.core.threads import claim_block, new_counter, run_striped
from radcomp_plugins.kilonerf.scene import KiloGrid

LEVELS_PER_DEPTH = 64
"""Levels of a voxel's optical depth of one step: 253 of them reach 3.95, which lets 2 % through."""
_MOST_STEPS = 1 << 15


@dataclass(frozen=True)
class RaySamples:
    """Samples of rays, all rays' one after the other.

    Attributes:
        distance: along the unit direction, scene units, ascending for each ray.
        ray_offsets: first sample of each ray, then their number.
    """

    distance: Float[Tensor, " M"]
    ray_offsets: Int[Tensor, " R_plus_1"]


def levels_of(depth: Float[Tensor, " M"]) -> UInt8[Tensor, " M"]:
    """Levels of occupied voxels by their optical depth of one step, rounded down; 0 is left for empty voxels."""
    return (depth.clamp(min=0.0) * LEVELS_PER_DEPTH + 1).clamp(max=254).to(torch.uint8)


def depth_to_stop(transmittance: float) -> float:
    """Optical depth at which so much light is left; infinite for none."""
    return -math.log(transmittance) if transmittance > 0 else math.inf


@njit(nogil=True, cache=True, error_model="numpy")
def _walk(ray, origins, directions, phase, stop, low, high, step, per_unit, levels, near, out, at):
    """Distances of a ray's samples, written from out[at] on unless `out` is empty; returns how many there are."""
    f0, f1 = np.float32(0.0), np.float32(1.0)
    t0, t1 = near, np.float32(3e38)
    for axis in range(3):
        o, d = origins[ray, axis], directions[ray, axis]
        if abs(d) > np.float32(1e-12):
            inverse = f1 / d
            u, v = (low[axis] - o) * inverse, (high[axis] - o) * inverse
            t0, t1 = max(t0, min(u, v)), min(t1, max(u, v))
        elif o < low[axis] or o > high[axis]:
            return 0
    if not t1 > t0:
        return 0
    found, depth = 0, f0
    k = np.int64(max(math.ceil((t0 - near) / step - phase[ray]), 0.0))
    for _ in range(32768):
        t = near + (np.float32(k) + phase[ray]) * step
        if t >= t1 or depth > stop[ray]:
            break
        x = np.int64((origins[ray, 0] + t * directions[ray, 0] - low[0]) * per_unit[0])
        y = np.int64((origins[ray, 1] + t * directions[ray, 1] - low[1]) * per_unit[1])
        z = np.int64((origins[ray, 2] + t * directions[ray, 2] - low[2]) * per_unit[2])
        x = min(max(x, 0), levels.shape[0] - 1)
        y = min(max(y, 0), levels.shape[1] - 1)
        z = min(max(z, 0), levels.shape[2] - 1)
        level = levels[x, y, z]
        if level > 0:
            depth += np.float32(level - 1) * np.float32(1.0 / 64)
            if len(out) > 0:
                out[at + found] = t
            found += 1
        k += 1
    return found


@njit(nogil=True, cache=True, error_model="numpy")
def _march(
    start, stride, counter, origins, directions, phase, stop, low, high, step, per_unit, levels, near, offsets, out
):  # fmt: skip
    """Count the samples of rays into offsets[ray + 1], or, where `out` is not empty, write them."""
    while True:
        begin, end = claim_block(counter, len(origins))
        if begin == end:
            break
        for ray in range(begin, end):
            at = offsets[ray] if len(out) > 0 else 0
            found = _walk(ray, origins, directions, phase, stop, low, high, step, per_unit, levels, near, out, at)
            if len(out) == 0:
                offsets[ray + 1] = found


@torch.no_grad()
def march(
    origins: Float[Tensor, "R 3"],
    directions: Float[Tensor, "R 3"],
    phase: Float[Tensor, " R"],
    stop: Float[Tensor, " R"],
    grid: KiloGrid,
    levels: UInt8[Tensor, "vx vy vz"],
    near: float,
) -> RaySamples:
    """Samples of rays in occupied voxels, at near + (k + phase) step.

    Args:
        origins: scene frame.
        directions: unit length.
        phase: in [0, 1); 1/2 where drawing has its samples.
        stop: optical depth, summed over the voxels' estimates, behind which a ray has no more samples.
        grid: box and step.
        levels: of the voxels, see `levels_of`; 0 where empty.
        near: distance at which rays begin, scene units.

    Returns:
        The samples, on the rays' device; the same for any number of threads.
    """
    if origins.device.type != "cpu":
        return _march_torch(origins, directions, phase, stop, grid, levels, near)
    low, high = (grid.box[i].astype(np.float32) for i in range(2))
    per_unit = (np.array(levels.shape) / (grid.box[1] - grid.box[0])).astype(np.float32)
    rays = [t.detach().float().contiguous().numpy() for t in (origins, directions, phase, stop)]
    offsets = np.zeros(len(origins) + 1, np.int64)
    shared = (*rays, low, high, np.float32(grid.step), per_unit, levels.numpy(), np.float32(near), offsets)
    run_striped(_march, new_counter(), *shared, np.zeros(0, np.float32))
    np.cumsum(offsets, out=offsets)
    out = np.empty(max(int(offsets[-1]), 1), np.float32)
    run_striped(_march, new_counter(), *shared, out)
    return RaySamples(torch.from_numpy(out[: offsets[-1]]), torch.from_numpy(offsets))


def _march_torch(
    origins: Tensor, directions: Tensor, phase: Tensor, stop: Tensor, grid: KiloGrid, levels: Tensor, near: float
) -> RaySamples:
    """The same in plain torch: all steps of all rays at once, those that do not count taken out."""
    device, step = origins.device, grid.step
    low, high = (torch.tensor(grid.box[i], dtype=torch.float32, device=device) for i in range(2))
    size = torch.tensor(levels.shape, device=device)
    slope = torch.where(directions.abs() > 1e-12, directions, torch.full_like(directions, 1e-12))
    first, second = (low - origins) / slope, (high - origins) / slope
    start = torch.minimum(first, second).amax(dim=-1).clamp(min=near)
    end = torch.maximum(first, second).amin(dim=-1)
    k0 = ((start - near) / step - phase).ceil().clamp(min=0)
    count = ((end - near) / step - phase).ceil() - k0
    hit = (end > start) & (count > 0)
    most = int(count[hit].max().clamp(max=_MOST_STEPS)) if bool(hit.any()) else 0
    k = k0[:, None] + torch.arange(most, device=device)
    t = near + (k + phase[:, None]) * step
    inside = hit[:, None] & (t < end[:, None])
    points = origins[:, None] + t[..., None] * directions[:, None]
    voxel = ((points - low) * (size / (high - low))).long()
    voxel = torch.minimum(voxel.clamp(min=0), size - 1)
    level = levels[voxel[..., 0], voxel[..., 1], voxel[..., 2]].long() * inside
    depth = (level - 1).clamp(min=0) / LEVELS_PER_DEPTH
    chosen = (level > 0) & (depth.cumsum(dim=1) - depth <= stop[:, None])
    offsets = torch.nn.functional.pad(chosen.sum(dim=1).cumsum(0), (1, 0))
    return RaySamples(t[chosen], offsets)
