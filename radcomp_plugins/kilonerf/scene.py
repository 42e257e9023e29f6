"""What a KiloNeRF is once it is trained: a box of cells, which of its voxels hold something, and a network per cell.

Frames, from the outside in:

- *scene*: the frame of nerfstudio's cameras and rays; lengths are in scene units;
- *grid*: the box counted in cells, from 0 to the number of cells along each axis;
- *local*: a cell's own frame, [-1, 1]^3, in which its network is asked.

All grid arrays are indexed [x, y, z] in the scene's axes (Reiser et al. 2021, section 3).
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from radcomp_plugins.errors import InputError

MAX_OVERLAP = 0.25
"""Largest overlap of cells: beyond, the renderer's polynomials for the encoding of local positions lose digits."""


@dataclass(frozen=True)
class NetworkShape:
    """The layers that all networks share, those of Reiser et al. 2021 by default.

    hidden0 (ReLU), hidden1 (ReLU), then two heads on the same input: density, and feature, which has no activation;
    feature and the encoded direction go through direction (ReLU) and color (sigmoid).

    Attributes:
        width: outputs of every hidden layer, a multiple of 4.
        position_octaves: sines and cosines of 2^0 .. 2^(octaves - 1) times the local position.
        direction_octaves: the same for the direction, which is in the scene's axes and of unit length.
    """

    width: int = 32
    position_octaves: int = 10
    direction_octaves: int = 4

    def __post_init__(self) -> None:
        """Check the bounds that the kernels rely on."""
        if self.width % 4 or not 4 <= self.width <= 256:
            raise InputError(f"networks have width {self.width}: expected a multiple of 4 from 4 to 256")
        if not 0 <= self.position_octaves <= 12 or not 0 <= self.direction_octaves <= 12:
            raise InputError(
                f"networks have {self.position_octaves} octaves of positions and {self.direction_octaves} of "
                "directions: expected 0 to 12 of each"
            )

    @property
    def position_size(self) -> int:
        """Channels of an encoded position."""
        return 3 + 6 * self.position_octaves

    @property
    def direction_size(self) -> int:
        """Channels of an encoded direction."""
        return 3 + 6 * self.direction_octaves

    def folded_layers(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of each layer of `KiloScene.weights`, in the order in which they are evaluated."""
        return {
            "hidden0": (self.position_size, self.width),
            "hidden1": (self.width, self.width),
            "density": (self.width, 1),
            "direction": (self.width + self.direction_size, self.width),
            "color": (self.width, 3),
        }

    def folded_arrays(self, networks: int) -> dict[str, tuple[int, ...]]:
        """Shape of every array of `KiloScene.weights` for so many networks."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, (inputs, outputs) in self.folded_layers().items():
            shapes[f"{name}.weight"] = (networks, inputs, outputs)
            shapes[f"{name}.bias"] = (networks, outputs)
        return shapes


@dataclass(frozen=True)
class KiloGrid:
    """Where the networks are, and where it is worth asking them.

    Attributes:
        box: [2, 3] float64 lower and upper corner, scene frame; its cells are cubes.
        network_of_cell: [nx, ny, nz] int32 id of a cell's network, 0 to N - 1 in C order, or -1 for an empty cell.
        occupancy: [V nx, V ny, V nz] bool, V voxels along a side of each cell: a power of two from 4 to 64, the paper's
            is 16. Voxels in cells without a network are empty.
        step: length of a ray's steps, scene units; the length that the networks' densities were trained for.
        overlap: how far a network also speaks for its neighbours' cells, in halves of a cell's side: 0 (the paper) to
            0.25. Within that distance of a border the networks on both sides are blended.
    """

    box: NDArray[np.float64]
    network_of_cell: NDArray[np.int32]
    occupancy: NDArray[np.bool_]
    step: float
    overlap: float = 0.0

    def __post_init__(self) -> None:
        """Check everything that later code takes for granted."""
        box, ids, occupancy = self.box, self.network_of_cell, self.occupancy
        if box.shape != (2, 3) or not np.isfinite(box).all() or not (box[0] < box[1]).all():
            raise InputError(f"box is {box.tolist()}: expected a lower corner below an upper one on every axis")
        if not 0 < self.step < np.inf or not 0 <= self.overlap <= MAX_OVERLAP:
            raise InputError(
                f"grid has step {self.step} and overlap {self.overlap}: expected above 0, and 0 to {MAX_OVERLAP}"
            )
        if ids.ndim != 3 or 0 in ids.shape or ids.dtype != np.int32:
            raise InputError(f"grid of networks is {ids.dtype} {ids.shape}: expected int32 [nx, ny, nz]")
        side = occupancy.shape[0] // ids.shape[0]
        wanted = tuple(side * n for n in ids.shape)
        if occupancy.dtype != np.bool_ or occupancy.shape != wanted or side not in (4, 8, 16, 32, 64):
            raise InputError(
                f"occupancy is {occupancy.dtype} {occupancy.shape}: expected bool with 4, 8, 16, 32 or 64 voxels along "
                f"each side of the {ids.shape} cells"
            )
        used = ids[ids >= 0]
        if (ids < -1).any() or not np.array_equal(used, np.arange(len(used))):
            raise InputError(f"network ids of the cells are not -1, or 0 to {len(used) - 1} each once in order")
        if (self.occupied_cells() & (ids < 0)).any():
            raise InputError("occupancy has voxels in cells without a network")

    @property
    def cells(self) -> tuple[int, int, int]:
        """Cells along each axis."""
        nx, ny, nz = self.network_of_cell.shape
        return nx, ny, nz

    @property
    def voxels_per_cell(self) -> int:
        """Voxels along a side of a cell."""
        return self.occupancy.shape[0] // self.network_of_cell.shape[0]

    @property
    def num_networks(self) -> int:
        """N, networks of the grid."""
        return int((self.network_of_cell >= 0).sum())

    @property
    def cell_size(self) -> NDArray[np.float64]:
        """Sides [3] of a cell, scene units."""
        return (self.box[1] - self.box[0]) / np.array(self.cells)

    def occupied_cells(self) -> NDArray[np.bool_]:
        """Cells [nx, ny, nz] that have an occupied voxel."""
        side = self.voxels_per_cell
        blocks = self.occupancy.reshape([k for n in self.cells for k in (n, side)])
        return blocks.any(axis=(1, 3, 5))


@dataclass(frozen=True)
class KiloScene:
    """A trained KiloNeRF, decoded: all that is needed to draw it.

    The networks are *folded*: feature, which has no activation, is multiplied into direction, and density's output is
    the optical depth of one step. A sample of length L has depth relu(density) * L / grid.step, and density
    relu(density) / grid.step per scene unit. Whatever the scene's scale, the numbers stay within fp16.

    Attributes:
        grid: cells, voxels and step.
        shape: of the networks.
        weights: float32 arrays `<layer>.weight` [N, inputs, outputs] and `<layer>.bias` [N, outputs] for the layers
            hidden0, hidden1, density, direction, color; inputs as `networks.encode` orders them, and for direction the
            hidden layer's outputs, then the encoded direction.
        background: [3] float64 colour behind the scene, 0 to 1.
        near: distance from the camera at which rays begin, scene units: samples lie at near + (k + 1/2) step.
        dataset_to_scene: [3, 4] float64; x_scene = dataset_to_scene @ [x_dataset, 1].
    """

    grid: KiloGrid
    shape: NetworkShape
    weights: dict[str, NDArray[np.float32]]
    background: NDArray[np.float64] = field(default_factory=lambda: np.ones(3))
    near: float = 0.0
    dataset_to_scene: NDArray[np.float64] = field(default_factory=lambda: np.eye(4)[:3])

    def __post_init__(self) -> None:
        """Check that the weights are those of the grid's networks."""
        wanted = self.shape.folded_arrays(self.grid.num_networks)
        if set(self.weights) != set(wanted):
            raise InputError(f"networks have arrays {sorted(self.weights)}: expected {sorted(wanted)}")
        for name, shape in wanted.items():
            array = self.weights[name]
            if array.dtype != np.float32 or array.shape != shape:
                raise InputError(f"networks: {name} is {array.dtype} {array.shape}, expected float32 {shape}")
            if not np.isfinite(array).all():
                raise InputError(f"networks: {name} has NaN or infinite values, expected finite ones")
        if self.background.shape != (3,) or not ((self.background >= 0) & (self.background <= 1)).all():
            raise InputError(f"background is {self.background.tolist()}: expected three numbers from 0 to 1")
        if not 0 <= self.near < np.inf:
            raise InputError(f"near is {self.near}: expected a distance of at least 0")
        if self.dataset_to_scene.shape != (3, 4) or not np.isfinite(self.dataset_to_scene).all():
            raise InputError(f"dataset_to_scene has shape {self.dataset_to_scene.shape}: expected finite [3, 4]")
