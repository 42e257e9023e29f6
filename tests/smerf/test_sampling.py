"""Steps through occupied cells against a slow march without skipping, and sums over the teacher's intervals."""

import numpy as np
import pytest
import torch

from radcomp_plugins.core import threads
from radcomp_plugins.core.contraction import contract
from radcomp_plugins.smerf.layout import Layout
from radcomp_plugins.smerf.occupancy import Occupancy
from radcomp_plugins.smerf.sampling import (
    PackedSamples,
    _march_torch,
    cone_mean,
    march,
    sum_over_intervals,
    teacher_intervals,
)
from radcomp_plugins.smerf.submodels import Submodels, rotate

LAYOUT = Layout(128, 32, 2, 0.8, (0, 7))


def scene() -> tuple[Submodels, Occupancy]:
    submodels, occupancy = Submodels(LAYOUT), Occupancy(2, 32)
    row = torch.randint(2, (600,))
    occupancy.mark((torch.rand(600, 3) - 0.5) * 3.8, row)
    occupancy.measure()
    return submodels, occupancy


def rays(count: int = 200) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    directions = torch.nn.functional.normalize(torch.randn(count, 3), dim=-1)
    return (torch.rand(count, 3) - 0.5) * 1.8, directions, torch.randint(2, (count,))


def steps(samples: PackedSamples) -> list[np.ndarray]:
    offsets = samples.ray_offsets.tolist()
    return [samples.starts[a:b].numpy() for a, b in zip(offsets, offsets[1:], strict=False)]


def marched(submodels: Submodels, occupancy: Occupancy, origins, directions, row, phase=0.5) -> PackedSamples:
    near, far = torch.full((len(row),), 0.05), torch.full((len(row),), 1e3)
    return march(origins, directions, row, near, far, torch.full_like(near, phase), submodels, occupancy, 4 / 128)


def test_steps_cover_all_that_is_occupied() -> None:
    submodels, occupancy = scene()
    origins, directions, row = rays()
    samples = marched(submodels, occupancy, origins, directions, row)
    lengths = samples.ends - samples.starts
    inside = 0.0
    # A dense walk finds how much of each ray lies in occupied cells; steps of a voxel add up to it, give or take one
    # voxel at each border.
    distance = 0.05 * (4e3 / 0.05) ** torch.linspace(0, 1, 40_000)
    for ray in range(0, len(row), 10):
        points = submodels.to_submodel(
            origins[ray] + distance[:, None] * directions[ray], row[ray].expand(len(distance))
        )
        contracted = contract(points)
        occupied = occupancy.contains(contracted, row[ray].expand(len(distance)))
        occupied &= contracted.abs().amax(dim=-1) < 1.999
        moved = contracted.diff(dim=0).norm(dim=-1)
        moved[moved > 0.1] = 0.0  # contracted space begins anew where the largest coordinate changes
        inside = float((moved * occupied[:-1]).sum())
        mine = samples.ray_index == ray
        count = int(mine.sum())
        borders = int(occupied.diff().sum())
        assert abs(count * 4 / 128 - inside) <= (borders + 1) * 4 / 128, ray
    assert bool((lengths > 0).all())


def test_samples_are_in_order_and_in_cells() -> None:
    submodels, occupancy = scene()
    origins, directions, row = rays()
    samples = marched(submodels, occupancy, origins, directions, row)
    assert len(samples.starts) > 500
    for starts in steps(samples):
        assert bool((np.diff(starts) > 0).all())
    points = origins[samples.ray_index] + samples.starts[:, None] * directions[samples.ray_index]
    contracted = contract(submodels.to_submodel(points, row[samples.ray_index]))
    inside = occupancy.contains(contracted, row[samples.ray_index])
    assert float(inside.float().mean()) > 0.999  # rounding at a cell's border


def test_step_is_one_voxel() -> None:
    submodels, occupancy = scene()
    origins, directions, row = rays()
    samples = marched(submodels, occupancy, origins, directions, row)
    ends = [
        contract(
            submodels.to_submodel(
                origins[samples.ray_index] + t[:, None] * directions[samples.ray_index], row[samples.ray_index]
            )
        )
        for t in (samples.starts, samples.ends)
    ]
    moved = (ends[1] - ends[0]).norm(dim=-1)
    assert float((moved / (4 / 128)).median()) == pytest.approx(1.0, abs=0.05)


def test_twin() -> None:
    submodels, occupancy = scene()
    origins, directions, row = rays()
    ours = marched(submodels, occupancy, origins, directions, row)
    near, far = torch.full((len(row),), 0.05), torch.full((len(row),), 1e3)
    theirs = _march_torch(
        submodels.to_submodel(origins, row), rotate(directions) * LAYOUT.submodel_scale, row, near, far,
        torch.full_like(near, 0.5), occupancy, 4 / 128,
    )  # fmt: skip
    counts = [s.ray_offsets.diff() for s in (ours, theirs)]
    assert float((counts[0] != counts[1]).float().mean()) < 0.05  # a step that rounding puts over a border
    same = torch.where(counts[0] == counts[1])[0]
    pairs = [(steps(ours)[i], steps(theirs)[i]) for i in same.tolist()]
    close = [np.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in pairs]
    assert np.mean(close) > 0.95


def test_same_bits_for_any_number_of_threads() -> None:
    submodels, occupancy = scene()
    origins, directions, row = rays()
    before, results = threads.get_num_threads(), []
    for count in (1, 2, 4):
        threads.set_num_threads(count)
        results.append(marched(submodels, occupancy, origins, directions, row))
    threads.set_num_threads(before)
    for other in results[1:]:
        np.testing.assert_array_equal(results[0].starts.numpy(), other.starts.numpy())


def test_far_ends_a_ray() -> None:
    submodels, occupancy = scene()
    origins, directions, row = rays()
    near, far = torch.full((len(row),), 0.05), torch.full((len(row),), 0.6)
    samples = march(origins, directions, row, near, far, torch.zeros_like(near), submodels, occupancy, 4 / 128)
    assert float(samples.ends.max()) <= 0.6 + 1e-6 and float(samples.starts.min()) >= 0.05


def test_sums_over_intervals_by_hand() -> None:
    edges = torch.tensor([[0.0, 1.0, 2.0, 4.0], [0.0, 1.0, 2.0, 4.0]])
    samples = PackedSamples(
        starts=torch.tensor([0.0, 0.8, 3.0, 1.2]),
        ends=torch.tensor([0.4, 1.4, 9.0, 1.6]),
        ray_index=torch.tensor([0, 0, 0, 1]),
        ray_offsets=torch.tensor([0, 3, 4]),
    )
    # Middles 0.2, 1.1, 6.0 (beyond the last edge: the last interval) and 1.4.
    summed = sum_over_intervals(torch.tensor([0.1, 0.2, 0.3, 0.4]), samples, edges)
    torch.testing.assert_close(summed, torch.tensor([[0.1, 0.2, 0.3], [0.0, 0.4, 0.0]]))


def test_cone_mean_lies_in_the_further_half() -> None:
    # Barron et al. 2021, Eq. 7: t0 = 1, t1 = 3: mu = 2, delta = 1: 2 + 2 * 2 / (3 * 4 + 1) = 2.3077.
    mean = cone_mean(torch.tensor([1.0]), torch.tensor([3.0]))
    assert float(mean) == pytest.approx(2.0 + 4.0 / 13.0, rel=1e-5)


def test_teacher_intervals_keep_occupied_ones() -> None:
    submodels, occupancy = scene()
    origins, directions, row = rays(20)
    edges = torch.linspace(0.05, 1.5, 33).expand(20, -1)
    samples = teacher_intervals(edges, origins, directions, row, submodels, occupancy)
    assert 0 < len(samples.starts) < 20 * 32
    middle = cone_mean(samples.starts, samples.ends)
    points = origins[samples.ray_index] + middle[:, None] * directions[samples.ray_index]
    rows = row[samples.ray_index]
    assert bool(occupancy.contains(contract(submodels.to_submodel(points, rows)), rows).all())
    assert int(samples.ray_offsets[-1]) == len(samples.starts)
