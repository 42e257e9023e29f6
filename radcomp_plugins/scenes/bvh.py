"""A bounding volume hierarchy over triangles and the ray query on it, as numba kernels."""

from typing import NamedTuple

import numba
import numpy as np
from jaxtyping import Float, Int

LEAF_SIZE = 4
BINS = 16
STACK_SIZE = 64
"""Depth that no tree built here exceeds: a split that would not halve anything falls back to the median."""


class Bvh(NamedTuple):
    """Tree and triangles, the triangles in leaf order.

    Attributes:
        boxes: [M, 12] float32 for each inner node the box of the left child (low, high), then of the right one.
        links: [M, 2] int32 for each inner node its children: an inner node's number, or for a leaf
            -(first triangle * (LEAF_SIZE + 1) + count) - 1.
        triangles: [T, 9] float64 first vertex, second minus first, third minus first.
        order: [T] int32 index of the triangle in the list that was given.
    """

    boxes: Float[np.ndarray, "M 12"]
    links: Int[np.ndarray, "M 2"]
    triangles: Float[np.ndarray, "T 9"]
    order: Int[np.ndarray, " T"]


@numba.njit(cache=True, nogil=True)
def _surface(lo, hi):
    d0, d1, d2 = hi[0] - lo[0], hi[1] - lo[1], hi[2] - lo[2]
    return d0 * d1 + d1 * d2 + d2 * d0


@numba.njit(cache=True, nogil=True)
def _best_split(lower, upper, centres, order, first, last):
    """Cheapest plane among `BINS` per axis by the surface area heuristic: (axis, position) or axis -1."""
    best, best_axis, best_at = np.inf, -1, 0.0
    count = np.empty(BINS, np.int64)
    lo, hi = np.empty((BINS, 3)), np.empty((BINS, 3))
    right = np.empty(BINS)
    for axis in range(3):
        c_lo, c_hi = np.inf, -np.inf
        for k in range(first, last):
            c = centres[order[k], axis]
            c_lo, c_hi = min(c_lo, c), max(c_hi, c)
        if c_hi - c_lo < 1e-12:
            continue
        scale = BINS / (c_hi - c_lo)
        count[:] = 0
        lo[:], hi[:] = np.inf, -np.inf
        for k in range(first, last):
            t = order[k]
            b = min(BINS - 1, int((centres[t, axis] - c_lo) * scale))
            count[b] += 1
            for d in range(3):
                lo[b, d] = min(lo[b, d], lower[t, d])
                hi[b, d] = max(hi[b, d], upper[t, d])
        acc_lo, acc_hi, total = np.full(3, np.inf), np.full(3, -np.inf), 0
        for b in range(BINS - 1, 0, -1):
            total += count[b]
            for d in range(3):
                acc_lo[d], acc_hi[d] = min(acc_lo[d], lo[b, d]), max(acc_hi[d], hi[b, d])
            right[b] = total * _surface(acc_lo, acc_hi) if total else np.inf
        acc_lo[:], acc_hi[:], total = np.inf, -np.inf, 0
        for b in range(BINS - 1):
            total += count[b]
            for d in range(3):
                acc_lo[d], acc_hi[d] = min(acc_lo[d], lo[b, d]), max(acc_hi[d], hi[b, d])
            if total and right[b + 1] < np.inf:
                cost = total * _surface(acc_lo, acc_hi) + right[b + 1]
                if cost < best:
                    best, best_axis, best_at = cost, axis, c_lo + (b + 1) / scale
    return best_axis, best_at


@numba.njit(cache=True, nogil=True)
def _build(lower, upper, centres):
    n = lower.shape[0]
    order = np.arange(n).astype(np.int32)
    bounds = np.empty((2 * n, 6))
    links = np.zeros((2 * n, 2), np.int32)
    todo = np.empty((2 * STACK_SIZE, 4), np.int64)
    todo[0, 0], todo[0, 1], todo[0, 2], todo[0, 3] = 0, 0, n, 0
    waiting, used = 1, 1
    while waiting:
        waiting -= 1
        node, first, last, depth = todo[waiting, 0], todo[waiting, 1], todo[waiting, 2], todo[waiting, 3]
        for d in range(3):
            lo, hi = np.inf, -np.inf
            for k in range(first, last):
                lo, hi = min(lo, lower[order[k], d]), max(hi, upper[order[k], d])
            bounds[node, d], bounds[node, d + 3] = lo, hi
        if last - first <= LEAF_SIZE:
            links[node, 0], links[node, 1] = first, last - first
            continue
        axis, at = _best_split(lower, upper, centres, order, first, last)
        middle = first
        if axis >= 0 and depth < STACK_SIZE // 2:
            end = last
            while middle < end:
                if centres[order[middle], axis] < at:
                    middle += 1
                else:
                    end -= 1
                    order[middle], order[end] = order[end], order[middle]
        if middle == first or middle == last:
            middle = (first + last) // 2
        links[node, 0] = used
        todo[waiting, 0], todo[waiting, 1], todo[waiting, 2], todo[waiting, 3] = used, first, middle, depth + 1
        waiting += 1
        todo[waiting, 0], todo[waiting, 1], todo[waiting, 2], todo[waiting, 3] = used + 1, middle, last, depth + 1
        waiting += 1
        used += 2
    return bounds[:used], links[:used], order


def build(triangles: Float[np.ndarray, "T 3 3"]) -> Bvh:
    """Builds the tree; `triangles` are [T, 3 vertices, 3] float64 with at least one of them."""
    if len(triangles) == 0:
        raise ValueError("a bounding volume hierarchy needs at least one triangle, got 0")
    lower, upper = triangles.min(axis=1), triangles.max(axis=1)
    bounds, links, order = _build(lower, upper, triangles.mean(axis=1))
    # Rounding, of a box to float32 and in the slab test, must not lose a triangle that lies in an axis plane.
    pad = 1e-6 * max(1.0, float(np.abs(bounds).max()))
    bounds = (bounds + pad * np.repeat([-1.0, 1.0], 3)).astype(np.float32)
    inner = links[:, 1] == 0
    number = np.cumsum(inner) - 1
    code = np.where(inner, number, -(links[:, 0] * (LEAF_SIZE + 1) + links[:, 1]) - 1)
    if not inner.any():
        # A tree of one leaf: an inner node whose right child is a leaf without triangles.
        boxes, children = np.concatenate([bounds[0], bounds[0]])[None], np.array([[code[0], -1]])
    else:
        left = links[inner, 0]
        boxes = np.concatenate([bounds[left], bounds[left + 1]], axis=1)
        children = np.stack([code[left], code[left + 1]], axis=1)
    tri = triangles[order]
    flat = np.concatenate([tri[:, 0], tri[:, 1] - tri[:, 0], tri[:, 2] - tri[:, 0]], axis=1)
    return Bvh(np.ascontiguousarray(boxes), np.ascontiguousarray(children.astype(np.int32)), flat, order)


@numba.njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _enter(boxes, node, c, ox, oy, oz, ix, iy, iz, far):
    """Distance at which a ray enters the box that starts in column c of a node, or infinity."""
    a, b = (boxes[node, c] - ox) * ix, (boxes[node, c + 3] - ox) * ix
    near, end = min(a, b), max(a, b)
    a, b = (boxes[node, c + 1] - oy) * iy, (boxes[node, c + 4] - oy) * iy
    near, end = max(near, min(a, b)), min(end, max(a, b))
    a, b = (boxes[node, c + 2] - oz) * iz, (boxes[node, c + 5] - oz) * iz
    near, end = max(near, min(a, b)), min(end, max(a, b))
    if near <= end and end >= 0.0 and near < far:
        return near
    return np.inf


@numba.njit(cache=True, nogil=True, error_model="numpy")
def trace(bvh, ox, oy, oz, dx, dy, dz, far, any_hit, stack):
    """First triangle that a ray meets at a distance in (0, far), or any one of them.

    Args:
        bvh: the tree.
        ox, oy, oz: origin.
        dx, dy, dz: direction; distances count in its length.
        far: largest distance.
        any_hit: stop at the first triangle found, whichever it is.
        stack: [STACK_SIZE] int64 scratch memory.

    Returns:
        (distance, position of the triangle in `bvh` or -1, barycentric weight of vertex 2, of vertex 3).
    """
    tiny = 1e-15
    ix = 1.0 / (dx if abs(dx) > tiny else tiny)
    iy = 1.0 / (dy if abs(dy) > tiny else tiny)
    iz = 1.0 / (dz if abs(dz) > tiny else tiny)
    found, best_u, best_v = -1, 0.0, 0.0
    boxes, links, tri = bvh.boxes, bvh.links, bvh.triangles
    waiting, node = 0, 0
    while True:
        if node >= 0:
            near = _enter(boxes, node, 0, ox, oy, oz, ix, iy, iz, far)
            other = _enter(boxes, node, 6, ox, oy, oz, ix, iy, iz, far)
            if near < np.inf:
                left, right = links[node, 0], links[node, 1]
                node = left
                if other < np.inf:
                    if other < near:
                        node, right = right, left
                    stack[waiting] = right
                    waiting += 1
                continue
            if other < np.inf:
                node = links[node, 1]
                continue
        else:
            first, count = divmod(-1 - node, LEAF_SIZE + 1)
            for k in range(first, first + count):
                px = dy * tri[k, 8] - dz * tri[k, 7]
                py = dz * tri[k, 6] - dx * tri[k, 8]
                pz = dx * tri[k, 7] - dy * tri[k, 6]
                det = tri[k, 3] * px + tri[k, 4] * py + tri[k, 5] * pz
                if det == 0.0:
                    continue
                inv = 1.0 / det
                sx, sy, sz = ox - tri[k, 0], oy - tri[k, 1], oz - tri[k, 2]
                u = (sx * px + sy * py + sz * pz) * inv
                if u < 0.0 or u > 1.0:
                    continue
                qx = sy * tri[k, 5] - sz * tri[k, 4]
                qy = sz * tri[k, 3] - sx * tri[k, 5]
                qz = sx * tri[k, 4] - sy * tri[k, 3]
                v = (dx * qx + dy * qy + dz * qz) * inv
                if v < 0.0 or u + v > 1.0:
                    continue
                t = (tri[k, 6] * qx + tri[k, 7] * qy + tri[k, 8] * qz) * inv
                if 0.0 < t < far:
                    far, found, best_u, best_v = t, k, u, v
                    if any_hit:
                        return far, found, best_u, best_v
        if waiting == 0:
            return far, found, best_u, best_v
        waiting -= 1
        node = stack[waiting]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def faces_away(bvh, k, dx, dy, dz):
    """Whether a ray in direction (dx, dy, dz) meets triangle k from its inner side."""
    tri = bvh.triangles
    return (
        dx * (tri[k, 4] * tri[k, 8] - tri[k, 5] * tri[k, 7])
        + dy * (tri[k, 5] * tri[k, 6] - tri[k, 3] * tri[k, 8])
        + dz * (tri[k, 3] * tri[k, 7] - tri[k, 4] * tri[k, 6])
    ) > 0.0
