"""Small VQ-AD scenes, made without training."""

import numpy as np

from radcomp_plugins.core import morton
from radcomp_plugins.vqad.scene import VqadDecoder, VqadLevel, VqadScene


def shell_voxels(level: int, points: int = 20_000, seed: int = 0) -> np.ndarray:
    """Codes of the voxels that a bumpy sphere passes through."""
    direction = np.random.default_rng(seed).normal(size=(points, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    radius = 0.33 + 0.04 * np.sin(7.0 * direction[:, :1])
    return np.unique(morton.encode(((0.5 + radius * direction) * 2**level).astype(np.int64)))


def toy_scene(levels: tuple[int, ...] = (2, 3, 4), bits: int = 4, num_features: int = 6, seed: int = 0) -> VqadScene:
    """A bumpy sphere whose indices vary slowly in space, like those of trained scenes, with some noise."""
    rng = np.random.default_rng(seed)
    finest = shell_voxels(levels[-1], seed=seed)
    made = []
    for level in levels:
        voxels = np.unique(finest >> 3 * (levels[-1] - level))
        place = morton.decode(morton.voxel_vertices(voxels, level)) / 2**level
        smooth = np.sin(place @ rng.normal(size=(3, 3)) * 4.0).sum(axis=1) / 6.0 + 0.5
        noisy = (smooth + rng.normal(size=len(smooth)) * 0.03).clip(0, 1)
        indices = (noisy * (2**bits - 1)).round().astype(np.uint8)
        book = rng.normal(size=(2**bits, num_features)).astype(np.float16)
        made.append(VqadLevel(level, voxels, indices, book, bits))
    shapes = [(8, num_features + 27), (4, 8)]
    decoder = VqadDecoder(
        weights=[(0.5 * rng.normal(size=shape)).astype(np.float16) for shape in shapes],
        biases=[(0.1 * rng.normal(size=shape[0])).astype(np.float16) for shape in shapes],
    )
    return VqadScene(
        box=np.array([[-1.0, -1.1, -1.2], [1.0, 1.1, 1.2]]),
        levels=made,
        decoder=decoder,
        background=np.array([0.25, 0.5, 1.0], np.float32),
        near=0.05,
        dataset_to_scene=np.array([[0.0, 2.0, 0.0, 1.0], [-2.0, 0.0, 0.0, 0.5], [0.0, 0.0, 2.0, 0.0]]),
    )


def assert_same_scene(one: VqadScene, other: VqadScene) -> None:
    """Every number of two scenes is the same, bit for bit."""
    for name in ("box", "background", "dataset_to_scene"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    for name in ("samples_per_voxel", "samples_at", "near"):
        assert getattr(one, name) == getattr(other, name), name
    for name in ("direction_frequencies", "density_activation", "density_bias", "density_scale"):
        assert getattr(one.decoder, name) == getattr(other.decoder, name), name
    for mine, theirs in zip(
        [*one.decoder.weights, *one.decoder.biases], [*other.decoder.weights, *other.decoder.biases], strict=True
    ):
        assert same_bits(mine, theirs)
    assert len(one.levels) == len(other.levels)
    for mine, theirs in zip(one.levels, other.levels, strict=True):
        assert (mine.level, mine.bits) == (theirs.level, theirs.bits)
        assert np.array_equal(mine.voxels, theirs.voxels)
        assert np.array_equal(mine.indices, theirs.indices) and mine.indices.dtype == theirs.indices.dtype
        assert same_bits(mine.codebook, theirs.codebook)


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two float16 arrays are the same, the sign of zero included."""
    return one.shape == other.shape and np.array_equal(
        np.ascontiguousarray(one).view(np.uint16), np.ascontiguousarray(other).view(np.uint16)
    )
