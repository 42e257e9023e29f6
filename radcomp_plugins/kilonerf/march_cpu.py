"""Rays through the grid on the CPU: which come near it, and where their next samples are.

A ray's samples lie at start + (k + 1/2) step, k = 0, 1, ...; those in occupied voxels are asked of a network, the rest
is skipped, many at once where bricks are empty. All positions are counted in voxels of the occupancy.
"""

import math

import numpy as np
from numba import njit

_F0, _F1, _HALF = np.float32(0.0), np.float32(1.0), np.float32(0.5)
_SMALL = np.float32(1e-6)
_SLACK = np.float32(1e-3)
"""Steps that a leap over empty bricks falls short: rounding must never leap over a sample behind them."""
_TINY = np.float32(1e-12)
_WIDER = np.float32(1.0001)
"""Share by which a first, coarse look at the box is too large, so that rounding loses no ray."""
_MOST_STEPS = np.float32(2**30)
"""Rays that need more steps to get through the box are left out: its samples are no longer told apart."""


@njit(nogil=True, cache=True, inline="always")
def _reciprocal(x):
    """1 / x, of numbers near 0 a large one of the same sign."""
    return _F1 / (x if abs(x) > _SMALL else (_SMALL if x >= _F0 else -_SMALL))


@njit(nogil=True, cache=True, error_model="numpy")
def _enter(ray, o, d, start, end, step, low, high, n, ids, origins, directions, starts, first, last):
    """Keep a ray that passes through the box between `start` and `end`; returns the number of rays kept."""
    t0, t1 = start, end
    for axis in range(3):
        if abs(d[axis]) > _TINY:
            inverse = _F1 / d[axis]
            u, v = (low[axis] - o[axis]) * inverse, (high[axis] - o[axis]) * inverse
            t0, t1 = max(t0, min(u, v)), min(t1, max(u, v))
        elif o[axis] < low[axis] or o[axis] > high[axis]:
            return n
    if not t1 > t0:
        return n
    k0 = max(math.ceil((t0 - start) / step - _HALF), _F0)
    k1 = math.floor((t1 - start) / step - _HALF)
    if not k0 <= k1 < _MOST_STEPS:
        return n
    ids[n], starts[n], first[n], last[n] = ray, start, k0, k1
    for axis in range(3):
        origins[n, axis], directions[n, axis] = o[axis], d[axis]
    return n + 1


@njit(nogil=True, cache=True, error_model="numpy")
def enter_rays(
    rays, all_origins, all_directions, all_starts, all_ends, step, low, high,
    ids, origins, directions, starts, first, last,
):  # fmt: skip
    """Keep those rays that may have samples in the box.

    Args:
        rays: [R] int64 numbers of the rays to look at.
        all_origins: [N, 3] float32, scene frame.
        all_directions: [N, 3] float32, unit length.
        all_starts: [N] float32 distance at which steps begin.
        all_ends: [N] float32 distance behind which there are no samples.
        step: scene units, float32.
        low: [3] float32 corner of the box.
        high: [3] float32 corner of the box.
        ids: [R] int64, written: number of each kept ray.
        origins: [R, 3] float32, written, as `directions` and `starts`.
        directions: see above.
        starts: see above.
        first: [R] int32, written: number of a ray's first sample that may lie in the box.
        last: [R] int32, written: number of the last.

    Returns:
        Number of rays kept.
    """
    n = 0
    for ray in rays:
        n = _enter(
            ray, all_origins[ray], all_directions[ray], all_starts[ray], all_ends[ray], step, low, high,
            n, ids, origins, directions, starts, first, last,
        )  # fmt: skip
    return n


@njit(nogil=True, cache=True, error_model="numpy")
def enter_pixels(
    rays, width, pose, focal, centre, near, step, low, high, ids, origins, directions, starts, first, last
):
    """`enter_rays` for pixels of a pinhole camera, whose rays are made here.

    Args:
        rays: [R] int64 numbers of pixels, row by row.
        width: of the picture, pixels.
        pose: [3, 4] float32 camera-to-scene, OpenGL convention.
        focal: [2] float32 fx, fy, pixels.
        centre: [2] float32 cx, cy, pixels.
        near: distance at which steps begin, scene units, float32.
        step: see `enter_rays`, as the rest.
        low: see above.
        high: see above.
        ids: see above.
        origins: see above.
        directions: see above.
        starts: see above.
        first: see above.
        last: see above.
    """
    n = 0
    end = np.float32(np.inf)
    o, d = np.empty(3, np.float32), np.empty(3, np.float32)
    for axis in range(3):
        o[axis] = pose[axis, 3]
    per_x, per_y = _F1 / focal[0], _F1 / focal[1]
    for ray in rays:
        row = ray // width
        u = (np.float32(ray - row * width) + _HALF - centre[0]) * per_x
        v = (centre[1] - np.float32(row) - _HALF) * per_y
        # The box is met or missed whatever the direction's length: most pixels are done with here.
        t0, t1 = _F0, end
        for axis in range(3):
            d[axis] = u * pose[axis, 0] + v * pose[axis, 1] - pose[axis, 2]
            inverse = _F1 / (d[axis] if abs(d[axis]) > _TINY else _TINY)
            a, b = (low[axis] - o[axis]) * inverse, (high[axis] - o[axis]) * inverse
            t0, t1 = max(t0, min(a, b)), min(t1, max(a, b))
        if t1 * _WIDER < t0:
            continue
        shorten = _F1 / np.sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2])
        for axis in range(3):
            d[axis] *= shorten
        n = _enter(ray, o, d, near, end, step, low, high, n, ids, origins, directions, starts, first, last)
    return n


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _emit(m, ray, network, weight, t, x, y, z, cx, cy, cz, scale, positions, rays, networks, weights, away, histogram):
    """Write a lane: a sample as the network of cell (cx, cy, cz) sees it."""
    positions[m, 0] = (x - cx) * scale - _F1
    positions[m, 1] = (y - cy) * scale - _F1
    positions[m, 2] = (z - cz) * scale - _F1
    rays[m], networks[m], weights[m], away[m] = ray, network, weight, t
    histogram[network] += 1


@njit(nogil=True, cache=True, error_model="numpy")
def _emit_blend(m, ray, t, x, y, z, bits, overlap, ids, positions, rays, networks, weights, away, histogram):
    """Write a lane for every network that speaks for a sample, weights as `grid.CellLookup.blend` has them."""
    side = 1 << bits
    scale = np.float32(2.0) / np.float32(side)
    at, there, share = np.empty(3, np.int64), np.empty(3, np.int64), np.empty(3, np.float32)
    place = (x, y, z)
    for axis in range(3):
        at[axis] = np.int64(place[axis]) >> bits
        local = (place[axis] - np.float32(at[axis] << bits)) * scale - _F1
        there[axis] = at[axis] + (-1 if local < _F0 else 1)
        share[axis] = min(max((abs(local) - (_F1 - overlap)) / (np.float32(2.0) * overlap), _F0), _HALF)
    begin, total = m, _F0
    for corner in range(8):
        cell_x = there[0] if corner & 1 else at[0]
        cell_y = there[1] if corner & 2 else at[1]
        cell_z = there[2] if corner & 4 else at[2]
        weight = share[0] if corner & 1 else _F1 - share[0]
        weight *= share[1] if corner & 2 else _F1 - share[1]
        weight *= share[2] if corner & 4 else _F1 - share[2]
        if weight <= _F0 or min(cell_x, cell_y, cell_z) < 0:
            continue
        if cell_x >= ids.shape[0] or cell_y >= ids.shape[1] or cell_z >= ids.shape[2]:
            continue
        network = ids[cell_x, cell_y, cell_z]
        if network < 0:
            continue
        low = np.float32(cell_x << bits), np.float32(cell_y << bits), np.float32(cell_z << bits)
        _emit(
            m, ray, network, weight, t, x, y, z, low[0], low[1], low[2], scale,
            positions, rays, networks, weights, away, histogram,
        )  # fmt: skip
        total += weight
        m += 1
    for i in range(begin, m):
        weights[i] /= total
    return m


@njit(nogil=True, cache=True, error_model="numpy")
def march(
    active, count, origins, directions, starts, first, last, step, corner, per_unit, distance, occupied, ids, bits,
    overlap, skip, most, positions, rays, networks, weights, away, lanes, histogram,
):  # fmt: skip
    """The next samples of every active ray, at most `most` of each.

    Args:
        active: [*] int32 rows of the rays that still go on, `count` of them.
        count: see above.
        origins: [R, 3] float32, scene frame.
        directions: [R, 3] float32, unit length.
        starts: [R] float32 distance at which steps begin.
        first: [R] int32 number of the next sample, moved on.
        last: [R] int32 number of the last sample.
        step: scene units, float32.
        corner: [3] float32 lower corner of the grid's box, scene frame.
        per_unit: [3] float32 voxels per scene unit.
        distance: see `bricks.Bricks`.
        occupied: see `bricks.Bricks.bits`.
        ids: [nx, ny, nz] int32 networks of the cells.
        bits: log2 of the voxels along a side of a cell.
        overlap: see `KiloGrid`, float32.
        skip: whether empty voxels are skipped. Without, each sample in the box costs what an occupied one does, in
            cells without a network by asking network 0, and counts nothing.
        most: samples of a ray.
        positions: [*, 3] float32, written: local position of each lane. A sample has a lane, near borders of cells that
            overlap one for each network that speaks for it.
        rays: [*] int32, written: row of its ray.
        networks: [*] int32, written.
        weights: [*] float32, written: how much the lane counts in its sample.
        away: [*] float32, written: distance along the ray.
        lanes: [*] int32, written: lanes of each active ray, in the order of `active`.
        histogram: [N] int64, added to: lanes of each network.

    Returns:
        Number of lanes.
    """
    m = 0
    side = np.float32(1 << bits)
    scale = np.float32(2.0) / side
    vx, vy, vz = 4 * occupied.shape[0] - 1, 4 * occupied.shape[1] - 1, 4 * occupied.shape[2] - 1
    inverse_step = _F1 / step
    for i in range(count):
        row = active[i]
        dx, dy, dz = (
            directions[row, 0] * per_unit[0],
            directions[row, 1] * per_unit[1],
            directions[row, 2] * per_unit[2],
        )
        ox = (origins[row, 0] - corner[0]) * per_unit[0]
        oy = (origins[row, 1] - corner[1]) * per_unit[1]
        oz = (origins[row, 2] - corner[2]) * per_unit[2]
        jx, jy, jz = inverse_step * _reciprocal(dx), inverse_step * _reciprocal(dy), inverse_step * _reciprocal(dz)
        k, end, start, taken, begin = first[row], last[row], starts[row], 0, m
        while k <= end and taken < most:
            t = start + (np.float32(k) + _HALF) * step
            x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
            ix = min(max(np.int64(x), 0), vx)
            iy = min(max(np.int64(y), 0), vy)
            iz = min(max(np.int64(z), 0), vz)
            bx, by, bz = ix >> 2, iy >> 2, iz >> 2
            reach = np.int64(distance[bx, by, bz])
            if reach > 0 and skip:
                ux = (np.float32((bx + (reach if jx > _F0 else 1 - reach)) * 4) - x) * jx
                uy = (np.float32((by + (reach if jy > _F0 else 1 - reach)) * 4) - y) * jy
                uz = (np.float32((bz + (reach if jz > _F0 else 1 - reach)) * 4) - z) * jz
                k += max(np.int64(min(ux, min(uy, uz)) - _SLACK), 0) + 1
                continue
            k += 1
            bit = np.uint64((ix & 3) | (iy & 3) << 2 | (iz & 3) << 4)
            here = (occupied[bx, by, bz] >> bit) & np.uint64(1) != 0
            if not (here or not skip):
                continue
            cx, cy, cz = ix >> bits, iy >> bits, iz >> bits
            taken += 1
            if here and overlap > _F0:
                m = _emit_blend(
                    m, row, t, x, y, z, bits, overlap, ids, positions, rays, networks, weights, away, histogram
                )  # fmt: skip
                continue
            _emit(
                m, row, max(ids[cx, cy, cz], 0), _F1 if here else _F0, t, x, y, z,
                np.float32(cx << bits), np.float32(cy << bits), np.float32(cz << bits), scale,
                positions, rays, networks, weights, away, histogram,
            )  # fmt: skip
            m += 1
        first[row] = k
        lanes[i] = m - begin
    return m
