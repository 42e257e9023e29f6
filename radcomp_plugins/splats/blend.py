"""Alpha blending of the tile lists, forward and backward: the numba kernels where the time goes.

A row of a tile is one vector of 16 pixels (`core.simd`). Rows in which the splat cannot reach alpha 1/255 are left out,
which is exact. The backward pass walks front to back like the forward one, with one number per pixel: the part of the
loss gradient that what lies behind accounts for (v.C - T v_alpha, less what has been passed). So nothing per pixel is
stored between the passes but the image and the transmittance. Gradients are written per (splat, tile) pair and summed
per splat in a fixed order: no atomics, same bits for any number of threads.

A pixel's transmittance T is kept negative once the pixel is finished, and where it lies outside the image.
"""

import numpy as np
from numba import njit

from radcomp_plugins.core import simd
from radcomp_plugins.core.threads import claim, claim_block
from radcomp_plugins.splats.tiles import SPLAT_HEAD, TILE

SHAPE_GRADS = 6
"""Columns of a pair's gradients before the colour's: x, y, conic a, b, c, opacity."""

_PIXELS = TILE * TILE
_F0 = np.float32(0.0)
_F1 = np.float32(1.0)
_HALF = np.float32(0.5)
_LAST = np.float32(TILE - 1)
_ALPHA_MIN = np.float32(1.0 / 255.0)
_ALPHA_MAX = np.float32(0.999)
_T_MIN = np.float32(1e-4)
# Alpha is below 1/255 from sigma = ln 255 = 5.541 on; the exponential below is fitted up to here.
_SIGMA_MAX = np.float32(5.6)
# A tile looks for pixels that still take light each time `entry & _CHECK_EVERY` is all ones.
_CHECK_EVERY = 15


@njit(nogil=True, cache=True, inline="always")
def _exp_neg(s):
    """exp(-s) for s in 0 .. 5.6, relative error 1.3e-6: a minimax polynomial in s/8 (error 2e-9), to the 8th power."""
    p = s * np.float32(0.0009749933097459231 / 8**6) + np.float32(-0.00794969665724526 / 8**5)
    p = p * s + np.float32(0.04148356522314846 / 8**4)
    p = p * s + np.float32(-0.1666208784393885 / 8**3)
    p = p * s + np.float32(0.4999944551270263 / 8**2)
    p = p * s + np.float32(-0.9999997434598499 / 8)
    p = p * s + np.float32(0.9999999980121227)
    p = p * p
    p = p * p
    return p * p


@njit(nogil=True, cache=True, inline="always")
def _start_tile(trans, rows, cols):
    """All light in the pixels of the image; returns the rows of the image as bits."""
    inside = simd.select(simd.lane_numbers() < np.float32(cols), simd.broadcast(_F1), simd.broadcast(-_F1))
    for r in range(TILE):
        simd.store(trans, r * TILE, inside if r < rows else simd.broadcast(-_F1))
    return (1 << rows) - 1


@njit(nogil=True, cache=True, inline="always")
def _rows_alive(trans):
    """Bits of the rows in which some pixel still takes light."""
    alive = 0
    for r in range(TILE):
        if simd.any_lane(simd.load(trans, r * TILE) > _F0):
            alive |= 1 << r
    return alive


@njit(nogil=True, cache=True, inline="always")
def _rows_reached(splats, m, x0, y0):
    """Bits of the rows that hold a point where sigma is low enough for alpha 1/255.

    Along row y sigma is least at x = xc = x0 + (b/a) dy; with d the distance from there to the tile,
    2 sigma = a d^2 + (c - b^2/a) dy^2.
    """
    dy = y0 - simd.lane_numbers()
    xc = x0 + splats[m, 7] * dy
    d = simd.maximum(simd.maximum(_F0 - xc, xc - _LAST), _F0)
    return simd.lane_bits(splats[m, 2] * (d * d) + splats[m, 8] * (dy * dy) <= splats[m, 6])


@njit(nogil=True, cache=True, inline="always")
def _pair(words, m, row0, col0):
    """Number of the pair of a splat and the tile that begins at a pixel."""
    return words[m, 10] + row0 // TILE * words[m, 9] + col0 // TILE


@njit(nogil=True, cache=True, error_model="numpy")
def blend_forward(
    start, step, counter, work, offsets, ids, splats, tiles_x, tiles_y, width, height, backgrounds, image, final_t,
    ends, want_stats, reached, stats
):  # fmt: skip
    """Blend tiles until none is left to claim.

    Args:
        start: not used, as `step`: threads share the tiles by `counter`.
        step: not used.
        counter: see `core.threads.claim`.
        work: [tiles] tile numbers in the order to do them.
        offsets: [tiles + 1] beginnings of the tiles' lists.
        ids: [I] the lists.
        splats: [S, SPLAT_HEAD + D].
        tiles_x: tiles per row.
        tiles_y: rows of tiles per camera.
        width: of the image.
        height: of the image.
        backgrounds: [C, D].
        image: [C, H, W, D], written.
        final_t: [C, H, W] transmittance behind all, written.
        ends: [tiles] end of the part of each list that was looked at, written.
        want_stats: whether to write `stats`.
        reached: [I] bool per (splat, tile) pair, zeros; set where a row of pixels was looked at and `stats` written.
        stats: [I, 3] per pair: number of pixels the splat reaches, sum and maximum of its weights there.
    """
    channels = backgrounds.shape[1]
    per_camera = tiles_x * tiles_y
    trans = np.empty(_PIXELS, np.float32)
    color = np.empty(channels * _PIXELS, np.float32)
    words = splats.view(np.int32)
    lanes = simd.lane_numbers()
    zero, one = simd.broadcast(_F0), simd.broadcast(_F1)
    while True:
        turn = claim(counter)
        if turn >= work.shape[0]:
            break
        t = work[turn]
        camera = t // per_camera
        row0, col0 = (t % per_camera) // tiles_x * TILE, (t % per_camera) % tiles_x * TILE
        rows, cols = min(TILE, height - row0), min(TILE, width - col0)
        alive = _start_tile(trans, rows, cols)
        color[:] = _F0
        begin, end = offsets[t], offsets[t + 1]
        ends[t] = end
        left, top = np.float32(col0) + _HALF, np.float32(row0) + _HALF
        for k in range(begin, end):
            if ((k - begin) & _CHECK_EVERY) == _CHECK_EVERY:
                alive = _rows_alive(trans)
                if alive == 0:
                    ends[t] = k
                    break
            m = ids[k]
            x0, y0 = splats[m, 0] - left, splats[m, 1] - top
            todo = _rows_reached(splats, m, x0, y0) & alive
            if todo == 0:
                continue
            half_a, opacity = _HALF * splats[m, 2], splats[m, 5]
            skew, half_rest = splats[m, 7], _HALF * splats[m, 8]
            hits, weight_sum, weight_max = zero, zero, zero
            while todo != 0:
                r = simd.lowest_bit(todo)
                todo &= todo - 1
                dy = y0 - np.float32(r)
                dx = (x0 + skew * dy) - lanes
                sigma = simd.minimum(half_a * dx * dx + half_rest * dy * dy, _SIGMA_MAX)
                alpha = simd.minimum(opacity * _exp_neg(sigma), _ALPHA_MAX)
                old = simd.load(trans, r * TILE)
                new = old - old * alpha
                seen = alpha >= _ALPHA_MIN
                through = seen & (new > _T_MIN)
                weight = simd.select(through, alpha * old, zero)
                # What would take T to 1e-4 or below ends the pixel and is not blended.
                ended = zero - simd.absolute(old)
                simd.store(trans, r * TILE, simd.select(seen, simd.select(through, new, ended), old))
                for j in range(channels):
                    at = (j * TILE + r) * TILE
                    simd.store(color, at, simd.load(color, at) + weight * splats[m, SPLAT_HEAD + j])
                if want_stats:
                    hits = hits + simd.select(through, one, zero)
                    weight_sum = weight_sum + weight
                    weight_max = simd.maximum(weight_max, weight)
            if want_stats:
                pair = _pair(words, m, row0, col0)
                reached[pair] = True
                stats[pair, 0] = simd.total(hits)
                stats[pair, 1] = simd.total(weight_sum)
                stats[pair, 2] = simd.largest(weight_max)
        for r in range(rows):
            for x in range(cols):
                rest = abs(trans[r * TILE + x])
                final_t[camera, row0 + r, col0 + x] = rest
                for j in range(channels):
                    value = color[(j * TILE + r) * TILE + x] + rest * backgrounds[camera, j]
                    image[camera, row0 + r, col0 + x, j] = value


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _write_shape_grads(grads, pair, splats, m, ahead_x, ahead_y, across, m0, my, myy):
    """From moments of v_sigma to the gradients of position, conic and opacity.

    sigma = (a dx^2 + c dy^2) / 2 + b dx dy. Offsets are split, dx = ahead_x + across and dy = ahead_y + down, at the
    point of the tile next to the splat's centre: moments about that point neither cancel where the centre is in the
    tile nor, put together in double precision, where a long thin splat reaches in from afar.

    Args:
        grads: see `blend_backward`.
        pair: row of `grads` to write.
        splats: see `blend_backward`.
        m: number of the splat.
        ahead_x: from that point to the splat's centre.
        ahead_y: the same along y.
        across: per lane, from the pixel to that point along x.
        m0: per lane, sum over rows of v_sigma.
        my: per lane, sum over rows of v_sigma * down.
        myy: per lane, sum over rows of v_sigma * down^2.
    """
    m0x = m0 * across
    s, sx, sxx = float(simd.total(m0)), float(simd.total(m0x)), float(simd.total(m0x * across))
    sy, sxy, syy = float(simd.total(my)), float(simd.total(my * across)), float(simd.total(myy))
    a, b, c = float(splats[m, 2]), float(splats[m, 3]), float(splats[m, 4])
    px, py = float(ahead_x), float(ahead_y)
    grads[pair, 0] = (a * px + b * py) * s + a * sx + b * sy
    grads[pair, 1] = (b * px + c * py) * s + b * sx + c * sy
    grads[pair, 2] = 0.5 * (px * (px * s + 2.0 * sx) + sxx)
    grads[pair, 3] = px * (py * s + sy) + py * sx + sxy
    grads[pair, 4] = 0.5 * (py * (py * s + 2.0 * sy) + syy)
    grads[pair, 5] = -s / splats[m, 5]


@njit(nogil=True, cache=True, error_model="numpy")
def _load_tile(image, final_t, v_image, v_alpha, camera, row0, col0, rows, cols, v_color, behind):
    """Copy a tile's gradients into vectors' order and begin `behind` with all of the tile's light."""
    channels = image.shape[3]
    behind[:] = _F0
    v_color[:] = _F0
    for r in range(rows):
        for x in range(cols):
            rest = -final_t[camera, row0 + r, col0 + x] * v_alpha[camera, row0 + r, col0 + x]
            for j in range(channels):
                v = v_image[camera, row0 + r, col0 + x, j]
                v_color[(j * TILE + r) * TILE + x] = v
                rest += v * image[camera, row0 + r, col0 + x, j]
            behind[r * TILE + x] = rest


@njit(nogil=True, cache=True, error_model="numpy")
def blend_backward(
    start, step, counter, work, offsets, ids, splats, tiles_x, tiles_y, width, height, image, final_t, ends, v_image,
    v_alpha, absgrad, reached, grads
):  # fmt: skip
    """Gradients per (splat, tile) pair, tile by tile until none is left to claim.

    Args:
        start: see `blend_forward`, as for all up to `height`.
        step: not used.
        counter: see `core.threads.claim`.
        work: [tiles].
        offsets: [tiles + 1].
        ids: [I].
        splats: [S, SPLAT_HEAD + D].
        tiles_x: tiles per row.
        tiles_y: rows of tiles per camera.
        width: of the image.
        height: of the image.
        image: [C, H, W, D] as the forward pass wrote it, background included.
        final_t: [C, H, W] as the forward pass wrote it.
        ends: [tiles] as the forward pass wrote it.
        v_image: [C, H, W, D] gradient of the loss to the image.
        v_alpha: [C, H, W] gradient of the loss to alpha = 1 - final_t.
        absgrad: whether to write two more columns, the sums of |x| and |y| over the pixels.
        reached: [I] bool, zeros; set for the pairs that have gradients.
        grads: [I, SHAPE_GRADS + D (+ 2)], written for those.
    """
    channels = image.shape[3]
    per_camera = tiles_x * tiles_y
    trans = np.empty(_PIXELS, np.float32)
    behind = np.empty(_PIXELS, np.float32)
    v_color = np.empty(channels * _PIXELS, np.float32)
    v_tint = np.empty(channels * TILE, np.float32)
    words = splats.view(np.int32)
    lanes = simd.lane_numbers()
    zero = simd.broadcast(_F0)
    while True:
        turn = claim(counter)
        if turn >= work.shape[0]:
            break
        t = work[turn]
        camera = t // per_camera
        row0, col0 = (t % per_camera) // tiles_x * TILE, (t % per_camera) % tiles_x * TILE
        rows, cols = min(TILE, height - row0), min(TILE, width - col0)
        alive = _start_tile(trans, rows, cols)
        _load_tile(image, final_t, v_image, v_alpha, camera, row0, col0, rows, cols, v_color, behind)
        begin, end = offsets[t], ends[t]
        left, top = np.float32(col0) + _HALF, np.float32(row0) + _HALF
        for k in range(begin, end):
            if ((k - begin) & _CHECK_EVERY) == _CHECK_EVERY:
                alive = _rows_alive(trans)
            m = ids[k]
            x0, y0 = splats[m, 0] - left, splats[m, 1] - top
            todo = _rows_reached(splats, m, x0, y0) & alive
            if todo == 0:
                continue
            half_a, opacity = _HALF * splats[m, 2], splats[m, 5]
            skew, half_rest = splats[m, 7], _HALF * splats[m, 8]
            next_x, next_y = min(max(x0, _F0), _LAST), min(max(y0, _F0), _LAST)
            m0, my, myy, abs_x, abs_y = zero, zero, zero, zero, zero
            v_tint[:] = _F0
            while todo != 0:
                r = simd.lowest_bit(todo)
                todo &= todo - 1
                dy, down = y0 - np.float32(r), next_y - np.float32(r)
                u = (x0 + skew * dy) - lanes
                sigma = simd.minimum(half_a * u * u + half_rest * dy * dy, _SIGMA_MAX)
                raw = opacity * _exp_neg(sigma)
                alpha = simd.minimum(raw, _ALPHA_MAX)
                old = simd.load(trans, r * TILE)
                new = old - old * alpha
                seen = alpha >= _ALPHA_MIN
                through = seen & (new > _T_MIN)
                weight = simd.select(through, alpha * old, zero)
                ended = zero - simd.absolute(old)
                simd.store(trans, r * TILE, simd.select(seen, simd.select(through, new, ended), old))
                dot = zero
                for j in range(channels):
                    v = simd.load(v_color, (j * TILE + r) * TILE)
                    dot = dot + v * splats[m, SPLAT_HEAD + j]
                    simd.store(v_tint, j * TILE, simd.load(v_tint, j * TILE) + weight * v)
                rest = simd.load(behind, r * TILE) - weight * dot
                simd.store(behind, r * TILE, rest)
                v_alpha_here = old * dot - rest / (_F1 - alpha)
                # Where alpha is clamped it does not depend on the splat.
                v_sigma = simd.select(through & (raw <= _ALPHA_MAX), zero - raw * v_alpha_here, zero)
                m0 = m0 + v_sigma
                my = my + v_sigma * down
                myy = myy + v_sigma * (down * down)
                if absgrad:
                    dx = x0 - lanes
                    abs_x = abs_x + simd.absolute(v_sigma * (splats[m, 2] * dx + splats[m, 3] * dy))
                    abs_y = abs_y + simd.absolute(v_sigma * (splats[m, 3] * dx + splats[m, 4] * dy))
            pair = _pair(words, m, row0, col0)
            reached[pair] = True
            _write_shape_grads(grads, pair, splats, m, x0 - next_x, y0 - next_y, next_x - lanes, m0, my, myy)
            for j in range(channels):
                grads[pair, SHAPE_GRADS + j] = simd.total(simd.load(v_tint, j * TILE))
            if absgrad:
                grads[pair, SHAPE_GRADS + channels] = simd.total(abs_x)
                grads[pair, SHAPE_GRADS + channels + 1] = simd.total(abs_y)


@njit(nogil=True, cache=True)
def sum_grads(start, step, counter, first, reached, grads, v_means2d, v_abs, v_conics, v_opacities, v_colors):
    """Sum the pairs' gradients per splat, in the order of its tiles; zeros for splats in no tile."""
    channels, columns = v_colors.shape[1], grads.shape[1]
    total = np.empty(columns, np.float32)
    while True:
        begin, end = claim_block(counter, v_opacities.shape[0])
        if begin == end:
            break
        for i in range(begin, end):
            for j in range(columns):
                total[j] = _F0
            for pair in range(first[i], first[i + 1]):
                if reached[pair]:
                    for j in range(columns):
                        total[j] += grads[pair, j]
            v_means2d[i, 0] = total[0]
            v_means2d[i, 1] = total[1]
            v_conics[i, 0] = total[2]
            v_conics[i, 1] = total[3]
            v_conics[i, 2] = total[4]
            v_opacities[i] = total[5]
            for j in range(channels):
                v_colors[i, j] = total[SHAPE_GRADS + j]
            if v_abs.shape[0] > 0:
                v_abs[i, 0] = total[SHAPE_GRADS + channels]
                v_abs[i, 1] = total[SHAPE_GRADS + channels + 1]


@njit(nogil=True, cache=True)
def sum_stats(start, step, counter, cameras, first, reached, stats, hits, weight_sum, weight_max):
    """Sum the pairs' statistics per Gaussian over cameras and tiles, always in the same order."""
    count = hits.shape[0]
    while True:
        begin, end = claim_block(counter, count)
        if begin == end:
            break
        for g in range(begin, end):
            here, weight, peak = 0, 0.0, _F0
            for camera in range(cameras):
                i = camera * count + g
                for pair in range(first[i], first[i + 1]):
                    if reached[pair]:
                        here += int(stats[pair, 0])
                        weight += stats[pair, 1]
                        peak = max(peak, stats[pair, 2])
            hits[g], weight_sum[g], weight_max[g] = here, weight, peak
