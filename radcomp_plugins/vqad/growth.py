"""Where a scene's voxels are: from depth maps, from points, or found while training.

The paper builds its octree from depth and leaves open how to do without (section 5.1). Here a full grid, or one
around SfM points, is trained at a coarse level, voxels that no ray finds anything in are pruned, and the rest is
split, level by level.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.data.utils.data_utils import get_depth_image_from_path
from scipy import ndimage
from torch import Tensor

from radcomp_plugins.core import morton
from radcomp_plugins.core.morton import Codes
from radcomp_plugins.core.octree import Octree, children_of, dilate, voxels_of_points
from radcomp_plugins.core.octree_lookup import interpolate, locate
from radcomp_plugins.errors import InputError
from radcomp_plugins.vqad.encoding import VQADEncoding

MOST_OUTSIDE = 0.5
"""Share of depth points that may lie outside the scene box: more look like a wrong unit."""

_MARGIN = 0.02
"""Room on each side between the points and the box, as a share of its side."""
_SMALLEST_BODY = 1e-3
"""Share of all that is seen that voxels which hang together must have to count for the box."""
_DEPTH_POINTS = 2_000_000
"""Depth points that are held to find the box; the octree sees all of them."""


def cube_around(low: Float[Tensor, " 3"], high: Float[Tensor, " 3"], margin: float = _MARGIN) -> Float[Tensor, "2 3"]:
    """The cube with the middle of a box, as wide as its longest side, and a margin on each side."""
    half = 0.5 * (high - low).max() * (1 + 2 * margin)
    middle = 0.5 * (low + high)
    return torch.stack([middle - half, middle + half])


def to_box(points: Float[Tensor, "N 3"], box: Float[Tensor, "2 3"]) -> Float[Tensor, "N 3"]:
    """Scene-frame points in the frame of a box."""
    return (points - box[0]) / (box[1] - box[0])


def depth_points(dataset: Any, index: int) -> Float[Tensor, "N 3"]:
    """Scene-frame points that one training image's depth map shows; none where it has no depth or no opacity.

    Args:
        dataset: a nerfstudio dataset whose metadata name depth maps, z along the camera's axis.
        index: of the image.

    Raises:
        InputError: the depth map cannot be read.
    """
    metadata, cameras = dataset.metadata, dataset.cameras
    path = Path(metadata["depth_filenames"][index])
    if not path.is_file():
        raise InputError(f"depth map {path}: no such file, expected one for each image")
    scale = metadata["depth_unit_scale_factor"] * dataset._dataparser_outputs.dataparser_scale
    height, width = int(cameras.height[index]), int(cameras.width[index])
    depth = get_depth_image_from_path(filepath=path, height=height, width=width, scale_factor=scale)[..., 0]
    seen = (depth > 0) & torch.isfinite(depth)
    image = torch.from_numpy(dataset.get_numpy_image(index))
    if image.shape[-1] == 4 and image.shape[:2] == seen.shape:
        seen &= image[..., 3] > 127
    rays = cameras.generate_rays(camera_indices=index, keep_shape=True)
    # Depth is measured along the camera's axis, rays have unit length: their norm before says how they compare.
    distance = depth[..., None].to(rays.origins) * rays.metadata["directions_norm"]
    return (rays.origins + rays.directions * distance)[seen]


def check_inside(outside: int, total: int, what: str) -> None:
    """Refuse points most of which lie outside the scene box.

    Raises:
        InputError: more than `MOST_OUTSIDE` do, or there are none at all.
    """
    if total == 0:
        raise InputError(f"{what}: no points, so the octree would be empty; expected depth above 0 somewhere")
    if outside > MOST_OUTSIDE * total:
        raise InputError(
            f"{what}: {100 * outside / total:.0f} % of {total:,} points lie outside the scene box, expected at most "
            f"{100 * MOST_OUTSIDE:.0f} %: is the depth's unit right (--depth-unit-scale-factor), or the scene box?"
        )


def octree_from_depth(
    dataset: Any, scene_box: Float[Tensor, "2 3"], coarsest: int, finest: int, dilation: int
) -> tuple[Octree, Float[Tensor, "2 3"]]:
    """The octree of all voxels that depth maps show something in, and the cube it lies in.

    Args:
        dataset: see `depth_points`.
        scene_box: points outside are left out.
        coarsest: coarsest level.
        finest: finest level.
        dilation: voxels of the finest level that it grows by.

    Raises:
        InputError: no depth maps, empty ones, or most of what they show is outside the scene box.
    """
    if not dataset.metadata.get("depth_filenames"):
        raise InputError(
            "--pipeline.model.octree-from depth: the dataset names no depth maps; expected depth_file_path in "
            "transforms.json, or --pipeline.model.octree-from points or none"
        )
    count = len(dataset)
    stride = max(1, count * int(dataset.cameras.height[0]) * int(dataset.cameras.width[0]) // _DEPTH_POINTS)
    outside, total, low, high = 0, 0, scene_box[1].clone(), scene_box[0].clone()
    for index in range(count):
        points = depth_points(dataset, index)[::stride]
        inside = ((points >= scene_box[0]) & (points <= scene_box[1])).all(dim=-1)
        outside, total = outside + int((~inside).sum()), total + len(points)
        if inside.any():
            low, high = torch.minimum(low, points[inside].amin(0)), torch.maximum(high, points[inside].amax(0))
    check_inside(outside, total, "depth maps")
    box = cube_around(low, high)
    codes = [voxels_of_points(to_box(depth_points(dataset, index), box), finest) for index in range(count)]
    voxels = torch.cat([torch.from_numpy(part) for part in codes]).unique().numpy()
    return Octree.from_finest(dilate(voxels, finest, dilation), finest, coarsest), box


def octree_from_points(
    points: Float[Tensor, "N 3"], scene_box: Float[Tensor, "2 3"], coarsest: int, start: int, dilation: int
) -> tuple[Octree, Float[Tensor, "2 3"]]:
    """The octree around points, to begin training with, and the cube it lies in.

    Args:
        points: scene frame. The farthest thousandth along each axis counts as stray, and is left out.
        scene_box: points outside are left out.
        coarsest: coarsest level.
        start: finest level of the result.
        dilation: voxels of that level that it grows by.

    Raises:
        InputError: most points are outside the scene box, or there are none.
    """
    inside = ((points >= scene_box[0]) & (points <= scene_box[1])).all(dim=-1)
    check_inside(int((~inside).sum()), len(points), "SfM points")
    kept = points[inside]
    low, high = (torch.quantile(kept[:1_000_000], q, dim=0) for q in (0.001, 0.999))
    # Room for the dilation as well.
    box = cube_around(low, high, _MARGIN + dilation / 2**start)
    voxels = dilate(voxels_of_points(to_box(kept, box), start), start, dilation)
    return Octree.from_finest(voxels, start, coarsest), box


def split(octree: Octree, kept: Codes, add_level: bool) -> Octree:
    """The octree above some of its finest voxels, or above their children."""
    if add_level:
        return Octree.from_finest(children_of(kept), octree.finest + 1, octree.coarsest)
    return Octree.from_finest(kept, octree.finest, octree.coarsest)


def box_around_voxels(
    voxels: Codes, level: int, box: Float[Tensor, "2 3"], seen: Float[Tensor, " N"]
) -> Float[Tensor, "2 3"]:
    """The cube around the bodies that voxels of a box's grid form, and one voxel on each side.

    Fog that few rays can see through and through stays in the corners for long; it hangs together with nothing, and is
    next to nothing of what is seen.

    Args:
        voxels: of the grid.
        level: of the grid.
        box: of the grid, scene frame.
        seen: how much each voxel shows, 0 or more.
    """
    xyz = morton.decode(voxels)
    grid = np.zeros((2**level,) * 3, np.bool_)
    grid[tuple(xyz.T)] = True
    bodies: Any = ndimage.label(grid, np.ones((3, 3, 3)))
    labels = bodies[0][tuple(xyz.T)]
    mass = np.bincount(labels, seen.double().cpu().numpy())
    mine = torch.from_numpy(xyz[mass[labels] >= _SMALLEST_BODY * mass.sum()]).to(box)
    side = (box[1] - box[0]) / 2**level
    cube = cube_around(box[0] + (mine.amin(0) - 1) * side, box[0] + (mine.amax(0) + 2) * side, margin=0.0)
    # A cube may be wider than the box along its longer sides only.
    return cube if side_of(cube) < side_of(box) else box.clone()


def side_of(box: Float[Tensor, "2 3"]) -> float:
    """Length of a box's longest side."""
    return float((box[1] - box[0]).max())


def voxels_in_other_box(voxels: Codes, level: int, box: Float[Tensor, "2 3"], other: Float[Tensor, "2 3"]) -> Codes:
    """Voxels of the same level of another box's grid that voxels reach into."""
    # Nearer together than the other grid's voxels are wide.
    finer = int(((box[1] - box[0]) / (other[1] - other[0])).max())
    parts = torch.linspace(0.02, 0.98, max(5, finer + 2))
    grid = torch.stack(torch.meshgrid(parts, parts, parts, indexing="ij"), dim=-1).reshape(1, -1, 3)
    low = torch.from_numpy(morton.decode(voxels)).float()
    points = ((low[:, None] + grid) / 2**level).reshape(-1, 3).to(box)
    return voxels_of_points(to_box(box[0] + points * (box[1] - box[0]), other), level)


@torch.no_grad()
def carry_over(encoding: VQADEncoding, box: Float[Tensor, "2 3"], octree: Octree, other: Float[Tensor, "2 3"]) -> None:
    """Move a full-precision encoding to an octree of another box: each level gets what the coarser ones leave.

    Args:
        encoding: of mode `full`, over `box`; changed in place.
        box: scene frame.
        octree: to be over `other`.
        other: scene frame.
    """
    old, table = encoding.octree, encoding.values.detach().clone()
    encoding.restructure(octree)
    encoding.values.zero_()
    for number, level in enumerate(octree.levels):
        first, last = octree.vertex_starts[number], octree.vertex_starts[number + 1]
        at = inner_points(octree, number).to(box)
        before = to_box(other[0] + at * (other[1] - other[0]), box)
        wanted = interpolate(table, old, before, locate(old, before))
        if number:
            wanted = wanted - interpolate(encoding.values, octree, at, locate(octree, at, level - 1))
        encoding.values[first:last] = wanted


def inner_points(octree: Octree, number: int) -> Float[Tensor, "M 3"]:
    """A point just beside each vertex of a level, inside a voxel that has the vertex as a corner.

    The vertex itself may lie on the far face of the last voxel, where the grid gives it to the next one, that is empty.
    """
    level = octree.levels[number]
    corners = octree.corners[octree.node_starts[number] : octree.node_starts[number + 1]].long().cpu()
    voxel_of = torch.zeros(len(octree.vertices[number]), dtype=torch.long)
    voxel_of[(corners - octree.vertex_starts[number]).flatten()] = torch.arange(len(corners)).repeat_interleave(8)
    middle = torch.from_numpy(morton.decode(octree.voxels[number])).float()[voxel_of] + 0.5
    vertex = torch.from_numpy(morton.decode(octree.vertices[number])).float()
    return torch.lerp(vertex, middle, 1e-3) / 2**level
