"""Look-up on an octree against a slow reference, values and gradients."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from radcomp_plugins.core import morton
from radcomp_plugins.core.octree import Octree
from radcomp_plugins.core.octree_lookup import (
    _locate_torch,
    corner_weights,
    interpolate,
    interpolate_bags,
    interpolate_torch,
    locate,
)
from radcomp_plugins.core.threads import get_num_threads, set_num_threads


def sparse(seed: int = 0, finest: int = 4, coarsest: int = 2, count: int = 40) -> Octree:
    rng = np.random.default_rng(seed)
    return Octree.from_finest(rng.integers(0, 8**finest, count), finest, coarsest)


def points_in(octree: Octree, count: int, seed: int = 0) -> torch.Tensor:
    """Half of them in the finest voxels, half anywhere, also outside."""
    rng = np.random.default_rng(seed)
    cells = morton.decode(octree.voxels[-1])[rng.integers(0, len(octree.voxels[-1]), count // 2)]
    near = (cells + rng.random((count // 2, 3))) / 2**octree.finest
    far = rng.random((count - count // 2, 3)) * 1.4 - 0.2
    return torch.from_numpy(np.concatenate([near, far])).float()


def slow(octree: Octree, values: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Feature of each point, vertex by vertex, in float64."""
    out = np.zeros((len(points), values.shape[1]))
    for i, point in enumerate(points.astype(np.float64)):
        if (point < 0).any() or (point > 1).any():
            continue
        for number, level in enumerate(octree.levels):
            side = 2**level
            cell = np.minimum(np.floor(point * side), side - 1).astype(int)
            if morton.encode(cell[None])[0] not in octree.voxels[number]:
                break
            f = point * side - cell
            for corner in itertools.product((0, 1), repeat=3):
                weight = np.prod([f[a] if corner[a] else 1 - f[a] for a in range(3)])
                code = morton.encode((cell + corner)[None])[0]
                row = octree.vertex_starts[number] + np.searchsorted(octree.vertices[number], code)
                out[i] += weight * values[row]
    return out


@pytest.mark.parametrize("width", [16, 32, 3])
@pytest.mark.parametrize("coarsest", [0, 2, 4])
def test_against_the_reference(width: int, coarsest: int) -> None:
    octree = sparse(coarsest=coarsest)
    values, points = torch.randn(octree.num_vertices, width), points_in(octree, 300)
    nodes = locate(octree, points)
    wanted = slow(octree, values.double().numpy(), points.numpy())
    for function in (interpolate, interpolate_bags, interpolate_torch):
        assert np.abs(function(values, octree, points, nodes).numpy() - wanted).max() < 2e-5
    assert (wanted == 0).all(axis=1).any() and (wanted != 0).any()


def test_gradients_are_the_transpose() -> None:
    octree = sparse()
    points = points_in(octree, 2000)
    nodes, grad = locate(octree, points), torch.randn(2000, 16)
    exact = torch.zeros(octree.num_vertices, 16, dtype=torch.float64, requires_grad=True)
    ours = torch.zeros(octree.num_vertices, 16, requires_grad=True)
    interpolate_torch(exact, octree, points.double(), nodes).backward(grad.double())
    interpolate(ours, octree, points, nodes).backward(grad)
    assert exact.grad is not None and ours.grad is not None
    assert float((ours.grad - exact.grad).abs().max()) < 1e-5 * float(exact.grad.abs().max())


def test_gradients_to_points() -> None:
    octree = sparse(finest=3)
    values = torch.randn(octree.num_vertices, 2, dtype=torch.float64)
    points = points_in(octree, 40).double().requires_grad_()
    nodes = locate(octree, points)
    assert torch.autograd.gradcheck(lambda p: interpolate(values, octree, p, nodes), (points,), eps=1e-7, atol=1e-5)


@given(st.integers(0, 10_000))
def test_twins_find_the_same_nodes(seed: int) -> None:
    octree = sparse(seed, coarsest=seed % 4)
    points = points_in(octree, 100, seed)
    depth = len(octree.levels)
    assert torch.equal(locate(octree, points), _locate_torch(octree, points, depth).int())
    part = locate(octree, points, octree.coarsest)
    assert torch.equal(part, locate(octree, points)[:, :1])


def test_weights_sum_to_one_or_nothing() -> None:
    octree = sparse()
    points = points_in(octree, 200)
    nodes = locate(octree, points)[:, -1]
    index, weights = corner_weights(octree, points, nodes, octree.finest)
    there = nodes >= 0
    assert bool(there.any()) and not bool(there.all())
    assert torch.allclose(weights[there].sum(dim=1), torch.ones(int(there.sum())), atol=1e-5)
    assert bool((weights[~there] == 0).all()) and bool((index[~there] == -1).all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e30, 1.0000001])
def test_points_outside_have_nothing(bad: float) -> None:
    octree = Octree.dense(1, 2)
    points = torch.tensor([[0.5, bad, 0.5]])
    for nodes in (locate(octree, points), _locate_torch(octree, points, 2)):
        assert nodes.tolist() == [[-1, -1]]
    out = interpolate(torch.ones(octree.num_vertices, 16), octree, points, locate(octree, points))
    assert bool((out == 0).all())


def test_far_faces_belong_to_the_last_voxel() -> None:
    octree = Octree.dense(1, 1)
    values = torch.arange(27.0).repeat_interleave(16).view(27, 16)
    corner = interpolate(values, octree, torch.ones(1, 3), locate(octree, torch.ones(1, 3)))
    assert float(corner[0, 0]) == 26.0


def test_same_bits_for_any_number_of_threads() -> None:
    octree = sparse(count=400, finest=5)
    values, points = torch.randn(octree.num_vertices, 16), points_in(octree, 5000)
    before, results = get_num_threads(), []
    try:
        for count in (1, 3):
            set_num_threads(count)
            table = values.clone().requires_grad_()
            out = interpolate(table, octree, points, locate(octree, points))
            out.backward(torch.sin(torch.arange(out.numel())).view(out.shape))
            results.append((out.detach(), table.grad))
    finally:
        set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))  # type: ignore[arg-type]
