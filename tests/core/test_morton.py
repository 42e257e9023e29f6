import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from radcomp_plugins.core import morton

coordinates = st.lists(st.tuples(*[st.integers(0, 2**21 - 1)] * 3), min_size=1, max_size=50)


def slow_code(x: int, y: int, z: int) -> int:
    return sum(
        (x >> bit & 1) << (3 * bit + 2) | (y >> bit & 1) << (3 * bit + 1) | (z >> bit & 1) << (3 * bit)
        for bit in range(21)
    )


@given(coordinates)
@settings(deadline=None)
def test_codes_interleave_bits_and_are_undone(places) -> None:
    codes = morton.encode(np.array(places))
    assert codes.tolist() == [slow_code(*place) for place in places]
    assert morton.decode(codes).tolist() == [list(place) for place in places]


def test_children_by_hand() -> None:
    assert morton.encode(np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [2, 0, 0]])).tolist() == [0, 4, 2, 1, 32]
    parent, child = np.array([[5, 3, 6]]), np.array([[11, 6, 13]])
    assert morton.encode(child)[0] == 8 * morton.encode(parent)[0] + 4 + 1


@given(st.sets(st.tuples(*[st.integers(0, 7)] * 3), min_size=1, max_size=40))
@settings(deadline=None)
def test_vertices_are_the_corners_each_once(places) -> None:
    wanted = {
        slow_code(x + (c >> 2), y + (c >> 1 & 1), z + (c & 1)) for x, y, z in places for c in range(8)
    }  # fmt: skip
    voxels = morton.encode(np.array(sorted(places)))
    assert morton.voxel_vertices(voxels, 3).tolist() == sorted(wanted)


def test_vertices_of_full_grids_and_of_the_last_voxel() -> None:
    for level in (0, 1, 3):
        assert len(morton.voxel_vertices(np.arange(8**level), level)) == (2**level + 1) ** 3
    last = morton.decode(morton.voxel_vertices(np.array([8**4 - 1]), 4))
    assert last.min() == 15 and last.max() == 16 and len(last) == 8
