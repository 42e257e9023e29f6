"""The octree's tables against sets of coordinates."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from radcomp_plugins.core import morton
from radcomp_plugins.core.octree import Octree, children_of, dilate, matching_rows, voxels_of_points

CORNERS = list(itertools.product((0, 1), repeat=3))


def coordinates(codes: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(int(c) for c in row) for row in morton.decode(codes)}


def random_octree(count: int = 20, finest: int = 4, coarsest: int = 2, seed: int = 0) -> Octree:
    rng = np.random.default_rng(seed)
    return Octree.from_finest(rng.integers(0, 8**finest, count), finest, coarsest)


@given(st.integers(1, 60), st.integers(0, 3), st.integers(0, 2), st.integers(0, 1000))
def test_tables_against_sets(count: int, coarsest: int, more: int, seed: int) -> None:
    octree = random_octree(count, coarsest + more, coarsest, seed)
    for number, level in enumerate(octree.levels):
        voxels = coordinates(octree.voxels[number])
        vertices = {tuple(np.add(v, c)) for v in voxels for c in CORNERS}
        assert coordinates(octree.vertices[number]) == vertices
        assert octree.vertex_starts[number + 1] - octree.vertex_starts[number] == len(vertices)
        known = morton.decode(octree.vertices[number])
        for row, voxel in enumerate(morton.decode(octree.voxels[number])):
            node = octree.node_starts[number] + row
            for place, offset in enumerate(CORNERS):
                vertex = int(octree.corners[node, place]) - octree.vertex_starts[number]
                assert tuple(known[vertex]) == tuple(voxel + offset)
                child = int(octree.children[node, place])
                wanted = tuple(2 * voxel + offset)
                if level == octree.finest or wanted not in coordinates(octree.voxels[number + 1]):
                    assert child == -1
                else:
                    first = octree.node_starts[number + 1]
                    assert tuple(morton.decode(octree.voxels[number + 1])[child - first]) == wanted


def test_top_by_hand() -> None:
    octree = Octree(1, [np.array([0, 5])])
    assert octree.top.tolist() == [0, -1, -1, -1, -1, 1, -1, -1]
    assert octree.num_vertices == 16 - 2  # (0,0,0) and (1,0,1) share the edge from (1,0,1) to (1,1,1)


def test_dense_counts() -> None:
    octree = Octree.dense(1, 3)
    assert [len(v) for v in octree.voxels] == [8, 64, 512]
    assert [len(v) for v in octree.vertices] == [27, 125, 729]
    assert octree.level_of_vertices().bincount().tolist() == [27, 125, 729]


def test_truncated_is_a_prefix() -> None:
    octree = random_octree()
    short = octree.truncated(3)
    assert short.levels == [2, 3]
    nodes = short.node_starts[-1]
    assert torch.equal(short.corners, octree.corners[:nodes])
    assert torch.equal(short.children[: short.node_starts[1]], octree.children[: short.node_starts[1]])


@pytest.mark.parametrize(
    ("coarsest", "voxels", "words"),
    [
        (2, [[]], "no voxels"),
        (1, [[3, 3]], "not ascending"),
        (1, [[8]], "not ascending"),
        (1, [[0], [8]], "parent is missing"),
        (11, [[0]], "levels"),
    ],
)
def test_what_is_no_octree(coarsest: int, voxels: list[list[int]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Octree(coarsest, [np.array(codes, np.int64) for codes in voxels])


def test_points_and_dilation() -> None:
    points = torch.tensor([[0.0, 0.0, 0.0], [0.99, 0.5, 0.26], [1.0, 0.5, 0.5], [-0.1, 0.5, 0.5], [0.5, 0.5, 2.0]])
    voxels = voxels_of_points(points, 2)
    assert coordinates(voxels) == {(0, 0, 0), (3, 2, 1)}
    grown = coordinates(dilate(voxels, 2, 1))
    wanted = {
        (x, y, z)
        for a in ((0, 0, 0), (3, 2, 1))
        for x, y, z in itertools.product(*(range(max(c - 1, 0), min(c + 2, 4)) for c in a))
    }
    assert grown == wanted
    assert (np.diff(dilate(voxels, 2, 1)) > 0).all()
    assert coordinates(dilate(voxels, 2, 0)) == coordinates(voxels)


def test_no_points_no_voxels() -> None:
    assert len(voxels_of_points(torch.zeros(0, 3), 3)) == 0


def test_children_by_hand() -> None:
    assert children_of(np.array([1, 4])).tolist() == [*range(8, 16), *range(32, 40)]


def test_matching_rows() -> None:
    old, new = random_octree(30, 4, 2, 1), random_octree(30, 5, 3, 2)
    rows = matching_rows(old, new)
    for number, level in enumerate(new.levels):
        for place, code in enumerate(new.vertices[number]):
            row = int(rows[new.vertex_starts[number] + place])
            if level in old.levels and code in old.vertices[old.levels.index(level)]:
                theirs = old.levels.index(level)
                assert old.vertices[theirs][row - old.vertex_starts[theirs]] == code
            else:
                assert row == -1
    assert int((rows >= 0).sum()) > 0
