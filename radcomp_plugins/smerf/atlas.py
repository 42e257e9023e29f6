"""The atlas of a sparse grid: blocks of 9^3 voxels laid out in one 3-D texture.

Every block holds 8^3 voxels and one more layer on the far side of each axis, so that a viewer interpolates within a
block and never reads another one. The size of the atlas follows the official exporter's rule, for the viewers take the
size for granted in scene_params.json and the order of the blocks from their indices.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, UInt8
from numpy.typing import NDArray

from radcomp_plugins.errors import InputError

EMPTY = 255
"""Index of a block that is not there, on every axis; so no atlas has more than 254 blocks along an axis."""
MAX_TEXTURE = 2048
"""Texels along an axis of the largest 3-D texture that every WebGL2 device has."""
PADDING = 128
"""Byte of the atlas where no block lies: what a raw value of 0 is stored as."""


@dataclass(frozen=True)
class AtlasSize:
    """Blocks along each axis of an atlas, descending; and voxels along a side of a block, the apron counted.

    Attributes:
        blocks: [ax, ay, az].
        edge: voxels along a side of a stored block, 9 in both official viewers.
    """

    blocks: tuple[int, int, int]
    edge: int

    @property
    def texels(self) -> tuple[int, int, int]:
        """Width, height and depth of the texture."""
        x, y, z = self.blocks
        return x * self.edge, y * self.edge, z * self.edge

    @property
    def capacity(self) -> int:
        """Blocks that fit in."""
        x, y, z = self.blocks
        return x * y * z


def atlas_size(num_blocks: int, block_size: int = 8) -> AtlasSize:
    """The atlas that wastes the fewest blocks; of equal ones, that whose smallest side is found first.

    Args:
        num_blocks: blocks to store; an atlas for none has room for one.
        block_size: voxels along a side of a block, apron not counted.

    Raises:
        InputError: no texture holds that many.
    """
    needed = max(num_blocks, 1)
    edge = block_size + 1
    side = np.arange(1, min(EMPTY - 1, MAX_TEXTURE // edge) + 1, dtype=np.int64)
    area = side[:, None] * side[None, :]
    depth = -(-needed // area)
    waste = np.where(depth <= side[-1], area * depth - needed, np.iinfo(np.int64).max)
    first, second = np.unravel_index(int(waste.argmin()), waste.shape)
    if depth[first, second] > side[-1]:
        raise InputError(
            f"{num_blocks} blocks of the sparse grid: expected at most {int(side[-1]) ** 3}, which is what a texture "
            "of 2048^3 holds; lower the sparse grid's resolution"
        )
    z, y, x = sorted((int(side[first]), int(side[second]), int(depth[first, second])))
    return AtlasSize((x, y, z), edge)


def block_slots(num_blocks: int, size: AtlasSize) -> NDArray[np.uint8]:
    """Place [B, 3] of each block in the atlas, in blocks: C order, the last axis (the slices') fastest."""
    slots = np.unravel_index(np.arange(num_blocks), size.blocks)
    return np.stack(slots, axis=-1).astype(np.uint8).reshape(-1, 3)


def index_bytes(block_indices: Int32[np.ndarray, "X Y Z"], size: AtlasSize) -> UInt8[np.ndarray, "X Y Z 3"]:
    """The block indices as files have them: a place in the atlas, or 255 for an empty block."""
    num_blocks = int(block_indices.max(initial=-1)) + 1
    table = np.full((num_blocks + 1, 3), EMPTY, np.uint8)
    table[:num_blocks] = block_slots(num_blocks, size)
    return table[block_indices]  # -1 picks the last row


def block_rows(places: UInt8[np.ndarray, "X Y Z 3"], size: AtlasSize) -> Int32[np.ndarray, "X Y Z"]:
    """The inverse of `index_bytes`: rows of blocks, -1 for empty ones.

    Raises:
        InputError: a place outside the atlas, or places that do not count up in C order of the grid.
    """
    empty = places[..., 0] == EMPTY
    if (places[empty] != EMPTY).any():
        raise InputError("a block index is 255 on the first axis and not on all")
    used = places[~empty].astype(np.int64)
    outside = (used >= np.asarray(size.blocks)).any(axis=-1)
    if outside.any():
        raise InputError(
            f"block index {used[outside.argmax()].tolist()} outside the atlas of {list(size.blocks)} blocks"
        )
    _, y, z = size.blocks
    flat = (used[:, 0] * y + used[:, 1]) * z + used[:, 2]
    wrong = flat != np.arange(len(flat))
    if wrong.any():
        first = int(wrong.argmax())
        raise InputError(f"block {first} of the grid at place {int(flat[first])} of the atlas")
    rows = np.full(places.shape[:3], -1, np.int32)
    rows[~empty] = np.arange(len(flat), dtype=np.int32)
    return rows


def pack_slices(
    blocks: UInt8[np.ndarray, "B E E E 8"], size: AtlasSize, channels: Sequence[int]
) -> Iterator[UInt8[np.ndarray, "H W C"]]:
    """The atlas' slices along z, one after another, as rows of texels.

    Args:
        blocks: [block, x, y, z, channel].
        size: of the atlas.
        channels: those to store, in order.

    Yields:
        One slice [atlas height, atlas width, channels]; all of them together never exist in memory.
    """
    x, y, z = size.blocks
    edge = size.edge
    columns = np.arange(x * y, dtype=np.int64) * z
    for layer in range(z):
        rows = columns + layer
        there = rows < len(blocks)
        for depth in range(edge):
            tiles = np.full((x * y, edge, edge, len(channels)), PADDING, np.uint8)
            tiles[there] = blocks[rows[there], :, :, depth][..., list(channels)]
            texels = tiles.reshape(x, y, edge, edge, -1).transpose(1, 3, 0, 2, 4)  # iy, ly, ix, lx, channel
            yield np.ascontiguousarray(texels).reshape(y * edge, x * edge, -1)


def unpack_slice(
    texels: UInt8[np.ndarray, "H W C"],
    index: int,
    size: AtlasSize,
    blocks: UInt8[np.ndarray, "B E E E 8"],
    channels: Sequence[int],
) -> None:
    """Put slice `index` of an atlas back into `blocks`, the inverse of `pack_slices`."""
    x, y, z = size.blocks
    edge = size.edge
    layer, depth = divmod(index, edge)
    rows = np.arange(x * y, dtype=np.int64) * z + layer
    there = rows < len(blocks)
    tiles = texels.reshape(y, edge, x, edge, -1).transpose(2, 0, 3, 1, 4)  # ix, iy, lx, ly, channel
    tiles = np.ascontiguousarray(tiles).reshape(x * y, edge, edge, -1)[there]
    for position, channel in enumerate(channels):
        blocks[rows[there], :, :, depth, channel] = tiles[..., position]
