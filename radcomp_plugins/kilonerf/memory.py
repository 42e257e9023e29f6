"""Whether a grid fits into memory, asked before it is taken, and which one would."""

from pathlib import Path

import torch

from radcomp_plugins.errors import InputError
from radcomp_plugins.kilonerf.distill import BYTES_PER_POINT
from radcomp_plugins.kilonerf.scene import NetworkShape

BYTES_PER_VOXEL = 12
"""While voxels are looked for: densities at their corners and in their middles, and masks of both."""
COPIES = 5
"""Of the parameters in training: themselves, gradients, two moments, and what a product or a fold puts beside them."""
SPARE = 0.9
"""Share of the free memory that may be asked for."""


def free_bytes(device: torch.device | str) -> int:
    """Memory that is free on a device; a terabyte where nobody says."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(torch.device(device))[0]
    info = Path("/proc/meminfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 10**12


def parameters_of(shape: NetworkShape) -> int:
    """Parameters of one network in training, where the feature layer is not folded."""
    width = shape.width
    sizes = (
        (shape.position_size, width), (width, width), (width, 1), (width, width),
        (width + shape.direction_size, width), (width, 3),
    )  # fmt: skip
    return sum((inputs + 1) * outputs for inputs, outputs in sizes)


def check_voxels(cells: tuple[int, int, int], side: int, device: torch.device | str) -> None:
    """Refuse an occupancy that does not fit.

    Raises:
        InputError: says which would.
    """
    count = cells[0] * cells[1] * cells[2] * side**3
    free, needed = free_bytes("cpu"), count * BYTES_PER_VOXEL
    if needed > SPARE * free:
        longest = max(int(max(cells) * (SPARE * free / needed) ** (1 / 3)), 1)
        raise InputError(
            f"{cells[0]} x {cells[1]} x {cells[2]} cells of {side}^3 voxels need {needed / 1e9:.1f} GB while they are "
            f"looked for, {free / 1e9:.1f} GB are free; the largest grid that fits: "
            f"--pipeline.model.grid-longest {longest}"
        )


def check_networks(
    networks: int, longest: int, shape: NetworkShape, pool_points: int, device: torch.device | str
) -> None:
    """Refuse more networks than memory holds.

    Raises:
        InputError: says how many there would be, and the largest grid that fits.
    """
    each = parameters_of(shape) * 4 * COPIES + pool_points * BYTES_PER_POINT
    free, needed = free_bytes(device), networks * each
    if needed > SPARE * free:
        # The number of occupied cells grows between the square and the cube of the resolution.
        fits = max(int(longest * (SPARE * free / needed) ** 0.5), 1)
        raise InputError(
            f"{networks:,} networks need {needed / 1e9:.1f} GB to train, {free / 1e9:.1f} GB are free; the largest "
            f"grid that fits is about --pipeline.model.grid-longest {fits} (now {longest}), or lower "
            "--pipeline.pool-points"
        )
