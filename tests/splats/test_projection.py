"""Projection against the same formulas in float64 numpy, its gradients against finite differences of those."""

import math

import numpy as np
import pytest
import torch

from radcomp_plugins.splats.projection import project_gaussians

WIDTH, HEIGHT, FOCAL, EPS = 60, 44, 50.0, 0.3
NAMES = ("means", "quats", "scales", "opacities")


def make(count: int = 40, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "means": rng.normal(size=(count, 3)) * [2.5, 2.0, 0.8],
        "quats": rng.normal(size=(count, 4)) * rng.uniform(0.2, 3, size=(count, 1)),
        "scales": np.exp(rng.normal(size=(count, 3)) - 2.5),
        "opacities": rng.uniform(0.05, 1, size=count),
    }


def cameras() -> tuple[np.ndarray, np.ndarray]:
    views = np.tile(np.eye(4), (2, 1, 1))
    views[:, 2, 3] = 3.0, 3.5
    views[1, :3, :3] = [[0.8, 0, 0.6], [0, 1, 0], [-0.6, 0, 0.8]]
    k = np.array([[FOCAL, 0, WIDTH / 2 + 2], [0, FOCAL * 1.1, HEIGHT / 2 - 3], [0, 0, 1]])
    return views, np.stack([k, k])


def rotation(q: np.ndarray) -> np.ndarray:
    """From the definition: the images of the axes under v -> q v q^-1."""
    w, u = q[0] / np.linalg.norm(q), q[1:] / np.linalg.norm(q)
    return np.stack([v + 2 * w * np.cross(u, v) + 2 * np.cross(u, np.cross(u, v)) for v in np.eye(3)], -1)


def reference(scene: dict[str, np.ndarray], antialiased: bool) -> list[np.ndarray]:
    """means2d, depths, conics and opacities of all pairs, none culled, and radii of all."""
    rows = []
    for view, k in zip(*cameras(), strict=True):
        for mean, quat, scale, opacity in zip(*(scene[name] for name in NAMES), strict=True):
            x, y, z = view[:3, :3] @ mean + view[:3, 3]
            (fx, cx), (fy, cy) = (k[0, 0], k[0, 2]), (k[1, 1], k[1, 2])
            mx, my = 0.15 * WIDTH / fx, 0.15 * HEIGHT / fy
            ux, uy = np.clip(x / z, -cx / fx - mx, (WIDTH - cx) / fx + mx), np.clip(y / z, -cy / fy - my,
                                                                                   (HEIGHT - cy) / fy + my)  # fmt: skip
            jacobian = np.array([[fx / z, 0, -fx * ux / z], [0, fy / z, -fy * uy / z]])
            axes = jacobian @ view[:3, :3] @ rotation(quat) @ np.diag(scale)
            flat = axes @ axes.T
            blurred = flat + EPS * np.eye(2)
            conic = np.linalg.inv(blurred)
            if antialiased:
                opacity = opacity * math.sqrt(np.linalg.det(flat) / np.linalg.det(blurred))
            mid, det = 0.5 * np.trace(blurred), np.linalg.det(blurred)
            radius = math.ceil(3 * math.sqrt(mid + math.sqrt(max(0.01, mid * mid - det))))
            u, v = fx * x / z + cx, fy * y / z + cy
            seen = u + radius > 0 and u - radius < WIDTH and v + radius > 0 and v - radius < HEIGHT and z >= 0.01
            rows.append([u, v, z, conic[0, 0], conic[0, 1], conic[1, 1], opacity, radius * seen])
    table = np.array(rows).reshape(2, -1, 8)
    return [table[..., :2], table[..., 2], table[..., 3:6], table[..., 6], table[..., 7]]


def project(scene: dict[str, np.ndarray], antialiased: bool = False, **options):
    leaves = {name: torch.tensor(array, dtype=torch.float32, requires_grad=True) for name, array in scene.items()}
    views, ks = (torch.tensor(array, dtype=torch.float32) for array in cameras())
    splats = project_gaussians(
        leaves["means"], leaves["quats"], leaves["scales"], leaves["opacities"], views, ks, WIDTH, HEIGHT,
        antialiased=antialiased, **options,
    )  # fmt: skip
    return leaves, splats


@pytest.mark.parametrize("antialiased", [False, True])
def test_values(antialiased):
    scene = make()
    _, splats = project(scene, antialiased)
    *expected, radii = reference(scene, antialiased)
    assert np.array_equal(splats.radii, radii)
    seen = radii > 0
    assert 15 < seen.sum() < seen.size
    ours = (splats.means2d, splats.depths, splats.conics, splats.opacities)
    for got, want in zip(ours, expected, strict=True):
        np.testing.assert_allclose(got.detach().numpy()[seen], want[seen], rtol=1e-5, atol=1e-6)
        assert (got.detach().numpy()[~seen] == 0).all()


@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_gradients(name, antialiased):
    scene, rng = make(), np.random.default_rng(7)
    leaves, splats = project(scene, antialiased)
    *expected, radii = reference(scene, antialiased)
    clamped = np.abs(expected[0][..., 0] - WIDTH / 2) > 0.65 * WIDTH
    assert (clamped & (radii > 0)).any(), "some slopes have to be limited, to test their gradient"
    weights = [rng.normal(size=array.shape) * (radii > 0).reshape(radii.shape + (1,) * (array.ndim - 2))
               for array in expected]  # fmt: skip
    ours = (splats.means2d, splats.depths, splats.conics, splats.opacities)
    sum((got * torch.tensor(w)).sum() for got, w in zip(ours, weights, strict=True)).backward()  # type: ignore[union-attr]
    grad = leaves[name].grad
    assert grad is not None and torch.isfinite(grad).all()
    numeric = np.zeros_like(scene[name])
    width = numeric[0].size
    for component in range(width):
        values = []
        for sign in (1, -1):
            moved = {key: array.copy() for key, array in scene.items()}
            moved[name].reshape(-1, width)[:, component] += sign * 1e-6
            results = reference(moved, antialiased)[:4]
            # Gaussians do not depend on one another, so one component of all of them moves at once.
            values.append(sum((r * w).reshape(2, len(numeric), -1).sum((0, 2)) for r, w in zip(results, weights,
                                                                                            strict=True)))  # fmt: skip
        numeric.reshape(-1, width)[:, component] = (values[0] - values[1]) / 2e-6
    assert np.abs(grad.numpy() - numeric).max() <= 1e-4 * np.abs(numeric).max()


def test_culling():
    scene = {name: np.repeat(array[:1], 6, axis=0) for name, array in make().items()}
    scene["means"][:] = [[0, 0, 0], [0, 0, -3.5], [0, 0, 5], [9, 0, 0], [0, 0, 0], [0, 0, 0]]
    scene["scales"][:] = 0.02
    scene["scales"][4] = 2.0
    everything = project(scene)[1].radii[0]
    assert (everything > 0).tolist() == [True, False, True, False, True, True]
    assert (project(scene, far_plane=6.0)[1].radii[0] > 0).tolist() == [True, False, False, False, True, True]
    assert (project(scene, near_plane=3.5)[1].radii[0] > 0).tolist() == [False, False, True, False, False, False]
    clip = float(everything[0])
    assert (project(scene, radius_clip=clip)[1].radii[0] > 0).tolist() == [False, False, False, False, True, False]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_culled_and_harms_no_other(name, value):
    scene = make()
    clean = project(scene)[1]
    scene[name][3] = value
    leaves, splats = project(scene)
    assert (splats.radii[:, 3] == 0).all() and splats.conics.isfinite().all() and splats.means2d.isfinite().all()
    others = np.arange(len(scene["means"])) != 3
    assert torch.equal(splats.conics[:, others], clean.conics[:, others])
    (splats.means2d.sum() + splats.conics.sum() + splats.opacities.sum() + splats.depths.sum()).backward()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves.values())
