"""Which voxels of an octree's level rays pass through, and samples on the way.

CPU tensors go through a kernel that steps from cell to cell, first of the coarsest level, and of the wanted level only
inside occupied ones. The GPU twin sorts each ray's crossings with all planes of the wanted level, which is as exact and
needs nothing but torch.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from radcomp_plugins.core.morton import spread
from radcomp_plugins.core.octree import Octree
from radcomp_plugins.core.octree_lookup import locate
from radcomp_plugins.core.threads import claim_block, new_counter, run_striped

SHORTEST = 1e-6
"""Ways through a voxel shorter than this, in box units, are left out: where rays graze an edge."""

_KEPT = 16
"""Hits of a ray that are kept while they are counted. Most rays have fewer, and need not be traced again."""

_CROSSINGS = 2**22
"""Crossings that the twin sorts at once."""


@dataclass(frozen=True)
class VoxelHits:
    """Ways of rays through voxels, packed: ray r has those from ray_offsets[r] to ray_offsets[r + 1], near ones first.

    Attributes:
        starts: [M] distance along the ray, in lengths of its direction vector.
        ends: [M] the same, always larger.
        nodes: [M] int32 the voxel's node.
        ray_offsets: [R + 1] int64.
    """

    starts: Float[Tensor, " M"]
    ends: Float[Tensor, " M"]
    nodes: Int[Tensor, " M"]
    ray_offsets: Int[Tensor, " R_plus_1"]

    def first_rays(self, count: int) -> "VoxelHits":
        """The hits of the first rays alone."""
        last = int(self.ray_offsets[count])
        return VoxelHits(self.starts[:last], self.ends[:last], self.nodes[:last], self.ray_offsets[: count + 1])


@njit(inline="always")
def _crossing(cell, side, origin, direction):  # noqa: ANN001, ANN202
    """Distance at which a ray leaves its cell along one axis."""
    if direction > 0.0:
        return ((cell + 1) / side - origin) / direction
    if direction < 0.0:
        return (cell / side - origin) / direction
    return np.inf


@njit(inline="always")
def _cell(distance, side, origin, direction, low, high):  # noqa: ANN001, ANN202
    """Cell along one axis at a distance, held within low .. high: rounding must not lead out."""
    return max(low, min(high, np.int64(np.floor((origin + distance * direction) * side))))


@njit(nogil=True, error_model="numpy")
def _inside_cell(children, node, shift, x, y, z):  # noqa: ANN001, ANN202
    """Node `shift` levels below `node` at a cell of that level; -1 where there is none."""
    while shift > 0 and node >= 0:
        shift -= 1
        node = children[node, ((x >> shift & 1) << 2) | ((y >> shift & 1) << 1) | (z >> shift & 1)]
    return node


@njit(nogil=True, error_model="numpy")
def _clip(o, d, near, far):  # noqa: ANN001, ANN202
    """Where a ray is inside the box: first and last distance, the same where it misses."""
    begin, end = near, far
    for axis in range(3):
        if d[axis] != 0.0:
            a, b = (0.0 - o[axis]) / d[axis], (1.0 - o[axis]) / d[axis]
            begin, end = max(begin, min(a, b)), min(end, max(a, b))
        elif o[axis] < 0.0 or o[axis] > 1.0:
            return near, near
    return begin, end


@njit(inline="always")
def _next_cell(x, y, z, tx, ty, tz, d):  # noqa: ANN001, ANN202
    """The cell behind the face that is reached first."""
    if tx <= ty and tx <= tz:
        return x + (1 if d[0] > 0.0 else -1), y, z
    if ty <= tz:
        return x, y + (1 if d[1] > 0.0 else -1), z
    return x, y, z + (1 if d[2] > 0.0 else -1)


@njit(nogil=True, error_model="numpy")
def _trace_inside(children, root, shift, cell, side, o, d, here, leave, hits, place, room, count):  # noqa: ANN001, ANN202
    """Hits in one cell of the coarsest level, `shift` levels below it; returns their number added to `count`."""
    starts, ends, nodes = hits
    ratio, fine = np.int64(1) << shift, side << shift
    x0, y0, z0 = cell[0] * ratio, cell[1] * ratio, cell[2] * ratio
    x1, y1, z1 = x0 + ratio - 1, y0 + ratio - 1, z0 + ratio - 1
    x = _cell(here, fine, o[0], d[0], x0, x1)
    y = _cell(here, fine, o[1], d[1], y0, y1)
    z = _cell(here, fine, o[2], d[2], z0, z1)
    while here < leave and x0 <= x <= x1 and y0 <= y <= y1 and z0 <= z <= z1:
        tx, ty, tz = _crossing(x, fine, o[0], d[0]), _crossing(y, fine, o[1], d[1]), _crossing(z, fine, o[2], d[2])
        after = min(tx, ty, tz, leave)
        if after - here > SHORTEST:
            node = _inside_cell(children, root, shift, x, y, z)
            if node >= 0:
                if count < room:
                    starts[place + count], ends[place + count], nodes[place + count] = here, after, node
                count += 1
        here = max(here, after)
        x, y, z = _next_cell(x, y, z, tx, ty, tz, d)
    return count


@njit(nogil=True, cache=True, error_model="numpy")
def _trace(top, children, coarsest, shift, o, d, near, far, hits, place, room):  # noqa: ANN001, ANN202
    """Hits of one ray, the first `room` of them written from `place` on; returns how many there are."""
    count = 0
    begin, end = _clip(o, d, near, far)
    if not begin < end:
        return 0
    side = np.int64(1) << coarsest
    last = side - 1
    x = _cell(begin, side, o[0], d[0], 0, last)
    y = _cell(begin, side, o[1], d[1], 0, last)
    z = _cell(begin, side, o[2], d[2], 0, last)
    while begin < end and 0 <= x <= last and 0 <= y <= last and 0 <= z <= last:
        tx, ty, tz = _crossing(x, side, o[0], d[0]), _crossing(y, side, o[1], d[1]), _crossing(z, side, o[2], d[2])
        leave = min(tx, ty, tz, end)
        root = top[(spread(x) << 2) | (spread(y) << 1) | spread(z)]
        if root >= 0 and leave > begin:
            count = _trace_inside(children, root, shift, (x, y, z), side, o, d, begin, leave, hits, place, room, count)
        begin = max(begin, leave)
        x, y, z = _next_cell(x, y, z, tx, ty, tz, d)
    return count


@njit(nogil=True, cache=True, error_model="numpy")
def _count(start, step, counter, rays, far, top, children, coarsest, shift, counts, kept):  # noqa: ANN001, ANN202
    """Count each ray's hits, and keep the first of them."""
    origins, directions, near = rays
    while True:
        begin, end = claim_block(counter, len(origins))
        if begin == end:
            return
        for r in range(begin, end):
            o, d = origins[r], directions[r]
            counts[r] = _trace(top, children, coarsest, shift, o, d, near[r], far, kept, r * _KEPT, _KEPT)


@njit(nogil=True, cache=True, error_model="numpy")
def _pack(start, step, counter, rays, far, top, children, coarsest, shift, offsets, kept, hits):  # noqa: ANN001, ANN202
    """Write all rays' hits one after the other: those kept are copied, rays with more are traced again."""
    origins, directions, near = rays
    starts, ends, nodes = hits
    while True:
        begin, end = claim_block(counter, len(origins))
        if begin == end:
            return
        for r in range(begin, end):
            place, count = offsets[r], offsets[r + 1] - offsets[r]
            if count > _KEPT:
                o, d = origins[r], directions[r]
                _trace(top, children, coarsest, shift, o, d, near[r], far, hits, place, count)
            else:
                for i in range(count):
                    starts[place + i], ends[place + i] = kept[0][r * _KEPT + i], kept[1][r * _KEPT + i]
                    nodes[place + i] = kept[2][r * _KEPT + i]


def _room_for(hits: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]:
    """Starts, ends and nodes, not written yet."""
    return np.empty(hits, np.float32), np.empty(hits, np.float32), np.empty(hits, np.int32)


def intersect(
    octree: Octree,
    origins: Float[Tensor, "R 3"],
    directions: Float[Tensor, "R 3"],
    near: Float[Tensor, " R"],
    level: int | None = None,
    far: float = float("inf"),
) -> VoxelHits:
    """Ways of rays through the voxels of one level.

    Args:
        octree: on the rays' device.
        origins: box frame.
        directions: box frame, of any length but 0, which distances are measured in.
        near: distance at which each ray begins.
        level: whose voxels; None is the finest.
        far: distance at which all rays end.
    """
    level = octree.finest if level is None else level
    if origins.device.type != "cpu":
        return _intersect_torch(octree, origins, directions, near, level, far)
    rays = tuple(t.detach().double().contiguous().numpy() for t in (origins, directions, near))
    tables = octree.top.numpy(), octree.children.numpy(), octree.coarsest, level - octree.coarsest
    counts, kept = np.empty(len(origins), np.int64), _room_for(len(origins) * _KEPT)
    run_striped(_count, new_counter(), rays, far, *tables, counts, kept)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    hits = _room_for(offsets[-1])
    run_striped(_pack, new_counter(), rays, far, *tables, offsets, kept, hits)
    return VoxelHits(*(torch.from_numpy(array) for array in (*hits, offsets)))


def _intersect_torch(
    octree: Octree, origins: Tensor, directions: Tensor, near: Tensor, level: int, far: float
) -> VoxelHits:
    """`intersect` in plain torch, for any device."""
    planes = torch.arange(2**level + 1, device=origins.device, dtype=torch.float64) / 2**level
    rows = max(1, _CROSSINGS // (3 * len(planes)))
    parts = [
        _chunk_hits(octree, o, d, n, planes, level, far)
        for o, d, n in zip(origins.split(rows), directions.split(rows), near.split(rows), strict=True)
    ]
    counts = torch.cat([part[3] for part in parts]) if parts else near.new_zeros(0, dtype=torch.long)
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    if not parts:
        return VoxelHits(near, near, near.int(), offsets)
    starts, ends, nodes = (torch.cat([part[i] for part in parts]) for i in range(3))
    return VoxelHits(starts.float(), ends.float(), nodes, offsets)


def _chunk_hits(
    octree: Octree, origins: Tensor, directions: Tensor, near: Tensor, planes: Tensor, level: int, far: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Starts, ends and nodes of some rays' hits, and how many each has."""
    o, d = origins.double(), directions.double()
    crossings = ((planes - o[..., None]) / d[..., None]).flatten(1)
    # A ray along a plane has no crossing with it; infinities sort to the ends and are clamped to lengths of 0.
    crossings = crossings.nan_to_num(nan=far).clamp(max=far)
    crossings = torch.maximum(crossings, near.double()[:, None])
    edges = crossings.sort(dim=1).values
    starts, ends = edges[:, :-1], edges[:, 1:]
    rays, columns = torch.nonzero((ends - starts > SHORTEST) & ends.isfinite(), as_tuple=True)
    a, b = starts[rays, columns], ends[rays, columns]
    middle = o[rays] + (0.5 * (a + b))[:, None] * d[rays]
    nodes = locate(octree, middle, level)[:, -1]
    hit = nodes >= 0
    counts = torch.bincount(rays[hit], minlength=len(origins))
    return a[hit], b[hit], nodes[hit], counts


def split_evenly(
    hits: VoxelHits, per_voxel: int, jitter: Float[Tensor, " N"] | None = None
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"], Int[Tensor, " R_plus_1"]]:
    """Samples on the way through each voxel: one in each of `per_voxel` equal parts.

    Args:
        hits: M ways through voxels.
        per_voxel: samples of each, N = M * per_voxel.
        jitter: where each sample lies in its part, in [0, 1); None is the middle.

    Returns:
        at: distance of each sample, as those of the hits.
        lengths: of the part that each stands for.
        ray_offsets: the rays' first samples, then N.
    """
    lengths = ((hits.ends - hits.starts) / per_voxel).repeat_interleave(per_voxel)
    part = torch.arange(per_voxel, device=lengths.device).repeat(len(hits.starts))
    within = part + (0.5 if jitter is None else jitter)
    at = hits.starts.repeat_interleave(per_voxel) + within * lengths
    return at, lengths, hits.ray_offsets * per_voxel


def rays_within(hits: VoxelHits, most: int) -> int:
    """How many of the first rays have at most so many hits together; at least one."""
    return max(1, int((hits.ray_offsets[1:] <= most).sum()))


def hit_rays(hits: VoxelHits) -> Bool[Tensor, " R"]:
    """Which rays hit anything."""
    return hits.ray_offsets.diff() > 0
