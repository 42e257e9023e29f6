"""Hash grid features of cones: several points per sample, each faded out where it is wider than a grid cell.

A sample of a cone is a handful of isotropic Gaussians (Barron et al. 2023, Sec. 3.1). What a level of the grid says
about it is the mean over the Gaussians of the interpolated features, each multiplied by erf(1 / sqrt(8 sigma^2 n^2)):
the share of a Gaussian of deviation sigma that lies within half a cell of a grid of resolution n (Sec. 3.2). So a
distant, wide cone reads coarse levels only.

Tables have nerfstudio's layout [L * T, F] and its hash. A level whose corners all fit in T entries is stored densely.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numba import njit
from torch import Tensor

from radcomp_plugins.core.threads import claim, new_counter, run_striped

PRIMES = (1, 2654435761, 805459861)
"""Factors of the three coordinates in the hash (Mueller et al. 2022, Eq. 4)."""

_P1, _P2 = np.uint32(PRIMES[1]), np.uint32(PRIMES[2])
_F0, _F1, _I1 = np.float32(0.0), np.float32(1.0), np.uint32(1)
_SQRT8 = np.float32(math.sqrt(8.0))
# Abramowitz and Stegun 7.1.28: erf(x) = 1 - (1 + a1 x + ... + a6 x^6)^-16 for x >= 0, to 3e-7.
_A1, _A2, _A3 = np.float32(0.0705230784), np.float32(0.0422820123), np.float32(0.0092705272)
_A4, _A5, _A6 = np.float32(0.0001520143), np.float32(0.0002765672), np.float32(0.0000430638)
_SATURATED = np.float32(4.0)  # erf is 1 in float32 from here on
_LEAST_STD = np.float32(1e-12)

_BLOCK = 256
"""Samples of a unit of work: their points' corners and factors stay in the second-level cache."""
_MAX_POINTS = 6
_K = _BLOCK * _MAX_POINTS
"""Row length of the scratch arrays. A constant, so that the compiler sees that rows do not overlap."""
_ROWS_F, _ROWS_I = 12, 8
_FACTOR = 4 * _K  # first row of the corners' factors, behind x, y, z and deviation

# Without reassociation sums over points keep the form that the compiler turns into vectors: twice as fast.
_GATHER_MATH = {"contract", "nsz", "nnan", "ninf"}


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _corners(count, resolution, hash_mask, is_dense, share, floats, index):
    """Table entries and factors of the eight corners around `count` points, in vectors of points.

    Args:
        count: number of points, at most _K.
        resolution: cells per unit of this level.
        hash_mask: T - 1.
        is_dense: whether the level's corners are numbered x-fastest instead of hashed.
        share: what every factor is multiplied by, 1 / M.
        floats: rows of _K: x, y, z, deviation; factors of the eight corners, written.
        index: rows of _K: entries of the eight corners, written.
    """
    inverse = _F1 / (_SQRT8 * resolution)
    for k in range(count):
        x = min(inverse / max(floats[3 * _K + k], _LEAST_STD), _SATURATED)
        p = _F1 + x * (_A1 + x * (_A2 + x * (_A3 + x * (_A4 + x * (_A5 + x * _A6)))))
        p *= p
        p *= p
        p *= p
        p *= p
        fade = share * (_F1 - _F1 / p)
        px, py, pz = floats[k] * resolution, floats[_K + k] * resolution, floats[2 * _K + k] * resolution
        fx = px - np.float32(np.int32(px))
        fy = py - np.float32(np.int32(py))
        fz = pz - np.float32(np.int32(pz))
        gx, gy, gz = (_F1 - fx) * fade, _F1 - fy, _F1 - fz
        fx *= fade
        a, b, c, d = gy * gz, fy * gz, gy * fz, fy * fz
        floats[_FACTOR + k] = gx * a
        floats[_FACTOR + _K + k] = fx * a
        floats[_FACTOR + 2 * _K + k] = gx * b
        floats[_FACTOR + 3 * _K + k] = fx * b
        floats[_FACTOR + 4 * _K + k] = gx * c
        floats[_FACTOR + 5 * _K + k] = fx * c
        floats[_FACTOR + 6 * _K + k] = gx * d
        floats[_FACTOR + 7 * _K + k] = fx * d
    if is_dense:
        last = np.uint32(resolution)
        side = last + _I1
        plane = side * side
        for k in range(count):
            x0 = np.uint32(np.int32(floats[k] * resolution))
            iy = np.uint32(np.int32(floats[_K + k] * resolution))
            iz = np.uint32(np.int32(floats[2 * _K + k] * resolution))
            # A point on the upper face has no cell beyond: its far corners get the factor 0 and any valid index.
            x1 = min(x0 + _I1, last)
            y0, y1 = iy * side, min(iy + _I1, last) * side
            z0, z1 = iz * plane, min(iz + _I1, last) * plane
            index[k] = x0 + y0 + z0
            index[_K + k] = x1 + y0 + z0
            index[2 * _K + k] = x0 + y1 + z0
            index[3 * _K + k] = x1 + y1 + z0
            index[4 * _K + k] = x0 + y0 + z1
            index[5 * _K + k] = x1 + y0 + z1
            index[6 * _K + k] = x0 + y1 + z1
            index[7 * _K + k] = x1 + y1 + z1
    else:
        for k in range(count):
            x0 = np.uint32(np.int32(floats[k] * resolution))
            y0 = np.uint32(np.int32(floats[_K + k] * resolution)) * _P1
            z0 = np.uint32(np.int32(floats[2 * _K + k] * resolution)) * _P2
            x1, y1, z1 = x0 + _I1, y0 + _P1, z0 + _P2
            a, b, c, d = y0 ^ z0, y1 ^ z0, y0 ^ z1, y1 ^ z1
            index[k] = (x0 ^ a) & hash_mask
            index[_K + k] = (x1 ^ a) & hash_mask
            index[2 * _K + k] = (x0 ^ b) & hash_mask
            index[3 * _K + k] = (x1 ^ b) & hash_mask
            index[4 * _K + k] = (x0 ^ c) & hash_mask
            index[5 * _K + k] = (x1 ^ c) & hash_mask
            index[6 * _K + k] = (x0 ^ d) & hash_mask
            index[7 * _K + k] = (x1 ^ d) & hash_mask


@njit(nogil=True, cache=True, inline="always")
def _load(points, sample, num_points, k, floats):
    """Copy a sample's points to scratch from k on. Out of bounds nothing may reach the table."""
    for j in range(num_points):
        for axis in range(3):
            floats[axis * _K + k + j] = min(max(points[axis, sample, j], _F0), _F1)
        floats[3 * _K + k + j] = points[3, sample, j]


@functools.cache
def _kernels(features: int) -> tuple[Any, Any]:
    """Forward and backward kernels for F = `features`, of which the compiler then unrolls the loops."""
    options: dict[str, Any] = {"nogil": True, "cache": True, "fastmath": _GATHER_MATH, "error_model": "numpy"}

    @njit(**options)
    def gather(values, floats, index, count, num_points, out):
        for i in range(count):
            begin = i * num_points
            if features == 4:
                a0, a1, a2, a3 = _F0, _F0, _F0, _F0
                for k in range(begin, begin + num_points):
                    for c in range(8):
                        e, w = index[c * _K + k], floats[_FACTOR + c * _K + k]
                        a0 += w * values[e, 0]
                        a1 += w * values[e, 1]
                        a2 += w * values[e, 2]
                        a3 += w * values[e, 3]
                out[i, 0], out[i, 1], out[i, 2], out[i, 3] = a0, a1, a2, a3
            elif features == 2:
                a0, a1 = _F0, _F0
                for k in range(begin, begin + num_points):
                    for c in range(8):
                        e, w = index[c * _K + k], floats[_FACTOR + c * _K + k]
                        a0 += w * values[e, 0]
                        a1 += w * values[e, 1]
                out[i, 0], out[i, 1] = a0, a1
            else:
                for f in range(features):
                    total = _F0
                    for k in range(begin, begin + num_points):
                        for c in range(8):
                            total += floats[_FACTOR + c * _K + k] * values[index[c * _K + k], f]
                    out[i, f] = total

    @njit(**options)
    def scatter(values, floats, index, count, num_points, grads):
        for i in range(count):
            begin = i * num_points
            if features == 4:
                g0, g1, g2, g3 = grads[i, 0], grads[i, 1], grads[i, 2], grads[i, 3]
                for k in range(begin, begin + num_points):
                    for c in range(8):
                        e, w = index[c * _K + k], floats[_FACTOR + c * _K + k]
                        values[e, 0] += w * g0
                        values[e, 1] += w * g1
                        values[e, 2] += w * g2
                        values[e, 3] += w * g3
            elif features == 2:
                g0, g1 = grads[i, 0], grads[i, 1]
                for k in range(begin, begin + num_points):
                    for c in range(8):
                        e, w = index[c * _K + k], floats[_FACTOR + c * _K + k]
                        values[e, 0] += w * g0
                        values[e, 1] += w * g1
            else:
                for f in range(features):
                    for k in range(begin, begin + num_points):
                        for c in range(8):
                            values[index[c * _K + k], f] += floats[_FACTOR + c * _K + k] * grads[i, f]

    @njit(**options)
    def forward(start, step, counter, points, table, resolutions, dense, hash_mask, out):
        samples, num_points, levels = out.shape[0], points.shape[2], len(resolutions)
        blocks = (samples + _BLOCK - 1) // _BLOCK
        floats = np.empty(_ROWS_F * _K, np.float32)
        index = np.empty(_ROWS_I * _K, np.uint32)
        block_out = np.empty((_BLOCK, features), np.float32)
        share = _F1 / np.float32(num_points)
        while True:
            block = claim(counter)
            if block >= blocks:
                break
            first = block * _BLOCK
            count = min(_BLOCK, samples - first)
            for i in range(count):
                _load(points, first + i, num_points, i * num_points, floats)
            for level in range(levels):
                _corners(count * num_points, resolutions[level], hash_mask, dense[level], share, floats, index)
                gather(table[level], floats, index, count, num_points, block_out)
                for i in range(count):
                    for f in range(features):
                        out[first + i, features * level + f] = block_out[i, f]

    @njit(**options)
    def backward(start, step, counter, points, grad_out, resolutions, dense, hash_mask, grad_table):
        samples, num_points, levels = grad_out.shape[0], points.shape[2], len(resolutions)
        floats = np.empty(_ROWS_F * _K, np.float32)
        index = np.empty(_ROWS_I * _K, np.uint32)
        grads = np.empty((_BLOCK, features), np.float32)
        share = _F1 / np.float32(num_points)
        while True:
            # A level is one thread's: its entries are added to in the samples' order, whatever the number of threads.
            level = levels - 1 - claim(counter)
            if level < 0:
                break
            sample = 0
            while sample < samples:
                count = 0
                while sample < samples and count < _BLOCK:
                    any_grad = False
                    for f in range(features):
                        any_grad |= grad_out[sample, features * level + f] != _F0
                    if any_grad:
                        _load(points, sample, num_points, count * num_points, floats)
                        for f in range(features):
                            grads[count, f] = grad_out[sample, features * level + f]
                        count += 1
                    sample += 1
                _corners(count * num_points, resolutions[level], hash_mask, dense[level], share, floats, index)
                scatter(grad_table[level], floats, index, count, num_points, grads)

    return forward, backward


def dense_levels(resolutions: Float[Tensor, " L"], log2_size: int) -> Bool[Tensor, " L"]:
    """Which levels have all their (n + 1)^3 corners in a table of 2^log2_size entries."""
    return (resolutions.double() + 1) ** 3 <= 2**log2_size


class _ConeEncode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points: Tensor, table: Tensor, resolutions: Tensor, log2_size: int) -> Tensor:
        levels, features = len(resolutions), table.shape[1]
        array = points.detach().contiguous().numpy()
        grid = (
            resolutions.numpy().astype(np.float32),
            dense_levels(resolutions, log2_size).numpy(),
            np.uint32(2**log2_size - 1),
        )
        out = torch.empty((points.shape[1], levels * features), dtype=torch.float32)
        values = table.detach().numpy().reshape(levels, -1, features)
        run_striped(_kernels(features)[0], new_counter(), array, values, *grid, out.numpy())
        ctx.saved = (array, grid, table.shape)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Any, ...]:
        array, grid, shape = ctx.saved
        grad_table = torch.zeros(shape, dtype=torch.float32)
        grad = grad_outputs[0].contiguous().numpy()
        values = grad_table.numpy().reshape(len(grid[0]), -1, shape[1])
        run_striped(_kernels(shape[1])[1], new_counter(), array, grad, *grid, values)
        return None, grad_table, None, None


def cone_encode(
    points: Float[Tensor, "4 N M"],
    table: Float[Tensor, "entries F"],
    resolutions: Float[Tensor, " L"],
    log2_size: int,
) -> Float[Tensor, "N features"]:
    """Features of N cone samples of M Gaussians each; gradients reach the table only.

    Args:
        points: x, y, z of the centres, in [0, 1] (what lies outside is moved to the boundary), and their isotropic
            standard deviation in the same unit, 0 or more. M is at most 6.
        table: [L * T, F] features of all levels.
        resolutions: cells per unit of each level, whole numbers.
        log2_size: base-2 logarithm of the entries per level T.

    Returns:
        [N, L * F], level by level.

    Raises:
        ValueError: the table's length is not L * T, M is above 6, or the points ask for a gradient.
    """
    if table.shape[0] != len(resolutions) << log2_size:
        raise ValueError(f"table: got {table.shape[0]} entries, expected {len(resolutions)} levels of 2^{log2_size}")
    if points.shape[2] > _MAX_POINTS:
        raise ValueError(f"points: got {points.shape[2]} per sample, expected at most {_MAX_POINTS}")
    if points.requires_grad:
        raise ValueError("points: got requires_grad, expected a detached tensor")
    function = _ConeEncode if table.device.type == "cpu" else _ConeEncodeTorch
    return function.apply(points, table, resolutions, log2_size)  # type: ignore[return-value]


def _corners_torch(points: Tensor, resolution: float, log2_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Table entries [N, M] within a level, and factors [N, M], of each of the eight corners in turn."""
    x = points[:3].clamp(0, 1) * resolution
    base = x.long()
    fraction = x - base
    fade = torch.erf(1 / (math.sqrt(8.0) * resolution * points[3].clamp_min(1e-12))) / points.shape[2]
    side = round(resolution) + 1
    is_dense = bool(dense_levels(torch.tensor([resolution]), log2_size))
    for corner in range(8):
        offset = [corner & 1, corner >> 1 & 1, corner >> 2]
        at = [base[axis] + offset[axis] for axis in range(3)]
        factor = fade
        for axis in range(3):
            factor = factor * (fraction[axis] if offset[axis] else 1 - fraction[axis])
        if is_dense:
            at = [value.clamp(max=side - 1) for value in at]
            yield at[0] + side * (at[1] + side * at[2]), factor
        else:
            yield (at[0] ^ (at[1] * PRIMES[1]) ^ (at[2] * PRIMES[2])) & (2**log2_size - 1), factor


class _ConeEncodeTorch(torch.autograd.Function):
    """The twin of `_ConeEncode` in plain torch, for any device and float type.

    Both directions go corner by corner and keep nothing but the points: autograd's own record would take 16 GB at the
    paper's settings.
    """

    @staticmethod
    def forward(ctx: Any, points: Tensor, table: Tensor, resolutions: Tensor, log2_size: int) -> Tensor:
        ctx.saved = (points, resolutions.tolist(), log2_size, table.shape)
        columns = []
        for level, resolution in enumerate(ctx.saved[1]):
            values = table[level << log2_size : (level + 1) << log2_size]
            total = table.new_zeros(points.shape[1], table.shape[1])
            for index, factor in _corners_torch(points, resolution, log2_size):
                total += torch.einsum("nm,nmf->nf", factor, values[index])
            columns.append(total)
        return torch.cat(columns, dim=-1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Any, ...]:
        points, resolutions, log2_size, shape = ctx.saved
        grad_table = grad_outputs[0].new_zeros(shape)
        parts = grad_outputs[0].split(shape[1], dim=-1)
        for level, (resolution, part) in enumerate(zip(resolutions, parts, strict=True)):
            into = grad_table[level << log2_size : (level + 1) << log2_size]
            for index, factor in _corners_torch(points, resolution, log2_size):
                into.index_add_(0, index.flatten(), (factor[..., None] * part[:, None]).flatten(0, 1))
        return None, grad_table, None, None


def cone_encode_torch(
    points: Float[Tensor, "4 N M"],
    table: Float[Tensor, "entries F"],
    resolutions: Float[Tensor, " L"],
    log2_size: int,
) -> Float[Tensor, "N features"]:
    """`cone_encode` in plain torch, whatever the device and float type."""
    return _ConeEncodeTorch.apply(points, table, resolutions, log2_size)  # type: ignore[return-value]
