"""False colours."""

import torch
from kilo_scenes import shell_grid

from radcomp_plugins.kilonerf.grid import CellLookup
from radcomp_plugins.kilonerf.panel import heat, network_colours, voxel_colours


def test_networks_have_colours_of_their_own() -> None:
    colours = network_colours(torch.arange(-1, 40))
    assert torch.equal(colours[0], torch.full((3,), 0.5))
    apart = torch.cdist(colours[1:], colours[1:]) + torch.eye(40)
    assert apart.min() > 0.02 and colours.min() >= 0 and colours.max() <= 1


def test_voxels_are_a_chequerboard_and_empty_ones_black() -> None:
    lookup = CellLookup(shell_grid())
    side = 2 * lookup.half_cell / lookup.grid.voxels_per_cell
    place = torch.from_numpy(lookup.grid.occupancy).nonzero()
    points = lookup.lower + (place + 0.5) * side
    colours = voxel_colours(points, lookup)
    odd = place.sum(-1) % 2 == 1
    assert len(colours[odd].unique(dim=0)) == 1 and len(colours[~odd].unique(dim=0)) == 1
    assert not torch.equal(colours[odd][0], colours[~odd][0])
    assert not voxel_colours(lookup.lower[None] - 1.0, lookup).any()


def test_heat_goes_from_black_to_white() -> None:
    shown = heat(torch.tensor([[0.0], [1 / 3], [2 / 3], [1.0], [5.0]]))
    truth = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]])
    assert torch.allclose(shown, truth, atol=1e-5)
