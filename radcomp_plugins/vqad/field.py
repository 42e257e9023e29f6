"""The radiance field: a codebook encoding, and the decoder from features and direction to density and colour."""

import numpy as np
import torch
from jaxtyping import Float, Int
from nerfstudio.field_components.encodings import NeRFEncoding
from numpy.typing import NDArray
from torch import Tensor, nn

from radcomp_plugins.core.octree import Octree
from radcomp_plugins.core.octree_lookup import interpolate
from radcomp_plugins.vqad import activations
from radcomp_plugins.vqad.encoding import VQADEncoding
from radcomp_plugins.vqad.scene import DensityActivation, VqadDecoder, VqadLevel, VqadScene


class DirectionalDecoder(nn.Module):
    """A network of one hidden layer, from a sample's features and its ray's direction to density and colour.

    The direction's part of the hidden layer is the same for all samples of a ray, and is computed once for it.

    Attributes:
        first: from features, then the encoded direction.
        last: to density and red, green, blue, before their activations.
    """

    def __init__(
        self,
        features: int = 16,
        hidden: int = 128,
        frequencies: int = 4,
        activation: DensityActivation = "relu",
        density_bias: float = 0.0,
        density_scale: float = 1.0,
    ) -> None:
        """Make the network.

        Args:
            features: k, length of a feature vector.
            hidden: width of the hidden layer. The paper: 128.
            frequencies: of the direction's encoding, 6 F + 3 numbers; 0 leaves the direction out. The paper: 4.
            activation: of density. The paper: relu.
            density_bias: added before it.
            density_scale: multiplied after it; density is per side of the box.
        """
        super().__init__()
        self.features, self.frequencies = features, frequencies
        self.activation: DensityActivation = activation
        self.density_bias, self.density_scale = density_bias, density_scale
        self.encode = NeRFEncoding(3, frequencies, 0.0, frequencies - 1.0, include_input=True) if frequencies else None
        self.first = nn.Linear(features + (6 * frequencies + 3 if frequencies else 0), hidden)
        self.last = nn.Linear(hidden, 4)

    def ray_base(self, directions: Float[Tensor, "R 3"]) -> Float[Tensor, "R H"]:
        """What a ray's direction (scene frame, unit length) adds to the hidden layer, its bias included."""
        if self.encode is None:
            return self.first.bias.expand(len(directions), -1)
        encoded = self.encode(directions)
        return torch.addmm(self.first.bias, encoded, self.first.weight[:, self.features :].T)

    def feature_weight(self) -> Float[Tensor, "H K"]:
        """The hidden layer's weights of the features."""
        return self.first.weight[:, : self.features]

    def forward(
        self, features: Float[Tensor, "N K"], base: Float[Tensor, "N H"]
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, "N 3"]]:
        """Density per side of the box, and colour in [0, 1], of samples; `base` is `ray_base` of each one's ray."""
        raw = self.last(torch.relu(base + features @ self.feature_weight().T))
        return activations.density(raw[:, 0], self.activation, self.density_bias, self.density_scale), torch.sigmoid(
            raw[:, 1:]
        )


class VqadField(nn.Module):
    """Encoding and decoder over a box.

    Attributes:
        box: [2, 3] low and high corner, scene frame; a cube.
        encoding: features of positions in the box.
        decoder: what they mean.
        samples_per_voxel: samples along a ray's way through a voxel.
        samples_at: of which level, `coarsest` or `finest`.
        opaque: share of the light below which a ray ends.
        near: distance at which rays begin, scene frame.
    """

    box: Float[Tensor, "2 3"]

    def __init__(
        self,
        encoding: VQADEncoding,
        decoder: DirectionalDecoder,
        box: Float[Tensor, "2 3"],
        *,
        samples_per_voxel: int = 16,
        samples_at: str = "coarsest",
        near: float = 0.0,
        opaque: float = 1e-3,
    ) -> None:
        super().__init__()
        self.encoding, self.decoder = encoding, decoder
        self.register_buffer("box", box.float().clone())
        self.samples_per_voxel, self.samples_at, self.near, self.opaque = samples_per_voxel, samples_at, near, opaque

    @property
    def octree(self) -> Octree:
        """Of the encoding."""
        return self.encoding.octree

    @property
    def side(self) -> Float[Tensor, ""]:
        """Length of the box's longest side, scene units."""
        return (self.box[1] - self.box[0]).max()

    def finest(self, level: int | None) -> int:
        """Finest level that is looked up where `level` is asked for; None is all there is."""
        octree = self.octree
        return octree.finest if level is None else max(octree.coarsest, min(level, octree.finest))

    def sampled_level(self, level: int | None) -> int:
        """Level through whose voxels rays are sampled."""
        return self.octree.coarsest if self.samples_at == "coarsest" else self.finest(level)

    def to_box(self, points: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """Positions of the scene frame in the box frame."""
        return (points - self.box[0]) / (self.box[1] - self.box[0])

    def sample(
        self,
        table: Float[Tensor, "m K"],
        points: Float[Tensor, "N 3"],
        nodes: Int[Tensor, "N L"],
        base: Float[Tensor, "N H"],
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, "N 3"]]:
        """Density and colour of points of the box frame; `table` is `encoding.table`'s."""
        return self.decoder(interpolate(table, self.octree, points, nodes), base)


def scene_from_field(
    field: VqadField,
    background: Float[Tensor, " 3"] | None = None,
    dataset_to_scene: NDArray[np.float64] | None = None,
) -> VqadScene:
    """What a trained field comes to as a file: its indices, codebooks and decoder, in half precision.

    Args:
        field: with an encoding of any mode but `full`.
        background: colour behind the scene; None is white.
        dataset_to_scene: [3, 4]; None is the identity.
    """
    encoding, octree, decoder = field.encoding, field.octree, field.decoder
    indices = encoding.current_indices().cpu().numpy()
    books = encoding.codebook.detach().half().cpu().numpy()
    starts = octree.vertex_starts
    levels = [
        VqadLevel(level, octree.voxels[i], indices[starts[i] : starts[i + 1]], books[i], encoding.bits)
        for i, level in enumerate(octree.levels)
    ]
    layers = decoder.first, decoder.last
    network = VqadDecoder(
        [layer.weight.detach().half().cpu().numpy() for layer in layers],
        [layer.bias.detach().half().cpu().numpy() for layer in layers],
        decoder.frequencies,
        decoder.activation,
        decoder.density_bias,
        decoder.density_scale,
    )
    return VqadScene(
        field.box.double().cpu().numpy(),
        levels,
        network,
        np.ones(3, np.float32) if background is None else background.detach().float().cpu().numpy(),
        samples_per_voxel=field.samples_per_voxel,
        samples_at=field.samples_at,  # type: ignore[arg-type]
        near=field.near,
        dataset_to_scene=np.eye(4)[:3] if dataset_to_scene is None else dataset_to_scene,
    )


def field_from_scene(scene: VqadScene) -> VqadField:
    """The field that a decoded file describes, to be drawn by the same code as the one in training.

    Raises:
        ValueError: its decoder has not one hidden layer; nothing here writes such a file.
    """
    weights = scene.decoder.weights
    if len(weights) != 2:
        raise ValueError(f"a decoder of {len(weights)} layers, expected 2")
    octree = Octree(scene.levels[0].level, [level.voxels for level in scene.levels])
    # Levels may have codebooks of different sizes: all get room for the largest.
    bits = max(level.bits for level in scene.levels)
    encoding = VQADEncoding(octree, scene.num_features, bits, mode="fixed")
    given = scene.decoder
    decoder = DirectionalDecoder(
        scene.num_features,
        weights[0].shape[0],
        given.direction_frequencies,
        given.density_activation,
        given.density_bias,
        given.density_scale,
    )
    with torch.no_grad():
        encoding.indices = torch.from_numpy(np.concatenate([level.indices for level in scene.levels]))
        encoding.codebook.zero_()
        for number, level in enumerate(scene.levels):
            encoding.codebook[number, : len(level.codebook)] = torch.from_numpy(level.codebook.astype(np.float32))
        for layer, weight, bias in zip((decoder.first, decoder.last), weights, given.biases, strict=True):
            layer.weight.copy_(torch.from_numpy(weight.astype(np.float32)))
            layer.bias.copy_(torch.from_numpy(bias.astype(np.float32)))
    return VqadField(
        encoding,
        decoder,
        torch.from_numpy(np.asarray(scene.box)),
        samples_per_voxel=scene.samples_per_voxel,
        samples_at=scene.samples_at,
        near=scene.near,
    )
