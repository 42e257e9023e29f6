"""What distillation trains on: points in occupied voxels, seen as cameras see them, with the teacher's answers.

The paper asks for a million points of every network beforehand and holds them all. Here a small pool is asked for at
a time, so memory is bounded by `pool_points` whatever the number of steps.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from radcomp_plugins.kilonerf.grid import CellLookup
from radcomp_plugins.kilonerf.scene import KiloGrid
from radcomp_plugins.teachers.points import PointTeacher

BYTES_PER_POINT = 40
"""Position, direction, opacity and colour as float32."""
_AT_ONCE = 1 << 17


@dataclass(frozen=True)
class TaughtPool:
    """Points of every network with the teacher's answers.

    Attributes:
        local: positions in the networks' own frames.
        directions: unit, scene axes.
        alpha: opacity over the distance that distillation compares, in [0, 1].
        rgb: in [0, 1].
    """

    local: Float[Tensor, "N P 3"]
    directions: Float[Tensor, "N P 3"]
    alpha: Float[Tensor, "N P"]
    rgb: Float[Tensor, "N P 3"]

    def turn(self, index: int, count: int) -> "TaughtPool":
        """The index-th `count` points of every network, beginning anew where the pool ends."""
        places = (torch.arange(count, device=self.alpha.device) + index * count) % self.alpha.shape[1]
        return TaughtPool(
            self.local[:, places], self.directions[:, places], self.alpha[:, places], self.rgb[:, places]
        )  # fmt: skip


@dataclass(frozen=True)
class VoxelLists:
    """Occupied voxels by network.

    Attributes:
        voxels: flat indices into the occupancy, network by network.
        offsets: first voxel of each network, then their number.
        size: voxels of the occupancy along each axis.
    """

    voxels: Int[Tensor, " V"]
    offsets: Int[Tensor, " N_plus_1"]
    size: tuple[int, int, int]

    def to(self, device: torch.device | str) -> "VoxelLists":
        """The same on another device."""
        return VoxelLists(self.voxels.to(device), self.offsets.to(device), self.size)

    def place(self, voxel: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch 3"]:
        """x, y, z of flat indices."""
        _, ny, nz = self.size
        return torch.stack([voxel // (ny * nz), voxel // nz % ny, voxel % nz], dim=-1)


def voxel_lists(grid: KiloGrid) -> VoxelLists:
    """The voxels that each network has to know: its cell's, and with overlap those of its neighbours that it reaches.

    Every network has at least one: a grid has none for empty cells.
    """
    side, cells = grid.voxels_per_cell, np.argwhere(grid.network_of_cell >= 0)
    reach = int(np.ceil(0.5 * grid.overlap * side))
    size = grid.occupancy.shape
    parts, counts = [], []
    for cell in cells:
        low = np.maximum(cell * side - reach, 0)
        high = np.minimum((cell + 1) * side + reach, size)
        block = grid.occupancy[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
        place = np.argwhere(block) + low
        parts.append((place[:, 0] * size[1] + place[:, 1]) * size[2] + place[:, 2])
        counts.append(len(place))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return VoxelLists(torch.from_numpy(np.concatenate(parts)), torch.from_numpy(offsets), (size[0], size[1], size[2]))


def draw_positions(
    lists: VoxelLists, lookup: CellLookup, count: int
) -> tuple[Float[Tensor, "N P 3"], Float[Tensor, "N P 3"]]:
    """Evenly random points in every network's voxels, from torch's global generator: in the scene frame, and local."""
    number = lists.offsets.diff()
    pick = (torch.rand(len(number), count, device=number.device, dtype=torch.float64) * number[:, None]).long()
    voxel = lists.voxels[lists.offsets[:-1, None] + pick]
    grid = lookup.grid
    at = (lists.place(voxel) + torch.rand(*voxel.shape, 3, device=voxel.device)) / grid.voxels_per_cell
    points = lookup.lower + at * (2.0 * lookup.half_cell)
    local = (points - lookup.centres[:, None]) / lookup.half_cell
    reach = 1.0 + grid.overlap
    local = local.clamp(-reach, reach)
    return lookup.to_scene(local), local


def draw_directions(
    points: Float[Tensor, "N P 3"], cameras: Float[Tensor, "cameras 3"], random_share: float
) -> Float[Tensor, "N P 3"]:
    """Unit directions from a random camera to each point, some of them from anywhere, from torch's global generator."""
    chosen = cameras[torch.randint(len(cameras), points.shape[:2], device=points.device)]
    anywhere = torch.randn_like(points)
    free = torch.rand_like(points[..., :1]) < random_share
    return torch.nn.functional.normalize(torch.where(free, anywhere, points - chosen), dim=-1)


@torch.no_grad()
def draw_pool(
    teacher: PointTeacher,
    lists: VoxelLists,
    lookup: CellLookup,
    cameras: Float[Tensor, "cameras 3"],
    *,
    count: int,
    random_share: float,
    delta: float,
) -> TaughtPool:
    """Points of every network with the teacher's answers, from torch's global generator.

    Args:
        teacher: whom to ask.
        lists: where each network has to know something.
        lookup: the grid.
        cameras: where the training cameras are, scene frame.
        count: points of each network.
        random_share: share of directions from anywhere.
        delta: distance over which the density becomes an opacity, scene units.
    """
    points, local = draw_positions(lists, lookup, count)
    directions = draw_directions(points, cameras, random_share)
    alpha, rgb = torch.empty_like(points[..., 0]), torch.empty_like(points)
    flat = (points.view(-1, 3), directions.view(-1, 3), alpha.view(-1), rgb.view(-1, 3))
    for begin in range(0, len(flat[0]), _AT_ONCE):
        chunk = slice(begin, begin + _AT_ONCE)
        said = teacher.query_points(flat[0][chunk], flat[1][chunk])
        flat[2][chunk] = -torch.expm1(-torch.nan_to_num(said.density, posinf=1e6) * delta)
        flat[3][chunk] = said.rgb
    return TaughtPool(local, directions, alpha, rgb)
