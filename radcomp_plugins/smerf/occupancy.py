"""Where a submodel has something: cells of its contracted cube that the teacher gives weight to.

The student is nothing but empty elsewhere, in training as in the baked asset, so empty space costs no look-ups and
baking loses nothing by leaving it out. Duckworth et al. 2024 find the occupied voxels only when they bake.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from scipy import ndimage
from torch import Tensor, nn

from radcomp_plugins.distributed import any_process

MAX_DISTANCE = 255


class Occupancy(nn.Module):
    """Occupied cells of all live submodels, and how far the nearest one is from each cell.

    Attributes:
        cells: [rows, N, N, N] whether a cell holds anything, contracted frame, indexed [x, y, z].
        seen: [rows, N, N, N] cells that have been seen to matter since the last `prune`.
        distance: [rows, N, N, N] 0 in occupied cells and those that touch one; else how many cells (largest norm) may
            be crossed before one is met.
    """

    def __init__(self, rows: int, resolution: int) -> None:
        super().__init__()
        self.resolution = resolution
        shape = (rows, resolution, resolution, resolution)
        self.register_buffer("cells", torch.zeros(shape, dtype=torch.bool))
        self.register_buffer("seen", torch.zeros(shape, dtype=torch.bool))
        self.register_buffer("distance", torch.zeros(shape, dtype=torch.uint8), persistent=False)
        self.cells: Bool[Tensor, "rows N N N"]
        self.seen: Bool[Tensor, "rows N N N"]
        self.distance: UInt8[Tensor, "rows N N N"]

    def cell_of(self, contracted: Float[Tensor, "M 3"], row: Int[Tensor, " M"]) -> Int[Tensor, " M"]:
        """Index into the flattened cells."""
        n = self.resolution
        cell = ((contracted + 2.0) * (0.25 * n)).long().clamp(0, n - 1)
        return ((row * n + cell[:, 0]) * n + cell[:, 1]) * n + cell[:, 2]

    def contains(self, contracted: Float[Tensor, "M 3"], row: Int[Tensor, " M"]) -> Bool[Tensor, " M"]:
        """Whether points lie in occupied cells."""
        return self.cells.flatten()[self.cell_of(contracted, row)]

    def mark(self, contracted: Float[Tensor, "M 3"], row: Int[Tensor, " M"]) -> None:
        """Occupy the cells of points, and all that touch them: a point says where to within a cell, not better."""
        n = self.resolution
        flat = self.cells.flatten()
        code = self.cell_of(contracted, row).unique()
        z, y, x, r = code % n, code // n % n, code // n**2 % n, code // n**3
        for dx in (-1, 0, 1):
            for dy in (-1, 0, 1):
                for dz in (-1, 0, 1):
                    near = [(axis + step).clamp(0, n - 1) for axis, step in ((x, dx), (y, dy), (z, dz))]
                    flat[((r * n + near[0]) * n + near[1]) * n + near[2]] = True
        self.cells = flat.view_as(self.cells)

    def see(self, contracted: Float[Tensor, "M 3"], row: Int[Tensor, " M"]) -> None:
        """Note that points matter."""
        self.seen.view(-1)[self.cell_of(contracted, row)] = True

    def prune(self) -> None:
        """Empty every cell that neither has been seen to matter nor touches one that has, and look afresh."""
        seen = any_process(self.seen)
        near = torch.nn.functional.max_pool3d(seen.float().unsqueeze(1), 3, stride=1, padding=1)[:, 0] > 0
        self.cells &= near
        self.seen.zero_()
        self.measure()

    def measure(self) -> None:
        """Bring the distances up to date; until then rays step over what was marked last."""
        for row, cells in enumerate(self.cells.cpu().numpy()):
            self.distance[row] = torch.from_numpy(cell_distance(cells)).to(self.distance.device)

    def _load_from_state_dict(self, *args, **kwargs) -> None:  # noqa: ANN002, ANN003
        super()._load_from_state_dict(*args, **kwargs)
        self.measure()


def cell_distance(cells: np.ndarray) -> np.ndarray:
    """Cells that may be crossed before an occupied one is met, [N, N, N] uint8: Chebyshev distance less 1."""
    if not cells.any():
        return np.full(cells.shape, MAX_DISTANCE, np.uint8)
    away = ndimage.distance_transform_cdt(~cells, metric="chessboard")
    return np.clip(np.asarray(away) - 1, 0, MAX_DISTANCE).astype(np.uint8)
