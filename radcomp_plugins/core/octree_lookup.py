"""Trilinear look-up of features on an octree's vertices, summed over its levels.

Where a finer level has no voxel it adds nothing (Takikawa et al. 2022, section 7.1). CPU tensors of a width that
vectors fit go through kernels whose results are the same for any number of threads; all others through plain torch.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numba import njit
from torch import Tensor

from radcomp_plugins.core.gather import gather
from radcomp_plugins.core.morton import spread
from radcomp_plugins.core.octree import Octree
from radcomp_plugins.core.simd import LANES, broadcast, load, store
from radcomp_plugins.core.threads import claim, claim_block, new_counter, run_striped

_F0, _F1 = np.float32(0.0), np.float32(1.0)


@njit(inline="always")
def walk(top, children, coarsest, depth, x, y, z, nodes, place):  # noqa: ANN001, ANN201
    """Nodes of a point, coarsest level first, into nodes[place : place + depth]; returns how many levels have one.

    Args:
        top: see `Octree`.
        children: see `Octree`.
        coarsest: level of `top`.
        depth: levels to walk.
        x: box-frame coordinate; a point outside [0, 1]^3, or NaN, has no node.
        y: the same.
        z: the same.
        nodes: 1-D int32, written.
        place: where to begin.
    """
    for level in range(depth):
        nodes[place + level] = -1
    if not (x >= _F0 and y >= _F0 and z >= _F0 and x <= _F1 and y <= _F1 and z <= _F1):
        return 0
    finest = coarsest + depth - 1
    side = np.int64(1) << finest
    # A power of two is an exact factor: the coarser levels' cells are the finest one's, shifted.
    cx = min(np.int64(x * np.float32(side)), side - 1)
    cy = min(np.int64(y * np.float32(side)), side - 1)
    cz = min(np.int64(z * np.float32(side)), side - 1)
    shift = depth - 1
    node = top[(spread(cx >> shift) << 2) | (spread(cy >> shift) << 1) | spread(cz >> shift)]
    found = 0
    while node >= 0:
        nodes[place + found] = node
        found += 1
        if found == depth:
            break
        shift -= 1
        node = children[node, ((cx >> shift & 1) << 2) | ((cy >> shift & 1) << 1) | (cz >> shift & 1)]
    return found


@njit(inline="always")
def fractions(level, x, y, z):  # noqa: ANN001, ANN201
    """Where a point of the box frame lies in its voxel of a level, in [0, 1] along each axis."""
    side = np.float32(np.int64(1) << level)
    last = side - _F1
    gx, gy, gz = x * side, y * side, z * side
    return gx - min(np.floor(gx), last), gy - min(np.floor(gy), last), gz - min(np.floor(gz), last)


@njit(nogil=True, cache=True, error_model="numpy")
def _locate(start, step, counter, points, top, children, coarsest, depth, nodes):  # noqa: ANN001, ANN202
    while True:
        begin, end = claim_block(counter, len(points))
        if begin == end:
            return
        for i in range(begin, end):
            walk(top, children, coarsest, depth, points[i, 0], points[i, 1], points[i, 2], nodes, i * depth)


@njit(nogil=True, cache=True, error_model="numpy")
def _note_read(start, step, counter, nodes, corners, found, read):  # noqa: ANN001, ANN202
    # Two threads may find the same node; both write what is true.
    while True:
        begin, end = claim_block(counter, len(nodes))
        if begin == end:
            return
        for i in range(begin, end):
            for level in range(nodes.shape[1]):
                node = nodes[i, level]
                if node >= 0 and not found[node]:
                    found[node] = True
                    for corner in range(8):
                        read[corners[node, corner]] = True


@njit(nogil=True, cache=True, error_model="numpy")
def _interpolate(start, step, counter, values, points, nodes, corners, coarsest, width, out):  # noqa: ANN001, ANN202
    depth = nodes.shape[1]
    while True:
        begin, end = claim_block(counter, len(points))
        if begin == end:
            return
        for i in range(begin, end):
            for first in range(0, width, LANES):
                total = broadcast(_F0)
                for level in range(depth):
                    node = nodes[i, level]
                    if node < 0:
                        break
                    fx, fy, fz = fractions(coarsest + level, points[i, 0], points[i, 1], points[i, 2])
                    for corner in range(8):
                        weight = fx if corner & 4 else _F1 - fx
                        weight *= fy if corner & 2 else _F1 - fy
                        weight *= fz if corner & 1 else _F1 - fz
                        total = total + load(values, np.int64(corners[node, corner]) * width + first) * weight
                store(out, i * width + first, total)


@njit(nogil=True, cache=True, error_model="numpy")
def scatter_levels(start, step, counter, points, nodes, corners, coarsest, width, grads, used, out):  # noqa: ANN001, ANN202
    """The transpose of the interpolation: a level belongs to one thread, which adds up its points in order.

    Args:
        start: not used.
        step: not used.
        counter: for `claim`.
        points: [N, 3] box frame.
        nodes: [N, depth].
        corners: see `Octree`.
        coarsest: level of the first column of `nodes`.
        width: features of a vertex, a multiple of 16.
        grads: [N * width] of the points' features.
        used: [N] false for points whose gradient is not to be read.
        out: [vertices * width], added to.
    """
    depth = nodes.shape[1]
    while True:
        level = depth - 1 - claim(counter)
        if level < 0:
            return
        for i in range(len(points)):
            node = nodes[i, level]
            if node < 0 or not used[i]:
                continue
            fx, fy, fz = fractions(coarsest + level, points[i, 0], points[i, 1], points[i, 2])
            for first in range(0, width, LANES):
                grad = load(grads, i * width + first)
                for corner in range(8):
                    weight = fx if corner & 4 else _F1 - fx
                    weight *= fy if corner & 2 else _F1 - fy
                    weight *= fz if corner & 1 else _F1 - fz
                    place = np.int64(corners[node, corner]) * width + first
                    store(out, place, load(out, place) + grad * weight)


def locate(octree: Octree, points: Float[Tensor, "N 3"], level: int | None = None) -> Int[Tensor, "N L"]:
    """Node of each point at each level up to `level`, -1 where the octree has none.

    Args:
        octree: on the points' device.
        points: box frame; outside [0, 1]^3 there are no nodes.
        level: finest level that is looked at; None is the octree's.
    """
    depth = (octree.finest if level is None else level) - octree.coarsest + 1
    if points.device.type != "cpu":
        return _locate_torch(octree, points, depth)
    nodes = torch.empty(len(points), depth, dtype=torch.int32)
    tables = octree.top.numpy(), octree.children.numpy()
    array = points.detach().float().contiguous().numpy()
    run_striped(_locate, new_counter(), array, *tables, octree.coarsest, depth, nodes.view(-1).numpy())
    return nodes


def _locate_torch(octree: Octree, points: Tensor, depth: int) -> Tensor:
    """`locate` in plain torch, for any device."""
    points = points.detach().float()
    inside = ((points >= 0) & (points <= 1)).all(dim=-1)
    finest = octree.coarsest + depth - 1
    cell = (points.nan_to_num().clamp(0, 1) * 2**finest).long().clamp(max=2**finest - 1)
    code = torch.zeros_like(cell[:, 0])
    for bit in range(octree.coarsest):
        shifted = cell >> (depth - 1 + bit) & 1
        code = code | (shifted[:, 0] << (3 * bit + 2)) | (shifted[:, 1] << (3 * bit + 1)) | (shifted[:, 2] << (3 * bit))
    node = torch.where(inside, octree.top[code], -1)
    found = [node]
    for shift in range(depth - 2, -1, -1):
        bits = cell >> shift & 1
        child = octree.children[node.clamp(min=0).long(), bits[:, 0] * 4 + bits[:, 1] * 2 + bits[:, 2]]
        node = torch.where(node >= 0, child, -1)
        found.append(node)
    return torch.stack(found, dim=1)


def vertices_read(octree: Octree, nodes: Int[Tensor, "N L"]) -> Int[Tensor, " U"]:
    """Vertices that the interpolation at some nodes reads, ascending, each once.

    Args:
        octree: on the nodes' device.
        nodes: as `locate` gives them.
    """
    if nodes.device.type != "cpu":
        return _vertices_read_torch(octree, nodes)
    found, read = np.zeros(len(octree.corners), np.bool_), np.zeros(octree.num_vertices, np.bool_)
    run_striped(_note_read, new_counter(), nodes.int().contiguous().numpy(), octree.corners.numpy(), found, read)
    return torch.from_numpy(read).nonzero().squeeze(1)


def _vertices_read_torch(octree: Octree, nodes: Tensor) -> Tensor:
    """`vertices_read` in plain torch, for any device."""
    read = torch.zeros(octree.num_vertices, dtype=torch.bool, device=nodes.device)
    read[octree.corners[nodes[nodes >= 0].long().unique()].flatten().long()] = True
    return read.nonzero().squeeze(1)


def corner_weights(
    octree: Octree, points: Float[Tensor, "N 3"], nodes: Int[Tensor, " N"], level: int
) -> tuple[Int[Tensor, "N 8"], Float[Tensor, "N 8"]]:
    """Vertices around points at one level and their trilinear weights.

    Args:
        octree: on the points' device.
        points: box frame; weights have gradients to them.
        nodes: node of each point at the level, as `locate` gives it.
        level: that level.

    Returns:
        vertices: int64, -1 where there is no node; corner 4 dx + 2 dy + dz.
        weights: of `points`' dtype, 0 where there is no node; they sum to 1 elsewhere.
    """
    side = 2**level
    grid = points * side
    fraction = grid - grid.detach().floor().clamp(max=side - 1)
    exists = nodes >= 0
    index = torch.where(exists[:, None], octree.corners[nodes.clamp(min=0).long()].long(), -1)
    weights = torch.ones_like(index, dtype=points.dtype)
    number = torch.arange(8, device=points.device)
    for axis, bit in enumerate((4, 2, 1)):
        f = fraction[:, axis : axis + 1]
        weights = weights * torch.where((number & bit).bool(), f, 1 - f)
    return index, torch.where(exists[:, None], weights, 0.0)


def interpolate_torch(
    values: Float[Tensor, "M K"], octree: Octree, points: Float[Tensor, "N 3"], nodes: Int[Tensor, "N L"]
) -> Float[Tensor, "N K"]:
    """`interpolate` in plain torch: for any device and dtype, with gradients to the points as well."""
    total = values.new_zeros(len(points), values.shape[1])
    for number in range(nodes.shape[1]):
        index, weights = corner_weights(octree, points, nodes[:, number], octree.coarsest + number)
        total = total + (values[index.clamp(min=0)] * weights[..., None].to(values.dtype)).sum(dim=1)
    return total


def interpolate_bags(
    values: Float[Tensor, "M K"], octree: Octree, points: Float[Tensor, "N 3"], nodes: Int[Tensor, "N L"]
) -> Float[Tensor, "N K"]:
    """`interpolate` as one weighted sum of rows: on a GPU, what never holds the features of all corners at once."""
    parts = [
        corner_weights(octree, points, nodes[:, number], octree.coarsest + number) for number in range(nodes.shape[1])
    ]
    index = torch.cat([index for index, _ in parts], dim=1).clamp(min=0)
    return gather(values, index, torch.cat([weights for _, weights in parts], dim=1).to(values.dtype))


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, points: Tensor, nodes: Tensor, octree: Octree) -> Tensor:  # type: ignore[override]
        width, corners = values.shape[1], octree.corners.numpy()
        arrays = [t.detach().contiguous().numpy() for t in (points, nodes)]
        out = torch.empty(len(points), width)
        table = values.detach().contiguous().view(-1).numpy()
        flat = out.view(-1).numpy()
        run_striped(_interpolate, new_counter(), table, *arrays, corners, octree.coarsest, width, flat)
        ctx.arrays, ctx.corners, ctx.coarsest, ctx.shape = arrays, corners, octree.coarsest, values.shape
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        out = torch.zeros(ctx.shape)
        used = np.ones(len(ctx.arrays[0]), np.bool_)
        args = *ctx.arrays, ctx.corners, ctx.coarsest, ctx.shape[1], grad.contiguous().view(-1).numpy(), used
        run_striped(scatter_levels, new_counter(), *args, out.view(-1).numpy())
        return out, None, None, None


def interpolate(
    values: Float[Tensor, "M K"], octree: Octree, points: Float[Tensor, "N 3"], nodes: Int[Tensor, "N L"]
) -> Float[Tensor, "N K"]:
    """Features of points: trilinear at every level that has a voxel there, summed over the levels.

    Args:
        values: features of all vertices.
        octree: on the values' device.
        points: box frame. Where they require gradients, plain torch computes.
        nodes: as `locate` gives them for the points.
    """
    kernel = values.device.type == "cpu" and values.dtype == points.dtype == torch.float32
    if values.is_cuda and not points.requires_grad:
        return interpolate_bags(values, octree, points, nodes)
    if not kernel or values.shape[1] % LANES or points.requires_grad:
        return interpolate_torch(values, octree, points, nodes)
    return _Interpolate.apply(values, points, nodes, octree)  # type: ignore[no-any-return]
