"""Boxes to cells, points to cells, and weights that blend across borders."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kilo_scenes import shell_grid

from radcomp_plugins.errors import InputError
from radcomp_plugins.kilonerf.grid import CellLookup, cells_of_box, grid_of_occupancy


@pytest.mark.parametrize(
    "box, cells",
    [
        # Lego of the paper: 9 x 16 x 10.
        ([[-0.67, -1.2, -0.37], [0.67, 1.2, 1.03]], (9, 16, 10)),
        ([[0, 0, 0], [1, 1, 1]], (16, 16, 16)),
        ([[0, 0, 0], [1, 1e-4, 0.5]], (16, 1, 8)),
    ],
)
def test_cells_by_the_papers_rule(box, cells):
    assert cells_of_box(np.array(box, float))[1] == cells


@given(st.tuples(*[st.floats(0.01, 10)] * 3), st.tuples(*[st.floats(-5, 5)] * 3), st.integers(1, 32))
def test_cells_are_cubes_that_cover_the_box(extent, low, longest):
    box = np.array([low, np.add(low, extent)])
    grown, cells = cells_of_box(box, longest)
    sides = (grown[1] - grown[0]) / cells
    np.testing.assert_allclose(sides, sides[0], rtol=1e-9)
    assert max(cells) == longest and min(cells) >= 1
    assert (grown[0] <= box[0] + 1e-5 * sides).all() and (grown[1] >= box[1] - 1e-5 * sides).all()
    assert (grown[1] - grown[0] < box[1] - box[0] + sides * (1 + 1e-5)).all()
    np.testing.assert_allclose(grown.mean(0), box.mean(0), atol=1e-9)


@pytest.mark.parametrize(
    "box", [[[0, 0, 0], [1, 0, 1]], [[0, 0, 0], [1, -1, 1]], [[0, 0, 0], [1, np.inf, 1]], [[0, 0, 0], [1, np.nan, 1]]]
)
def test_empty_and_inverted_boxes_are_refused(box):
    with pytest.raises(InputError, match="lower corner below an upper one"):
        cells_of_box(np.array(box, float))


def test_too_many_cells_are_refused():
    with pytest.raises(InputError, match="expected 1 to 256"):
        cells_of_box(np.array([[0.0, 0, 0], [1, 1, 1]]), 257)


def test_only_cells_with_content_get_a_network():
    occupancy = np.zeros((8, 8, 4), bool)
    occupancy[0, 0, 0] = occupancy[3, 3, 3] = occupancy[4, 0, 0] = occupancy[7, 7, 3] = True
    grid = grid_of_occupancy(np.array([[0.0, 0, 0], [2, 2, 1]]), (2, 2, 1), occupancy, 0.1)
    assert grid.network_of_cell[:, :, 0].tolist() == [[0, -1], [1, 2]]
    assert grid.num_networks == 3 and grid.voxels_per_cell == 4 and grid.cells == (2, 2, 1)
    np.testing.assert_allclose(CellLookup(grid).centres, [[0.5, 0.5, 0.5], [1.5, 0.5, 0.5], [1.5, 1.5, 0.5]])


def test_empty_occupancy_is_refused():
    with pytest.raises(InputError, match="empty everywhere"):
        grid_of_occupancy(np.array([[0.0, 0, 0], [1, 1, 1]]), (1, 1, 1), np.zeros((4, 4, 4), bool), 0.1)
    with pytest.raises(InputError, match="whole multiple"):
        grid_of_occupancy(np.array([[0.0, 0, 0], [1, 1, 1]]), (1, 2, 1), np.zeros((4, 9, 4), bool), 0.1)


def checkerboard(overlap=0.0):
    """Two by one by two cells of side 1 with networks 0, 1 (at z = 0) and 2 (x = 1, z = 1); one cell is empty."""
    occupancy = np.zeros((8, 4, 8), bool)
    occupancy[:, :, :4] = occupancy[4:, :, 4:] = True
    grid = grid_of_occupancy(np.array([[0.0, 0, 0], [2, 1, 2]]), (2, 1, 2), occupancy, 0.1, overlap)
    return CellLookup(grid)


def test_points_on_borders_and_outside():
    lookup = checkerboard()
    points = torch.tensor(
        [
            [0.0, 0, 0],
            [1.0, 0.5, 0.25],
            [2.0, 1.0, 2.0],
            [0.5, 0.5, 1.5],
            [0.5, 0.5, 1.0],
            [-1e-3, 0.5, 0.5],
            [2.01, 0, 0],
        ]
    )
    network, local = lookup.locate(points)
    # Network ids go by x, then z: (0, 0) is 0, (1, 0) is 1, (1, 1) is 2, and (0, 1) is empty.
    assert network.tolist() == [0, 1, 2, -1, -1, -1, -1]
    torch.testing.assert_close(local[:3], torch.tensor([[-1.0, -1, -1], [-1, 0, -0.5], [1, 1, 1]]))
    assert lookup.occupied(points).tolist() == [True, True, True, False, False, False, False]


def test_local_positions_and_back():
    lookup = CellLookup(shell_grid())
    points = torch.rand(500, 3) * 1.8 - 0.9
    network, local = lookup.locate(points)
    here = network >= 0
    assert 50 < int(here.sum()) < 500
    assert float(local[here].abs().max()) <= 1.0 + 1e-5
    back = lookup.to_scene(local[here][:, None], network[here])[:, 0]
    torch.testing.assert_close(back, points[here], atol=1e-5, rtol=0)
    assert not lookup.occupied(points)[~here].any()


def test_occupied_is_the_voxel_the_point_is_in():
    grid = shell_grid()
    lookup = CellLookup(grid)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.occupancy.shape], indexing="ij"), -1).reshape(-1, 3)
    size = grid.cell_size / grid.voxels_per_cell
    points = torch.from_numpy(grid.box[0] + (index + 0.3) * size).float()
    np.testing.assert_array_equal(lookup.occupied(points).numpy(), grid.occupancy.reshape(-1))


def test_blending_by_hand():
    lookup = checkerboard(overlap=0.2)
    # In the middle of cell 0; on its border to 1; a quarter of the way into the band; near the empty cell.
    points = torch.tensor([[0.5, 0.5, 0.5], [1.0, 0.5, 0.5], [0.95, 0.5, 0.5], [0.5, 0.5, 0.98]])
    network, local, weight = lookup.blend(points)
    assert network[0].tolist() == [0] + [-1] * 7 and weight[0].tolist() == [1.0] + [0.0] * 7
    assert network[1, :2].tolist() == [1, 0]
    torch.testing.assert_close(weight[1, :2], torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(local[1, :2, 0], torch.tensor([-1.0, 1.0]))
    assert network[2, :2].tolist() == [0, 1]
    torch.testing.assert_close(weight[2, :2], torch.tensor([0.75, 0.25]), atol=1e-5, rtol=0)
    torch.testing.assert_close(local[2, :2, 0], torch.tensor([0.9, -1.1]), atol=1e-5, rtol=0)
    assert network[3].tolist() == [0] + [-1] * 7
    torch.testing.assert_close(weight.sum(-1), torch.ones(4))


def test_blending_is_continuous_across_borders():
    grid = shell_grid(overlap=0.25)
    lookup = CellLookup(grid)
    values = torch.rand(grid.num_networks)

    def blended(points):
        network, _, weight = lookup.blend(points)
        return (weight * values[network.clamp(min=0)]).sum(-1), weight.sum(-1)

    border = float(grid.box[0, 0] + 2 * grid.cell_size[0])
    points = torch.rand(2000, 3) * 1.6 - 0.8
    points[:, 0] = border
    sides = [points + torch.tensor([sign * 1e-5, 0, 0]) for sign in (-1, 1)]
    (low, at_low), (high, at_high) = blended(sides[0]), blended(sides[1])
    both = (at_low > 0) & (at_high > 0)
    assert int(both.sum()) > 100
    torch.testing.assert_close(low[both], high[both], atol=1e-3, rtol=0)


def test_without_overlap_the_own_network_is_all():
    lookup = CellLookup(shell_grid())
    points = torch.rand(300, 3) * 2.4 - 1.2
    own, local = lookup.locate(points)
    network, positions, weight = lookup.blend(points)
    assert network[:, 0].equal(own) and (network[:, 1:] == -1).all()
    assert weight[:, 0].equal((own >= 0).float())
    torch.testing.assert_close(positions[:, 0], local)
