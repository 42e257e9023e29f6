"""Which Gaussians touch which 16x16 tile, front to back: the numba kernels before the blending.

A splat is blended in the tiles that gsplat's square box (centre +- radius) touches and in no other, because alpha
can still be above 1/255 at 3 sigma. Inside that box a tile may be left out where alpha is below 1/255 in all its
pixels: there gsplat skips the splat too, so the image and the hit counts are the same.
"""

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from radcomp_plugins.core.threads import run_striped

TILE = 16
"""Side of a tile in pixels; part of the semantics, see the module."""

SPLAT_HEAD = 9
"""Floats per packed splat before its colour: x, y, conic a, b, c, opacity, limit, b/a, c - b^2/a.

The limit is twice the sigma from which on alpha is below 1/255, and a margin for rounding.
"""

_MARGIN = np.float32(1e-3)
_F255 = np.float32(255.0)
_HALF = np.float32(0.5)


@dataclass(frozen=True)
class TileLists:
    """Visible splats in depth order and, per tile, the ranks of those that touch it.

    Attributes:
        order: [M] int64 index into the flattened (camera, Gaussian) pairs of the splat with this rank.
        splats: [M, SPLAT_HEAD + D] float32 packed splats by rank.
        offsets: [tiles + 1] int64 where each tile's list begins; tiles are numbered camera, row, column.
        ranks: [I] int32 ranks of all tiles' lists, front to back within a tile.
        first: [M + 1] int64 where each splat's entries of `positions` begin.
        positions: [I] int32 for each splat the positions in `ranks` that name it.
        work: [tiles] int64 tile numbers, those with the longest lists first.
        tiles_x: tiles per row.
        tiles_y: rows of tiles per camera.
    """

    order: NDArray[np.int64]
    splats: NDArray[np.float32]
    offsets: NDArray[np.int64]
    ranks: NDArray[np.int32]
    first: NDArray[np.int64]
    positions: NDArray[np.int32]
    work: NDArray[np.int64]
    tiles_x: int
    tiles_y: int


@njit(nogil=True, cache=True)
def _clamped(value: float, upper: int) -> int:
    """Integer part of `value`, limited to 0 .. `upper` before the conversion so that it cannot overflow."""
    return int(min(max(value, 0.0), float(upper)))


@njit(nogil=True, cache=True, error_model="numpy")
def _pack_splats(
    start, step, order, count, radii, means2d, conics, opacities, colors, tiles_x, tiles_y, splats, boxes
):
    """Pack each visible splat by rank and find its box of tiles (x0, x1, y0, y1; ends excluded)."""
    channels = colors.shape[1]
    for m in range(start, order.shape[0], step):
        i = order[m]
        x, y = means2d[i, 0], means2d[i, 1]
        a, b, c, opacity = conics[i, 0], conics[i, 1], conics[i, 2], opacities[i]
        sigma = np.float32(math.log(_F255 * opacity)) + np.float32(1e-4)
        det = np.float64(a) * c - np.float64(b) * b
        half_x = np.float32(math.sqrt(2.0 * sigma * c / det)) + _MARGIN
        half_y = np.float32(math.sqrt(2.0 * sigma * a / det)) + _MARGIN
        splats[m, 0] = x
        splats[m, 1] = y
        splats[m, 2] = a
        splats[m, 3] = b
        splats[m, 4] = c
        splats[m, 5] = opacity
        # The margin covers float32 rounding of pixel coordinates on the way to sigma.
        extent = abs(x) + abs(y) + np.float32(radii[i] + TILE * (tiles_x + tiles_y))
        splats[m, 6] = np.float32(2.0) * sigma + np.float32(0.01) + np.float32(1e-5) * extent
        splats[m, 7] = b / a
        splats[m, 8] = det / a
        for j in range(channels):
            splats[m, SPLAT_HEAD + j] = colors[i, j]
        # gsplat's box in float32, as it computes it, cut to the pixels where alpha can reach 1/255.
        size = np.float32(TILE)
        radius = np.float32(radii[i]) / size
        tx, ty = x / size, y / size
        boxes[m, 0] = _clamped(max(math.floor(tx - radius), math.floor((x - half_x - _HALF) / size)), tiles_x)
        boxes[m, 1] = _clamped(min(math.ceil(tx + radius), math.floor((x + half_x - _HALF) / size) + 1.0), tiles_x)
        boxes[m, 2] = _clamped(max(math.floor(ty - radius), math.floor((y - half_y - _HALF) / size)), tiles_y)
        boxes[m, 3] = _clamped(min(math.ceil(ty + radius), math.floor((y + half_y - _HALF) / size) + 1.0), tiles_y)


@njit(nogil=True, cache=True)
def _count_tiles(order, count, boxes, tiles_x, tiles_y, first, offsets):
    """Prefix sums: tiles per splat into `first`, splats per tile into `offsets`."""
    offsets[:] = 0
    first[0] = 0
    per_camera = tiles_x * tiles_y
    for m in range(order.shape[0]):
        base = (order[m] // count) * per_camera + 1
        x0, x1, y0, y1 = boxes[m, 0], boxes[m, 1], boxes[m, 2], boxes[m, 3]
        for ty in range(y0, y1):
            for tx in range(x0, x1):
                offsets[base + ty * tiles_x + tx] += 1
        first[m + 1] = first[m] + max(x1 - x0, 0) * max(y1 - y0, 0)
    for t in range(offsets.shape[0] - 1):
        offsets[t + 1] += offsets[t]


@njit(nogil=True, cache=True)
def _fill_tiles(start, step, order, count, boxes, tiles_x, tiles_y, first, cursor, ranks, positions):
    """Write the lists; each call does the rows of tiles start, start + step, ... and so needs no lock."""
    per_camera = tiles_x * tiles_y
    for m in range(order.shape[0]):
        base = (order[m] // count) * per_camera
        x0, x1, y0, y1 = boxes[m, 0], boxes[m, 1], boxes[m, 2], boxes[m, 3]
        for ty in range(y0 + (start - y0) % step, y1, step):
            slot = first[m] + (ty - y0) * (x1 - x0)
            for tx in range(x0, x1):
                t = base + ty * tiles_x + tx
                k = cursor[t]
                cursor[t] = k + 1
                ranks[k] = m
                positions[slot] = k
                slot += 1


def depth_order(
    radii: NDArray[np.int32], opacities: NDArray[np.float32], depths: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Indices of the visible pairs, camera by camera, each front to back; equal depths keep their order.

    Args:
        radii: [C, N] radius in pixels, 0 where culled.
        opacities: [C, N] peak alpha; a splat below 1/255 reaches no pixel and is left out.
        depths: [C, N] distance along the camera's axis, positive where the radius is.

    Returns:
        [M] int64 indices into the flattened pairs.
    """
    parts = []
    for camera in range(radii.shape[0]):
        seen = np.flatnonzero((radii[camera] > 0) & (opacities[camera] > np.float32(1.0 / 255.1)))
        # The bits of positive floats sort like integers.
        keys = depths[camera][seen].view(np.int32)
        parts.append(seen[np.argsort(keys, kind="stable")] + camera * radii.shape[1])
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def build_tile_lists(
    radii: NDArray[np.int32],
    means2d: NDArray[np.float32],
    depths: NDArray[np.float32],
    conics: NDArray[np.float32],
    opacities: NDArray[np.float32],
    colors: NDArray[np.float32],
    width: int,
    height: int,
) -> TileLists:
    """Sort the visible splats and list them by tile.

    Args:
        radii: [C, N] int32.
        means2d: [C, N, 2] pixels.
        depths: [C, N].
        conics: [C, N, 3] inverse 2D covariance (xx, xy, yy).
        opacities: [C, N] peak alpha in 0 .. 1.
        colors: [C, N, D].
        width: of the image in pixels.
        height: of the image in pixels.

    Raises:
        ValueError: more than 2^31 - 1 (splat, tile) pairs.
    """
    cameras, count = radii.shape
    channels = colors.shape[-1]
    tiles_x, tiles_y = -(-width // TILE), -(-height // TILE)
    order = depth_order(radii, opacities, depths)
    splats = np.empty((len(order), SPLAT_HEAD + channels), np.float32)
    boxes = np.empty((len(order), 4), np.int32)
    run_striped(
        _pack_splats,
        order,
        count,
        radii.reshape(-1),
        means2d.reshape(-1, 2),
        conics.reshape(-1, 3),
        opacities.reshape(-1),
        colors.reshape(-1, channels),
        tiles_x,
        tiles_y,
        splats,
        boxes,
    )
    first = np.empty(len(order) + 1, np.int64)
    offsets = np.empty(cameras * tiles_x * tiles_y + 1, np.int64)
    _count_tiles(order, count, boxes, tiles_x, tiles_y, first, offsets)
    total = int(first[-1])
    if total > np.iinfo(np.int32).max:
        raise ValueError(f"{total} (splat, tile) pairs, expected at most {np.iinfo(np.int32).max}: render smaller")
    ranks = np.empty(total, np.int32)
    positions = np.empty(total, np.int32)
    run_striped(
        _fill_tiles, order, count, boxes, tiles_x, tiles_y, first, offsets[:-1].copy(), ranks, positions
    )
    work = np.argsort(offsets[:-1] - offsets[1:], kind="stable")
    return TileLists(order, splats, offsets, ranks, first, positions, work, tiles_x, tiles_y)
