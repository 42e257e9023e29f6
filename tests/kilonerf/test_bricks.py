"""Occupancy in bricks: bits by hand, distances against a slow search, and the box of what is occupied."""

import numpy as np
from kilo_scenes import shell_grid

from radcomp_plugins.kilonerf.bricks import make_bricks
from radcomp_plugins.kilonerf.grid import grid_of_occupancy


def test_bits_and_box_by_hand():
    occupancy = np.zeros((8, 8, 16), bool)
    occupancy[5, 2, 7] = occupancy[0, 0, 0] = True
    bricks = make_bricks(grid_of_occupancy(np.array([[0.0, 0, 0], [2, 2, 4]]), (1, 1, 2), occupancy, 0.1))
    assert bricks.bits.shape == bricks.distance.shape == (2, 2, 4)
    assert int(bricks.bits[0, 0, 0]) == 1
    assert int(bricks.bits[1, 0, 1]) == 1 << (1 + 4 * 2 + 16 * 3)
    assert (bricks.bits != 0).sum() == 2
    np.testing.assert_allclose(bricks.box, [[0, 0, 0], [1.5, 0.75, 2.0]])


def test_distances_against_a_slow_search():
    bricks = make_bricks(shell_grid(longest=8, voxels=8))
    used = np.argwhere(bricks.bits != 0)
    for index in np.ndindex(*bricks.bits.shape):
        assert bricks.distance[index] == np.abs(used - np.array(index)).max(axis=1).min()
    assert bricks.distance.max() > 1
