"""Multiresolution hash encoding (Müller et al. 2022): numba kernels for CPU tensors, plain torch for all others.

Values, gradients and table layout are those of nerfstudio's `HashEncoding` with `implementation="torch"`, so its
checkpoints fit: every level is hashed, coarse ones too; entry i of level l is row l * 2^log2_size + i of the table;
the grid points around x are floor(x * resolution) and the next ones.
"""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from radcomp_plugins.core.threads import claim, get_num_threads, new_counter, run_striped

MAX_LOG2_SIZE = 28
"""Largest supported table: 2^28 entries a level."""

_PRIME_Y, _PRIME_Z = 2654435761, 805459861  # Müller et al. 2022, Eq. 4; the factor of x is 1
_PRIME_Y32, _PRIME_Z32 = np.uint32(_PRIME_Y), np.uint32(_PRIME_Z)

_BLOCK = 256
"""Points whose grid points are worked out together, in vectors, before the table is read: their indices fit in L1."""
_MIN_CHUNK, _MAX_CHUNK = 1024, 65_536
"""Points that a thread takes through all levels at once: while it is at a level, that level's table stays in cache."""
_FARTHEST = np.float32(2**30)
"""Grid points beyond this are drawn in: converting a larger float, or NaN, to an integer is undefined."""

_ONE = np.float32(1.0)
_ZERO = np.float32(0.0)

# NaN and infinity keep their meaning, so that a broken position gives NaN and no wild index.
_FUSED: Any = {"contract", "reassoc", "nsz", "arcp"}


@njit(nogil=True, cache=True, error_model="numpy")
def _grid_index(scaled):
    """Floor of a scaled coordinate, as an integer that wraps at 2^32; NaN counts as far below."""
    low = np.floor(scaled)
    low = low if low > -_FARTHEST else -_FARTHEST
    low = low if low < _FARTHEST else _FARTHEST
    return np.uint32(np.int32(low))


# Without `contract`: the product has to be rounded before its floor is subtracted, as in torch.
@njit(nogil=True, cache=True, error_model="numpy", inline="never")
def _locate(coordinates, begin, count, resolution, mask, fractions, indices):
    """Fractions [3, count] in the grid cell and table indices [8, count] of its corners, x fastest, then y, then z."""
    for j in range(count):
        x = coordinates[0, begin + j] * resolution
        y = coordinates[1, begin + j] * resolution
        z = coordinates[2, begin + j] * resolution
        fractions[0, j], fractions[1, j], fractions[2, j] = x - np.floor(x), y - np.floor(y), z - np.floor(z)
        x0 = _grid_index(x)
        y0 = np.uint32(_grid_index(y) * _PRIME_Y32)
        z0 = np.uint32(_grid_index(z) * _PRIME_Z32)
        x1, y1, z1 = np.uint32(x0 + np.uint32(1)), np.uint32(y0 + _PRIME_Y32), np.uint32(z0 + _PRIME_Z32)
        indices[0, j] = (x0 ^ y0 ^ z0) & mask
        indices[1, j] = (x1 ^ y0 ^ z0) & mask
        indices[2, j] = (x0 ^ y1 ^ z0) & mask
        indices[3, j] = (x1 ^ y1 ^ z0) & mask
        indices[4, j] = (x0 ^ y0 ^ z1) & mask
        indices[5, j] = (x1 ^ y0 ^ z1) & mask
        indices[6, j] = (x0 ^ y1 ^ z1) & mask
        indices[7, j] = (x1 ^ y1 ^ z1) & mask


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_FUSED, inline="never")
def _gather_pair(fractions, indices, count, level, feature, out, row, column):
    """Interpolate two neighbouring features: two, so that both sums stay in registers."""
    for j in range(count):
        fx, fy, fz = fractions[0, j], fractions[1, j], fractions[2, j]
        a, b = _ZERO, _ZERO
        for corner in range(4):
            side = (fy if corner & 1 else _ONE - fy) * (fz if corner & 2 else _ONE - fz)
            i0, i1 = indices[2 * corner, j], indices[2 * corner + 1, j]
            w1 = side * fx
            w0 = side - w1
            a += w0 * level[i0, feature] + w1 * level[i1, feature]
            b += w0 * level[i0, feature + 1] + w1 * level[i1, feature + 1]
        out[row + j, column] = a
        out[row + j, column + 1] = b


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_FUSED, inline="never")
def _gather_one(fractions, indices, count, level, feature, out, row, column):
    """Interpolate one feature."""
    for j in range(count):
        fx, fy, fz = fractions[0, j], fractions[1, j], fractions[2, j]
        a = _ZERO
        for corner in range(4):
            side = (fy if corner & 1 else _ONE - fy) * (fz if corner & 2 else _ONE - fz)
            w1 = side * fx
            a += (side - w1) * level[indices[2 * corner, j], feature] + w1 * level[indices[2 * corner + 1, j], feature]
        out[row + j, column] = a


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_FUSED, inline="never")
def _scatter_pair(fractions, indices, count, level, feature, grads, row, column):
    """The transpose of `_gather_pair`, added to the level's gradient; rows without gradient cost nothing."""
    for j in range(count):
        a, b = grads[row + j, column], grads[row + j, column + 1]
        if a == _ZERO and b == _ZERO:
            continue
        fx, fy, fz = fractions[0, j], fractions[1, j], fractions[2, j]
        for corner in range(4):
            side = (fy if corner & 1 else _ONE - fy) * (fz if corner & 2 else _ONE - fz)
            i0, i1 = indices[2 * corner, j], indices[2 * corner + 1, j]
            w1 = side * fx
            w0 = side - w1
            level[i0, feature] += w0 * a
            level[i0, feature + 1] += w0 * b
            level[i1, feature] += w1 * a
            level[i1, feature + 1] += w1 * b


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_FUSED, inline="never")
def _scatter_one(fractions, indices, count, level, feature, grads, row, column):
    """The transpose of `_gather_one`."""
    for j in range(count):
        a = grads[row + j, column]
        if a == _ZERO:
            continue
        fx, fy, fz = fractions[0, j], fractions[1, j], fractions[2, j]
        for corner in range(4):
            side = (fy if corner & 1 else _ONE - fy) * (fz if corner & 2 else _ONE - fz)
            w1 = side * fx
            level[indices[2 * corner, j], feature] += (side - w1) * a
            level[indices[2 * corner + 1, j], feature] += w1 * a


@njit(nogil=True, cache=True, error_model="numpy", inline="never")
def _transpose(x, begin, count, coordinates):
    """Points [count, 3] as coordinates [3, count], which vector loads need."""
    for j in range(count):
        coordinates[0, j], coordinates[1, j], coordinates[2, j] = x[begin + j, 0], x[begin + j, 1], x[begin + j, 2]


@njit(nogil=True, cache=True, error_model="numpy")
def _encode(start, step, counter, x, table, resolutions, size, chunk, out):
    """Encode chunks of points; a chunk begins at a whole block, so a point's place in its block is always the same."""
    features = table.shape[1]
    mask = np.uint32(size - 1)
    coordinates = np.empty((3, min(chunk, len(x))), x.dtype)
    fractions, indices = np.empty((3, _BLOCK), x.dtype), np.empty((8, _BLOCK), np.uint32)
    while True:
        first = claim(counter) * chunk
        if first >= len(x):
            return
        total = min(chunk, len(x) - first)
        _transpose(x, first, total, coordinates)
        for level in range(len(resolutions)):
            entries = table[level * size : (level + 1) * size]
            for begin in range(0, total, _BLOCK):
                count = min(_BLOCK, total - begin)
                _locate(coordinates, begin, count, resolutions[level], mask, fractions, indices)
                row, column = first + begin, level * features
                for f in range(0, features - 1, 2):
                    _gather_pair(fractions, indices, count, entries, f, out, row, column + f)
                if features & 1:
                    f = features - 1
                    _gather_one(fractions, indices, count, entries, f, out, row, column + f)


@njit(nogil=True, cache=True, error_model="numpy")
def _encode_backward(start, step, counter, x, grads, resolutions, size, features, out):
    """Gradient of whole levels, finest first: a level belongs to one thread, which adds up its points in order."""
    mask = np.uint32(size - 1)
    coordinates = np.empty((3, _BLOCK), x.dtype)
    fractions, indices = np.empty((3, _BLOCK), x.dtype), np.empty((8, _BLOCK), np.uint32)
    while True:
        level = len(resolutions) - 1 - claim(counter)
        if level < 0:
            return
        entries = out[level * size : (level + 1) * size]
        entries[:] = _ZERO
        for begin in range(0, len(x), _BLOCK):
            count = min(_BLOCK, len(x) - begin)
            _transpose(x, begin, count, coordinates)
            _locate(coordinates, 0, count, resolutions[level], mask, fractions, indices)
            column = level * features
            for f in range(0, features - 1, 2):
                _scatter_pair(fractions, indices, count, entries, f, grads, begin, column + f)
            if features & 1:
                f = features - 1
                _scatter_one(fractions, indices, count, entries, f, grads, begin, column + f)


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_FUSED, inline="never")
def _pull_back(fractions, indices, count, level, resolution, grads, row, column, out):
    """Add one level's share of the gradient to the positions: the slope of the interpolation times `grads`."""
    features = level.shape[1]
    values = np.empty(8, level.dtype)
    for j in range(count):
        fx, fy, fz = fractions[0, j], fractions[1, j], fractions[2, j]
        for corner in range(8):
            value = _ZERO
            for f in range(features):
                value += grads[row + j, column + f] * level[indices[corner, j], f]
            values[corner] = value
        # Along x on the four edges; then what is left to interpolate in y and z.
        e00, e10 = values[0] + fx * (values[1] - values[0]), values[2] + fx * (values[3] - values[2])
        e01, e11 = values[4] + fx * (values[5] - values[4]), values[6] + fx * (values[7] - values[6])
        d0 = (_ONE - fy) * (values[1] - values[0]) + fy * (values[3] - values[2])
        d1 = (_ONE - fy) * (values[5] - values[4]) + fy * (values[7] - values[6])
        out[row + j, 0] += resolution * ((_ONE - fz) * d0 + fz * d1)
        out[row + j, 1] += resolution * ((_ONE - fz) * (e10 - e00) + fz * (e11 - e01))
        out[row + j, 2] += resolution * ((_ONE - fy) * (e01 - e00) + fy * (e11 - e10))


@njit(nogil=True, cache=True, error_model="numpy")
def _position_backward(start, step, counter, x, table, grads, resolutions, size, chunk, out):
    """Gradient of chunks of points to their positions; `out` is zeroed first."""
    features = table.shape[1]
    mask = np.uint32(size - 1)
    coordinates = np.empty((3, min(chunk, len(x))), x.dtype)
    fractions, indices = np.empty((3, _BLOCK), x.dtype), np.empty((8, _BLOCK), np.uint32)
    while True:
        first = claim(counter) * chunk
        if first >= len(x):
            return
        total = min(chunk, len(x) - first)
        out[first : first + total] = _ZERO
        _transpose(x, first, total, coordinates)
        for level in range(len(resolutions)):
            entries = table[level * size : (level + 1) * size]
            for begin in range(0, total, _BLOCK):
                count = min(_BLOCK, total - begin)
                _locate(coordinates, begin, count, resolutions[level], mask, fractions, indices)
                _pull_back(
                    fractions, indices, count, entries, resolutions[level], grads, first + begin, level * features, out
                )


def _array(tensor: Tensor, dtype: torch.dtype) -> NDArray[Any]:
    return tensor.detach().to(dtype).contiguous().numpy()


def _chunk(count: int) -> int:
    """Points of a chunk: several for every thread, a whole number of blocks, results do not depend on it."""
    share = -(-count // (3 * get_num_threads()))
    return min(max(-(-share // _BLOCK) * _BLOCK, _MIN_CHUNK), _MAX_CHUNK)


class _HashEncode(torch.autograd.Function):
    """The kernels under autograd; second derivatives are refused."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, resolutions: Tensor, size: int) -> Tensor:  # type: ignore[override]
        dtype = table.dtype
        points, levels = _array(x, dtype), _array(resolutions, dtype)
        out = torch.empty(len(x), len(levels) * table.shape[1], dtype=dtype)
        entries, chunk = _array(table, dtype), _chunk(len(points))
        run_striped(_encode, new_counter(), points, entries, levels, size, chunk, out.numpy())
        # Saved by autograd, so that a table changed in place before the backward pass is noticed.
        ctx.save_for_backward(table)
        ctx.points, ctx.levels, ctx.size, ctx.position_dtype = points, levels, size, x.dtype
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # type: ignore[override]
        (table,) = ctx.saved_tensors
        grads, to_x, to_table = _array(grad, table.dtype), None, None
        if ctx.needs_input_grad[1]:
            to_table = torch.empty(table.shape, dtype=table.dtype)
            args = ctx.points, grads, ctx.levels, ctx.size, table.shape[1], to_table.numpy()
            run_striped(_encode_backward, new_counter(), *args)
        if ctx.needs_input_grad[0]:
            out = torch.empty(ctx.points.shape, dtype=table.dtype)
            chunk = _chunk(len(ctx.points))
            entries = _array(table, table.dtype)
            args = ctx.points, entries, grads, ctx.levels, ctx.size, chunk, out.numpy()
            run_striped(_position_backward, new_counter(), *args)
            to_x = out.to(ctx.position_dtype)
        return to_x, to_table, None, None


def hash_encode_torch(
    x: Float[Tensor, "N 3"], table: Float[Tensor, "LT F"], resolutions: Float[Tensor, " L"], log2_size: int
) -> Float[Tensor, "N LF"]:
    """`hash_encode` in plain torch: for any device, twice differentiable, and the reference of the kernels."""
    size, features = 1 << log2_size, table.shape[1]
    # Half precision has too few digits for positions.
    dtype = torch.promote_types(table.dtype, torch.float32)
    scaled = x[:, None, :].to(dtype) * resolutions[:, None].to(dtype)  # [N, L, 3]
    low = scaled.detach().floor()
    fraction = scaled - low
    cell = low.nan_to_num(nan=-(2.0**30)).clamp(-(2.0**30), 2.0**30).long()
    offset = torch.arange(len(resolutions), device=x.device) * size
    out = fraction.new_zeros(len(x), len(resolutions), features)
    for corner in range(8):
        weight, key = fraction.new_ones(()), torch.zeros_like(offset)
        for axis, prime in enumerate((1, _PRIME_Y, _PRIME_Z)):
            high = corner >> axis & 1
            weight = weight * (fraction[..., axis] if high else 1 - fraction[..., axis])
            key = key ^ (cell[..., axis] + high) * prime
        out = out + weight[..., None] * table[(key & (size - 1)) + offset]
    return out.flatten(1).to(table.dtype)


def hash_encode(
    x: Float[Tensor, "N 3"], table: Float[Tensor, "LT F"], resolutions: Float[Tensor, " L"], log2_size: int
) -> Float[Tensor, "N LF"]:
    """Trilinearly interpolated features of every level (Müller et al. 2022), level-major.

    CPU tensors go through kernels, whose results are bit-identical for any number of threads; other devices and dtypes
    through plain torch.

    Args:
        x: positions, usually in [0, 1]. Any number is safe: the hash wraps outside, as it does within a fine level.
            NaN and infinity give NaN features, and NaN gradients to some entries of the table.
        table: entries of all levels, 2^log2_size rows each; float32 or float64, which decides the precision.
        resolutions: grid cells along the unit cube's side, whole numbers, one for each level.
        log2_size: binary logarithm of T, the number of entries of a level.

    Returns:
        Features in the table's dtype, with gradients to the table, and to x where it requires them.

    Raises:
        ValueError: the table has not 2^log2_size rows for each level.
    """
    if not 0 <= log2_size <= MAX_LOG2_SIZE or table.ndim != 2 or len(table) != len(resolutions) << log2_size:
        raise ValueError(
            f"hash table is {tuple(table.shape)}, expected ({len(resolutions)} * 2^{log2_size}, features) with a "
            f"binary logarithm from 0 to {MAX_LOG2_SIZE}"
        )
    if x.ndim != 2 or x.shape[1] != 3:
        raise ValueError(f"positions are {tuple(x.shape)}, expected (N, 3)")
    if table.device.type != "cpu" or table.dtype not in (torch.float32, torch.float64):
        return hash_encode_torch(x, table, resolutions, log2_size)
    return _HashEncode.apply(x, table, resolutions, 1 << log2_size)  # type: ignore[no-any-return]


def geometric_resolutions(num_levels: int, min_res: int, max_res: int) -> Float[Tensor, " L"]:
    """Resolutions from `min_res` to `max_res` in equal ratios, rounded down; both ends are exact."""
    growth = (max_res / min_res) ** (1 / (num_levels - 1)) if num_levels > 1 else 1.0
    # Rounding must not turn a whole number into the one below.
    return torch.tensor([float(math.floor(min_res * growth**level + 1e-6)) for level in range(num_levels)])


class HashGrid(torch.nn.Module):
    """A trainable multiresolution hash grid over the unit cube.

    Attributes:
        table: entries of all levels, [L * 2^log2_size, F].
        resolutions: grid cells along a side, [L]; not in the state_dict, since the arguments fix it.
    """

    table: Float[Tensor, "LT F"]
    resolutions: Float[Tensor, " L"]

    def __init__(
        self,
        num_levels: int,
        min_res: int,
        max_res: int,
        log2_size: int,
        features: int = 2,
        init_scale: float = 1e-3,
    ) -> None:
        """Make the grid with entries uniform in [-init_scale, init_scale].

        Args:
            num_levels: L, number of levels.
            min_res: grid cells along a side at the coarsest level.
            max_res: grid cells along a side at the finest level.
            log2_size: binary logarithm of T, the number of entries of a level.
            features: F, features of an entry.
            init_scale: largest magnitude of an entry at the start; nerfstudio has 1e-3, Müller et al. 2022 1e-4.
        """
        super().__init__()
        if min(num_levels, min_res, features) < 1 or max_res < min_res or not 0 <= log2_size <= MAX_LOG2_SIZE:
            raise ValueError(
                f"hash grid: got {num_levels=}, {min_res=}, {max_res=}, {log2_size=}, {features=}, expected positive "
                f"numbers, max_res of at least min_res, log2_size from 0 to {MAX_LOG2_SIZE}"
            )
        self.log2_size = log2_size
        self.register_buffer("resolutions", geometric_resolutions(num_levels, min_res, max_res), persistent=False)
        entries = torch.empty(num_levels << log2_size, features).uniform_(-init_scale, init_scale)
        self.table = torch.nn.Parameter(entries)

    @property
    def out_dim(self) -> int:
        """Number of features of a position: L * F."""
        return len(self.resolutions) * self.table.shape[1]

    def forward(self, x: Float[Tensor, "N 3"]) -> Float[Tensor, "N LF"]:
        """Features of positions in [0, 1]; see `hash_encode`."""
        return hash_encode(x, self.table, self.resolutions, self.log2_size)
