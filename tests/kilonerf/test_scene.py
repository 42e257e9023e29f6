"""A decoded scene refuses what later code could not bear."""

import dataclasses

import numpy as np
import pytest
from kilo_scenes import shell_grid, shell_scene

from radcomp_plugins.errors import InputError
from radcomp_plugins.kilonerf.scene import NetworkShape


def broken_grids():
    grid = shell_grid()
    ids, occupancy = grid.network_of_cell, grid.occupancy
    swapped = ids.copy()
    swapped[ids == 0], swapped[ids == 1] = 1, 0
    yield {"box": grid.box[::-1]}, "lower corner below"
    yield {"box": np.full((2, 3), np.nan)}, "lower corner below"
    yield {"step": 0.0}, "step 0.0"
    yield {"step": float("nan")}, "step nan"
    yield {"overlap": 0.3}, "overlap 0.3"
    yield {"network_of_cell": swapped}, "once in order"
    yield {"network_of_cell": np.where(ids == 3, 99, ids).astype(np.int32)}, "once in order"
    yield {"network_of_cell": ids - 1}, "not -1"
    yield {"network_of_cell": ids[:0]}, "expected int32"
    yield {"occupancy": occupancy[:-1]}, "expected bool"
    yield {"occupancy": np.repeat(np.repeat(np.repeat(occupancy, 3, 0), 3, 1), 3, 2)}, "expected bool"
    yield {"occupancy": np.ones_like(occupancy)}, "cells without a network"


@pytest.mark.parametrize("change, message", list(broken_grids()))
def test_broken_grids_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(shell_grid(), **change)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"background": np.array([0.0, 0.0, 1.5])}, "background"),
        ({"near": -1.0}, "near is"),
        ({"near": float("nan")}, "near is"),
        ({"dataset_to_scene": np.eye(4)}, "dataset_to_scene"),
        ({"shape": NetworkShape(width=8)}, "expected float32"),
    ],
)
def test_broken_scenes_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(shell_scene()[0], **change)


def test_broken_weights_are_refused():
    scene, _ = shell_scene()
    for name, array in (
        ("color.bias", np.zeros((1, 3), np.float32)),
        ("color.bias", scene.weights["color.bias"].astype(np.float64)),
        ("color.bias", np.full_like(scene.weights["color.bias"], np.inf)),
        ("extra", np.zeros(3, np.float32)),
    ):
        with pytest.raises(InputError, match="networks"):
            dataclasses.replace(scene, weights={**scene.weights, name: array})


def test_sizes():
    grid = shell_grid(longest=4, voxels=8)
    assert grid.voxels_per_cell == 8 and max(grid.cells) == 4
    np.testing.assert_allclose(grid.cell_size * grid.cells, grid.box[1] - grid.box[0])
    assert grid.num_networks == grid.occupied_cells().sum()
