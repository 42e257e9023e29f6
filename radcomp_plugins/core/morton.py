"""Morton order of voxels and vertices: one number for three coordinates, near things near in the order.

Bit i of x, y, z is bit 3i + 2, 3i + 1, 3i of the code, so that a voxel's eight children at the next level are codes
8c to 8c + 7 and child (dx, dy, dz) is 8c + 4dx + 2dy + dz. Vertices have codes by the same rule; those of level l have
coordinates 0 to 2^l, the last included.
"""

import numba
import numpy as np
from numpy.typing import NDArray

MAX_LEVEL = 20
"""Finest level whose vertex codes, of 3 * 21 bits, fit an int64."""

Codes = NDArray[np.int64]


def encode(xyz: NDArray[np.integer]) -> Codes:
    """Morton codes [N] of coordinates [N, 3], each 0 to 2^21 - 1."""
    out = np.empty(len(xyz), np.int64)
    _encode_kernel(np.ascontiguousarray(xyz, np.int64), out)
    return out


def decode(codes: NDArray[np.integer]) -> NDArray[np.int64]:
    """Coordinates [N, 3] of Morton codes [N], each 0 to 2^63 - 1."""
    out = np.empty((len(codes), 3), np.int64)
    _decode_kernel(np.ascontiguousarray(codes, np.int64), out)
    return out


def voxel_vertices(voxels: NDArray[np.integer], level: int) -> Codes:
    """Codes of all vertices that the given voxels touch, ascending, each once.

    Args:
        voxels: [N] Morton codes of voxels, below 8^level.
        level: the grid has 2^level voxels a side; 0 to 10, for a bit per vertex of the dense grid is held.

    Returns:
        [M] ascending codes of vertices with coordinates 0 to 2^level.
    """
    side = 2**level + 1
    seen = np.zeros((side**3 + 63) // 64, np.uint64)
    found = np.empty(min(8 * len(voxels), side**3), np.int64)
    count = _mark_kernel(np.ascontiguousarray(voxels, np.int64), side, seen, found)
    return np.sort(found[:count])


@numba.njit(inline="always")
def spread(x):  # noqa: ANN001, ANN201
    """Bits of x, 21 of them, moved to every third place."""
    x &= 0x1FFFFF
    x = (x | (x << 32)) & 0x1F00000000FFFF
    x = (x | (x << 16)) & 0x1F0000FF0000FF
    x = (x | (x << 8)) & 0x100F00F00F00F00F
    x = (x | (x << 4)) & 0x10C30C30C30C30C3
    return (x | (x << 2)) & 0x1249249249249249


@numba.njit(inline="always")
def compact(x):  # noqa: ANN001, ANN201
    """Every third bit of x moved together; undoes `spread`."""
    x &= 0x1249249249249249
    x = (x | (x >> 2)) & 0x10C30C30C30C30C3
    x = (x | (x >> 4)) & 0x100F00F00F00F00F
    x = (x | (x >> 8)) & 0x1F0000FF0000FF
    x = (x | (x >> 16)) & 0x1F00000000FFFF
    return (x | (x >> 32)) & 0x1FFFFF


@numba.njit(nogil=True, cache=True)
def _encode_kernel(xyz, out) -> None:  # noqa: ANN001
    for i in range(len(xyz)):
        out[i] = (spread(xyz[i, 0]) << 2) | (spread(xyz[i, 1]) << 1) | spread(xyz[i, 2])


@numba.njit(nogil=True, cache=True)
def _decode_kernel(codes, out) -> None:  # noqa: ANN001
    for i in range(len(codes)):
        out[i, 0] = compact(codes[i] >> 2)
        out[i, 1] = compact(codes[i] >> 1)
        out[i, 2] = compact(codes[i])


@numba.njit(nogil=True, cache=True)
def _mark_kernel(voxels, side, seen, found):  # noqa: ANN001, ANN202
    """Write the code of each vertex where it is met first; returns their number."""
    count = 0
    for i in range(len(voxels)):
        x, y, z = compact(voxels[i] >> 2), compact(voxels[i] >> 1), compact(voxels[i])
        for corner in range(8):
            cx, cy, cz = x + (corner >> 2), y + ((corner >> 1) & 1), z + (corner & 1)
            place = (cx * side + cy) * side + cz
            bit = np.uint64(1) << np.uint64(place & 63)
            if seen[place >> 6] & bit == 0:
                seen[place >> 6] |= bit
                found[count] = (spread(cx) << 2) | (spread(cy) << 1) | spread(cz)
                count += 1
    return count
