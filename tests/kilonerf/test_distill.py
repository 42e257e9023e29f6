"""Points that distillation trains on: where they lie, how they are seen, what the teacher said."""

import numpy as np
import pytest
import torch
from kilo_scenes import shell_grid
from kilo_teachers import BallPoints

from radcomp_plugins.kilonerf.distill import BYTES_PER_POINT, draw_directions, draw_pool, draw_positions, voxel_lists
from radcomp_plugins.kilonerf.grid import CellLookup


@pytest.mark.parametrize("overlap", [0.0, 0.25])
def test_every_network_has_the_voxels_it_has_to_know(overlap: float) -> None:
    grid = shell_grid(voxels=8, overlap=overlap)
    lists = voxel_lists(grid)
    assert len(lists.offsets) == grid.num_networks + 1 and (lists.offsets.diff() > 0).all()
    place = lists.place(lists.voxels).numpy()
    assert grid.occupancy[tuple(place.T)].all()
    cells = np.argwhere(grid.network_of_cell >= 0)
    reach = 1 if overlap else 0  # an eighth of a cell, of 8 voxels
    for network in (0, 7, grid.num_networks - 1):
        mine = place[lists.offsets[network] : lists.offsets[network + 1]]
        low, high = cells[network] * 8 - reach, cells[network] * 8 + 8 + reach
        assert ((mine >= low) & (mine < high)).all()
        block = tuple(slice(max(int(a), 0), int(b)) for a, b in zip(low, high, strict=True))
        assert len(mine) == grid.occupancy[block].sum()


@pytest.mark.parametrize("overlap", [0.0, 0.2])
def test_points_lie_in_occupied_voxels_and_local_positions_fit(overlap: float) -> None:
    grid = shell_grid(voxels=8, overlap=overlap)
    lookup = CellLookup(grid)
    points, local = draw_positions(voxel_lists(grid), lookup, 200)
    assert local.abs().max() <= 1 + overlap + 1e-5
    assert torch.allclose((points - lookup.centres[:, None]) / lookup.half_cell, local, atol=1e-4)
    inside = lookup.occupied(points.reshape(-1, 3)).float().mean()
    # Overlapping networks are clamped to what they are asked for, within a voxel.
    assert inside > (0.999 if overlap == 0 else 0.97)
    if overlap == 0:
        network, again = lookup.locate(points.reshape(-1, 3))
        own = torch.arange(grid.num_networks).repeat_interleave(200)
        assert (network == own).float().mean() > 0.999


def test_points_are_even_over_voxels() -> None:
    grid = shell_grid(voxels=4)
    lists, lookup = voxel_lists(grid), CellLookup(grid)
    points, _ = draw_positions(lists, lookup, 4000)
    network = int(lists.offsets.diff().argmax())
    at = ((points[network] - lookup.lower) / (2 * lookup.half_cell) * 4).floor().long()
    code = (at[:, 0] * grid.occupancy.shape[1] + at[:, 1]) * grid.occupancy.shape[2] + at[:, 2]
    counts = torch.unique(code, return_counts=True)[1].float()
    count = int(lists.offsets.diff()[network])
    assert len(counts) == pytest.approx(count, abs=2)
    assert (counts - 4000 / count).abs().max() < 6 * (4000 / count) ** 0.5


def test_directions_come_from_cameras_or_anywhere() -> None:
    points, cameras = torch.randn(3, 500, 3), torch.tensor([[10.0, 0.0, 0.0], [0.0, 10.0, 0.0]])
    seen = draw_directions(points, cameras, 0.0)
    assert torch.allclose(seen.norm(dim=-1), torch.ones(3, 500), atol=1e-5)
    off = torch.stack([torch.linalg.cross(seen, points - camera).norm(dim=-1) for camera in cameras])
    assert off.amin(0).max() < 1e-4 and ((points - seen * 1e-3) @ torch.ones(3)).isfinite().all()
    anywhere = draw_directions(points, cameras, 1.0)
    assert anywhere.mean(dim=(0, 1)).abs().max() < 0.1


def test_pool_has_what_the_teacher_says_and_no_more_bytes_than_stated() -> None:
    grid = shell_grid(voxels=8)
    lookup, teacher = CellLookup(grid), BallPoints()
    pool = draw_pool(
        teacher, voxel_lists(grid), lookup, torch.tensor([[0.0, 0.0, 3.0]]), count=50, random_share=0.5, delta=0.03
    )
    points = lookup.to_scene(pool.local).reshape(-1, 3)
    said = teacher.query_points(points, pool.directions.reshape(-1, 3))
    assert torch.allclose(pool.alpha.reshape(-1), 1 - torch.exp(-said.density * 0.03))
    assert torch.allclose(pool.rgb.reshape(-1, 3), said.rgb)
    used = sum(t.numel() * t.element_size() for t in (pool.local, pool.directions, pool.alpha, pool.rgb))
    assert used == BYTES_PER_POINT * 50 * grid.num_networks


def test_turns_go_through_the_pool_and_begin_anew() -> None:
    grid = shell_grid()
    pool = draw_pool(
        BallPoints(), voxel_lists(grid), CellLookup(grid), torch.randn(2, 3), count=10, random_share=0.0, delta=0.03
    )
    assert torch.equal(pool.turn(1, 4).local, pool.local[:, 4:8])
    assert torch.equal(pool.turn(2, 4).alpha, pool.alpha[:, [8, 9, 0, 1]])
