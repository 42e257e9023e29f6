"""Samples of rays in training against a loop over steps, and the torch twin against the kernel."""

import math

import numpy as np
import pytest
import torch
from kilo_scenes import shell_grid, sphere_rays

from radcomp_plugins.core import threads
from radcomp_plugins.kilonerf import sampling
from radcomp_plugins.kilonerf.render_cpu import CpuRenderer, RenderSettings
from radcomp_plugins.kilonerf.sampling import depth_to_stop, levels_of, march
from radcomp_plugins.kilonerf.scene import KiloGrid

NEAR = 0.2


@pytest.fixture(scope="module")
def grid() -> KiloGrid:
    return shell_grid()


@pytest.fixture(scope="module")
def levels(grid: KiloGrid) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    out = torch.zeros(grid.occupancy.shape, dtype=torch.uint8)
    occupied = torch.from_numpy(grid.occupancy)
    out[occupied] = levels_of(2.0 * torch.rand(int(occupied.sum()), generator=g) ** 4)
    return out


def rays(count: int = 400) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    origins, directions = (torch.from_numpy(array) for array in sphere_rays(count))
    return origins, directions, torch.rand(count, generator=torch.Generator().manual_seed(1))


def slow(origin, direction, phase, stop, grid: KiloGrid, levels) -> list[float]:
    """All steps of one ray, in float64."""
    found, depth = [], 0.0
    size = np.array(levels.shape) / (grid.box[1] - grid.box[0])
    for k in range(4000):
        t = NEAR + (k + phase) * grid.step
        place = np.floor((origin + t * direction - grid.box[0]) * size).astype(int)
        if (place < 0).any() or (place >= levels.shape).any():
            continue
        level = int(levels[tuple(place)])
        if level == 0:
            continue
        if depth > stop:
            break
        depth += (level - 1) / 64
        found.append(t)
    return found


@pytest.mark.parametrize("transmittance", [0.0, 0.05])
def test_kernel_and_twin_find_what_a_loop_finds(grid: KiloGrid, levels: torch.Tensor, transmittance: float) -> None:
    origins, directions, phase = rays()
    stop = torch.full((len(origins),), depth_to_stop(transmittance))
    fast = march(origins, directions, phase, stop, grid, levels, NEAR)
    twin = sampling._march_torch(origins, directions, phase, stop, grid, levels, NEAR)
    different = 0
    for ray in range(len(origins)):
        truth = slow(
            *(t[ray].double().numpy() for t in (origins, directions)),
            float(phase[ray]),  # pyright: ignore[reportCallIssue]
            float(stop[ray]),  # pyright: ignore[reportCallIssue]
            grid,  # pyright: ignore[reportCallIssue]
            levels,  # pyright: ignore[reportCallIssue]
        )
        for got in (fast, twin):
            part = got.distance[got.ray_offsets[ray] : got.ray_offsets[ray + 1]]
            same = len(part) == len(truth) and np.allclose(part.numpy(), truth, atol=1e-5)
            different += not same
    # A sample on a voxel's border may fall either way in float32.
    assert different <= 8 and len(fast.distance) > 1000


def test_rays_end_sooner_where_it_is_opaque(grid: KiloGrid, levels: torch.Tensor) -> None:
    origins, directions, phase = rays()
    counts = [
        march(origins, directions, phase, torch.full_like(phase, stop), grid, levels, NEAR).ray_offsets.diff()
        for stop in (math.inf, 3.0, 0.0)
    ]
    assert (counts[0] >= counts[1]).all() and (counts[1] >= counts[2]).all() and counts[0].sum() > counts[2].sum()
    # A ray is never without its first sample.
    assert ((counts[0] > 0) == (counts[2] > 0)).all()


def test_samples_are_those_that_drawing_asks(grid: KiloGrid, levels: torch.Tensor) -> None:
    from kilo_scenes import shell_scene

    scene, _ = shell_scene()
    origins, directions, _ = rays()
    middle = torch.full((len(origins),), 0.5)
    mine = march(origins, directions, middle, torch.full_like(middle, math.inf), scene.grid, levels, scene.near)
    settings = RenderSettings(termination=0.0)
    offsets, away = CpuRenderer(scene).lit_samples(origins.numpy(), directions.numpy(), settings=settings)
    wrong = (torch.from_numpy(offsets).diff() != mine.ray_offsets.diff()).sum()
    assert wrong <= 4 and abs(len(away) - len(mine.distance)) <= 4


def test_same_for_any_number_of_threads(grid: KiloGrid, levels: torch.Tensor) -> None:
    origins, directions, phase = rays(5000)
    stop, before, results = torch.full((5000,), 2.0), threads.get_num_threads(), []
    try:
        for count in (1, 3):
            threads.set_num_threads(count)
            results.append(march(origins, directions, phase, stop, grid, levels, NEAR))
    finally:
        threads.set_num_threads(before)
    assert torch.equal(results[0].distance, results[1].distance)
    assert torch.equal(results[0].ray_offsets, results[1].ray_offsets)


def test_no_rays_and_rays_that_miss(grid: KiloGrid, levels: torch.Tensor) -> None:
    none = march(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0), torch.zeros(0), grid, levels, NEAR)
    assert none.ray_offsets.tolist() == [0] and len(none.distance) == 0
    away = torch.tensor([[0.0, 0.0, 1.0]])
    for function in (march, sampling._march_torch):
        missed = function(5.0 * away, away, torch.zeros(1), torch.ones(1), grid, levels, NEAR)
        assert missed.ray_offsets.tolist() == [0, 0]


def test_levels_round_down_and_keep_occupied_voxels_apart_from_empty_ones() -> None:
    depth = torch.tensor([0.0, 0.01, 1 / 64, 2.0, 1e6, -1.0])
    assert levels_of(depth).tolist() == [1, 1, 2, 129, 254, 1]
    assert depth_to_stop(0.0) == math.inf and depth_to_stop(math.exp(-2)) == pytest.approx(2.0)
