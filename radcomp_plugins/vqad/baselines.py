"""What the paper compares VQ-AD with, in the same code path: the same octree, decoder, renderer and training.

- full precision: the grid as it was trained, in float16 (the paper's NGLOD-NeRF);
- LRA: each level's features on their first principal axes (Karhunen-Loeve transform), after training;
- kmVQ: each level's features clustered after training;
- kmVQ + fine-tuning: clustered half-way, then codebooks and decoder are trained on, with the indices as they are. The
  paper leaves this one out; it is the fairest, for it costs as many steps as VQ-AD itself;
- random indices: drawn once, codebooks and decoder trained from the start, as in a hash grid (the paper's Table 3).

The last two are not functions here but settings of a training run: see `training_changes`.
"""

import copy
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from radcomp_plugins.vqad.bitstream import encode_scene, sizes_of
from radcomp_plugins.vqad.field import VqadField, scene_from_field

Training = Literal["full", "logits", "latent", "fine-tuned", "random"]

FLOAT_BYTES = 2
"""All floats are stored in half precision, as in the paper's tables."""


@dataclass(frozen=True)
class Sizes:
    """Bytes of a scene.

    Attributes:
        grid: features, or indices and codebooks.
        rest: octree, decoder and container, as the file has them, entropy-coded.
    """

    grid: int
    rest: int

    @property
    def total(self) -> int:
        """Of the whole file."""
        return self.grid + self.rest


def training_changes(training: Training, bits: int) -> dict[str, Any]:
    """Fields of the model's config that make a training run one of the compared methods.

    Args:
        training: `full`; `logits` or `latent`, VQ-AD by either estimator; `fine-tuned` or `random`, see the module.
        bits: per index; of no meaning for `full`.
    """
    if training == "random":
        return {"compression": "fixed", "bits": bits, "quantise_from": 0.0}
    return {"compression": "fixed" if training == "fine-tuned" else training, "bits": bits}


@torch.no_grad()
def half_precision(field: VqadField) -> VqadField:
    """A full-precision field as its float16 file would be."""
    result = _copy(field)
    _set_values(result, result.encoding.values.half().float())
    return result


@torch.no_grad()
def low_rank(field: VqadField, keep: int) -> VqadField:
    """A full-precision field whose features are their projections on `keep` principal axes of their level.

    Coefficients, axes and means are rounded to float16, as they would be stored.

    Raises:
        ValueError: `keep` is not between 1 and the number of features.
    """
    encoding = field.encoding
    if not 1 <= keep <= encoding.features:
        raise ValueError(f"{keep} axes kept, expected 1 to {encoding.features}")
    result = _copy(field)
    starts = encoding.octree.vertex_starts
    parts = [_project(encoding.values[a:b].float(), keep) for a, b in zip(starts, starts[1:], strict=False)]
    _set_values(result, torch.cat(parts))
    return result


@torch.no_grad()
def clustered(field: VqadField, bits: int, seed: int = 0) -> VqadField:
    """A full-precision field whose features are replaced by the nearest of 2^bits k-means centres of their level."""
    result = _copy(field)
    result.encoding.bits = bits
    result.encoding.quantise("fixed", seed=seed)
    return result


def sizes(field: VqadField, axes: int | None = None) -> Sizes:
    """Bytes of a field: of one with indices its real file's, of one without what its floats take beside such a file's
    octree and decoder.

    Args:
        field: of any mode.
        axes: how many principal axes it was projected on, if it was.
    """
    encoding = field.encoding
    coded = field if encoding.mode != "full" else clustered(field, 1)
    scene = scene_from_field(coded)
    data = encode_scene(scene)
    parts = sizes_of(data, scene)
    indexed = sum(part["index_bytes"] + part["codebook_bytes"] for part in parts)
    if encoding.mode != "full":
        return Sizes(grid=indexed, rest=len(data) - indexed)
    features, levels = encoding.features, len(encoding.octree.levels)
    kept = features if axes is None else axes
    bases = 0 if axes is None else levels * (axes + 1) * features
    floats = encoding.octree.num_vertices * kept + bases
    return Sizes(grid=FLOAT_BYTES * floats, rest=len(data) - indexed)


def packed_bytes(field: VqadField) -> int:
    """Bytes of indices of b bits each, packed, and of codebooks in float16: the paper's count of the grid."""
    encoding = field.encoding
    levels = len(encoding.octree.levels)
    books = levels * 2**encoding.bits * encoding.features * FLOAT_BYTES
    return -(-encoding.octree.num_vertices * encoding.bits // 8) + books


def _copy(field: VqadField) -> VqadField:
    if field.encoding.mode != "full":
        raise ValueError(f"a field of mode {field.encoding.mode}, expected full")
    return copy.deepcopy(field).requires_grad_(False)


def _set_values(field: VqadField, values: Float[Tensor, "m k"]) -> None:
    field.encoding.values.data = values.to(field.encoding.values)


def _project(points: Float[Tensor, "N k"], keep: int) -> Float[Tensor, "N k"]:
    mean = points.mean(dim=0)
    centred = points - mean
    # Eigenvectors of the covariance, in float64: the axes of the smallest variances are dropped.
    spread = (centred.double().T @ centred.double()).cpu().numpy()
    axes = torch.from_numpy(np.linalg.eigh(spread)[1][:, ::-1][:, :keep].copy()).to(points)
    coefficients = (centred @ axes).half().float()
    return coefficients @ axes.half().float().T + mean.half().float()
