"""What a baked SMERF scene is: the frames it lives in, its submodels' grids, and the deferred appearance network.

Frames, from the outside in:

- *scene*: the frame of nerfstudio's cameras and rays;
- *unit*: scene moved and scaled so that every camera is in [-1, 1]^3 (`Layout.scene_to_unit`);
- *submodel*: unit around the centre of a submodel, times `submodel_scale`, in the axes of WebGL:
  (x, y, z) of unit become (-x, z, y);
- *contracted*: `core.contraction.contract` of submodel, in [-2, 2]^3;
- *grid*: contracted counted in voxels: voxel g of a grid with N voxels a side has its centre at
  contracted -2 + (g + 1/2) * 4 / N.

All grid arrays here are indexed [x, y, z] in the submodel frame's axes, which are those of the official viewer.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from radcomp_plugins.errors import InputError

NUM_FEATURES = 7
"""Features of a texel: 3 of diffuse colour, 3 for the view-dependent colour, and the gate; fixed by the viewers."""
GATE = 6
"""Channel of the sparse grid that weighs the planes (feature gating); it is a feature as well."""
DENSITY = 7
"""Channel of the density in an array of texels."""
NUM_CHANNELS = NUM_FEATURES + 1
RANGE_FEATURES = 7.0
"""A feature's byte 0..255 stands for -7..7."""
RANGE_DENSITY = 14.0
"""A density's byte 0..255 stands for -14..14, before exp(x - 1)."""


@dataclass(frozen=True)
class Layout:
    """The numbers that all submodels of a scene share.

    Attributes:
        triplane_resolution: T, texels along a side of each plane.
        sparse_resolution: S, voxels along a side of the sparse grid.
        submodels_per_axis: K; the cube [-1, 1]^3 of the unit frame has K^3 cells of side 2 / K.
        submodel_scale_factor: a submodel's linear region spans 2 / (K * factor) of the unit frame.
        alive: linear indices (ix * K + iy) * K + iz, unit axes, of the cells that have a submodel, ascending.
        scene_to_unit: [3, 4]; x_unit = scene_to_unit @ [x_scene, 1]. A rotation never occurs: scale and shift only.
        block_size: voxels along a side of a block of the sparse grid, apron not counted.
        feature_gating: whether the planes are weighed by the sparse grid's last feature.
        feature_concat: whether the network also gets the sparse grid's features alone (14 inputs instead of 7).
        activation: of the deferred network's hidden layers.
        background: what is behind the scene: the deferred network's input where a ray ends in nothing, 0..1.
    """

    triplane_resolution: int
    sparse_resolution: int
    submodels_per_axis: int = 1
    submodel_scale_factor: float = 2.5
    alive: tuple[int, ...] = (0,)
    scene_to_unit: NDArray[np.float64] = field(default_factory=lambda: np.eye(4)[:3])
    block_size: int = 8
    feature_gating: bool = True
    feature_concat: bool = True
    activation: str = "elu"
    background: float = 0.5

    def __post_init__(self) -> None:
        """Check what the viewers take for granted."""
        triplane, sparse = self.triplane_resolution, self.sparse_resolution
        if triplane < 16 or triplane % 8 or triplane > 4096:
            raise InputError(f"triplane resolution is {triplane}: expected a multiple of 8 from 16 to 4096")
        if sparse < self.block_size or sparse % self.block_size or sparse > triplane:
            raise InputError(
                f"sparse grid resolution is {sparse}: expected a multiple of {self.block_size}, at most {triplane}"
            )
        if self.submodels_per_axis < 1 or not self.submodel_scale_factor > 0:
            raise InputError(
                f"{self.submodels_per_axis} submodels per axis, scale factor {self.submodel_scale_factor}: "
                "expected at least 1, and above 0"
            )
        if not self.alive or list(self.alive) != sorted(set(self.alive)):
            raise InputError(f"submodels {self.alive}: expected at least one, in ascending order")
        if self.alive[0] < 0 or self.alive[-1] >= self.submodels_per_axis**3:
            raise InputError(f"submodels {self.alive}: expected indices below {self.submodels_per_axis**3}")

    @property
    def submodel_scale(self) -> float:
        """Submodel units per unit of the unit frame: K times the scale factor."""
        return self.submodels_per_axis * self.submodel_scale_factor

    @property
    def triplane_voxel(self) -> float:
        """Side of a plane's texel, contracted units; also the length of a marching step."""
        return 4.0 / self.triplane_resolution

    @property
    def sparse_voxel(self) -> float:
        """Side of a sparse voxel, contracted units."""
        return 4.0 / self.sparse_resolution

    def centre(self, index: int) -> NDArray[np.float64]:
        """Centre [3] of the cell with a linear index, unit frame."""
        k = self.submodels_per_axis
        return -1.0 + (np.array(np.unravel_index(index, (k, k, k)), np.float64) + 0.5) * 2.0 / k

    def nearest(self, origins: NDArray[np.floating]) -> NDArray[np.int64]:
        """Linear index [N] of the live submodel whose centre is nearest to origins [N, 3], unit frame, largest norm."""
        centres = np.stack([self.centre(index) for index in self.alive])
        away = np.abs(origins[:, None, :] - centres).max(axis=-1)
        return np.asarray(self.alive, np.int64)[away.argmin(axis=-1)]


def unit_to_submodel(x: NDArray[np.floating], layout: Layout, index: int) -> NDArray[np.float64]:
    """Points [N, 3] of the unit frame in the frame of submodel `index`."""
    local = (np.asarray(x, np.float64) - layout.centre(index)) * layout.submodel_scale
    return rotate_to_webgl(local)


def rotate_to_webgl(x: NDArray[np.floating]) -> NDArray[np.float64]:
    """Vectors [N, 3] of unit axes in those of WebGL, as the official viewer has them; it is its own inverse."""
    x = np.asarray(x, np.float64)
    return np.stack([-x[..., 0], x[..., 2], x[..., 1]], axis=-1)


@dataclass
class DeferredMlp:
    """The deferred appearance network of every live submodel, on a P^3 grid of parameter sets.

    Attributes:
        kernels: per layer [submodels, P, P, P, inputs, outputs] float32. The P-axes are [z, y, x] of the unit frame;
            submodels in the order of `Layout.alive`. Three layers; the last has 3 outputs.
        biases: per layer [submodels, P, P, P, outputs] float32.
    """

    kernels: list[NDArray[np.float32]]
    biases: list[NDArray[np.float32]]


@dataclass
class BakedSubmodel:
    """One submodel as bytes: all that a viewer needs to draw from within its cell.

    A texel's channels are 3 diffuse, 3 view-dependent, the gate, and the density (`DENSITY`), each the byte
    round(255 * sigmoid(raw)).

    Attributes:
        index: linear index of its cell.
        planes: [3, T, T, 8] uint8. Plane i leaves out grid axis i; its two axes are the others in ascending order.
        block_indices: [S/8, S/8, S/8] int32, row of `blocks`, or -1 for an empty block. Rows count up in C order.
        blocks: [B, 9, 9, 9, 8] uint8: the voxels of each block, and one more on the far side of each axis.
        occupancy: [T/8, T/8, T/8] uint8: the bits say which of its 2 x 2 x 2 cells of 4^3 texels hold something; cell
            (dx, dy, dz) has bit 4 dx + 2 dy + dz.
        distance: [T/8, T/8, T/8] uint8: 0 where occupied or touching; else how many cells away (largest norm) the
            nearest occupied one is, less 1, at most 255.
    """

    index: int
    planes: NDArray[np.uint8]
    block_indices: NDArray[np.int32]
    blocks: NDArray[np.uint8]
    occupancy: NDArray[np.uint8]
    distance: NDArray[np.uint8]


@dataclass
class BakedScene:
    """A whole baked scene, decoded.

    Attributes:
        layout: what the submodels share.
        deferred: the appearance networks of all live submodels.
        submodels: those that are loaded, by linear index.
        test_frames: poses [M, 3, 4] camera-to-unit (OpenGL convention) with a field of view and size each; see
            `TestFrame`.
    """

    layout: Layout
    deferred: DeferredMlp
    submodels: dict[int, BakedSubmodel]
    test_frames: list["TestFrame"] = field(default_factory=list)


@dataclass(frozen=True)
class TestFrame:
    """A held-out camera, for tests and as a place to start from in a viewer.

    Attributes:
        c2w: [3, 4] camera-to-unit, OpenGL convention: x right, y up, looking along -z.
        fx: focal length in pixels.
        fy: focal length in pixels.
        width: pixels.
        height: pixels.
    """

    __test__ = False  # not a test class, whatever pytest makes of its name

    c2w: NDArray[np.float64]
    fx: float
    fy: float
    width: int
    height: int
