"""Two Triton kernels for CUDA: the next samples of rays, and sorted samples through all layers of their networks.

They have the signatures of `march_torch.march` and `march_torch.evaluate` and compute the same. A program of the first
marches 128 rays; a program of the second takes a block of samples of one network from encoding to colour in registers,
with the network's weights read once (Reiser et al. 2021, section 3.4, put them into shared memory).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from radcomp_plugins.kilonerf.march_torch import Rays, SceneTensors
from radcomp_plugins.kilonerf.scene import NetworkShape

_RAYS = 128
"""Rays of a marching program."""
_BLOCK = 64
"""Samples of an evaluating program."""
_PRECISION: Any = "tf32x3"
"""Of matrix products: three TF32 products make up for the digits that one of them drops."""


def takes(shape: NetworkShape) -> bool:
    """Whether the kernels take such networks: matrix products want powers of two from 16 up."""
    return shape.width in (16, 32, 64)


@triton.jit
def _march_kernel(
    active, origins, directions, starts, first, last, distance, voxels, ids, away, networks, positions,
    count, step, corner_x, corner_y, corner_z, per_x, per_y, per_z, bx, by, bz, nx, ny, nz,
    side: tl.constexpr, most: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(0) * block + tl.arange(0, block)
    here = slot < count
    row = tl.load(active + slot, mask=here, other=0)
    # All of a ray's numbers are in voxels, as in the kernel for the CPU.
    ox = (tl.load(origins + 3 * row, mask=here, other=0.0) - corner_x) * per_x
    oy = (tl.load(origins + 3 * row + 1, mask=here, other=0.0) - corner_y) * per_y
    oz = (tl.load(origins + 3 * row + 2, mask=here, other=0.0) - corner_z) * per_z
    dx = tl.load(directions + 3 * row, mask=here, other=1.0) * per_x
    dy = tl.load(directions + 3 * row + 1, mask=here, other=1.0) * per_y
    dz = tl.load(directions + 3 * row + 2, mask=here, other=1.0) * per_z
    start = tl.load(starts + row, mask=here, other=0.0)
    k = tl.load(first + row, mask=here, other=1)
    end = tl.load(last + row, mask=here, other=0)
    small_x, small_y, small_z = (
        tl.where(dx >= 0, 1e-6, -1e-6),
        tl.where(dy >= 0, 1e-6, -1e-6),
        tl.where(dz >= 0, 1e-6, -1e-6),
    )
    jx = (1.0 / step) / tl.where(tl.abs(dx) > 1e-6, dx, small_x)
    jy = (1.0 / step) / tl.where(tl.abs(dy) > 1e-6, dy, small_y)
    jz = (1.0 / step) / tl.where(tl.abs(dz) > 1e-6, dz, small_z)
    taken = tl.zeros([block], tl.int32)
    goes = here & (k <= end)
    while tl.max(goes.to(tl.int32), axis=0) > 0:  # pyright: ignore[reportOperatorIssue]
        t = start + (k.to(tl.float32) + 0.5) * step
        x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
        ix = tl.minimum(tl.maximum(x.to(tl.int32), 0), 4 * bx - 1)
        iy = tl.minimum(tl.maximum(y.to(tl.int32), 0), 4 * by - 1)
        iz = tl.minimum(tl.maximum(z.to(tl.int32), 0), 4 * bz - 1)
        ax, ay, az = ix // 4, iy // 4, iz // 4
        reach = tl.load(distance + (ax * by + ay) * bz + az, mask=goes, other=1).to(tl.int32)
        near = goes & (reach == 0)
        full = tl.load(voxels + (ix * (4 * by) + iy) * (4 * bz) + iz, mask=near, other=0).to(tl.int32) != 0
        full = near & full
        ux = (((ax + tl.where(jx > 0, reach, 1 - reach)) * 4).to(tl.float32) - x) * jx
        uy = (((ay + tl.where(jy > 0, reach, 1 - reach)) * 4).to(tl.float32) - y) * jy
        uz = (((az + tl.where(jz > 0, reach, 1 - reach)) * 4).to(tl.float32) - z) * jz
        leap = tl.maximum((tl.minimum(ux, tl.minimum(uy, uz)) - 1e-3).to(tl.int32), 0) + 1
        cx, cy, cz = ix // side, iy // side, iz // side
        network = tl.load(ids + (cx * ny + cy) * nz + cz, mask=full, other=0)
        to = slot * most + taken
        tl.store(away + to, t, mask=full)
        tl.store(networks + to, network, mask=full)
        tl.store(positions + 3 * to, (x - (cx * side).to(tl.float32)) * (2.0 / side) - 1.0, mask=full)
        tl.store(positions + 3 * to + 1, (y - (cy * side).to(tl.float32)) * (2.0 / side) - 1.0, mask=full)
        tl.store(positions + 3 * to + 2, (z - (cz * side).to(tl.float32)) * (2.0 / side) - 1.0, mask=full)
        taken += full.to(tl.int32)
        k += tl.where(goes, tl.where(reach > 0, leap, 1), 0).to(k.dtype)
        goes = goes & (k <= end) & (taken < most)
    tl.store(first + row, k, mask=here)


def march(
    scene: SceneTensors, rays: Rays, active: Int[Tensor, " A"], step: float, most: int
) -> tuple[Float[Tensor, "A most"], Int[Tensor, "A most"], Float[Tensor, "A most 3"]]:
    """The next samples of active rays; see `march_torch.march`."""
    count, grid = len(active), scene.scene.grid
    away = torch.full((count, most), torch.inf, device=scene.device)
    networks = torch.full((count, most), -1, device=scene.device)
    positions = torch.zeros(count, most, 3, device=scene.device)
    _march_kernel[(triton.cdiv(count, _RAYS),)](  # pyright: ignore[reportCallIssue]
        active, rays.origins, rays.directions, rays.starts, rays.first, rays.last, scene.distance, scene.voxels,
        scene.lookup.ids, away, networks, positions, count, step, *scene.numbers, *scene.bricks, *grid.cells,
        grid.voxels_per_cell, most, _RAYS,  # pyright: ignore[reportCallIssue]
    )  # fmt: skip
    return away, networks, positions


@triton.jit
def _encoded(base, lane, here, channels: tl.constexpr, padded: tl.constexpr):
    """A block of points [lanes, 3], encoded as `networks.encode` does: [lanes, padded]."""
    channel = tl.arange(0, padded)[None, :]
    octave, kind = (channel - 3) // 6, ((channel - 3) // 3) % 2
    axis = channel % 3
    x = tl.load(base + 3 * lane[:, None] + axis, mask=here[:, None] & (channel < channels), other=0.0)
    angle = x * tl.exp2(tl.maximum(octave, 0).to(tl.float32))
    wave = tl.where(kind == 0, tl.sin(angle), tl.cos(angle))
    return tl.where(channel < 3, x, tl.where(channel < channels, wave, 0.0))


@triton.jit
def _matrix(base, rows: tl.constexpr, columns: tl.constexpr, padded_rows: tl.constexpr, padded_columns: tl.constexpr):
    """A matrix [rows, columns] with zeros around it."""
    row, column = tl.arange(0, padded_rows)[:, None], tl.arange(0, padded_columns)[None, :]
    return tl.load(base + row * columns + column, mask=(row < rows) & (column < columns), other=0.0)


@triton.jit
def _evaluate_kernel(
    order, first_block, starts, positions, directions, out,
    w0, b0, w1, b1, wd, bd, w2, b2, w3, b3, networks, steps,
    position_size: tl.constexpr, direction_size: tl.constexpr, width: tl.constexpr,
    padded_position: tl.constexpr, padded_direction: tl.constexpr, block: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    if program >= tl.load(first_block + networks):
        return
    # The network whose blocks hold this one, by halving.
    low, high = tl.zeros([], tl.int32), tl.zeros([], tl.int32) + networks
    while high - low > 1:
        middle = (low + high) // 2
        after = tl.load(first_block + middle) <= program
        low, high = tl.where(after, middle, low), tl.where(after, high, middle)
    network = low.to(tl.int64)
    begin = tl.load(starts + network) + (program - tl.load(first_block + network)) * block
    at = begin + tl.arange(0, block)
    here = at < tl.load(starts + network + 1)
    lane = tl.load(order + at, mask=here, other=0)
    unit = tl.arange(0, width)
    x = _encoded(positions, lane, here, position_size, padded_position)
    h = tl.dot(
        x,
        _matrix(w0 + network * position_size * width, position_size, width, padded_position, width),
        input_precision=precision,
    )
    h = tl.maximum(h + tl.load(b0 + network * width + unit)[None, :], 0.0)
    h = tl.dot(h, _matrix(w1 + network * width * width, width, width, width, width), input_precision=precision)
    h = tl.maximum(h + tl.load(b1 + network * width + unit)[None, :], 0.0)
    depth = tl.sum(h * tl.load(wd + network * width + unit)[None, :], axis=1) + tl.load(bd + network)
    alpha = 1.0 - tl.exp(-tl.maximum(depth, 0.0) * steps)
    d = _encoded(directions, lane, here, direction_size, padded_direction)
    seen = w2 + network * (width + direction_size) * width
    h = tl.dot(h, _matrix(seen, width, width, width, width), input_precision=precision)
    h += tl.dot(
        d, _matrix(seen + width * width, direction_size, width, padded_direction, width), input_precision=precision
    )
    h = tl.maximum(h + tl.load(b2 + network * width + unit)[None, :], 0.0)
    channel = tl.arange(0, 16)
    c = tl.dot(h, _matrix(w3 + network * width * 3, width, 3, width, 16), input_precision=precision)  # pyright: ignore[reportArgumentType]
    c += tl.load(b3 + network * 3 + channel, mask=channel < 3, other=0.0)[None, :]
    c = tl.where(channel[None, :] < 3, 1.0 / (1.0 + tl.exp(-c)), alpha[:, None])
    tl.store(out + 4 * lane[:, None] + channel[None, :], c, mask=here[:, None] & (channel[None, :] < 4))


def evaluate(
    scene: SceneTensors,
    network: Int[Tensor, " M"],
    local: Float[Tensor, "M 3"],
    directions: Float[Tensor, "M 3"],
    steps: float,
) -> Float[Tensor, "M 4"]:
    """Colour and alpha of samples; see `march_torch.evaluate`."""
    shape, count, networks = scene.scene.shape, len(network), scene.scene.grid.num_networks
    out = torch.zeros(count, 4, device=scene.device)
    # Lanes without a network are sorted to the end, where no program begins.
    keys, order = torch.where(network < 0, networks, network).sort()
    starts = torch.searchsorted(keys, torch.arange(networks + 1, device=scene.device))
    blocks = (starts.diff() + _BLOCK - 1) // _BLOCK
    first_block = torch.nn.functional.pad(blocks.cumsum(0), (1, 0)).int()
    # As many programs as there may be blocks: asking the device how many there are would wait for it.
    programs = triton.cdiv(count, _BLOCK) + networks
    arrays = [
        scene.weights[f"{layer}.{kind}"] for layer in shape.folded_layers() for kind in ("weight", "bias")
    ]  # fmt: skip
    _evaluate_kernel[(programs,)](
        order, first_block, starts, local.contiguous(), directions.contiguous(), out, *arrays, networks, steps,  # pyright: ignore[reportCallIssue]
        shape.position_size, shape.direction_size, shape.width,  # pyright: ignore[reportCallIssue]
        max(triton.next_power_of_2(shape.position_size), 16), max(triton.next_power_of_2(shape.direction_size), 16),  # pyright: ignore[reportCallIssue]
        _BLOCK, _PRECISION,  # pyright: ignore[reportCallIssue]
    )  # fmt: skip
    return out
