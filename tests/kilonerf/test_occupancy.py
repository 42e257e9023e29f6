"""Occupied voxels against asking everywhere."""

import math

import numpy as np
import pytest
import torch
from kilo_teachers import CENTRES, RADII, BallPoints

from radcomp_plugins.kilonerf.occupancy import density_of_opacity, find_occupancy

BOX = np.array([[-0.6, -0.6, -0.4], [0.68, 0.52, 0.56]])
VOXELS = (32, 28, 24)


def slow(threshold: float) -> np.ndarray:
    """Every voxel's corners and middle, one lattice point at a time."""
    size = (BOX[1] - BOX[0]) / np.array(VOXELS)
    found = np.zeros(VOXELS, bool)
    places = [np.array(c, float) for c in np.ndindex(2, 2, 2)] + [np.full(3, 0.5)]
    index = np.stack(np.meshgrid(*[np.arange(n) for n in VOXELS], indexing="ij"), -1)
    for place in places:
        points = torch.from_numpy((BOX[0] + (index + place) * size).astype(np.float32)).view(-1, 3)
        inside = ((points[:, None] - CENTRES).norm(dim=-1) < RADII).any(-1)
        found |= (inside * 60.0 >= threshold).view(VOXELS).numpy()
    return found


def test_same_voxels_as_asking_everywhere() -> None:
    teacher = BallPoints()
    found, truth = find_occupancy(teacher, BOX, VOXELS, 10.0), slow(10.0)
    # A corner exactly on a ball's border may fall either way.
    assert truth.any() and (found != truth).mean() < 1e-4


def test_empty_space_is_not_looked_at_closely() -> None:
    teacher = BallPoints()
    fine = (96, 84, 72)
    find_occupancy(teacher, BOX, fine, 10.0)
    assert teacher.asked < 0.6 * 2 * np.prod(fine)


def test_too_faint_is_empty() -> None:
    assert not find_occupancy(BallPoints(density=9.0), BOX, VOXELS, 10.0).any()
    assert find_occupancy(BallPoints(density=11.0), BOX, VOXELS, 10.0).any()


def test_progress_ends_where_it_should() -> None:
    told: list[tuple[int, int]] = []
    find_occupancy(BallPoints(), BOX, VOXELS, 10.0, lambda done, total: told.append((done, total)))
    assert told and all(done <= total for done, total in told) and told[-1][0] == told[-1][1]


def test_infinite_and_missing_densities() -> None:
    class Odd(BallPoints):
        def query_points(self, positions, directions):
            said = super().query_points(positions, directions)
            return type(said)(torch.where(said.density > 0, torch.inf, torch.nan), said.rgb)

    assert (find_occupancy(Odd(), BOX, VOXELS, 10.0) == find_occupancy(BallPoints(), BOX, VOXELS, 10.0)).all()


def test_density_of_an_opacity() -> None:
    density = density_of_opacity(0.1, 0.0104)
    assert 1 - math.exp(-density * 0.0104) == pytest.approx(0.1) and density == pytest.approx(10.13, abs=0.01)
