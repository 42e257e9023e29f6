"""Significance-aware vector quantisation of SH coefficients (Fan et al. 2024, Sec. 3.4)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from radcomp_plugins.core.vq import assign, ema_update, kmeans
from radcomp_plugins.splats.significance import most_significant

KMEANS_ITERATIONS = 8


@dataclass(frozen=True)
class Quantised:
    """A codebook and who uses it.

    Attributes:
        codebook: [K, D] float32 entries.
        labels: [N] int32 entry of each vector; -1 for vectors that keep their own value.
    """

    codebook: Float[Tensor, "K D"]
    labels: Int[Tensor, " N"]

    def decode(self, own: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """The vectors after quantisation."""
        if len(self.codebook) == 0:
            return own
        coded = self.codebook[self.labels.clamp(min=0).long()]
        return torch.where((self.labels >= 0)[:, None], coded, own)


def quantise(
    vectors: Float[Tensor, "N D"],
    significance: Float[Tensor, " N"] | None,
    *,
    ratio: float,
    codebook_size: int,
    iterations: int,
    batch_size: int,
    decay: float,
    seed: int,
) -> Quantised:
    """Quantise the least significant vectors with a codebook that the significant among them pull harder.

    K-means initialises the codebook; then each iteration draws a batch, assigns it to the nearest codes, and moves
    every code towards the significance-weighted mean of its members, c <- decay * c + (1 - decay) * mean.

    Args:
        vectors: [N, D] SH coefficients.
        significance: [N] weights >= 0; None treats all alike and quantises a random share.
        ratio: share of the vectors to quantise, in (0, 1].
        codebook_size: K; fewer where fewer vectors are quantised.
        iterations: moving-average updates.
        batch_size: vectors per update.
        decay: lambda of the update.
        seed: seed of every draw.
    """
    count = len(vectors)
    generator = torch.Generator().manual_seed(seed)
    ranking = torch.rand(count, generator=generator) if significance is None else significance.float().cpu()
    coded = torch.ones(count, dtype=torch.bool)
    if round((1 - ratio) * count) > 0:
        coded = ~most_significant(ranking, 1 - ratio)
    labels = torch.full((count,), -1, dtype=torch.int32)
    if not bool(coded.any()):
        return Quantised(vectors.new_zeros(0, vectors.shape[1]), labels.to(vectors.device))
    data = vectors.detach().float().cpu()[coded]
    weights = torch.ones(len(data)) if significance is None else significance.float().cpu()[coded]
    # A Gaussian no training view saw still needs a code that is not arbitrary.
    weights = weights / weights.mean().clamp(min=1e-12) + 1e-3
    codebook, _ = kmeans(data, min(codebook_size, len(data)), weights=weights, iters=KMEANS_ITERATIONS, seed=seed)
    for _ in range(iterations):
        batch = torch.randint(len(data), (min(batch_size, len(data)),), generator=generator)
        members = assign(data[batch], codebook)
        codebook = ema_update(codebook, data[batch], members, weights[batch], decay)
    labels[coded] = assign(data, codebook).to(torch.int32)
    return Quantised(codebook.to(vectors.device), labels.to(vectors.device))
