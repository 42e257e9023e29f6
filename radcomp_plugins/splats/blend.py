"""Alpha blending of the tile lists, forward and backward: the numba kernels where the time goes.

The inner loop is one row of a tile, 16 lanes without a branch, which LLVM turns into vector instructions. Rows that
cannot reach alpha 1/255 are left out, which is exact. The backward pass walks front to back like the forward one,
with one scalar per pixel: Q, the part of the loss gradient that what lies behind accounts for (v.C - T v_alpha, less
what has been passed). So nothing per pixel is stored between the passes but the image and the transmittance.
Gradients are written per (splat, tile) pair and summed per splat in a fixed order: no atomics, same bits for any
number of threads.
"""

import math

import numpy as np
from numba import njit

from radcomp_plugins.splats.tiles import SPLAT_HEAD, TILE

_FASTMATH = {"contract", "arcp", "nsz", "nnan", "ninf", "reassoc"}
_F0 = np.float32(0.0)
_F1 = np.float32(1.0)
_HALF = np.float32(0.5)
_ALPHA_MIN = np.float32(1.0 / 255.0)
_ALPHA_MAX = np.float32(0.999)
_T_MIN = np.float32(1e-4)
# Alpha is below 1/255 from sigma = ln 255 = 5.541 on; the exponential below is fitted up to here.
_SIGMA_MAX = np.float32(5.6)
_CHECK_EVERY = 15
"""The tile looks for pixels that still take light each time `entry & _CHECK_EVERY` is all ones."""


@njit(nogil=True, cache=True, inline="always", fastmath=_FASTMATH)
def _exp_neg(s):
    """exp(-s) for s in 0 .. 5.6, relative error 1.3e-6: a minimax polynomial in s/8 (error 2e-9), to the 8th power."""
    x = s * np.float32(0.125)
    p = np.float32(0.0009749933097459231)
    p = p * x + np.float32(-0.00794969665724526)
    p = p * x + np.float32(0.04148356522314846)
    p = p * x + np.float32(-0.1666208784393885)
    p = p * x + np.float32(0.4999944551270263)
    p = p * x + np.float32(-0.9999997434598499)
    p = p * x + np.float32(0.9999999980121227)
    p = p * p
    p = p * p
    return p * p


@njit(nogil=True, cache=True, inline="always")
def _rows_alive(trans, alive):
    """Mark the rows in which some pixel still takes light; True if any does."""
    any_alive = False
    for r in range(TILE):
        top = trans[r, 0]
        for c in range(1, TILE):
            top = max(top, trans[r, c])
        alive[r] = top > _F0
        any_alive |= alive[r]
    return any_alive


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_FASTMATH)
def blend_forward(
    start, step, work, offsets, ranks, splats, tiles_x, tiles_y, width, height, backgrounds, image, final_t, ends,
    want_stats, stats
):  # fmt: skip
    """Blend the tiles of a stripe.

    A pixel's transmittance is kept negative once the pixel is finished (or lies outside the image).

    Args:
        start: first of the stripe in `work`.
        step: of the stripe.
        work: [tiles] tile numbers.
        offsets: [tiles + 1] beginnings of the tiles' lists.
        ranks: [I] the lists.
        splats: [M, SPLAT_HEAD + D].
        tiles_x: tiles per row.
        tiles_y: rows of tiles per camera.
        width: of the image.
        height: of the image.
        backgrounds: [C, D].
        image: [C, H, W, D], written.
        final_t: [C, H, W] transmittance behind all, written.
        ends: [tiles] end of the part of each list that was looked at, written.
        want_stats: whether to write `stats`.
        stats: [I, 3] per (splat, tile): number of pixels it reaches, sum and maximum of its weights there, written.
    """
    channels = backgrounds.shape[1]
    per_camera = tiles_x * tiles_y
    trans = np.empty((TILE, TILE), np.float32)
    color = np.empty((channels, TILE, TILE), np.float32)
    weight = np.empty(TILE, np.float32)
    alive = np.empty(TILE, np.bool_)
    lane_hits = np.empty(TILE, np.float32)
    lane_sum = np.empty(TILE, np.float32)
    lane_max = np.empty(TILE, np.float32)
    for q in range(start, work.shape[0], step):
        t = work[q]
        camera = t // per_camera
        row0, col0 = (t % per_camera) // tiles_x * TILE, (t % per_camera) % tiles_x * TILE
        rows, cols = min(TILE, height - row0), min(TILE, width - col0)
        trans[:] = -_F1
        trans[:rows, :cols] = _F1
        color[:] = _F0
        _rows_alive(trans, alive)
        begin, end = offsets[t], offsets[t + 1]
        ends[t] = end
        left, top = np.float32(col0) + _HALF, np.float32(row0) + _HALF
        for k in range(begin, end):
            if ((k - begin) & _CHECK_EVERY) == _CHECK_EVERY and not _rows_alive(trans, alive):
                ends[t] = k
                break
            m = ranks[k]
            a, b, c, opacity = splats[m, 2], splats[m, 3], splats[m, 4], splats[m, 5]
            x0, y0 = splats[m, 0] - left, splats[m, 1] - top
            half_y = splats[m, 8]
            first_row = max(0, int(math.ceil(y0 - half_y)))
            last_row = min(rows - 1, int(math.floor(y0 + half_y)))
            if want_stats:
                lane_hits[:] = _F0
                lane_sum[:] = _F0
                lane_max[:] = _F0
            half_a = _HALF * a
            for r in range(first_row, last_row + 1):
                if not alive[r]:
                    continue
                dy = y0 - np.float32(r)
                const = _HALF * c * dy * dy
                slope = b * dy
                for l in range(TILE):  # noqa: E741
                    dx = x0 - np.float32(l)
                    sigma = (half_a * dx + slope) * dx + const
                    alpha = min(_ALPHA_MAX, opacity * _exp_neg(min(max(sigma, _F0), _SIGMA_MAX)))
                    old = trans[r, l]
                    new = old * (_F1 - alpha)
                    hit = (sigma >= _F0) & (sigma < _SIGMA_MAX) & (alpha >= _ALPHA_MIN) & (old > _F0)
                    through = hit & (new > _T_MIN)
                    weight[l] = alpha * old if through else _F0
                    trans[r, l] = new if through else (-old if hit else old)
                for j in range(channels):
                    cj = splats[m, SPLAT_HEAD + j]
                    for l in range(TILE):  # noqa: E741
                        color[j, r, l] += weight[l] * cj
                if want_stats:
                    for l in range(TILE):  # noqa: E741
                        lane_hits[l] += _F1 if weight[l] > _F0 else _F0
                        lane_sum[l] += weight[l]
                        lane_max[l] = max(lane_max[l], weight[l])
            if want_stats:
                hits, total, peak = _F0, _F0, _F0
                for l in range(TILE):  # noqa: E741
                    hits += lane_hits[l]
                    total += lane_sum[l]
                    peak = max(peak, lane_max[l])
                stats[k, 0] = hits
                stats[k, 1] = total
                stats[k, 2] = peak
        if want_stats:
            stats[ends[t] : end] = _F0
        for r in range(rows):
            for l in range(cols):  # noqa: E741
                rest = abs(trans[r, l])
                final_t[camera, row0 + r, col0 + l] = rest
                for j in range(channels):
                    image[camera, row0 + r, col0 + l, j] = color[j, r, l] + rest * backgrounds[camera, j]


@njit(nogil=True, cache=True, error_model="numpy")
def _write_shape_grads(out, lanes, x0, y0, a, b, c, opacity):
    """From the sums over rows of v_sigma * (1, row, row^2) per lane to the gradients of position, conic and opacity.

    sigma = (a dx^2 + c dy^2) / 2 + b dx dy with dx = x0 - lane, dy = y0 - row. Moments about the tile's corner, put
    together in double precision, keep the gradient of a long thin splat from cancelling.
    """
    s, sx, sy, sxx, sxy, syy = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    abs_x, abs_y = 0.0, 0.0
    for l in range(TILE):  # noqa: E741
        s += lanes[0, l]
        sx += lanes[0, l] * float(l)
        sxx += lanes[0, l] * float(l * l)
        sy += lanes[1, l]
        sxy += lanes[1, l] * float(l)
        syy += lanes[2, l]
        abs_x += lanes[3, l]
        abs_y += lanes[4, l]
    px, py = float(x0), float(y0)
    dx, dy = px * s - sx, py * s - sy
    out[0] = (a * px + b * py) * s - (a * sx + b * sy)
    out[1] = (b * px + c * py) * s - (b * sx + c * sy)
    out[2] = 0.5 * (px * dx - px * sx + sxx)
    out[3] = px * dy - py * sx + sxy
    out[4] = 0.5 * (py * dy - py * sy + syy)
    out[5] = -s / opacity
    out[6] = abs_x
    out[7] = abs_y


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_FASTMATH)
def blend_backward(
    start, step, work, offsets, ranks, splats, tiles_x, tiles_y, width, height, image, final_t, ends, v_image,
    v_alpha, absgrad, grads
):  # fmt: skip
    """Gradients of the tiles of a stripe, per (splat, tile) pair.

    Args:
        start: see `blend_forward`, as for those not named here.
        step: of the stripe.
        work: [tiles].
        offsets: [tiles + 1].
        ranks: [I].
        splats: [M, SPLAT_HEAD + D].
        tiles_x: tiles per row.
        tiles_y: rows of tiles per camera.
        width: of the image.
        height: of the image.
        image: [C, H, W, D] as the forward pass wrote it, background included.
        final_t: [C, H, W] as the forward pass wrote it.
        ends: [tiles] as the forward pass wrote it.
        v_image: [C, H, W, D] gradient of the loss to the image.
        v_alpha: [C, H, W] gradient of the loss to alpha = 1 - final_t.
        absgrad: whether to write the last two columns.
        grads: [I, 8 + D] written: x, y, conic a, b, c, opacity, |x|, |y|, colour.
    """
    channels = image.shape[3]
    per_camera = tiles_x * tiles_y
    trans = np.empty((TILE, TILE), np.float32)
    behind = np.empty((TILE, TILE), np.float32)
    v_color = np.zeros((channels, TILE, TILE), np.float32)
    weight = np.empty(TILE, np.float32)
    v_sigma = np.empty(TILE, np.float32)
    dot = np.empty(TILE, np.float32)
    alive = np.empty(TILE, np.bool_)
    lanes = np.empty((5, TILE), np.float32)
    color_lanes = np.empty((channels, TILE), np.float32)
    for q in range(start, work.shape[0], step):
        t = work[q]
        camera = t // per_camera
        row0, col0 = (t % per_camera) // tiles_x * TILE, (t % per_camera) % tiles_x * TILE
        rows, cols = min(TILE, height - row0), min(TILE, width - col0)
        trans[:] = -_F1
        trans[:rows, :cols] = _F1
        behind[:] = _F0
        v_color[:] = _F0
        for r in range(rows):
            for l in range(cols):  # noqa: E741
                y, x = row0 + r, col0 + l
                rest = -final_t[camera, y, x] * v_alpha[camera, y, x]
                for j in range(channels):
                    v = v_image[camera, y, x, j]
                    v_color[j, r, l] = v
                    rest += v * image[camera, y, x, j]
                behind[r, l] = rest
        _rows_alive(trans, alive)
        begin, end = offsets[t], ends[t]
        grads[end : offsets[t + 1]] = _F0
        left, top = np.float32(col0) + _HALF, np.float32(row0) + _HALF
        for k in range(begin, end):
            if ((k - begin) & _CHECK_EVERY) == _CHECK_EVERY:
                _rows_alive(trans, alive)
            m = ranks[k]
            a, b, c, opacity = splats[m, 2], splats[m, 3], splats[m, 4], splats[m, 5]
            x0, y0 = splats[m, 0] - left, splats[m, 1] - top
            half_y = splats[m, 8]
            first_row = max(0, int(math.ceil(y0 - half_y)))
            last_row = min(rows - 1, int(math.floor(y0 + half_y)))
            lanes[:] = _F0
            color_lanes[:] = _F0
            half_a = _HALF * a
            for r in range(first_row, last_row + 1):
                if not alive[r]:
                    continue
                dy = y0 - np.float32(r)
                const = _HALF * c * dy * dy
                slope = b * dy
                dot[:] = _F0
                for j in range(channels):
                    cj = splats[m, SPLAT_HEAD + j]
                    for l in range(TILE):  # noqa: E741
                        dot[l] += cj * v_color[j, r, l]
                for l in range(TILE):  # noqa: E741
                    dx = x0 - np.float32(l)
                    sigma = (half_a * dx + slope) * dx + const
                    vis = _exp_neg(min(max(sigma, _F0), _SIGMA_MAX))
                    raw = opacity * vis
                    alpha = min(_ALPHA_MAX, raw)
                    old = trans[r, l]
                    new = old * (_F1 - alpha)
                    hit = (sigma >= _F0) & (sigma < _SIGMA_MAX) & (alpha >= _ALPHA_MIN) & (old > _F0)
                    through = hit & (new > _T_MIN)
                    w = alpha * old if through else _F0
                    weight[l] = w
                    trans[r, l] = new if through else (-old if hit else old)
                    rest = behind[r, l] - w * dot[l]
                    behind[r, l] = rest
                    v_a = old * dot[l] - rest / (_F1 - alpha)
                    v_a = v_a if (through & (raw <= _ALPHA_MAX)) else _F0
                    v_sigma[l] = -raw * v_a
                row = np.float32(r)
                for l in range(TILE):  # noqa: E741
                    v = v_sigma[l]
                    lanes[0, l] += v
                    lanes[1, l] += v * row
                    lanes[2, l] += v * row * row
                if absgrad:
                    for l in range(TILE):  # noqa: E741
                        dx = x0 - np.float32(l)
                        lanes[3, l] += abs(v_sigma[l] * (a * dx + slope))
                        lanes[4, l] += abs(v_sigma[l] * (b * dx + c * dy))
                for j in range(channels):
                    for l in range(TILE):  # noqa: E741
                        color_lanes[j, l] += weight[l] * v_color[j, r, l]
            _write_shape_grads(grads[k], lanes, x0, y0, a, b, c, opacity)
            for j in range(channels):
                total = _F0
                for l in range(TILE):  # noqa: E741
                    total += color_lanes[j, l]
                grads[k, 8 + j] = total


@njit(nogil=True, cache=True)
def sum_grads(start, step, order, first, positions, grads, v_means2d, v_abs, v_conics, v_opacities, v_colors):
    """Sum the pairs' gradients per splat, in the order of its tiles; splats that are not visible keep their zeros."""
    channels = v_colors.shape[1]
    total = np.empty(8 + channels, np.float32)
    for m in range(start, order.shape[0], step):
        total[:] = _F0
        for s in range(first[m], first[m + 1]):
            k = positions[s]
            for j in range(8 + channels):
                total[j] += grads[k, j]
        i = order[m]
        v_means2d[i, 0] = total[0]
        v_means2d[i, 1] = total[1]
        v_conics[i, 0] = total[2]
        v_conics[i, 1] = total[3]
        v_conics[i, 2] = total[4]
        v_opacities[i] = total[5]
        v_abs[i, 0] = total[6]
        v_abs[i, 1] = total[7]
        for j in range(channels):
            v_colors[i, j] = total[8 + j]


@njit(nogil=True, cache=True)
def sum_stats(start, step, order, count, first, positions, stats, hits, weight_sum, weight_max):
    """Sum the pairs' statistics per Gaussian; a stripe owns the Gaussians whose number is `start` modulo `step`."""
    for m in range(order.shape[0]):
        i = order[m] % count
        if i % step != start:
            continue
        for s in range(first[m], first[m + 1]):
            k = positions[s]
            hits[i] += int(stats[k, 0])
            weight_sum[i] += stats[k, 1]
            weight_max[i] = max(weight_max[i], stats[k, 2])
