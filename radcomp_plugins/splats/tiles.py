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

from radcomp_plugins.core.threads import claim_block, new_counter, run_striped

TILE = 16
"""Side of a tile in pixels; part of the semantics, see the module."""

SPLAT_HEAD = 11
"""Words per packed splat before its colour: x, y, conic a, b, c, opacity, limit, b/a, c - b^2/a, row length, origin.

The limit is twice the sigma from which on alpha is below 1/255, and a margin for rounding. The last two are integers:
the (splat, tile) pair in tile column tx and row ty has the number origin + ty * row length + tx.
"""

_DIGIT = 11
"""Bits per pass of the sort by depth."""

_HALF = np.float32(0.5)
_SIZE = np.float32(TILE)
_MARGIN = np.float32(1e-3)


@dataclass(frozen=True)
class TileLists:
    """Splats packed for blending and, per tile, which of them touch it. A splat is a (camera, Gaussian) pair.

    Attributes:
        splats: [S, SPLAT_HEAD + D] float32, S = C * N; what is culled is left unset.
        boxes: [S, 4] int32 tiles each splat is listed in: first and end column, first and end row.
        offsets: [tiles + 1] int64 where each tile's list begins; tiles are numbered camera, row, column.
        ids: [I] int32 the lists, front to back.
        first: [S + 1] int64 number of each splat's first pair; its pairs follow by row and column of its box.
        work: [tiles] int64 tile numbers, those with the longest lists first.
        tiles_x: tiles per row.
        tiles_y: rows of tiles per camera.
    """

    splats: NDArray[np.float32]
    boxes: NDArray[np.int32]
    offsets: NDArray[np.int64]
    ids: NDArray[np.int32]
    first: NDArray[np.int64]
    work: NDArray[np.int64]
    tiles_x: int
    tiles_y: int


@njit(nogil=True, cache=True, inline="always")
def _clamped(value, upper):
    """A number of tiles, limited to 0 .. `upper`."""
    return min(max(value, 0), upper)


@njit(nogil=True, cache=True, error_model="numpy")
def _pack_splat(i, means2d, conics, opacity, colors, reach, splats):
    """Write one splat; `reach` is the largest pixel coordinate in play, for the rounding margin.

    Returns:
        Half width and half height, in pixels, of the region where alpha is at least 1/255.
    """
    a, b, c = float(conics[i, 0]), float(conics[i, 1]), float(conics[i, 2])
    sigma = math.log(255.0 * opacity) + 1e-4
    # For a splat thousands of times longer than wide the float32 conic may not be positive definite any more.
    det = max(a * c - b * b, 1e-9 * a * c)
    splats[i, 0] = means2d[i, 0]
    splats[i, 1] = means2d[i, 1]
    splats[i, 2] = a
    splats[i, 3] = b
    splats[i, 4] = c
    splats[i, 5] = opacity
    # Coordinates are rounded to about 1e-7 of `reach` on the way to sigma, whose slope is below 12 per pixel.
    splats[i, 6] = 2.0 * sigma + 0.01 + 1e-5 * reach
    splats[i, 7] = b / a
    splats[i, 8] = det / a
    for j in range(colors.shape[1]):
        splats[i, SPLAT_HEAD + j] = colors[i, j]
    half_x, half_y = math.sqrt(2.0 * sigma * c / det), math.sqrt(2.0 * sigma * a / det)
    return np.float32(half_x) + _MARGIN, np.float32(half_y) + _MARGIN


@njit(nogil=True, cache=True, error_model="numpy")
def _pack_splats(
    start, step, counter, radii, means2d, conics, opacities, colors, tiles_x, tiles_y, splats, boxes, sizes
):  # fmt: skip
    """Pack the splats that can reach a pixel, find their boxes of tiles, and count those into sizes[1:]."""
    count = radii.shape[0]
    while True:
        begin, end = claim_block(counter, count)
        if begin == end:
            break
        for i in range(begin, end):
            boxes[i, 0] = boxes[i, 1] = boxes[i, 2] = boxes[i, 3] = 0
            sizes[i + 1] = 0
            opacity = opacities[i]
            visible = radii[i] > 0 and opacity >= np.float32(1.0 / 255.1)
            for j in range(colors.shape[1]):
                visible &= math.isfinite(colors[i, j])
            if not visible:
                continue
            x, y = means2d[i, 0], means2d[i, 1]
            reach = abs(x) + abs(y) + radii[i] + TILE * (tiles_x + tiles_y)
            half_x, half_y = _pack_splat(i, means2d, conics, opacity, colors, reach, splats)
            # gsplat's box in float32, as it computes it, cut to the pixels where alpha can reach 1/255.
            radius, tx, ty = np.float32(radii[i]) / _SIZE, x / _SIZE, y / _SIZE
            x0 = _clamped(max(math.floor(tx - radius), math.floor((x - half_x - _HALF) / _SIZE)), tiles_x)
            x1 = _clamped(min(math.ceil(tx + radius), math.floor((x + half_x - _HALF) / _SIZE) + 1), tiles_x)
            y0 = _clamped(max(math.floor(ty - radius), math.floor((y - half_y - _HALF) / _SIZE)), tiles_y)
            y1 = _clamped(min(math.ceil(ty + radius), math.floor((y + half_y - _HALF) / _SIZE) + 1), tiles_y)
            if x1 > x0 and y1 > y0:
                boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3] = x0, x1, y0, y1
                sizes[i + 1] = (x1 - x0) * (y1 - y0)


@njit(nogil=True, cache=True)
def _count_tiles(count, boxes, tiles_x, tiles_y, first, offsets, words):
    """Turn the sizes in `first` into prefix sums, and count each tile's splats into prefix sums in `offsets`.

    `words` are the packed splats as integers, where the numbers of the pairs are written.

    A box adds to the differences along its rows only, so that a splat over many tiles costs two additions a row.
    """
    offsets[:] = 0
    first[0] = 0
    per_camera = tiles_x * tiles_y
    for i in range(boxes.shape[0]):
        if first[i + 1] != 0:
            base = (i // count) * per_camera
            words[i, 9] = boxes[i, 1] - boxes[i, 0]
            words[i, 10] = first[i] - boxes[i, 2] * words[i, 9] - boxes[i, 0]
            for ty in range(boxes[i, 2], boxes[i, 3]):
                offsets[base + ty * tiles_x + boxes[i, 0]] += 1
                # In the last column this falls on the next row's first tile, where it ends the row just the same.
                offsets[base + ty * tiles_x + boxes[i, 1]] -= 1
        first[i + 1] += first[i]
    here, before = 0, 0
    for t in range(offsets.shape[0]):
        here += offsets[t]
        offsets[t] = before
        before += here


@njit(nogil=True, cache=True)
def _depth_order(depths, first, boxes, begin, end, order, scratch, keys, key_scratch, sorted_boxes):
    """Write the listed splats of begin .. end into `order`, front to back, equal depths in their own order.

    Their boxes are written in that order too, so that the filling reads them in sequence.

    A radix sort: the bits of positive floats sort like integers.

    Returns:
        How many there are.
    """
    bits = depths.view(np.uint32)
    size = 0
    for i in range(begin, end):
        if first[i + 1] > first[i]:
            order[size] = i
            keys[size] = bits[i]
            size += 1
    starts = np.empty(1 << _DIGIT, np.int64)
    for shift in range(0, 32, _DIGIT):
        starts[:] = 0
        for n in range(size):
            starts[(keys[n] >> shift) & ((1 << _DIGIT) - 1)] += 1
        total = 0
        for d in range(1 << _DIGIT):
            total, starts[d] = total + starts[d], total
        for n in range(size):
            d = (keys[n] >> shift) & ((1 << _DIGIT) - 1)
            at = starts[d]
            starts[d] = at + 1
            scratch[at] = order[n]
            key_scratch[at] = keys[n]
        order, scratch = scratch, order
        keys, key_scratch = key_scratch, keys
    # Three passes leave the result in what came in as scratch.
    for n in range(size):
        scratch[n] = order[n]
        for j in range(4):
            sorted_boxes[n, j] = boxes[order[n], j]
    return size


@njit(nogil=True, cache=True)
def _fill_tiles(start, step, order, base, boxes, tiles_x, cursor, ids):
    """Write one camera's lists; each call does the rows of tiles start, start + step, ... and so needs no lock."""
    for n in range(order.shape[0]):
        i = order[n]
        y0 = boxes[n, 2]
        for ty in range(y0 + (start - y0) % step, boxes[n, 3], step):
            for t in range(base + ty * tiles_x + boxes[n, 0], base + ty * tiles_x + boxes[n, 1]):
                k = cursor[t]
                cursor[t] = k + 1
                ids[k] = i


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
    """Sort the splats by depth and list them by tile.

    Args:
        radii: [C, N] int32 pixels, 0 where culled.
        means2d: [C, N, 2] pixels.
        depths: [C, N], positive where the radius is.
        conics: [C, N, 3] inverse 2D covariance (xx, xy, yy).
        opacities: [C, N] peak alpha in 0 .. 1; a splat below 1/255 reaches no pixel and is left out.
        colors: [C, N, D]; a splat with a NaN or infinity in its colour is left out.
        width: of the image in pixels.
        height: of the image in pixels.

    Raises:
        ValueError: more than 2^31 - 1 splats or (splat, tile) pairs.
    """
    cameras, count = radii.shape
    channels, total = colors.shape[-1], cameras * count
    tiles_x, tiles_y = -(-width // TILE), -(-height // TILE)
    splats = np.empty((total, SPLAT_HEAD + channels), np.float32)
    boxes = np.empty((total, 4), np.int32)
    first = np.empty(total + 1, np.int64)
    run_striped(
        _pack_splats, new_counter(), radii.reshape(-1), means2d.reshape(-1, 2), conics.reshape(-1, 3),
        opacities.reshape(-1), colors.reshape(-1, channels), tiles_x, tiles_y, splats, boxes, first,
    )  # fmt: skip
    offsets = np.empty(cameras * tiles_x * tiles_y + 1, np.int64)
    _count_tiles(count, boxes, tiles_x, tiles_y, first, offsets, splats.view(np.int32))
    pairs = int(first[-1])
    if max(pairs, total) > np.iinfo(np.int32).max:
        raise ValueError(f"{pairs} (splat, tile) pairs, expected at most {np.iinfo(np.int32).max}: render smaller")
    ids = np.empty(pairs, np.int32)
    cursor = offsets[:-1].copy()
    order, scratch = np.empty(count, np.int32), np.empty(count, np.int32)
    keys, key_scratch = np.empty(count, np.uint32), np.empty(count, np.uint32)
    sorted_boxes = np.empty((count, 4), np.int32)
    for camera in range(cameras):
        begin = camera * count
        size = _depth_order(
            depths.reshape(-1), first, boxes, begin, begin + count, order, scratch, keys, key_scratch, sorted_boxes
        )  # fmt: skip
        base = camera * tiles_x * tiles_y
        run_striped(_fill_tiles, order[:size], base, sorted_boxes, tiles_x, cursor, ids)
    work = np.argsort(offsets[:-1] - offsets[1:], kind="stable")
    return TileLists(splats, boxes, offsets, ids, first, work, tiles_x, tiles_y)
