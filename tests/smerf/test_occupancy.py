"""Occupied cells and the distances to them."""

import numpy as np
import torch

from radcomp_plugins.smerf.occupancy import MAX_DISTANCE, Occupancy, cell_distance


def test_marks_a_point_and_what_touches_it() -> None:
    occupancy = Occupancy(2, 16)
    # Cells of 1/4: the point lies in cell (8, 8, 15) of row 1; at the wall there is nothing further out.
    occupancy.mark(torch.tensor([[0.1, 0.2, 1.99]]), torch.tensor([1]))
    expected = np.zeros((2, 16, 16, 16), bool)
    expected[1, 7:10, 7:10, 14:16] = True
    np.testing.assert_array_equal(occupancy.cells.numpy(), expected)
    inside = occupancy.contains(torch.tensor([[0.1, 0.2, 1.99], [0.1, 0.2, 1.0]]), torch.tensor([1, 1]))
    assert inside.tolist() == [True, False]


def test_distance_is_chebyshev_less_one() -> None:
    cells = np.random.default_rng(0).random((12, 12, 12)) > 0.995
    assert cells.any()
    occupied = np.argwhere(cells)
    places = np.argwhere(np.ones_like(cells))
    brute = np.abs(places[:, None] - occupied[None]).max(axis=-1).min(axis=-1).reshape(cells.shape)
    np.testing.assert_array_equal(cell_distance(cells), np.maximum(brute - 1, 0))


def test_nothing_is_far_away() -> None:
    assert bool((cell_distance(np.zeros((4, 4, 4), bool)) == MAX_DISTANCE).all())


def test_distances_come_back_with_a_checkpoint() -> None:
    occupancy, other = Occupancy(1, 8), Occupancy(1, 8)
    occupancy.mark(torch.zeros(1, 3), torch.tensor([0]))
    occupancy.measure()
    other.load_state_dict(occupancy.state_dict())
    assert bool((other.distance == occupancy.distance).all()) and int(other.distance.max()) > 0


def test_pruning_keeps_what_was_seen_and_what_touches_it() -> None:
    occupancy = Occupancy(2, 16)
    occupancy.cells[:] = True
    occupancy.see(torch.tensor([[0.1, 0.1, 0.1], [-2.0, -2.0, -2.0]]), torch.tensor([0, 1]))
    occupancy.prune()
    expected = np.zeros((2, 16, 16, 16), bool)
    expected[0, 7:10, 7:10, 7:10] = True
    expected[1, :2, :2, :2] = True
    np.testing.assert_array_equal(occupancy.cells.numpy(), expected)
    assert not bool(occupancy.seen.any()) and int(occupancy.distance[0, 0, 0, 0]) == 6


def test_pruning_brings_nothing_back() -> None:
    occupancy = Occupancy(1, 8)
    occupancy.see(torch.zeros(1, 3), torch.tensor([0]))
    occupancy.prune()
    assert not bool(occupancy.cells.any())
