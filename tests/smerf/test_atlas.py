"""The atlas: its size by the official rule, and blocks in and out of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radcomp_plugins.errors import InputError
from radcomp_plugins.smerf.atlas import (
    EMPTY,
    PADDING,
    AtlasSize,
    atlas_size,
    block_rows,
    block_slots,
    index_bytes,
    pack_slices,
    unpack_slice,
)


def slow_size(count: int, most: int) -> tuple[int, ...]:
    best, found = None, (0, 0, 0)
    for x in range(1, most + 1):
        for y in range(1, most + 1):
            z = -(-count // (x * y))
            if z <= most and (best is None or x * y * z - count < best):
                best, found = x * y * z - count, (x, y, z)
    return tuple(sorted(found, reverse=True))


def test_size_of_a_published_export():
    # 6048 blocks lie in an atlas of 2016 x 243 x 9 texels there.
    assert atlas_size(6048).texels == (2016, 243, 9)


@pytest.mark.parametrize(("count", "blocks"), [(0, (1, 1, 1)), (1, (1, 1, 1)), (2, (2, 1, 1)), (227, (227, 1, 1))])
def test_small_sizes(count, blocks):
    assert atlas_size(count).blocks == blocks


@pytest.mark.parametrize("count", [229, 8 * 227, 229 * 229, 227**3])
def test_sizes_against_a_double_loop(count):
    assert atlas_size(count).blocks == slow_size(count, 227)


def test_more_blocks_than_a_texture_holds():
    with pytest.raises(InputError, match="at most 11697083"):
        atlas_size(227**3 + 1)


def test_slots_count_up_along_the_slices_first():
    size = AtlasSize((3, 2, 2), 9)
    assert block_slots(5, size).tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [1, 0, 0]]


def random_rows(seed: int, edge: int) -> np.ndarray:
    occupied = np.random.default_rng(seed).random((edge,) * 3) < 0.4
    rows = np.full((edge,) * 3, -1, np.int32)
    rows[occupied] = np.arange(occupied.sum())
    return rows


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_indices_and_back(seed, edge):
    rows = random_rows(seed, edge)
    size = atlas_size(int(rows.max()) + 1)
    places = index_bytes(rows, size)
    assert (places[rows < 0] == EMPTY).all() and (places[rows >= 0] < EMPTY).all()
    np.testing.assert_array_equal(block_rows(places, size), rows)


@pytest.mark.parametrize(
    ("at", "place", "message"),
    [((0, 0, 1), (9, 0, 0), "outside the atlas"), ((0, 0, 1), (0, 0, 0), "at place"), ((0, 0, 0), (255, 0, 0), "255")],
)
def test_wrong_indices(at, place, message):
    rows = np.arange(8, dtype=np.int32).reshape(2, 2, 2)
    size = atlas_size(8)
    places = index_bytes(rows, size)
    places[at] = place
    with pytest.raises(InputError, match=message):
        block_rows(places, size)


@given(st.integers(0, 2**32 - 1), st.integers(0, 30))
def test_slices_hold_every_voxel_where_the_viewer_looks(seed, count):
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, 3, 3, 3, 8), dtype=np.uint8)
    size = atlas_size(count, 2)
    slices = list(pack_slices(blocks, size, (7, 6)))
    width, height, depth = size.texels
    assert len(slices) == depth and all(texels.shape == (height, width, 2) for texels in slices)
    slots = block_slots(count, size)
    for _ in range(20):
        if not count:
            break
        block, (x, y, z) = rng.integers(count), rng.integers(0, 3, 3)
        at = slots[block].astype(int) * 3 + (x, y, z)
        np.testing.assert_array_equal(slices[at[2]][at[1], at[0]], blocks[block, x, y, z, [7, 6]])
    padding = sum((texels == PADDING).all(axis=-1).sum() for texels in slices)
    assert padding >= (size.capacity - count) * 27
    back = np.zeros_like(blocks)
    for k, texels in enumerate(slices):
        unpack_slice(texels, k, size, back, (7, 6))
    np.testing.assert_array_equal(back[..., 6:], blocks[..., 6:])
    assert not back[..., :6].any()
