"""What a ray may skip: occupancy with eight cells to a byte, and how far away the nearest occupied cell is.

Cells of f^3 texels form the grid of factor f. The official files of factor f hold one byte per cell, whose bits say
which of its eight cells of factor f / 2 hold something.
"""

import numpy as np
from jaxtyping import Bool, UInt8
from numba import njit

FACTORS = (4, 8, 16, 32, 64, 128)
"""Texels along a side of a cell, of all grids in an asset; viewers with distance grids read factor 8 alone."""
FURTHEST = 255
"""Distances are counted up to this many cells."""


def even(cells: Bool[np.ndarray, "X Y Z"]) -> Bool[np.ndarray, "X2 Y2 Z2"]:
    """The grid with an empty layer on the far side of each axis that has an odd number of cells."""
    if not any(n % 2 for n in cells.shape):
        return cells
    return np.pad(cells, [(0, n % 2) for n in cells.shape])


def pack_cells(cells: Bool[np.ndarray, "X Y Z"]) -> UInt8[np.ndarray, "X2 Y2 Z2"]:
    """Cells of factor f / 2 as bytes of factor f: cell (dx, dy, dz) of a byte has bit 4 dx + 2 dy + dz."""
    cells = even(cells)
    packed = np.zeros(tuple(n // 2 for n in cells.shape), np.uint8)
    for bit in range(8):
        dx, dy, dz = bit >> 2, bit >> 1 & 1, bit & 1
        packed |= cells[dx::2, dy::2, dz::2].astype(np.uint8) << np.uint8(bit)
    return packed


def unpack_cells(packed: UInt8[np.ndarray, "X Y Z"]) -> Bool[np.ndarray, "X2 Y2 Z2"]:
    """The inverse of `pack_cells`."""
    x, y, z = packed.shape
    cells = np.empty((2 * x, 2 * y, 2 * z), np.bool_)
    for bit in range(8):
        dx, dy, dz = bit >> 2, bit >> 1 & 1, bit & 1
        cells[dx::2, dy::2, dz::2] = packed >> np.uint8(bit) & 1
    return cells


@njit(nogil=True, cache=True)
def _mark_near(cells, away):  # noqa: ANN001, ANN202
    """0 in `away` for every cell that is occupied or touches one that is."""
    x, y, z = cells.shape
    for i in range(x):
        for j in range(y):
            for k in range(z):
                if not cells[i, j, k]:
                    continue
                for a in range(max(i - 1, 0), min(i + 2, x)):
                    for b in range(max(j - 1, 0), min(j + 2, y)):
                        for c in range(max(k - 1, 0), min(k + 2, z)):
                            away[a, b, c] = 0


@njit(nogil=True, cache=True)
def _sweep(away, i, j, towards, best):  # noqa: ANN001, ANN202
    """Lower row [i, j] to one more than its neighbours on the side that the sweep comes from."""
    x, y, z = away.shape
    best[:] = FURTHEST
    if 0 <= i - towards < x:
        for b in range(max(j - 1, 0), min(j + 2, y)):
            for k in range(z):
                best[k] = min(best[k], away[i - towards, b, k])
    if 0 <= j - towards < y:
        for k in range(z):
            best[k] = min(best[k], away[i, j - towards, k])
    first, last = (0, z - 1) if towards > 0 else (z - 1, 0)
    before = FURTHEST
    for k in range(first, last + towards, towards):
        nearest = min(best[k], before)
        if k > 0:
            nearest = min(nearest, best[k - 1])
        if k < z - 1:
            nearest = min(nearest, best[k + 1])
        # min before the addition: the sum of 255 and 1 does not fit into a byte.
        before = min(away[i, j, k], min(nearest, FURTHEST - 1) + 1)
        away[i, j, k] = before


@njit(nogil=True, cache=True)
def _chamfer(away):  # noqa: ANN001, ANN202
    """Distances under the largest norm, exact after one sweep forth and one back over all 26 neighbours."""
    x, y, z = away.shape
    best = np.empty(z, np.int64)
    for i in range(x):
        for j in range(y):
            _sweep(away, i, j, 1, best)
    for i in range(x - 1, -1, -1):
        for j in range(y - 1, -1, -1):
            _sweep(away, i, j, -1, best)


def distance_grid(cells: Bool[np.ndarray, "X Y Z"]) -> UInt8[np.ndarray, "X Y Z"]:
    """How far a ray may jump from anywhere in a cell: the distance grid of occupied cells.

    Returns:
        0 where occupied or touching; else how many cells away under the largest norm the nearest occupied one is, less
        1, at most 255; 255 everywhere where nothing is occupied.
    """
    away = np.full(cells.shape, FURTHEST, np.uint8)
    _mark_near(np.ascontiguousarray(cells), away)
    _chamfer(away)
    return away
