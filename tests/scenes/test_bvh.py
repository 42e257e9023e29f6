# Star arguments before others: pyright takes them for all that follow.
# pyright: reportCallIssue=false
import numpy as np
import pytest

from radcomp_plugins.scenes import bvh


def brute_force(triangles: np.ndarray, origin: np.ndarray, direction: np.ndarray, far: float) -> tuple[float, int]:
    """Solves origin + t direction = a + u (b - a) + v (c - a) for every triangle with a general linear solver."""
    best, found = far, -1
    for k, (a, b, c) in enumerate(triangles):
        matrix = np.stack([b - a, c - a, -direction], axis=1)
        if abs(np.linalg.det(matrix)) < 1e-14:
            continue
        u, v, t = np.linalg.solve(matrix, origin - a)
        if u >= 0 and v >= 0 and u + v <= 1 and 0 < t < best:
            best, found = t, k
    return best, found


def soup(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (count, 1, 3)) + rng.uniform(-0.3, 0.3, (count, 3, 3))


@pytest.mark.parametrize("count", [1, 3, 5, 120])
def test_first_hit_is_that_of_a_general_solver(count: int) -> None:
    triangles = soup(count, count)
    tree, stack = bvh.build(triangles), np.empty(bvh.STACK_SIZE, np.int64)
    rng = np.random.default_rng(7)
    hits = 0
    for k in range(150):
        origin = rng.uniform(-2, 2, 3)
        # Every third ray runs along an axis, where the slab test divides by zero.
        direction = np.eye(3)[k % 3] if k % 3 == 0 else rng.uniform(-1, 1, 3) - 0.5 * origin
        if k % 2:
            origin = triangles[k % count].mean(axis=0) - 1.5 * direction
        far = 1e30 if k % 5 else 1.0
        want_t, want = brute_force(triangles, origin, direction, far)
        t, tri, u, v = bvh.trace(tree, *origin, *direction, far, False, stack)
        assert (want < 0) == (tri < 0)
        assert (bvh.trace(tree, *origin, *direction, far, True, stack)[1] >= 0) == (want >= 0)
        if want >= 0:
            hits += 1
            assert tree.order[tri] == want
            assert t == pytest.approx(want_t, rel=1e-9)
            a, b, c = triangles[want]
            assert np.allclose(a + u * (b - a) + v * (c - a), origin + t * direction, atol=1e-9)
    assert hits > 20


def test_flat_and_coincident_triangles_are_found() -> None:
    square = np.array([[[0, 0, 0], [1, 0, 0], [1, 1, 0]], [[0, 0, 0], [1, 1, 0], [0, 1, 0]]], dtype=float)
    triangles = np.concatenate([square] * 20)
    tree, stack = bvh.build(triangles), np.empty(bvh.STACK_SIZE, np.int64)
    for x, y in ((0.3, 0.6), (0.6, 0.3), (0.999, 0.001)):
        t, tri, _, _ = bvh.trace(tree, x, y, 1.0, 0.0, 0.0, -1.0, np.inf, False, stack)
        assert tri >= 0 and t == pytest.approx(1.0)
    assert bvh.trace(tree, 1.01, 0.5, 1.0, 0.0, 0.0, -1.0, np.inf, False, stack)[1] == -1


def test_every_triangle_is_in_the_tree_once() -> None:
    tree = bvh.build(soup(333, 1))
    assert sorted(tree.order.tolist()) == list(range(333))
    leaves = [-(code + 1) for code in tree.links.ravel() if code < 0]
    spans = sorted(divmod(code, bvh.LEAF_SIZE + 1) for code in leaves)
    assert [first for first, _ in spans] == np.cumsum([0] + [count for _, count in spans[:-1]]).tolist()
    assert sum(count for _, count in spans) == 333


def test_side_of_a_triangle() -> None:
    tree = bvh.build(np.array([[[0, 0, 0], [1, 0, 0], [0, 1, 0]]], dtype=float))
    assert not bvh.faces_away(tree, 0, 0.1, 0.2, -1.0)
    assert bvh.faces_away(tree, 0, 0.1, 0.2, 1.0)


def test_no_triangles() -> None:
    with pytest.raises(ValueError, match="at least one triangle"):
        bvh.build(np.zeros((0, 3, 3)))
