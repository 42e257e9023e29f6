"""Baking: the student's texels as bytes, for those voxels alone that can be seen.

Texels are evaluated where training put them, so a baked scene is the trained one to the last bit of its bytes. What can
be seen is found by marching rays through a first bake of everything occupied, which takes seconds where evaluating the
network along all rays would take hours; the views marched are the training views, jittered copies of them and views
from between the cameras, so that what no photo shows does not end as a black hole (google-research issue #2097).
Memory holds occupied blocks, the planes, and a byte for every cell of 4^3 texels; never T^3 of anything.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import ndimage

from radcomp_plugins.errors import InputError
from radcomp_plugins.smerf.corners import texels_per_submodel
from radcomp_plugins.smerf.empty_space import distance_grid, pack_cells
from radcomp_plugins.smerf.field import SmerfField
from radcomp_plugins.smerf.layout import NUM_CHANNELS, BakedSubmodel, Layout
from radcomp_plugins.smerf.march import march
from radcomp_plugins.smerf.reach import OCCUPANCY_TEXELS, cells_of_voxels, needed_blocks, needed_texels, needed_voxels

_CHUNK = 2**18
"""Texels that the network is asked for at a time."""

Report = Callable[[str, int, int], None]
"""Told (what is being done, how much of it is done, how much there is)."""


@dataclass(frozen=True)
class BakeSettings:
    """What is kept.

    Attributes:
        weight_threshold: weight of a sample from which it keeps its cell, in [0, 1]. The paper: 0.005.
        min_neighbours: of a cell's 26 neighbours, how many have to be occupied for it to be kept. Takes floaters away,
            as the paper's median filter does on single voxels, where it asks for 14 of 27; on cells of 4^3 voxels
            that would take thin things as well.
    """

    weight_threshold: float = 0.005
    min_neighbours: int = 2


@torch.no_grad()
def texel_bytes(field: SmerfField, codes: NDArray[np.int64], done: Callable[[int], None]) -> NDArray[np.uint8]:
    """The bytes [N, 8] of texels by code."""
    device = next(field.parameters()).device
    out = np.empty((len(codes), NUM_CHANNELS), np.uint8)
    for begin in range(0, len(codes), _CHUNK):
        chunk = torch.from_numpy(codes[begin : begin + _CHUNK]).to(device)
        out[begin : begin + _CHUNK] = (255.0 * field.texels(chunk).sigmoid()).round().byte().cpu().numpy()
        done(len(chunk))
    return out


def bake_submodel(
    field: SmerfField, row: int, cells: Bool[np.ndarray, "C C C"], report: Report = lambda what, done, total: None
) -> BakedSubmodel:
    """A submodel as bytes, wherever cells are occupied; what no sample there is interpolated from is 0.

    Args:
        field: the trained field.
        row: of the submodel among the live ones.
        cells: which cells of 4^3 texels are occupied.
        report: progress, in texels.
    """
    layout = field.layout
    triplane, sparse = layout.triplane_resolution, layout.sparse_resolution
    base = row * texels_per_submodel(layout)
    voxels = np.flatnonzero(needed_voxels(cells, layout))
    textures = [needed_texels(cells, axis, layout) for axis in range(3)]
    total, made = len(voxels) + sum(int(t.sum()) for t in textures), 0

    def done(count: int) -> None:
        nonlocal made
        made += count
        report("texels", made, total)

    planes = np.zeros((3, triplane, triplane, NUM_CHANNELS), np.uint8)
    for plane, texture in enumerate(textures):
        code = base + sparse**3 + plane * triplane**2 + np.flatnonzero(texture)
        planes[plane][texture] = texel_bytes(field, code, done)
    places = np.argwhere(needed_blocks(cells, layout))
    blocks = _blocks(places, voxels, texel_bytes(field, base + voxels, done), layout)
    return _submodel(layout.alive[row], cells, planes, places, blocks, layout)


def _blocks(
    places: NDArray[np.int64], voxels: NDArray[np.int64], values: NDArray[np.uint8], layout: Layout
) -> NDArray[np.uint8]:
    """Blocks [B, 9, 9, 9, 8] at places [B, 3], given the values [V, 8] of voxels [V] by ascending index."""
    sparse, size = layout.sparse_resolution, layout.block_size
    apron = np.arange(size + 1)
    blocks = np.zeros((len(places), size + 1, size + 1, size + 1, NUM_CHANNELS), np.uint8)
    for index, place in enumerate(places):
        x, y, z = (np.minimum(place[axis] * size + apron, sparse - 1) for axis in range(3))
        code = (x[:, None, None] * sparse + y[:, None]) * sparse + z
        at = np.minimum(np.searchsorted(voxels, code), len(voxels) - 1)
        known = voxels[at] == code
        blocks[index][known] = values[at[known]]
    return blocks


def _submodel(
    index: int,
    cells: Bool[np.ndarray, "C C C"],
    planes: NDArray[np.uint8],
    places: NDArray[np.int64],
    blocks: NDArray[np.uint8],
    layout: Layout,
) -> BakedSubmodel:
    per_axis = -(-layout.sparse_resolution // layout.block_size)
    indices = np.full((per_axis, per_axis, per_axis), -1, np.int32)
    indices[tuple(places.T)] = np.arange(len(places))
    occupancy = pack_cells(cells)
    return BakedSubmodel(index, planes, indices, blocks, occupancy, distance_grid(occupancy > 0))


def restrict(submodel: BakedSubmodel, cells: Bool[np.ndarray, "C C C"], layout: Layout) -> BakedSubmodel:
    """A baked submodel with fewer cells occupied; what they do not reach becomes 0."""
    planes = submodel.planes.copy()
    for axis in range(3):
        planes[axis][~needed_texels(cells, axis, layout)] = 0
    sparse, size = layout.sparse_resolution, layout.block_size
    places = np.argwhere(needed_blocks(cells, layout))
    blocks = submodel.blocks[submodel.block_indices[tuple(places.T)]]
    reached, apron = needed_voxels(cells, layout), np.arange(size + 1)
    for index, place in enumerate(places):
        x, y, z = (np.minimum(place[axis] * size + apron, sparse - 1) for axis in range(3))
        blocks[index][~reached[np.ix_(x, y, z)]] = 0
    return _submodel(submodel.index, cells, planes, places, blocks, layout)


@dataclass(frozen=True)
class ViewRays:
    """Rays to find out what is seen: all from the same submodel, unit frame.

    Attributes:
        row: of the submodel.
        origins: [N, 3].
        directions: [N, 3], unit length.
    """

    row: int
    origins: Float[np.ndarray, "N 3"]
    directions: Float[np.ndarray, "N 3"]


def seen_cells(
    submodels: list[BakedSubmodel],
    layout: Layout,
    views: Iterable[ViewRays],
    near: float,
    threshold: float,
) -> list[Bool[np.ndarray, "C C C"]]:
    """Cells of each submodel in which some sample of the views weighs more than a threshold."""
    count = layout.triplane_resolution // OCCUPANCY_TEXELS
    marks = [np.zeros((count, count, count), np.bool_) for _ in submodels]
    for view in views:
        march(
            submodels[view.row],
            layout,
            np.ascontiguousarray(view.origins, np.float32),
            np.ascontiguousarray(view.directions, np.float32),
            np.full(len(view.origins), near, np.float32),
            marks=marks[view.row],
            mark_threshold=threshold,
        )
    return marks


def without_floaters(cells: Bool[np.ndarray, "C C C"], min_neighbours: int) -> Bool[np.ndarray, "C C C"]:
    """Cells that have enough occupied neighbours among their 26."""
    if min_neighbours <= 0:
        return cells
    count = ndimage.convolve(cells.astype(np.uint8), np.ones((3, 3, 3), np.uint8), mode="constant")
    return cells & (count > min_neighbours)


def bake(
    field: SmerfField,
    occupied: Bool[np.ndarray, "rows S S S"],
    views: Iterable[ViewRays],
    near: float,
    settings: BakeSettings,
    report: Report = lambda what, done, total: None,
) -> list[BakedSubmodel]:
    """Bake all live submodels.

    Args:
        field: the trained field.
        occupied: the voxels that training worked in.
        views: rays to find out what is seen.
        near: unit-frame distance at which they begin.
        settings: what is kept.
        report: progress.

    Raises:
        InputError: none of the views sees anything.
    """
    layout = field.layout
    cells = [cells_of_voxels(one, layout) for one in occupied]
    everything = [bake_submodel(field, row, one, report) for row, one in enumerate(cells)]
    seen = seen_cells(everything, layout, views, near, settings.weight_threshold)
    kept = [
        without_floaters(one & seen_one, settings.min_neighbours) for one, seen_one in zip(cells, seen, strict=True)
    ]
    if not any(one.any() for one in kept):
        raise InputError(
            "baking: no view sees anything of the scene; expected a student that has been trained until it shows it"
        )
    return [restrict(submodel, one, layout) for submodel, one in zip(everything, kept, strict=True)]
