"""Marching rays through one baked submodel on the CPU: the semantics of the official viewer's shader, step by step.

A ray goes piece by piece (`ray_pieces`) in steps of one plane texel of contracted space. Where the distance grid says
how far the next occupied cell is, it jumps; where a cell of 4^3 texels is empty, it goes on behind it. A sample's
density is exp(V + g P - 1), with V the sparse grid's density, P the three planes' together and g the gate; its length
is that of the step in the unit frame. Features are a sigmoid of the same sum, per sample, and those of the sparse grid
alone follow in seven more channels (Duckworth et al. 2024; the shader is the reference where they differ).

Texels lie interleaved, eight channels to a texel and neighbours along the last axis side by side, so that one vector of
16 lanes (`core.simd`) is two texels: a sample is ten loads.

Note:
    The shader's option to take larger steps behind things (`LARGER_STEPS_WHEN_OCCLUDED`) is left out: it trades
    agreement with what was trained for speed.
"""

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from radcomp_plugins.core import simd
from radcomp_plugins.core.threads import claim_block, new_counter, run_striped
from radcomp_plugins.smerf.layout import (
    DENSITY,
    GATE,
    NUM_CHANNELS,
    NUM_FEATURES,
    RANGE_DENSITY,
    RANGE_FEATURES,
    BakedSubmodel,
    Layout,
)
from radcomp_plugins.smerf.ray_pieces import MAX_PIECES, NEVER, piece_ends, piece_setup, uncontract

MIN_VISIBILITY = 1.0 / 255.0
"""A ray ends where less light than this comes through."""
MIN_ALPHA = 0.25 / 255.0
"""Samples that hide less than this add no features; they still hide."""
MIN_START = 1e-6
"""Rays begin at least this far from their origin, unit frame: the shader counts in multiples of it."""

_CELL = 8
"""Plane texels along a cell of the distance grid, and of an occupancy byte; its bits halve that."""
_F1 = np.float32(1.0)
_HALF_LANES = np.float32(NUM_CHANNELS)
_MAX_LOG_DENSITY = 88.0
"""The largest exponent that single precision has room for; more is just as opaque."""


@dataclass(frozen=True)
class Marched:
    """What rays gathered.

    Attributes:
        features: [N, 14] float32: 3 of diffuse colour, 3 of view-dependent colour and the gate, each weighed and summed
            along the ray, then the same of the sparse grid alone; [N, 7] where the layout has no `feature_concat`.
        accumulation: [N] float32, share of the light that does not come through, 0..1.
        depth: [N] float32, mean distance along the unit direction of what gave features, unit frame; 0 where nothing
            did.
    """

    features: NDArray[np.float32]
    accumulation: NDArray[np.float32]
    depth: NDArray[np.float32]


@njit(nogil=True, cache=True, inline="always")
def _pair_weights(fraction):
    """Weights of two texels side by side, for all their channels."""
    high = np.float32(fraction)
    return simd.select(simd.lane_numbers() < _HALF_LANES, simd.broadcast(_F1 - high), simd.broadcast(high))


@njit(nogil=True, cache=True, inline="always")
def _sparse_texel(blocks, block, side, x, y, z):
    """Sum of bytes of the 2^3 voxels around a place in a block, weighed; both halves of the vector hold the same."""
    ix, iy, iz = min(int(x), side - 2), min(int(y), side - 2), min(int(z), side - 2)
    fx, fy = np.float32(x - ix), np.float32(y - iy)
    row = side * NUM_CHANNELS
    layer = side * row
    at = block * side * layer + ix * layer + iy * row + iz * NUM_CHANNELS
    near = simd.load_bytes(blocks, at) * (_F1 - fy) + simd.load_bytes(blocks, at + row) * fy
    far = simd.load_bytes(blocks, at + layer) * (_F1 - fy) + simd.load_bytes(blocks, at + layer + row) * fy
    both = (near * (_F1 - fx) + far * fx) * _pair_weights(z - iz)
    return both + simd.swap_halves(both)


@njit(nogil=True, cache=True, inline="always")
def _plane_texels(planes, plane, size, a, b):
    """The two columns of the 2^2 texels of a plane around a place, weighed but not yet summed over the pair.

    Places count in texels from the first one's centre and are clamped to the texels' centres.
    """
    a, b = min(max(a, 0.0), size - 1.0), min(max(b, 0.0), size - 1.0)
    ia, ib = min(int(a), size - 2), min(int(b), size - 2)
    fa = np.float32(a - ia)
    at = ((plane * size + ia) * size + ib) * NUM_CHANNELS
    row = size * NUM_CHANNELS
    pair = simd.load_bytes(planes, at) * (_F1 - fa) + simd.load_bytes(planes, at + row) * fa
    return pair * _pair_weights(b - ib)


@njit(nogil=True, cache=True, inline="always", error_model="numpy")
def _leave_box(z, d, low_x, low_y, low_z, side):
    """Where a ray from the piece's origin z along d leaves a cube."""
    leave = np.inf
    if d[0] != 0.0:
        leave = min(leave, (low_x + (side if d[0] > 0.0 else 0.0) - z[0]) / d[0])
    if d[1] != 0.0:
        leave = min(leave, (low_y + (side if d[1] > 0.0 else 0.0) - z[1]) / d[1])
    if d[2] != 0.0:
        leave = min(leave, (low_z + (side if d[2] > 0.0 else 0.0) - z[2]) / d[2])
    return leave


@njit(nogil=True, cache=True, inline="always")
def _channel_scales():
    """Lowest value of each channel, and the value of one count of its byte."""
    lanes = simd.lane_numbers()
    is_density = (lanes >= np.float32(DENSITY)) & (lanes < _HALF_LANES)
    is_density = is_density | (lanes >= np.float32(NUM_CHANNELS + DENSITY))
    features, density = np.float32(RANGE_FEATURES), np.float32(RANGE_DENSITY)
    highest = simd.select(is_density, simd.broadcast(density), simd.broadcast(features))
    return np.float32(0.0) - highest, highest * np.float32(2.0 / 255.0)


@njit(nogil=True, cache=True, error_model="numpy")
def march_rays(
    start, step, counter, planes, block_indices, blocks, block_side, occupancy, distance, centre, scale, gating, texels,
    step_mult, origins, directions, starts, marks, mark_threshold, features, accumulation, depth
):  # fmt: skip
    """March blocks of rays until none is left to claim.

    Args:
        start: not used, as `step`: threads share the rays by `counter`.
        step: not used.
        counter: see `core.threads.claim`.
        planes: [3 * T * T * 8] uint8.
        block_indices: [S/8, S/8, S/8] int32, all below the number of blocks.
        blocks: [B * 9 * 9 * 9 * 8] uint8.
        block_side: voxels along a block, apron counted.
        occupancy: [T/8, T/8, T/8] uint8.
        distance: the same.
        centre: [3] of the submodel, unit frame.
        scale: submodel units per unit.
        gating: whether the planes are weighed by the sparse grid's gate.
        texels: T.
        step_mult: steps per plane texel.
        origins: [N, 3] float32, unit frame.
        directions: [N, 3] float32, unit frame, unit length.
        starts: [N] float32, distance at which each ray begins, unit frame.
        marks: [T/4, T/4, T/4] bool, set for cells in which a sample weighs more than `mark_threshold`; or empty.
        mark_threshold: see `marks`.
        features: [N, 14] or [N, 7] float32, written.
        accumulation: [N] float32, written.
        depth: [N] float32, written.
    """
    texel = 4.0 / texels
    per_scale = 1.0 / scale
    dt = texel / step_mult
    cell = _CELL * texel
    cells = occupancy.shape[0]
    per_texel, per_cell, per_block = 0.25 * texels, 0.25 * texels / _CELL, 1.0 / (block_side - 1)
    block_size = block_side - 1
    grid_blocks = block_indices.shape[0]
    per_voxel = 0.25 * grid_blocks * block_size
    max_steps = step_mult * int(math.ceil(math.sqrt(2.0) * texels))
    lowest, count_value = _channel_scales()
    lanes = simd.lane_numbers()
    zero = simd.broadcast(np.float32(0.0))
    crossings, ends = np.empty(12), np.empty(MAX_PIECES)
    gathered = np.empty(2 * NUM_CHANNELS, np.float32)
    while True:
        begin, end = claim_block(counter, origins.shape[0])
        if begin == end:
            break
        for n in range(begin, end):
            # The axes of WebGL; t = 1 is where the ray begins, as in the shader, whose t is in units of the near plane.
            first = max(float(starts[n]), MIN_START)
            length = first * scale
            o = (
                -(origins[n, 0] - centre[0]) * scale,
                (origins[n, 2] - centre[2]) * scale,
                (origins[n, 1] - centre[1]) * scale,
            )
            d = (-directions[n, 0] * length, directions[n, 2] * length, directions[n, 1] * length)
            piece_ends(o, d, 1.0, crossings, ends)
            z0, dz, enter, leave = piece_setup(o, d, 1.0, 0.5 * (1.0 + ends[0]))
            piece = 1
            t, box_end = 0.0, -np.inf
            light, seen, weighed_depth = 1.0, 0.0, 0.0
            total = zero
            t_known = -1.0
            x1, y1, w1 = 0.0, 0.0, 0.0
            steps = 0
            while steps < max_steps and light > MIN_VISIBILITY and dz[0] == dz[0]:
                steps += 1
                if t > leave:
                    zx, zy, zz = z0[0] + leave * dz[0], z0[1] + leave * dz[1], z0[2] + leave * dz[2]
                    if max(abs(zx), abs(zy), abs(zz)) >= 2.0 - 1e-3 or piece >= MAX_PIECES:
                        break
                    # A region that the ray only brushes is passed over, as the shader does.
                    if ends[piece - 1] >= ends[piece] - 16.0 * dt:
                        piece += 1
                    if piece >= MAX_PIECES or ends[piece] >= NEVER:
                        break
                    from_t, to_t = ends[piece - 1], ends[piece]
                    z0, dz, enter, leave = piece_setup(o, d, 0.9 * from_t + 0.1 * to_t, 0.1 * from_t + 0.9 * to_t)
                    piece += 1
                    t, box_end, t_known = enter + 0.5 * dt, -np.inf, -1.0
                x, y, z = z0[0] + t * dz[0], z0[1] + t * dz[1], z0[2] + t * dz[2]

                px, py, pz = (x + 2.0) * per_cell, (y + 2.0) * per_cell, (z + 2.0) * per_cell
                cx, cy, cz = math.floor(px), math.floor(py), math.floor(pz)
                ix = min(max(int(cx), 0), cells - 1)
                iy = min(max(int(cy), 0), cells - 1)
                iz = min(max(int(cz), 0), cells - 1)
                away = distance[ix, iy, iz]
                if away > 0:
                    t += cell * away
                    continue
                if t > box_end:
                    occupied = occupancy[ix, iy, iz]
                    side = cell
                    if occupied != 0:
                        bit = 0
                        side = 0.5 * cell
                        if px - cx > 0.5:
                            bit += 4
                            cx += 0.5
                        if py - cy > 0.5:
                            bit += 2
                            cy += 0.5
                        if pz - cz > 0.5:
                            bit += 1
                            cz += 0.5
                        occupied = (occupied >> bit) & 1
                    box_end = _leave_box(z0, dz, cx * cell - 2.0, cy * cell - 2.0, cz * cell - 2.0, side)
                    if occupied == 0:
                        t = max(t, box_end) + 0.5 * dt
                        continue

                vx, vy, vz = (x + 2.0) * per_voxel - 0.5, (y + 2.0) * per_voxel - 0.5, (z + 2.0) * per_voxel - 0.5
                bx, by, bz = math.floor(vx * per_block), math.floor(vy * per_block), math.floor(vz * per_block)
                block = block_indices[
                    min(max(int(bx), 0), grid_blocks - 1),
                    min(max(int(by), 0), grid_blocks - 1),
                    min(max(int(bz), 0), grid_blocks - 1),
                ]
                if block < 0:
                    t += dt
                    continue
                sparse = _sparse_texel(
                    blocks,
                    np.int64(block),
                    block_side,
                    min(max(vx - block_size * bx, 0.0), float(block_size)),
                    min(max(vy - block_size * by, 0.0), float(block_size)),
                    min(max(vz - block_size * bz, 0.0), float(block_size)),
                )
                tx, ty, tz = (x + 2.0) * per_texel - 0.5, (y + 2.0) * per_texel - 0.5, (z + 2.0) * per_texel - 0.5
                plane = _plane_texels(planes, 0, texels, ty, tz) + _plane_texels(planes, 1, texels, tx, tz)
                plane = plane + _plane_texels(planes, 2, texels, tx, ty)
                plane = plane + simd.swap_halves(plane)
                sparse = lowest + sparse * count_value
                plane = lowest * np.float32(3.0) + plane * count_value
                gate = simd.lane(sparse, GATE) if gating else _F1

                # The step's length in the unit frame, up to the region's end at most.
                if t == t_known:
                    x0, y0, w0 = x1, y1, w1
                else:
                    x0, y0, w0 = uncontract(x, y, z)
                t_next = min(t + dt, leave)
                x1, y1, w1 = uncontract(z0[0] + t_next * dz[0], z0[1] + t_next * dz[1], z0[2] + t_next * dz[2])
                t_known = t_next
                dx, dy, dw = x1 - x0, y1 - y0, w1 - w0
                step_length = math.sqrt(dx * dx + dy * dy + dw * dw) * per_scale
                log_density = float(simd.lane(sparse, DENSITY)) + float(gate) * float(simd.lane(plane, DENSITY)) - 1.0
                alpha = 1.0 - math.exp(-math.exp(min(log_density, _MAX_LOG_DENSITY)) * step_length)
                if alpha > MIN_ALPHA:
                    weight = light * alpha
                    raw = sparse + simd.select(lanes < _HALF_LANES, gate * plane, zero)
                    total = total + np.float32(weight) * simd.sigmoid(raw)
                    seen += weight
                    away_now = (x0 - o[0]) * d[0] + (y0 - o[1]) * d[1] + (w0 - o[2]) * d[2]
                    weighed_depth += weight * away_now / (length * scale)
                    if marks.shape[0] > 0 and weight > mark_threshold:
                        marks[
                            min(max(int(2.0 * px), 0), 2 * cells - 1),
                            min(max(int(2.0 * py), 0), 2 * cells - 1),
                            min(max(int(2.0 * pz), 0), 2 * cells - 1),
                        ] = True
                light *= 1.0 - alpha
                t += dt
            simd.store(gathered, 0, total)
            features[n, :NUM_FEATURES] = gathered[:NUM_FEATURES]
            if features.shape[1] > NUM_FEATURES:
                features[n, NUM_FEATURES:] = gathered[NUM_CHANNELS : NUM_CHANNELS + NUM_FEATURES]
            accumulation[n] = 1.0 - light
            depth[n] = weighed_depth / seen if seen > 0.0 else 0.0


def check_submodel(submodel: BakedSubmodel, layout: Layout) -> None:
    """Raise ValueError where arrays and layout do not fit together: the kernels check nothing."""
    texels, side = layout.triplane_resolution, layout.block_size + 1
    grid_blocks = layout.sparse_resolution // layout.block_size
    expected = {
        "planes": ((3, texels, texels, NUM_CHANNELS), np.uint8),
        "block_indices": ((grid_blocks,) * 3, np.int32),
        "blocks": ((len(submodel.blocks), side, side, side, NUM_CHANNELS), np.uint8),
        "occupancy": ((texels // _CELL,) * 3, np.uint8),
        "distance": ((texels // _CELL,) * 3, np.uint8),
    }
    for name, (shape, dtype) in expected.items():
        array = getattr(submodel, name)
        if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
            raise ValueError(
                f"submodel {submodel.index}, {name}: {array.dtype} {array.shape}, expected C-contiguous "
                f"{np.dtype(dtype)} {shape}"
            )
    if submodel.block_indices.max() >= len(submodel.blocks):
        raise ValueError(
            f"submodel {submodel.index}: block index {submodel.block_indices.max()}, expected below "
            f"{len(submodel.blocks)}"
        )


def march(
    submodel: BakedSubmodel,
    layout: Layout,
    origins: NDArray[np.float32],
    directions: NDArray[np.float32],
    starts: NDArray[np.float32],
    *,
    marks: NDArray[np.bool_] | None = None,
    mark_threshold: float = 0.005,
    step_mult: int = 1,
) -> Marched:
    """March rays through one submodel.

    Args:
        submodel: its bytes.
        layout: of its scene.
        origins: [N, 3] float32, unit frame.
        directions: [N, 3] float32, unit frame, unit length.
        starts: [N] float32, distance along the direction at which marching begins, unit frame; `MIN_START` at least.
        marks: [T/4, T/4, T/4] bool in submodel axes: cells in which a sample weighs more than `mark_threshold` are set;
            others stay as they are.
        mark_threshold: least weight of a sample that marks, 0..1.
        step_mult: steps per plane texel. Raising it costs that many times the time; assets are made for 1.

    Raises:
        ValueError: arrays of the submodel do not fit the layout, or those of the rays one another.
    """
    check_submodel(submodel, layout)
    count, texels = len(origins), layout.triplane_resolution
    if origins.shape != (count, 3) or directions.shape != (count, 3) or starts.shape != (count,) or step_mult < 1:
        raise ValueError(
            f"rays of shapes {origins.shape}, {directions.shape}, {starts.shape} and {step_mult} steps per texel: "
            "expected [N, 3], [N, 3], [N] and at least 1"
        )
    if marks is not None and (marks.shape != (texels // 4,) * 3 or marks.dtype != np.bool_):
        raise ValueError(f"marks: {marks.dtype} {marks.shape}, expected bool {(texels // 4,) * 3}")
    channels = NUM_FEATURES * (2 if layout.feature_concat else 1)
    result = Marched(np.empty((count, channels), np.float32), np.empty(count, np.float32), np.empty(count, np.float32))
    run_striped(
        march_rays,
        new_counter(),
        submodel.planes.reshape(-1),
        submodel.block_indices,
        submodel.blocks.reshape(-1),
        layout.block_size + 1,
        submodel.occupancy,
        submodel.distance,
        layout.centre(submodel.index),
        layout.submodel_scale,
        layout.feature_gating,
        texels,
        step_mult,
        np.ascontiguousarray(origins, np.float32),
        np.ascontiguousarray(directions, np.float32),
        np.ascontiguousarray(starts, np.float32),
        np.zeros((0, 0, 0), np.bool_) if marks is None else marks,
        mark_threshold,
        result.features,
        result.accumulation,
        result.depth,
    )
    return result
