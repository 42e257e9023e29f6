"""What a VQ-AD scene is once trained: per octree level the voxels, an index per vertex and a codebook; and a decoder.

This is the contract between training, the file, and all that draws a file. Frames: *scene* is that of nerfstudio's
cameras; *box* is the scene frame moved and scaled so that `VqadScene.box` becomes [0, 1]^3; *grid* of level l is box
times 2^l, so that voxel (i, j, k) spans [i, i + 1) x [j, j + 1) x [k, k + 1) and vertex (i, j, k) lies at its low
corner. Codes are those of `core.morton`.
"""

from dataclasses import dataclass, field
from dataclasses import replace as with_changes
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from radcomp_plugins.core.morton import Codes, voxel_vertices
from radcomp_plugins.errors import InputError

MAX_GRID_LEVEL = 10
"""Finest level that a scene may have: 1024 voxels a side."""
MAX_BITS = 8
MAX_FEATURES = 64
MAX_DECODER_WIDTH = 1024
DECODER_LAYERS = 2

DensityActivation = Literal["relu", "softplus", "exp"]
SampledLevel = Literal["coarsest", "finest"]
DENSITY_ACTIVATIONS: tuple[DensityActivation, ...] = get_args(DensityActivation)


@dataclass
class VqadLevel:
    """One level of the octree.

    Attributes:
        level: the grid has 2^level voxels a side.
        voxels: [n] int64 Morton codes of the occupied voxels, ascending.
        indices: [m] uint8, the code of each vertex, in ascending order of the vertices' Morton codes; the vertices
            are `core.morton.voxel_vertices(voxels, level)`.
        codebook: [2^bits, k] float16.
        bits: per index, 1 to 8.
    """

    level: int
    voxels: Codes
    indices: NDArray[np.uint8]
    codebook: NDArray[np.float16]
    bits: int

    @property
    def vertices(self) -> Codes:
        """[m] Morton codes of the vertices, ascending; worked out anew on each call."""
        return voxel_vertices(self.voxels, self.level)

    def features(self) -> NDArray[np.float16]:
        """[m, k] the vertices' feature vectors."""
        return self.codebook[self.indices]


@dataclass
class VqadDecoder:
    """The small network from features and direction to density and colour: two layers, the hidden one with ReLU.

    Attributes:
        weights: per layer [outputs, inputs] float16. The first layer's inputs are the k features and then the encoded
            direction; the last layer's outputs are density and red, green, blue, before their activations.
        biases: per layer [outputs] float16.
        direction_frequencies: F; a direction is encoded as nerfstudio's `NeRFEncoding` with min_freq_exp 0,
            max_freq_exp F - 1 and include_input does: 6 F + 3 numbers, in its order. 0 means that there is none.
        density_activation: `relu`, `softplus` or `exp`, of the density output plus `density_bias`. Density is per
            unit of the box's longest side.
        density_bias: added before the activation.
        density_scale: multiplied after it.
    """

    weights: list[NDArray[np.float16]]
    biases: list[NDArray[np.float16]]
    direction_frequencies: int = 4
    density_activation: DensityActivation = "relu"
    density_bias: float = 0.0
    density_scale: float = 1.0


@dataclass
class VqadScene:
    """A whole scene, or its coarser levels.

    Attributes:
        box: [2, 3] float64 low and high corner of the octree, scene frame.
        levels: coarse first, each one finer than the last; features of all levels are summed. A finer voxel's parent
            is always occupied.
        decoder: turns features into density and colour.
        background: [3] float32 RGB in [0, 1] behind the scene.
        samples_per_voxel: samples along a ray's way through a voxel of `samples_at`.
        samples_at: whether rays are sampled in the voxels of the coarsest level, as in the paper, or of the finest one
            that there is; of a truncated scene, the finest that is left.
        near: distance from the camera at which a ray begins, scene frame.
        dataset_to_scene: [3, 4] float64 from the dataset's own frame to the scene frame.
    """

    box: NDArray[np.float64]
    levels: list[VqadLevel]
    decoder: VqadDecoder
    background: NDArray[np.float32] = field(default_factory=lambda: np.ones(3, np.float32))
    samples_per_voxel: int = 16
    samples_at: SampledLevel = "coarsest"
    near: float = 0.0
    dataset_to_scene: NDArray[np.float64] = field(default_factory=lambda: np.eye(4)[:3])

    @property
    def num_features(self) -> int:
        """k, the length of a feature vector."""
        frequencies = self.decoder.direction_frequencies
        return self.decoder.weights[0].shape[1] - (6 * frequencies + 3 if frequencies else 0)

    def truncated(self, level: int) -> "VqadScene":
        """The scene with the levels up to `level` only.

        Raises:
            ValueError: no level is left.
        """
        levels = [one for one in self.levels if one.level <= level]
        if not levels:
            raise ValueError(f"level {level}, expected {self.levels[0].level} or finer")
        return with_changes(self, levels=levels)

    def check(self, where: str = "scene") -> None:
        """Check that all parts fit each other, before the scene is written or drawn.

        Args:
            where: name for the error line.

        Raises:
            InputError: some part does not; the line says which.
        """
        check_frame(self, where)
        if not self.levels:
            raise InputError(f"{where}: no levels, expected at least one")
        for coarse, fine in zip(self.levels, self.levels[1:], strict=False):
            if fine.level != coarse.level + 1:
                raise InputError(f"{where}: level {fine.level} after {coarse.level}, expected {coarse.level + 1}")
            if not np.isin(fine.voxels >> 3, coarse.voxels).all():
                raise InputError(f"{where}: level {fine.level} has voxels whose parents are empty")
        check_decoder(self.decoder, where)
        for level in self.levels:
            _check_level(level, self.num_features, f"{where}: level {level.level}")


def check_frame(scene: VqadScene, where: str) -> None:
    """Check all of a scene that is neither level nor decoder.

    Raises:
        InputError: a number is out of its range.
    """
    box = np.asarray(scene.box)
    if box.shape != (2, 3) or not np.isfinite(box).all() or not (box[1] > box[0]).all():
        raise InputError(f"{where}: box {box.tolist()}, expected a low and a higher corner, finite")
    if np.shape(scene.dataset_to_scene) != (3, 4) or not np.isfinite(scene.dataset_to_scene).all():
        raise InputError(f"{where}: dataset_to_scene is not a finite 3x4 matrix")
    background = np.asarray(scene.background)
    if background.shape != (3,) or not ((background >= 0) & (background <= 1)).all():
        raise InputError(f"{where}: background {background.tolist()}, expected three numbers from 0 to 1")
    if scene.samples_at not in get_args(SampledLevel):
        raise InputError(f"{where}: samples at {scene.samples_at!r}, expected coarsest or finest")
    if not 1 <= scene.samples_per_voxel <= 255 or not np.isfinite(scene.near) or scene.near < 0:
        raise InputError(
            f"{where}: {scene.samples_per_voxel} samples per voxel, near {scene.near}: expected 1 to 255, and 0 or more"
        )


def _check_level(level: VqadLevel, num_features: int, where: str) -> None:
    if not 0 <= level.level <= MAX_GRID_LEVEL:
        raise InputError(f"{where}: expected level 0 to {MAX_GRID_LEVEL}")
    if not 1 <= level.bits <= MAX_BITS:
        raise InputError(f"{where}: {level.bits} bits per index, expected 1 to {MAX_BITS}")
    voxels = level.voxels
    if len(voxels) == 0:
        raise InputError(f"{where}: the octree is empty, expected at least one voxel")
    if voxels[0] < 0 or voxels[-1] >= 8**level.level or (np.diff(voxels) <= 0).any():
        raise InputError(f"{where}: voxel codes are not ascending from 0 to {8**level.level - 1}")
    shape = (2**level.bits, num_features)
    if level.codebook.shape != shape:
        raise InputError(f"{where}: codebook of shape {level.codebook.shape}, expected {shape}")
    if level.codebook.dtype != np.float16 or not np.isfinite(level.codebook).all():
        raise InputError(f"{where}: codebook of {level.codebook.dtype}, expected finite float16")
    count = len(level.vertices)
    if level.indices.shape != (count,) or level.indices.dtype != np.uint8:
        raise InputError(f"{where}: {len(level.indices)} indices for {count} vertices")
    if level.indices.max() >= 2**level.bits:
        raise InputError(f"{where}: index {level.indices.max()}, expected below {2**level.bits}")


def check_decoder(decoder: VqadDecoder, where: str) -> None:
    """Check a decoder on its own.

    Raises:
        InputError: its parts do not fit each other.
    """
    if not 0 <= decoder.direction_frequencies <= 8 or decoder.density_activation not in DENSITY_ACTIVATIONS:
        raise InputError(
            f"{where}: {decoder.direction_frequencies} frequencies of the direction and density "
            f"{decoder.density_activation!r}, expected 0 to 8 and one of {', '.join(DENSITY_ACTIVATIONS)}"
        )
    if not np.isfinite(decoder.density_bias) or not 0 < decoder.density_scale < 1e6:
        raise InputError(f"{where}: density bias {decoder.density_bias}, scale {decoder.density_scale}")
    if len(decoder.weights) != DECODER_LAYERS or len(decoder.biases) != DECODER_LAYERS:
        raise InputError(f"{where}: decoder of {len(decoder.weights)} layers, expected {DECODER_LAYERS}")
    inputs = decoder.weights[0].shape[-1]
    frequencies = decoder.direction_frequencies
    if not 1 <= inputs - (6 * frequencies + 3 if frequencies else 0) <= MAX_FEATURES:
        raise InputError(f"{where}: decoder of {inputs} inputs, expected the direction's and 1 to {MAX_FEATURES} more")
    for number, (weight, bias) in enumerate(zip(decoder.weights, decoder.biases, strict=True)):
        last = number == len(decoder.weights) - 1
        outputs = weight.shape[0]
        if weight.shape != (outputs, inputs) or bias.shape != (outputs,) or not 1 <= outputs <= MAX_DECODER_WIDTH:
            raise InputError(f"{where}: decoder layer {number} of shape {weight.shape}, expected {inputs} inputs")
        if last and outputs != 4:
            raise InputError(f"{where}: the decoder has {outputs} outputs, expected 4")
        for array in (weight, bias):
            if array.dtype != np.float16 or not np.isfinite(array).all():
                raise InputError(f"{where}: decoder layer {number} is not finite float16")
        inputs = outputs
