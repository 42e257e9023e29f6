"""What of the grids samples in occupied cells reach: which blocks, which texels of the planes."""

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

from radcomp_plugins.smerf.layout import Layout

OCCUPANCY_TEXELS = 4
"""Texels along a side of the cells that say whether there is anything; the viewers' finest."""


def cells_of_voxels(occupied: Bool[np.ndarray, "S S S"], layout: Layout) -> Bool[np.ndarray, "C C C"]:
    """Occupied voxels of the sparse grid as cells of 4^3 texels of the planes."""
    count = layout.triplane_resolution // OCCUPANCY_TEXELS
    size = occupied.shape[0]
    if count == size:
        return occupied.copy()
    if count % size == 0:
        return occupied.repeat(count // size, 0).repeat(count // size, 1).repeat(count // size, 2)
    # Sizes that do not divide: a cell is occupied if any voxel reaches into it.
    first = np.arange(count) * size // count
    last = (np.arange(1, count + 1) * size - 1) // count
    for axis in range(3):
        parts = [np.take(occupied, np.minimum(first + k, last), axis) for k in range(int((last - first).max()) + 1)]
        occupied = np.logical_or.reduce(parts)
    return occupied


def needed_blocks(cells: Bool[np.ndarray, "C C C"], layout: Layout) -> Bool[np.ndarray, "B B B"]:
    """Blocks of the sparse grid that samples within cells are interpolated in.

    A sample lies between the centres of two voxels a side; its block is that of the lower one, which may be half a
    voxel below the cell.
    """
    count, sparse, size = cells.shape[0], layout.sparse_resolution, layout.block_size
    blocks = -(-sparse // size)
    result = cells
    for axis in range(3):
        low = np.floor(np.arange(count) * sparse / count - 0.5).astype(int)
        high = np.ceil(np.arange(1, count + 1) * sparse / count - 0.5).astype(int) - 1
        first, last = np.maximum(low, 0) // size, np.minimum(np.maximum(high, 0), sparse - 1) // size
        moved = np.moveaxis(result, axis, 0)
        out = np.zeros((blocks, *moved.shape[1:]), np.bool_)
        np.logical_or.at(out, first, moved)
        np.logical_or.at(out, last, moved)
        result = np.moveaxis(out, 0, axis)
    return np.ascontiguousarray(result)


def needed_texels(cells: Bool[np.ndarray, "C C C"], axis: int, layout: Layout) -> Bool[np.ndarray, "T T"]:
    """Texels of the plane without `axis` that samples within cells are interpolated between."""
    shadow = cells.any(axis=axis).repeat(OCCUPANCY_TEXELS, 0).repeat(OCCUPANCY_TEXELS, 1)
    return ndimage.binary_dilation(shadow, np.ones((3, 3), np.bool_))


def needed_voxels(cells: Bool[np.ndarray, "C C C"], layout: Layout) -> Bool[np.ndarray, "S S S"]:
    """Voxels of the sparse grid that samples within cells are interpolated between."""
    count, sparse = cells.shape[0], layout.sparse_resolution
    first = np.floor(np.arange(count) * sparse / count - 0.5).astype(int)
    last = np.ceil(np.arange(1, count + 1) * sparse / count - 0.5).astype(int)
    result = cells
    for axis in range(3):
        moved = np.moveaxis(result, axis, 0)
        out = np.zeros((sparse, *moved.shape[1:]), np.bool_)
        for step in range(int((last - first).max()) + 1):
            np.logical_or.at(out, np.clip(np.minimum(first + step, last), 0, sparse - 1), moved)
        result = np.moveaxis(out, 0, axis)
    return np.ascontiguousarray(result)
