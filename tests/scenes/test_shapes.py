import math

import numpy as np
import pytest

from radcomp_plugins.scenes import shapes
from radcomp_plugins.scenes.world import triangles_of


def volume(patches: list[shapes.Patch]) -> float:
    """Signed volume inside closed patches by the divergence theorem; negative if they are inside out."""
    return sum(float(np.einsum("ij,ij->", t[:, 0], np.cross(t[:, 1], t[:, 2]))) / 6 for t in map(triangles_of, patches))


CLOSED = {
    "sphere": ([shapes.sphere(0.5, "m", sides=96)], 4 / 3 * math.pi * 0.125),
    "box": (shapes.box((1, 2, 3), "m"), 6.0),
    "rounded box": (shapes.rounded_box((1, 2, 3), 0.05, "m"), 5.97),
    "cone": ([shapes.revolve([(0, 0), (1, 0), (0, 1)], "m", sides=128)], math.pi / 3),
    "rod": ([shapes.tube([(0, 0, 0), (0, 1, 2)], 0.1, "m", sides=64)], math.pi * 0.01 * math.sqrt(5)),
}


@pytest.mark.parametrize("name", CLOSED)
def test_closed_shapes_face_outwards_and_have_their_volume(name: str) -> None:
    patches, expected = CLOSED[name]
    assert volume(patches) == pytest.approx(expected, rel=0.01)
    moved = shapes.place(patches, (3, -2, 1), yaw=30, tilt=(20, 50), scale=2.0)
    assert volume(moved) == pytest.approx(8 * expected, rel=0.01)


@pytest.mark.parametrize("name", CLOSED)
def test_normals_are_unit_and_on_the_outer_side(name: str) -> None:
    for patch in CLOSED[name][0]:
        p = patch.points
        cell = np.cross(p[:-1, 1:] - p[:-1, :-1], p[1:, 1:] - p[:-1, :-1])
        area = np.linalg.norm(cell, axis=-1)
        assert (np.einsum("ijk,ijk->ij", cell, patch.normals[:-1, :-1])[area > 1e-9] > 0).all()
        assert np.allclose(np.linalg.norm(patch.normals, axis=-1), 1.0, atol=1e-9)


def test_sphere_normals_are_exact() -> None:
    patch = shapes.sphere(0.5, "m")
    assert np.allclose(patch.normals, patch.points / 0.5, atol=1e-12)
    assert np.allclose(shapes.grid_normals(patch.points, True), patch.normals, atol=0.05)


def test_disc_is_flat_round_and_faces_up() -> None:
    for down in (False, True):
        patch = shapes.disc(2.0, "m", down=down)
        assert np.linalg.norm(patch.points, axis=-1).max() == pytest.approx(2.0)
        assert np.allclose(patch.normals, (0, 0, -1 if down else 1))
        area = 0.5 * np.linalg.norm(np.cross(*np.moveaxis(np.diff(triangles_of(patch), axis=1), 1, 0)), axis=-1).sum()
        assert area == pytest.approx(4 * math.pi, rel=0.01)


def test_quad_faces_u_cross_v_and_measures_lengths() -> None:
    patch = shapes.quad((1, 1, 1), (2, 0, 0), (0, 0, 3), "m")
    assert np.allclose(patch.normals, (0, -1, 0))
    assert patch.coords[1, 1].tolist() == [2, 3, 0]


def test_smooth_goes_through_its_points() -> None:
    knots = np.array([(0, 0), (1, 0.5), (1.5, 2), (0.2, 3)], dtype=float)
    assert np.allclose(shapes.smooth(knots, 5)[::5], knots)


def test_placing_turns_then_shifts() -> None:
    (patch,) = shapes.place([shapes.quad((1, 0, 0), (1, 0, 0), (0, 1, 0), "m")], (0, 0, 5), yaw=90)
    assert np.allclose(patch.points[0, 0], (0, 1, 5))
    assert np.allclose(patch.points[0, 1], (0, 2, 5))


def test_simplify_keeps_the_outline() -> None:
    fine = shapes.sphere(1.0, "m", sides=48)
    (coarse,) = shapes.simplify([fine], 0.2)
    assert coarse.points.shape == (13, 25, 3) and coarse.texel == 0.2
    assert np.array_equal(coarse.points[-1, -1], fine.points[-1, -1])
    assert np.array_equal(coarse.points[:, 0], coarse.points[:, -1])
