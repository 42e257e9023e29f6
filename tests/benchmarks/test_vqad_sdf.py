"""The signed-distance benchmark: its mesh, its distances, and a short fit."""

from pathlib import Path

import numpy as np
import torch
from scipy.spatial import KDTree

from benchmarks.vqad_sdf import Mesh, VqadSdf, bumpy_torus, signed_distance, surface_points


def tetrahedron() -> Mesh:
    at = np.array([[0.2, 0.2, 0.2], [0.8, 0.2, 0.2], [0.2, 0.8, 0.2], [0.2, 0.2, 0.8]])
    corners = at[np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return Mesh(np.repeat(corners, 3, axis=0), np.repeat(normals / np.linalg.norm(normals, axis=1)[:, None], 3, axis=0))


def test_distances_by_hand() -> None:
    mesh = tetrahedron()
    points = np.array([[0.1, 0.3, 0.3], [0.25, 0.3, 0.3], [0.1, 0.1, 0.1], [0.9, 0.2, 0.2], [0.5, 0.1, 0.1]])
    wanted = [0.1, -0.05, np.sqrt(0.03), 0.1, np.sqrt(0.02)]
    assert np.allclose(signed_distance(mesh, KDTree(mesh.corners.mean(axis=1)), points), wanted)


def test_the_torus_is_closed_and_faces_outwards() -> None:
    mesh = bumpy_torus(40, 20)
    six_volumes = np.einsum("ti,ti->t", mesh.corners[:, 0], np.cross(mesh.corners[:, 1], mesh.corners[:, 2]))
    assert 0.5 * (2 * np.pi**2 * 0.3 * 0.12**2) < six_volumes.sum() / 6 < 1.5 * (2 * np.pi**2 * 0.3 * 0.12**2)
    at, normals = surface_points(mesh, 200, np.random.default_rng(0))
    tree = KDTree(mesh.corners.mean(axis=1))
    assert np.allclose(signed_distance(mesh, tree, at), 0, atol=1e-9)
    assert (signed_distance(mesh, tree, at + 1e-3 * normals) > 0).all()
    assert (signed_distance(mesh, tree, at - 1e-3 * normals) < 0).all()


def test_a_short_run(tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = VqadSdf(
        tmp_path / "out", coarsest_level=3, finest_level=4, bits=(4,), steps=60, batch=1024, points=8000
    ).main()
    rows = result["rows"]
    assert list(rows) == ["full precision", "kmVQ, 4 bits", "VQ-AD, 4 bits"]
    assert rows["VQ-AD, 4 bits"]["bytes"] < 0.2 * rows["full precision"]["bytes"]
    assert rows["full precision"]["distance_error"] < rows["kmVQ, 4 bits"]["distance_error"]
    assert (tmp_path / "out/sdf.json").is_file()
