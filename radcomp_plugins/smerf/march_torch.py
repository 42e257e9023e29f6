"""The twin of `march` in plain torch, for devices other than the CPU: all rays take a step at a time.

Rays that have ended are taken out of the batch now and then. Arithmetic is double precision for where a ray is, as in
the kernels, so that both decide alike which cell a sample is in, and single precision for what it sees.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from radcomp_plugins.smerf.layout import (
    DENSITY,
    GATE,
    NUM_FEATURES,
    RANGE_DENSITY,
    RANGE_FEATURES,
    BakedSubmodel,
    Layout,
)

_MIN_VISIBILITY = 1.0 / 255.0
_MIN_ALPHA = 0.25 / 255.0
_MIN_START = 1e-6
_CELL = 8
_FARTHEST = 1e4
_NEVER = 1e25
_MAX_PIECES = 8
_COMPACT_EVERY = 16
"""Steps after which ended rays are taken out: doing it each time would cost a synchronisation per step."""


class TorchSubmodel:
    """A submodel's arrays on a device, flattened for look-ups."""

    def __init__(self, submodel: BakedSubmodel, layout: Layout, device: torch.device | str) -> None:
        """Copy the bytes to the device as they are."""
        self.layout, self.index = layout, submodel.index
        self.device = torch.device(device)

        def put(array: object) -> Tensor:
            return torch.as_tensor(array, device=self.device)

        self.planes = put(submodel.planes).reshape(-1, submodel.planes.shape[-1])
        self.blocks = put(submodel.blocks).reshape(-1, submodel.blocks.shape[-1])
        self.block_indices = put(submodel.block_indices).reshape(-1).long()
        self.occupancy = put(submodel.occupancy).reshape(-1)
        self.distance = put(submodel.distance).reshape(-1)
        self.cells = submodel.occupancy.shape[0]
        self.grid_blocks = submodel.block_indices.shape[0]
        limit = torch.full((submodel.planes.shape[-1],), RANGE_FEATURES, device=self.device)
        limit[DENSITY] = RANGE_DENSITY
        self.lowest, self.count_value = -limit, limit * (2.0 / 255.0)

    def cell_index(self, cell: Int[Tensor, "N 3"]) -> Int[Tensor, " N"]:
        """Place of cells in the flattened grids, clamped to them."""
        cell = cell.clamp(0, self.cells - 1)
        return (cell[:, 0] * self.cells + cell[:, 1]) * self.cells + cell[:, 2]

    def block_at(self, z: Float[Tensor, "N 3"]) -> tuple[Int[Tensor, " N"], Float[Tensor, "N 3"]]:
        """Row of the block that holds contracted points, -1 for none, and the place within it in voxels."""
        size = self.layout.block_size
        place = (z + 2.0) * (0.25 * self.layout.sparse_resolution) - 0.5
        block = (place / size).floor()
        at = block.long().clamp(0, self.grid_blocks - 1)
        row = self.block_indices[(at[:, 0] * self.grid_blocks + at[:, 1]) * self.grid_blocks + at[:, 2]]
        return row, (place - size * block).clamp(0.0, size)

    def sparse(self, row: Int[Tensor, " N"], place: Float[Tensor, "N 3"]) -> Float[Tensor, "N 8"]:
        """Values of the sparse grid at places in blocks."""
        side = self.layout.block_size + 1
        low = place.long().clamp(max=side - 2)
        fraction = (place - low).float()
        total = torch.zeros(len(row), self.blocks.shape[-1], device=self.device)
        for corner in range(8):
            up = torch.tensor([corner >> 2 & 1, corner >> 1 & 1, corner & 1], device=self.device)
            at = low + up
            weight = torch.where(up == 1, fraction, 1.0 - fraction).prod(dim=-1)
            texel = ((row * side + at[:, 0]) * side + at[:, 1]) * side + at[:, 2]
            total += weight[:, None] * self.blocks[texel].float()
        return self.lowest + total * self.count_value

    def plane_sum(self, z: Float[Tensor, "N 3"]) -> Float[Tensor, "N 8"]:
        """Sum of the three planes' values at contracted points."""
        texels = self.layout.triplane_resolution
        place = ((z + 2.0) / self.layout.triplane_voxel - 0.5).clamp(0.0, texels - 1.0)
        low = place.long().clamp(max=texels - 2)
        fraction = (place - low).float()
        total = torch.zeros(len(z), self.planes.shape[-1], device=self.device)
        for plane, (a, b) in enumerate(((1, 2), (0, 2), (0, 1))):
            for up_a in (0, 1):
                for up_b in (0, 1):
                    weight_a = fraction[:, a] if up_a else 1.0 - fraction[:, a]
                    weight_b = fraction[:, b] if up_b else 1.0 - fraction[:, b]
                    texel = (plane * texels + low[:, a] + up_a) * texels + low[:, b] + up_b
                    total += (weight_a * weight_b)[:, None] * self.planes[texel].float()
        return 3.0 * self.lowest + total * self.count_value


def _first_largest(x: Tensor) -> tuple[Tensor, Tensor]:
    """Largest magnitude [N, 1] and the first axis [N, 1] that has it."""
    magnitude = x.abs()
    largest = magnitude.amax(dim=-1, keepdim=True)
    return largest, (magnitude == largest).to(torch.uint8).argmax(dim=-1, keepdim=True)


def _contract(x: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
    """`ray_pieces.contract` of many points: of equal magnitudes only the first counts as the largest."""
    largest, axis = _first_largest(x)
    outer = largest.clamp(min=1.0)
    projected = x / outer
    shell = projected.gather(-1, axis) * (2.0 - 1.0 / outer)
    return torch.where(largest > 1.0, projected.scatter(-1, axis, shell), x)


def _uncontract(z: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
    largest, axis = _first_largest(z)
    scale = 1.0 / (2.0 - largest.clamp(min=1.0)).clamp(min=1e-6)
    along = torch.copysign(scale, z.gather(-1, axis))
    return torch.where(largest > 1.0, (z * scale).scatter(-1, axis, along), z)


def _region(x: Float[Tensor, "N 3"]) -> Int[Tensor, " N"]:
    """0 in the cube; else 1, 2, 3 for the axis of the largest coordinate, negative on the negative side."""
    largest, axis = _first_largest(x)
    signed = torch.where(x.gather(-1, axis) > 0.0, axis + 1, -axis - 1)
    return torch.where(largest > 1.0, signed, 0)[:, 0]


def piece_ends(o: Float[Tensor, "N 3"], d: Float[Tensor, "N 3"], near: float) -> Float[Tensor, "N pieces"]:
    """`ray_pieces.piece_ends` of many rays: ascending t, then `NEVER`."""
    sides = (torch.copysign(torch.full_like(d, _FARTHEST), d) - o) / d
    far = torch.where(d != 0.0, sides, _NEVER).amin(dim=-1, keepdim=True).clamp(min=near)
    crossings = []
    for axis in range(3):
        other = (axis + 1) % 3
        for sign in (-1.0, 1.0):
            crossings.append((sign - o[:, axis]) / d[:, axis])
            crossings.append((sign * o[:, other] - o[:, axis]) / (d[:, axis] - sign * d[:, other]))
    t = torch.stack(crossings, dim=-1)
    # What lies outside of the ray, and NaN of rays that run along a plane, becomes a piece of length 0 at its end.
    t = torch.where((t > near) & (t < far), t, far).sort(dim=-1).values
    begins = torch.cat([torch.full_like(far, near), t], dim=-1)
    ends = torch.cat([t, far], dim=-1)
    middles = 0.5 * (begins + ends)
    regions = torch.stack([_region(o + middles[:, k, None] * d) for k in range(middles.shape[1])], dim=-1)
    last = torch.ones_like(regions, dtype=torch.bool)
    last[:, :-1] = regions[:, 1:] != regions[:, :-1]
    # The last stretch before the far end holds all that follows: pieces of length 0 have its region or none.
    last &= (ends < far) | (begins < far)
    last[:, :-1] &= ends[:, :-1] < far
    last[:, -1] = True
    return torch.where(last, ends, _NEVER).sort(dim=-1).values[:, :_MAX_PIECES]


def _setup(o: Tensor, d: Tensor, t_p: Tensor, t_q: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`ray_pieces.piece_setup` of many rays."""
    p = o + t_p[:, None] * d
    z0 = _contract(p)
    dz = _contract(o + t_q[:, None] * d) - z0
    dz = dz / dz.norm(dim=-1, keepdim=True)
    region = _region(p)[:, None]
    axes = torch.arange(1, 4, device=o.device)
    low = torch.where(region == axes, 1.0, torch.where(region == -axes, -2.0, -1.0)).to(o)
    high = torch.where(region == axes, 2.0, torch.where(region == -axes, -1.0, 1.0)).to(o)
    a, b = (low - z0) / dz, (high - z0) / dz
    moves = dz != 0.0
    enter = torch.where(moves, torch.minimum(a, b), -math.inf).amax(dim=-1)
    leave = torch.where(moves, torch.maximum(a, b), math.inf).amin(dim=-1)
    return z0, dz, enter, leave


class _Rays:
    """State of the rays that still march."""

    def __init__(self, submodel: TorchSubmodel, origins: Tensor, directions: Tensor, starts: Tensor) -> None:
        layout = submodel.layout
        centre = torch.as_tensor(layout.centre(submodel.index), device=submodel.device)
        scale = layout.submodel_scale
        local = (origins.double() - centre) * scale
        self.length = starts.double().clamp(min=_MIN_START) * scale
        self.o = torch.stack([-local[:, 0], local[:, 2], local[:, 1]], dim=-1)
        along = directions.double() * self.length[:, None]
        self.d = torch.stack([-along[:, 0], along[:, 2], along[:, 1]], dim=-1)
        self.ends = piece_ends(self.o, self.d, 1.0)
        near = torch.ones_like(self.length)
        self.z0, self.dz, _, self.leave = _setup(self.o, self.d, near, 0.5 * (1.0 + self.ends[:, 0]))
        self.piece = torch.ones(len(origins), dtype=torch.long, device=submodel.device)
        self.t = torch.zeros_like(self.length)
        self.box_end = torch.full_like(self.length, -math.inf)
        self.light = torch.ones_like(self.length)
        self.row = torch.arange(len(origins), device=submodel.device)
        self.alive = torch.isfinite(self.dz).all(dim=-1)

    def keep(self, mask: Bool[Tensor, " N"]) -> None:
        """Leave out the others."""
        for name, tensor in vars(self).items():
            setattr(self, name, tensor[mask])

    def enter_next_pieces(self, dt: float) -> None:
        """Go on to the next piece where this one has been left; rays that are at their end stop."""
        left = self.alive & (self.t > self.leave)
        at_leave = self.z0 + self.leave[:, None] * self.dz
        self.alive &= ~(left & ((at_leave.abs().amax(dim=-1) >= 2.0 - 1e-3) | (self.piece >= _MAX_PIECES)))
        left &= self.alive
        last = _MAX_PIECES - 1

        def end(number: Tensor) -> Tensor:
            return self.ends.gather(-1, number.clamp(0, last)[:, None])[:, 0]

        brushed = end(self.piece - 1) >= end(self.piece) - 16.0 * dt
        piece = self.piece + (left & brushed)
        from_t, to_t = end(piece - 1), end(piece)
        self.alive &= ~(left & ((piece > last) | (to_t >= _NEVER)))
        left &= self.alive
        z0, dz, enter, leave = _setup(self.o, self.d, 0.9 * from_t + 0.1 * to_t, 0.1 * from_t + 0.9 * to_t)
        self.z0 = torch.where(left[:, None], z0, self.z0)
        self.dz = torch.where(left[:, None], dz, self.dz)
        self.leave = torch.where(left, leave, self.leave)
        self.t = torch.where(left, enter + 0.5 * dt, self.t)
        self.box_end = torch.where(left, -math.inf, self.box_end)
        self.piece = torch.where(left, piece + 1, self.piece)
        self.alive &= torch.isfinite(self.dz).all(dim=-1)


def _skip(submodel: TorchSubmodel, rays: _Rays, z: Tensor, dt: float) -> Bool[Tensor, " N"]:
    """Move rays in empty space on; returns those that are in none."""
    cell = _CELL * submodel.layout.triplane_voxel
    place = (z + 2.0) / cell
    corner = place.floor()
    at = submodel.cell_index(corner.long())
    away = submodel.distance[at]
    far = rays.alive & (away > 0)
    rays.t = torch.where(far, rays.t + cell * away, rays.t)
    near = rays.alive & ~far
    asks = near & (rays.t > rays.box_end)
    byte = submodel.occupancy[at].long()
    half = (place - corner > 0.5) & (byte != 0)[:, None]
    bit = 4 * half[:, 0] + 2 * half[:, 1] + half[:, 2].long()
    low = (corner + 0.5 * half) * cell - 2.0
    side = torch.where(byte != 0, 0.5 * cell, cell)[:, None]
    exits = (low + torch.where(rays.dz > 0.0, side, 0.0) - rays.z0) / rays.dz
    box_end = torch.where(rays.dz != 0.0, exits, math.inf).amin(dim=-1)
    rays.box_end = torch.where(asks, box_end, rays.box_end)
    empty = asks & ((byte >> bit) & 1 == 0)
    rays.t = torch.where(empty, torch.maximum(rays.t, rays.box_end) + 0.5 * dt, rays.t)
    return near & ~empty


def _samples(
    submodel: TorchSubmodel, rays: _Rays, rows: Tensor, z: Tensor, dt: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Alpha, features [M, 14], and distance of the samples of the rays `rows`, and which of them are in a block."""
    layout = submodel.layout
    row, place = submodel.block_at(z)
    inside = row >= 0
    sparse, planes = submodel.sparse(row.clamp(min=0), place), submodel.plane_sum(z)
    gate = sparse[:, GATE, None] if layout.feature_gating else 1.0
    merged = sparse + gate * planes
    here = _uncontract(z)
    t_next = torch.minimum(rays.t[rows] + dt, rays.leave[rows])
    step = (_uncontract(rays.z0[rows] + t_next[:, None] * rays.dz[rows]) - here).norm(dim=-1) / layout.submodel_scale
    density = (merged[:, DENSITY].double() - 1.0).clamp(max=88.0).exp()
    alpha = torch.where(inside, 1.0 - (-density * step).exp(), 0.0)
    features = torch.cat([merged[:, :NUM_FEATURES], sparse[:, :NUM_FEATURES]], dim=-1).sigmoid()
    away = ((here - rays.o[rows]) * rays.d[rows]).sum(dim=-1) / (rays.length[rows] * layout.submodel_scale)
    return alpha, features, away, inside


@torch.no_grad()
def march_torch(
    submodel: TorchSubmodel,
    origins: Float[Tensor, "N 3"],
    directions: Float[Tensor, "N 3"],
    starts: Float[Tensor, " N"],
    *,
    step_mult: int = 1,
) -> tuple[Float[Tensor, "N channels"], Float[Tensor, " N"], Float[Tensor, " N"]]:
    """March rays through one submodel; see `march.march`, which does the same on the CPU.

    Args:
        submodel: on the device of the rays.
        origins: unit frame.
        directions: unit frame, unit length.
        starts: distance at which marching begins, unit frame.
        step_mult: steps per plane texel.

    Returns:
        Features (14, or 7 without `feature_concat`), accumulation, and mean distance in the unit frame.
    """
    layout, count = submodel.layout, len(origins)
    features = torch.zeros(count, 2 * NUM_FEATURES, device=submodel.device)
    light = torch.ones(count, dtype=torch.float64, device=submodel.device)
    seen, weighed = torch.zeros_like(light), torch.zeros_like(light)
    rays = _Rays(submodel, origins, directions, starts)
    dt = layout.triplane_voxel / step_mult
    for number in range(step_mult * math.ceil(math.sqrt(2.0) * layout.triplane_resolution)):
        rays.alive &= rays.light > _MIN_VISIBILITY
        if number % _COMPACT_EVERY == 0:
            light[rays.row] = rays.light
            rays.keep(rays.alive)
            if len(rays.row) == 0:
                break
        rays.enter_next_pieces(dt)
        z = rays.z0 + rays.t[:, None] * rays.dz
        rows = _skip(submodel, rays, z, dt).nonzero()[:, 0]
        alpha, seen_features, away, _ = _samples(submodel, rays, rows, z[rows], dt)
        weight = torch.where(alpha > _MIN_ALPHA, rays.light[rows] * alpha, 0.0)
        to = rays.row[rows]
        features[to] += weight[:, None].float() * seen_features
        seen[to] += weight
        weighed[to] += weight * away
        rays.light[rows] *= 1.0 - alpha
        rays.t[rows] += dt
    light[rays.row] = rays.light
    depth = torch.where(seen > 0.0, weighed / seen.clamp(min=1e-30), 0.0)
    channels = NUM_FEATURES * (2 if layout.feature_concat else 1)
    return features[:, :channels], (1.0 - light).float(), depth.float()
