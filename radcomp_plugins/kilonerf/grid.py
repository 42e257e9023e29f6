"""From a box to cells, and from points to cells: which network a point belongs to, and where in its cell it lies.

`KiloGrid` says what the grid is; `CellLookup` answers questions about points with tensors on any device. A point on the
border of two cells belongs to the upper one, and on the box's upper faces to the last.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from radcomp_plugins.errors import InputError
from radcomp_plugins.kilonerf.scene import KiloGrid

LONGEST = 16
"""Cells along the longest side of the box (Reiser et al. 2021)."""
VOXELS_PER_CELL = 16
"""Voxels of the occupancy along a side of a cell (Reiser et al. 2021)."""
_SLACK = 1e-6
"""Share of a cell by which a side may miss a whole number of cells: that is rounding, not scene."""


def cells_of_box(
    box: Float[NDArray[np.floating], "2 3"], longest: int = LONGEST
) -> tuple[Float[NDArray[np.float64], "2 3"], tuple[int, int, int]]:
    """The paper's rule: so many cubes along the longest side, and as many of them as cover the others.

    Args:
        box: lower and upper corner, scene frame.
        longest: cells along the longest side.

    Returns:
        The box, grown around its centre to whole cubes, and the number of cells along each axis.

    Raises:
        InputError: the box is empty, inverted or not finite, or `longest` is not from 1 to 256.
    """
    box = np.asarray(box, np.float64)
    if box.shape != (2, 3) or not np.isfinite(box).all() or not (box[0] < box[1]).all():
        raise InputError(f"box is {box.tolist()}: expected a lower corner below an upper one on every axis")
    if not 1 <= longest <= 256:
        raise InputError(f"grid has {longest} cells along its longest side: expected 1 to 256")
    extent = box[1] - box[0]
    size = extent.max() / longest
    cells = np.maximum(np.ceil(extent / size - _SLACK), 1).astype(int)
    centre, half = box.mean(axis=0), 0.5 * size * cells
    nx, ny, nz = (int(n) for n in cells)
    return np.stack([centre - half, centre + half]), (nx, ny, nz)


def grid_of_occupancy(
    box: Float[NDArray[np.floating], "2 3"],
    cells: tuple[int, int, int],
    occupancy: Bool[NDArray[np.bool_], "vx vy vz"],
    step: float,
    overlap: float = 0.0,
) -> KiloGrid:
    """A grid with a network for every cell that has an occupied voxel, and for no other.

    Args:
        box: of whole cubes, as `cells_of_box` gives it, scene frame.
        cells: along each axis.
        occupancy: voxels; their number along each axis is a multiple of the cells'.
        step: length of a ray's steps, scene units.
        overlap: see `KiloGrid`.

    Raises:
        InputError: no voxel is occupied, or sizes do not fit.
    """
    side = occupancy.shape[0] // cells[0]
    if occupancy.shape != tuple(side * n for n in cells):
        raise InputError(f"occupancy has {occupancy.shape} voxels for {cells} cells: expected a whole multiple")
    used = occupancy.reshape([k for n in cells for k in (n, side)]).any(axis=(1, 3, 5))
    if not used.any():
        raise InputError("occupancy is empty everywhere in the box: nothing to give a network to; check the box")
    ids = np.full(cells, -1, np.int32)
    ids[used] = np.arange(used.sum(), dtype=np.int32)
    return KiloGrid(np.asarray(box, np.float64), ids, occupancy, step, overlap)


class CellLookup(nn.Module):
    """A grid's cells and voxels as tensors.

    Attributes:
        centres: [N, 3] centre of each network's cell, scene frame.
        half_cell: [3] half a cell's sides, scene units.
    """

    lower: Tensor
    half_cell: Tensor
    centres: Tensor
    ids: Tensor
    voxels: Tensor

    def __init__(self, grid: KiloGrid) -> None:
        """Copy the grid; its tensors follow the module's device and are not part of its state."""
        super().__init__()
        self.grid = grid
        buffers = {
            "lower": torch.from_numpy(grid.box[0]).float(),
            "half_cell": torch.from_numpy(0.5 * grid.cell_size).float(),
            "ids": torch.from_numpy(grid.network_of_cell.reshape(-1)).long(),
            "voxels": torch.from_numpy(grid.occupancy.reshape(-1)),
        }
        corners = np.argwhere(grid.network_of_cell >= 0)
        buffers["centres"] = torch.from_numpy(grid.box[0] + (corners + 0.5) * grid.cell_size).float()
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)

    def _flat(self, index: Int[Tensor, "M 3"], counts: tuple[int, ...]) -> Int[Tensor, " M"]:
        """Place in a flattened grid of `counts` entries along each axis, clamped into it."""
        x, y, z = (index[..., axis].clamp(0, counts[axis] - 1) for axis in range(3))
        return (x * counts[1] + y) * counts[2] + z

    def inside(self, points: Float[Tensor, "M 3"]) -> Bool[Tensor, " M"]:
        """Whether points, scene frame, lie in the box, its border included."""
        g = (points - self.lower) / (2.0 * self.half_cell)
        upper = torch.tensor(self.grid.cells, device=g.device)
        return ((g >= 0) & (g <= upper)).all(dim=-1)

    def locate(self, points: Float[Tensor, "M 3"]) -> tuple[Int[Tensor, " M"], Float[Tensor, "M 3"]]:
        """Network of each point, and the point's local position.

        Args:
            points: scene frame.

        Returns:
            int64 ids, -1 outside of the box and in cells without a network; and positions in [-1, 1], or beyond for
            points outside of the box, in the frame of the nearest cell.
        """
        g = (points - self.lower) / (2.0 * self.half_cell)
        upper = torch.tensor(self.grid.cells, device=g.device)
        cell = torch.minimum(g.floor().clamp(min=0), upper - 1).long()
        within = ((g >= 0) & (g <= upper)).all(dim=-1)
        network = torch.where(within, self.ids[self._flat(cell, self.grid.cells)], -1)
        return network, (g - cell) * 2.0 - 1.0

    def to_scene(self, local: Float[Tensor, "N B 3"], network: Int[Tensor, " N"] | None = None) -> Tensor:
        """Scene positions [N, B, 3] of local ones, of all networks in order or of those named."""
        centres = self.centres if network is None else self.centres[network]
        return centres[:, None] + local * self.half_cell

    def occupied(self, points: Float[Tensor, "M 3"]) -> Bool[Tensor, " M"]:
        """Whether points, scene frame, lie in an occupied voxel."""
        side = self.grid.voxels_per_cell
        g = (points - self.lower) * (0.5 * side / self.half_cell)
        counts = tuple(side * n for n in self.grid.cells)
        return self.inside(points) & self.voxels[self._flat(g.floor().long(), counts)]

    def blend(
        self, points: Float[Tensor, "M 3"]
    ) -> tuple[Int[Tensor, "M 8"], Float[Tensor, "M 8 3"], Float[Tensor, "M 8"]]:
        """The networks that speak for each point, where each is asked, and how much it counts.

        Within `grid.overlap` of a border the networks of both sides count, half each on the border itself, so that the
        picture has no seam; near edges and corners four and eight do. Cells without a network do not count.

        Args:
            points: scene frame.

        Returns:
            int64 ids, -1 where there is none; local positions in [-1 - overlap, 1 + overlap]; and weights, which sum
            to 1 wherever the point's own cell has a network, else to 0. Without overlap the first is the point's own
            network and the rest count nothing.
        """
        own, local = self.locate(points)
        g = (points - self.lower) / (2.0 * self.half_cell)
        cell = ((g - (local + 1.0) * 0.5).round()).long()
        reach = self.grid.overlap
        side = torch.where(local < 0, -1, 1)
        share = (
            ((local.abs() - (1.0 - reach)) / (2.0 * reach)).clamp(0.0, 0.5) if reach > 0 else torch.zeros_like(local)
        )
        counts = torch.tensor(self.grid.cells, device=points.device)
        networks, positions, weights = [], [], []
        for corner in range(8):
            over = torch.tensor([corner >> axis & 1 for axis in range(3)], device=points.device)
            there = cell + over * side
            exists = ((there >= 0) & (there < counts)).all(dim=-1)
            network = torch.where(exists & (own >= 0), self.ids[self._flat(there, self.grid.cells)], -1)
            weight = torch.where(over == 1, share, 1.0 - share).prod(dim=-1)
            networks.append(network)
            positions.append(local - 2.0 * over * side)
            weights.append(torch.where(network >= 0, weight, 0.0))
        weight = torch.stack(weights, dim=-1)
        network = torch.where(weight > 0, torch.stack(networks, dim=-1), -1)
        total = weight.sum(dim=-1, keepdim=True)
        return network, torch.stack(positions, dim=-2), weight / torch.where(total > 0, total, 1.0)
