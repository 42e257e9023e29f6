"""What a ray may skip, against brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from radcomp_plugins.smerf.empty_space import distance_grid, pack_cells, unpack_cells

SHAPES = st.tuples(*[st.integers(1, 12)] * 3)


def slow_distance(cells: np.ndarray) -> np.ndarray:
    """As the released exporter counts: how many dilations leave a cell empty."""
    away = np.zeros(cells.shape, np.int64)
    for count in range(255):
        if cells.all() or not cells.any():
            return away + (255 - count) * ~cells
        cells = ndimage.binary_dilation(cells, np.ones((3, 3, 3)))
        away += ~cells
    return away


@given(SHAPES, st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.002, 0.03, 0.4]))
def test_distances_are_those_of_counting_dilations(shape, seed, density):
    cells = np.random.default_rng(seed).random(shape) < density
    got = distance_grid(cells)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, slow_distance(cells))


def test_distances_end_at_255():
    cells = np.zeros((1, 1, 600), np.bool_)
    cells[0, 0, 0] = True
    np.testing.assert_array_equal(distance_grid(cells)[0, 0], (np.arange(600) - 1).clip(0, 255))


def test_nothing_occupied_is_as_far_as_can_be():
    assert (distance_grid(np.zeros((3, 4, 5), np.bool_)) == 255).all()


@pytest.mark.parametrize(("x", "y", "z", "byte"), [(0, 0, 0, 1), (0, 0, 1, 2), (0, 1, 0, 4), (1, 0, 0, 16)])
def test_bits_are_those_the_viewer_tests(x, y, z, byte):
    # fragment shader: z doubles the bit, y takes it to the fourth, x to the sixteenth
    cells = np.zeros((2, 2, 2), np.bool_)
    cells[x, y, z] = True
    assert pack_cells(cells).tolist() == [[[byte]]]


@given(SHAPES, st.integers(0, 2**32 - 1))
def test_unpacking_gives_back_the_cells(shape, seed):
    cells = np.random.default_rng(seed).random(shape) < 0.3
    back = unpack_cells(pack_cells(cells))
    assert back.shape == tuple(n + n % 2 for n in shape)
    x, y, z = shape
    np.testing.assert_array_equal(back[:x, :y, :z], cells)
    assert back.sum() == cells.sum()
