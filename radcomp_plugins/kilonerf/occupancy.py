"""Which voxels of the grid are occupied: those in which the teacher has density (Reiser et al. 2021, Sec. 3.3)."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from radcomp_plugins.teachers.points import PointTeacher

BRICK = 4
"""Voxels along a side of the bricks that are looked at first."""
_FAINT = 0.05
"""Share of the threshold at which a brick is looked at closely: density between its samples may be higher."""
_AT_ONCE = 1 << 17
"""Points asked for at a time: memory stays below ten megabytes whatever the grid."""

Report = Callable[[int, int], None]
"""Told (how much is done, how much there is)."""


@torch.no_grad()
def find_occupancy(
    teacher: PointTeacher,
    box: Float[NDArray[np.float64], "2 3"],
    voxels: tuple[int, int, int],
    density: float,
    report: Report = lambda done, total: None,
    device: torch.device | str = "cpu",
) -> Bool[NDArray[np.bool_], "vx vy vz"]:
    """Voxels that have, at a corner or in the middle, at least this density.

    Bricks of voxels are asked first, at points two voxels apart; where those and their neighbours have next to nothing,
    nobody looks closer.

    Args:
        teacher: whom to ask.
        box: scene frame.
        voxels: along each axis, multiples of 4.
        density: per scene unit.
        report: progress.
        device: where positions are computed.

    Note:
        The paper asks 27 points of every voxel, on a lattice that neighbours share; corners and middle are 2.
    """
    counts = np.array(voxels)
    size = (box[1] - box[0]) / counts
    # Directions do not change a density.
    coarse = _lattice_density(teacher, box[0], 2.0 * size, counts // 2 + 1, None, report, device)
    near = ndimage.maximum_filter(coarse, size=3, mode="constant")[1::2, 1::2, 1::2]
    bricks = ndimage.maximum_filter(near, size=3, mode="constant") >= _FAINT * density
    fine = bricks.repeat(BRICK, 0).repeat(BRICK, 1).repeat(BRICK, 2)
    wanted = np.zeros(counts + 1, np.bool_)
    for corner in np.ndindex(2, 2, 2):
        wanted[tuple(slice(c, c + n) for c, n in zip(corner, voxels, strict=True))] |= fine
    corners = _lattice_density(teacher, box[0], size, counts + 1, wanted, report, device) >= density
    middles = _lattice_density(teacher, box[0] + 0.5 * size, size, counts, fine, report, device) >= density
    for corner in np.ndindex(2, 2, 2):
        middles |= corners[tuple(slice(c, c + n) for c, n in zip(corner, voxels, strict=True))]
    return middles & fine


def _lattice_density(
    teacher: PointTeacher,
    start: NDArray[np.float64],
    spacing: NDArray[np.float64],
    counts: NDArray[np.int64],
    wanted: Bool[NDArray[np.bool_], "nx ny nz"] | None,
    report: Report,
    device: torch.device | str,
) -> Float[NDArray[np.float32], "nx ny nz"]:
    """Density at the points of a lattice, 0 where nobody wants to know."""
    shape = tuple(int(n) for n in counts)
    out = np.zeros(int(np.prod(shape)), np.float32)
    index = np.arange(len(out)) if wanted is None else np.flatnonzero(wanted)
    origin = torch.tensor(start, dtype=torch.float64, device=device)
    step = torch.tensor(spacing, dtype=torch.float64, device=device)
    for begin in range(0, len(index), _AT_ONCE):
        chunk = index[begin : begin + _AT_ONCE]
        place = np.stack(np.unravel_index(chunk, shape), axis=-1)
        positions = (origin + torch.from_numpy(place).to(device) * step).float()
        towards = torch.zeros_like(positions)
        towards[:, 2] = -1.0
        out[chunk] = _finite(teacher.query_points(positions, towards).density).cpu().numpy()
        report(min(begin + _AT_ONCE, len(index)), len(index))
    return out.reshape(shape)


def _finite(density: Tensor) -> Tensor:
    return torch.nan_to_num(density, nan=0.0, posinf=3e38)


def density_of_opacity(opacity: float, length: float) -> float:
    """The density, per scene unit, that is so opaque over a length."""
    return float(-np.log1p(-opacity) / length)
