"""Which of a sorted list of Morton codes has given coordinates, in constant time and a bit per cell of the dense grid.

A bit says whether a cell is in the list; the bits before it, counted with a running total per word, give its place in
raster order, and a table takes that to its place in Morton order. At level 8 all of it fits a second-level cache.
"""

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from radcomp_plugins.core.morton import Codes, compact

Int32s = NDArray[np.int32]


@dataclass
class GridIndex:
    """A list of codes, ready to be asked.

    Attributes:
        codes: [N] ascending Morton codes.
        side: coordinates are 0 to side - 1; at most 1,025, for the bits are held.
        words: [side^3 / 64] uint64 a bit per cell, raster order.
        before: [side^3 / 64] int32 bits set in earlier words.
        places: [N] int32 place in `codes` by place in raster order.
    """

    codes: Codes
    side: int
    words: NDArray[np.uint64]
    before: Int32s
    places: Int32s

    @classmethod
    def build(cls, codes: Codes, side: int) -> "GridIndex":
        """Index ascending codes of coordinates below `side`."""
        codes = np.ascontiguousarray(codes, np.int64)
        words = np.zeros((side**3 + 63) // 64, np.uint64)
        before, places = np.empty(len(words), np.int32), np.empty(len(codes), np.int32)
        _build_kernel(codes, side, words, before, places)
        return cls(codes, side, words, before, places)

    def behind(self) -> Int32s:
        """[3, N] place of the code one lower in x, in y and in z, or -1: always an earlier place."""
        out = np.empty((3, len(self.codes)), np.int32)
        _behind_kernel(self.codes, self.side, self.words, self.before, self.places, out)
        return out

    def faces(self) -> Int32s:
        """[N] bits, from 32 down, for whether the cells at -x, +x, -y, +y, -z and +z are in the list."""
        out = np.empty(len(self.codes), np.int32)
        _faces_kernel(self.codes, self.side, self.words, out)
        return out

    def touching(self, voxels: Codes) -> Int32s:
        """[N] for vertices: which of the eight voxels around each are among `voxels`.

        Args:
            voxels: ascending codes of voxels all whose corners are in the list.

        Returns:
            Bit 4 dx + 2 dy + dz stands for the voxel of which the vertex is corner (dx, dy, dz).
        """
        out = np.zeros(len(self.codes), np.int32)
        _touching_kernel(voxels, self.side, self.words, self.before, self.places, out)
        return out


@numba.njit(inline="always")
def _count_bits(x):  # noqa: ANN001, ANN202
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))


@numba.njit(inline="always")
def _raster(x, y, z, side):  # noqa: ANN001, ANN202
    return (x * side + y) * side + z


@numba.njit(inline="always")
def _has(words, cell):  # noqa: ANN001, ANN202
    return (words[cell >> 6] >> np.uint64(cell & 63)) & np.uint64(1) != 0


@numba.njit(inline="always")
def _rank(words, before, cell):  # noqa: ANN001, ANN202
    """Place in raster order of a cell that is there."""
    below = words[cell >> 6] & ((np.uint64(1) << np.uint64(cell & 63)) - np.uint64(1))
    return before[cell >> 6] + _count_bits(below)


@numba.njit(nogil=True, cache=True)
def _build_kernel(codes, side, words, before, places) -> None:  # noqa: ANN001
    for i in range(len(codes)):
        cell = _raster(compact(codes[i] >> 2), compact(codes[i] >> 1), compact(codes[i]), side)
        words[cell >> 6] |= np.uint64(1) << np.uint64(cell & 63)
    total = 0
    for w in range(len(words)):
        before[w] = total
        total += _count_bits(words[w])
    for i in range(len(codes)):
        cell = _raster(compact(codes[i] >> 2), compact(codes[i] >> 1), compact(codes[i]), side)
        places[_rank(words, before, cell)] = i


@numba.njit(nogil=True, cache=True)
def _behind_kernel(codes, side, words, before, places, out) -> None:  # noqa: ANN001
    for i in range(len(codes)):
        x, y, z = compact(codes[i] >> 2), compact(codes[i] >> 1), compact(codes[i])
        for axis in range(3):
            a, b, c = x - (axis == 0), y - (axis == 1), z - (axis == 2)
            out[axis, i] = -1
            if min(a, b, c) >= 0:
                cell = _raster(a, b, c, side)
                if _has(words, cell):
                    out[axis, i] = places[_rank(words, before, cell)]


@numba.njit(nogil=True, cache=True)
def _faces_kernel(codes, side, words, out) -> None:  # noqa: ANN001
    for i in range(len(codes)):
        x, y, z = compact(codes[i] >> 2), compact(codes[i] >> 1), compact(codes[i])
        mask = 0
        for face in range(6):
            step = 2 * (face & 1) - 1
            a, b, c = x + step * (face >> 1 == 0), y + step * (face >> 1 == 1), z + step * (face >> 1 == 2)
            inside = min(a, b, c) >= 0 and max(a, b, c) < side
            mask = 2 * mask + (1 if inside and _has(words, _raster(a, b, c, side)) else 0)
        out[i] = mask


@numba.njit(nogil=True, cache=True)
def _touching_kernel(voxels, side, words, before, places, out) -> None:  # noqa: ANN001
    for i in range(len(voxels)):
        x, y, z = compact(voxels[i] >> 2), compact(voxels[i] >> 1), compact(voxels[i])
        for corner in range(8):
            cell = _raster(x + (corner >> 2), y + ((corner >> 1) & 1), z + (corner & 1), side)
            out[places[_rank(words, before, cell)]] |= 1 << corner
