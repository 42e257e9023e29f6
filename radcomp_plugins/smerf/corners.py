"""The texels around sample points: which ones, with what weight, and each of them only once.

The student's network is evaluated at texels alone, exactly those that baking stores, and what lies between them is
interpolated; so baking loses nothing (Duckworth et al. 2024; MERF, Reiser et al. 2023). A batch's samples share most of
their twenty texels, so the network sees each once.

Texels are numbered by a code: for every live submodel the S^3 voxels of the sparse grid in C order, then the T^2 texels
of planes 0, 1 and 2, in C order of the two grid axes the plane keeps.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numba import njit
from torch import Tensor

from radcomp_plugins.core.threads import run_striped
from radcomp_plugins.smerf.layout import Layout

VOXEL_CORNERS = 8
PLANE_CORNERS = 12
CORNERS = VOXEL_CORNERS + PLANE_CORNERS
PLANE_AXES = ((1, 2), (0, 2), (0, 1))
"""The grid axes that each plane keeps."""


@dataclass(frozen=True)
class Corners:
    """The texels around M points.

    Attributes:
        codes: [U] every texel among them once.
        index: [M, 20] for each point, entries of `codes`: 8 voxels, then 4 texels of each plane.
        weights: [M, 20] interpolation weights; those of the voxels sum to 1, those of each plane as well.
    """

    codes: Int[Tensor, " U"]
    index: Int[Tensor, "M 20"]
    weights: Float[Tensor, "M 20"]


def texels_per_submodel(layout: Layout) -> int:
    """How many codes a submodel takes."""
    return layout.sparse_resolution**3 + 3 * layout.triplane_resolution**2


def corners_of(contracted: Float[Tensor, "M 3"], row: Int[Tensor, " M"], layout: Layout) -> Corners:
    """The texels around points.

    Args:
        contracted: in [-2, 2].
        row: of each point's submodel.
        layout: the grids' resolutions.
    """
    if contracted.is_cuda:
        codes, weights = corners_torch(contracted, row, layout)
        unique, index = torch.unique(codes, return_inverse=True)
        return Corners(unique, index, weights)
    count = len(contracted)
    points = np.ascontiguousarray(contracted.detach().numpy(), np.float32)
    codes = np.empty((count, CORNERS), np.int64)
    weights = np.empty((count, CORNERS), np.float32)
    run_striped(
        _corners, points, row.numpy(), layout.sparse_resolution, layout.triplane_resolution, codes, weights
    )  # fmt: skip
    index = np.empty((count, CORNERS), np.int64)
    table = np.full(1 << max(4, int(2 * count * CORNERS).bit_length() - 1), -1, np.int32)
    unique = np.empty(count * CORNERS, np.int64)
    used = _number(codes.reshape(-1), table, unique, index.reshape(-1))
    return Corners(torch.from_numpy(unique[:used].copy()), torch.from_numpy(index), torch.from_numpy(weights))


@njit(nogil=True, cache=True, error_model="numpy")
def _corners(start, step, points, rows, sparse, triplane, codes, weights) -> None:
    per_plane = np.int64(triplane) * triplane
    per_row = np.int64(sparse) ** 3 + 3 * per_plane
    low = np.empty(3, np.int64)
    fraction = np.empty(3, np.float32)
    one = np.float32(1.0)
    for i in range(start, len(points), step):
        base = rows[i] * per_row
        lower_corner(points[i], sparse, low, fraction)
        for corner in range(8):
            code = np.int64(0)
            weight = one
            for axis in range(3):
                up = (corner >> axis) & 1
                code = code * sparse + min(max(low[axis] + up, 0), sparse - 1)
                weight *= fraction[axis] if up else one - fraction[axis]
            codes[i, corner], weights[i, corner] = base + code, weight
        base += np.int64(sparse) ** 3
        lower_corner(points[i], triplane, low, fraction)
        for plane in range(3):
            a = 1 if plane == 0 else 0
            b = 1 if plane == 2 else 2
            for corner in range(4):
                up_a, up_b = corner & 1, corner >> 1
                ia = min(max(low[a] + up_a, 0), triplane - 1)
                ib = min(max(low[b] + up_b, 0), triplane - 1)
                k = 8 + 4 * plane + corner
                codes[i, k] = base + plane * per_plane + ia * triplane + ib
                weights[i, k] = (fraction[a] if up_a else one - fraction[a]) * (
                    fraction[b] if up_b else one - fraction[b]
                )


@njit(nogil=True, cache=True, error_model="numpy")
def lower_corner(point, resolution, low, fraction) -> None:
    """The lower corner of the cell between voxel centres that a point is in, and where in it."""
    for axis in range(3):
        position = (point[axis] + np.float32(2.0)) * np.float32(0.25 * resolution) - np.float32(0.5)
        floor = np.floor(position)
        low[axis], fraction[axis] = np.int64(floor), position - floor


@njit(nogil=True, cache=True, error_model="numpy")
def _number(codes, table, unique, index) -> int:
    """Number the distinct codes in order of first appearance, by an open-addressing hash table of a power of two."""
    mask = np.uint64(len(table) - 1)
    used = 0
    for i in range(len(codes)):
        code = codes[i]
        slot = (np.uint64(code) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32) & mask
        while True:
            entry = table[slot]
            if entry < 0:
                table[slot] = used
                unique[used] = code
                index[i] = used
                used += 1
                break
            if unique[entry] == code:
                index[i] = entry
                break
            slot = (slot + np.uint64(1)) & mask
    return used


def corners_torch(points: Tensor, row: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """The twin of `_corners`: codes and weights of all corners, [M, 20] each."""
    sparse, triplane = layout.sparse_resolution, layout.triplane_resolution
    codes, weights = [], []
    base = row * texels_per_submodel(layout)
    for resolution, kept in ((sparse, ((0, 1, 2),)), (triplane, PLANE_AXES)):
        position = (points + 2.0) * (0.25 * resolution) - 0.5
        low = position.floor()
        fraction = position - low
        for axes in kept:
            for corner in range(2 ** len(axes)):
                code, weight = torch.zeros_like(row), torch.ones_like(points[:, 0])
                for bit, axis in enumerate(axes):
                    up = (corner >> bit) & 1
                    code = code * resolution + (low[:, axis] + up).clamp(0, resolution - 1).long()
                    weight = weight * (fraction[:, axis] if up else 1.0 - fraction[:, axis])
                codes.append(base + code)
                weights.append(weight)
            base = base + resolution ** len(axes)
    return torch.stack(codes, dim=-1), torch.stack(weights, dim=-1)


def texel_centres(codes: Int[Tensor, " U"], layout: Layout) -> tuple[Float[Tensor, "U 3"], Int[Tensor, " U"]]:
    """Where texels are, in the contracted frame, and the row of their submodel.

    A plane's texel lies on the face of the cube where the axis that the plane leaves out is at its first voxel, so
    planes and voxels share one field (as in the authors' code).
    """
    sparse, triplane = layout.sparse_resolution, layout.triplane_resolution
    per_row = texels_per_submodel(layout)
    row = torch.div(codes, per_row, rounding_mode="floor")
    local = codes - row * per_row
    is_voxel = local < sparse**3
    centres = torch.empty(len(codes), 3, dtype=torch.float32, device=codes.device)
    voxel = local[is_voxel]
    axes = [torch.div(voxel, sparse**2, rounding_mode="floor"), voxel // sparse % sparse, voxel % sparse]
    centres[is_voxel] = torch.stack([_centre(axis, sparse) for axis in axes], dim=-1)
    texel = local[~is_voxel] - sparse**3
    plane = torch.div(texel, triplane**2, rounding_mode="floor")
    first, second = _centre(texel // triplane % triplane, triplane), _centre(texel % triplane, triplane)
    face = torch.full_like(first, -2.0 + 2.0 / triplane)
    on_plane = [(face, first, second), (first, face, second), (first, second, face)]
    centres[~is_voxel] = torch.stack(
        [torch.stack(point, dim=-1) for point in on_plane]
    )[plane, torch.arange(len(plane), device=plane.device)]  # fmt: skip
    return centres, row


def _centre(index: Tensor, resolution: int) -> Tensor:
    return -2.0 + (index.float() + 0.5) * (4.0 / resolution)
