import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from radcomp_plugins.core import morton
from radcomp_plugins.core.grid_index import GridIndex

cells = st.sets(st.tuples(*[st.integers(0, 8)] * 3), min_size=1, max_size=80)


def grid_of(places: set[tuple[int, int, int]]) -> tuple[GridIndex, list[tuple[int, ...]]]:
    codes = np.sort(morton.encode(np.array(sorted(places))))
    return GridIndex.build(codes, 9), [tuple(row) for row in morton.decode(codes).tolist()]


@given(cells)
@settings(max_examples=60, deadline=None)
def test_behind_and_faces_against_a_dictionary(places) -> None:
    grid, rows = grid_of(places)
    where = {place: number for number, place in enumerate(rows)}
    behind, faces = grid.behind(), grid.faces()
    for number, (x, y, z) in enumerate(rows):
        wanted = [where.get(place, -1) for place in ((x - 1, y, z), (x, y - 1, z), (x, y, z - 1))]
        assert behind[:, number].tolist() == wanted
        assert max(wanted) < number
        steps = [(x - 1, y, z), (x + 1, y, z), (x, y - 1, z), (x, y + 1, z), (x, y, z - 1), (x, y, z + 1)]
        assert faces[number] == int("".join(str(int(place in where)) for place in steps), 2)


@given(st.sets(st.tuples(*[st.integers(0, 7)] * 3), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_touching_voxels_against_a_dictionary(places) -> None:
    voxels = np.sort(morton.encode(np.array(sorted(places))))
    vertices = morton.voxel_vertices(voxels, 3)
    touching = GridIndex.build(vertices, 9).touching(voxels)
    for number, (x, y, z) in enumerate(morton.decode(vertices).tolist()):
        wanted = 0
        for corner in range(8):
            if (x - (corner >> 2), y - (corner >> 1 & 1), z - (corner & 1)) in places:
                wanted |= 1 << corner
        assert touching[number] == wanted > 0


def test_a_full_grid_and_one_that_crosses_words() -> None:
    codes = np.arange(8**2)
    assert (GridIndex.build(codes, 4).faces() == 63).sum() == 8
    one = GridIndex.build(np.array([7]), 2)
    assert one.behind().tolist() == [[-1], [-1], [-1]] and one.faces().tolist() == [0]
