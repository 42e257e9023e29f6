"""Ways of rays through voxels: kernel and twin against each other, and against box tests of every voxel."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from radcomp_plugins.core import morton
from radcomp_plugins.core.octree import Octree
from radcomp_plugins.core.octree_rays import (
    SHORTEST,
    VoxelHits,
    _intersect_torch,
    hit_rays,
    intersect,
    rays_within,
    split_evenly,
)


def sparse(seed: int, finest: int = 4, coarsest: int = 2, count: int = 60) -> Octree:
    rng = np.random.default_rng(seed)
    return Octree.from_finest(rng.integers(0, 8**finest, count), finest, coarsest)


def random_rays(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    origins = torch.rand(count, 3, generator=g) * 3 - 1
    targets = torch.rand(count, 3, generator=g)
    return origins, (targets - origins) * 0.7


def slow(octree: Octree, level: int, o: np.ndarray, d: np.ndarray, near: float) -> list[tuple[float, float, int]]:
    """Hits of one ray, by clipping it against every voxel."""
    number, side, found = octree.levels.index(level), 2**level, []
    for row, cell in enumerate(morton.decode(octree.voxels[number])):
        a, b = near, np.inf
        for axis in range(3):
            first, second = ((cell[axis] + end) / side - o[axis] for end in (0, 1))
            if d[axis] == 0:
                if first > 0 or second < 0:
                    b = -np.inf
                continue
            low, high = sorted((first / d[axis], second / d[axis]))
            a, b = max(a, low), min(b, high)
        if b - a > SHORTEST:
            found.append((a, b, octree.node_starts[number] + row))
    return sorted(found)


@given(st.integers(0, 10_000), st.integers(0, 2), st.sampled_from([0.0, 0.6]))
def test_hits_against_clipping(seed: int, deeper: int, near: float) -> None:
    octree = sparse(seed)
    level = octree.coarsest + deeper
    origins, directions = random_rays(seed, 20)
    starts = torch.full((20,), near)
    for hits in (
        intersect(octree, origins, directions, starts, level),
        _intersect_torch(octree, origins, directions, starts, level, float("inf")),
    ):
        assert len(hits.ray_offsets) == 21
        for r in range(20):
            wanted = slow(octree, level, origins[r].double().numpy(), directions[r].double().numpy(), near)
            a, b = hits.ray_offsets[r], hits.ray_offsets[r + 1]
            assert hits.nodes[a:b].tolist() == [node for _, _, node in wanted]
            got = torch.stack([hits.starts[a:b], hits.ends[a:b]], dim=1).double()
            assert torch.allclose(got, torch.tensor([w[:2] for w in wanted]).view(-1, 2).double(), atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_rays_along_an_axis(axis: int, sign: float) -> None:
    octree = Octree.dense(1, 3)
    origin = torch.full((1, 3), 0.3)
    origin[0, axis] = 0.5 - 2.0 * sign
    direction = torch.zeros(1, 3)
    direction[0, axis] = sign
    for level in (1, 3):
        hits = intersect(octree, origin, direction, torch.zeros(1), level)
        assert len(hits.starts) == 2**level
        assert torch.allclose(hits.ends - hits.starts, torch.full((2**level,), 0.5**level))
        assert float(hits.starts[0]) == pytest.approx(1.5)
        assert torch.allclose(hits.ends[:-1], hits.starts[1:])


def test_ends_and_misses() -> None:
    octree = Octree.dense(2, 2)
    origins, directions = torch.tensor([[-1.0, 0.4, 0.4], [-1.0, 2.0, 0.4], [0.4, 0.4, 0.4]]), torch.zeros(3, 3)
    directions[:, 0] = 1.0
    hits = intersect(octree, origins, directions, torch.zeros(3), far=1.5)
    assert hits.ray_offsets.tolist() == [0, 2, 2, 5]
    assert float(hits.ends[1]) == 1.5 and float(hits.starts[2]) == 0.0
    assert hit_rays(hits).tolist() == [True, False, True]
    assert len(intersect(octree, origins[:0], directions[:0], torch.zeros(0)).starts) == 0


def test_a_ray_with_more_hits_than_are_kept_between_rays_with_few() -> None:
    octree = Octree.dense(5, 5)
    origins = torch.tensor([[-1.0, 0.51, 0.51], [-1.0, 0.51, 0.51], [0.9, 0.51, 0.51], [0.0, -1.0, 0.51]])
    directions = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.01, 1.0, 0.0]])
    near = torch.zeros(4)
    hits, slowly = (
        intersect(octree, origins, directions, near),
        _intersect_torch(octree, origins, directions, near, 5, np.inf),
    )
    assert hits.ray_offsets.diff().tolist()[:3] == [0, 32, 4] and torch.equal(hits.ray_offsets, slowly.ray_offsets)
    assert torch.equal(hits.nodes, slowly.nodes)
    assert torch.allclose(hits.starts, slowly.starts, atol=1e-6)
    assert torch.allclose(hits.ends, slowly.ends, atol=1e-6)


def test_samples_of_each_part() -> None:
    hits = VoxelHits(
        torch.tensor([1.0, 2.0]), torch.tensor([2.0, 2.5]), torch.tensor([0, 1]).int(), torch.tensor([0, 0, 2])
    )
    at, lengths, offsets = split_evenly(hits, 2)
    assert torch.allclose(at, torch.tensor([1.25, 1.75, 2.125, 2.375]))
    assert torch.allclose(lengths, torch.tensor([0.5, 0.5, 0.25, 0.25]))
    assert offsets.tolist() == [0, 0, 4]
    moved, _, _ = split_evenly(hits, 2, torch.tensor([0.0, 0.0, 0.0, 0.5]))
    assert torch.allclose(moved, torch.tensor([1.0, 1.5, 2.0, 2.375]))


def test_first_rays() -> None:
    hits = intersect(Octree.dense(3, 3), *random_rays(0, 30), torch.zeros(30))
    limit = int(hits.ray_offsets[11])
    assert rays_within(hits, limit) >= 11
    count = rays_within(hits, 0)
    assert count >= 1
    short = hits.first_rays(11)
    assert len(short.starts) == limit and len(short.ray_offsets) == 12
