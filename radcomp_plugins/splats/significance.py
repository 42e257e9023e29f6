"""How much each Gaussian matters for the training views: the criteria that pruning and quantisation rank by."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from radcomp_plugins.splats.draw import draw
from radcomp_plugins.splats.gaussians import Gaussians
from radcomp_plugins.splats.views import PinholeView

Criterion = Literal["exact", "paper", "hits", "hits-opacity", "weight-sum", "weight-max"]
"""Names of the criteria; see `score`."""

PAPER_VOLUME_POWER = 0.1
"""beta in Fan et al. 2024, Eq. 4."""


@dataclass(frozen=True)
class Contributions:
    """What each of N Gaussians gave to a set of views.

    Attributes:
        hits: [N] number of pixels the Gaussian was blended into.
        weight_sum: [N] sum of its blending weights alpha * T over those pixels.
        weight_max: [N] largest of them, in [0, 1].
    """

    hits: Int[Tensor, " N"]
    weight_sum: Float[Tensor, " N"]
    weight_max: Float[Tensor, " N"]


def contributions(gaussians: Gaussians, views: Iterable[PinholeView]) -> Contributions:
    """Accumulate hits and blending weights over all pixels of all views, exactly and in a fixed order."""
    device = gaussians.means.device
    hits = torch.zeros(len(gaussians), dtype=torch.int64, device=device)
    weight_sum = torch.zeros(len(gaussians), dtype=torch.float64, device=device)
    weight_max = torch.zeros(len(gaussians), dtype=torch.float32, device=device)
    constant = gaussians.with_sh_degree(0)
    for view in views:
        info = draw(constant, view, compute_stats=True)[2]
        hits += info["hits"]
        weight_sum += info["weight_sum"]
        weight_max = torch.maximum(weight_max, info["weight_max"])
    return Contributions(hits, weight_sum, weight_max)


def volume_term(scales: Float[Tensor, "N 3"], power: float = PAPER_VOLUME_POWER) -> Float[Tensor, " N"]:
    """gamma of Fan et al. 2024, Eq. 4: the volume over its 90th percentile, clipped to [0, 1], to the power beta.

    Args:
        scales: [N, 3] natural logarithms of the standard deviations.
        power: beta; 0 ignores the volume.

    Note:
        The authors' code divides by the 10th percentile and never clips, which leaves V^beta up to a constant factor.
    """
    volume = (4 / 3 * torch.pi) * scales.double().sum(dim=1).exp()
    largest = torch.quantile(volume, 0.9) if len(volume) else volume.new_tensor(1.0)
    return (volume / largest).clamp(0, 1) ** power


def score(gaussians: Gaussians, seen: Contributions, criterion: Criterion = "exact") -> Float[Tensor, " N"]:
    """Global significance [N] float64 >= 0 of each Gaussian; larger matters more.

    - `exact`: sqrt(sum * max) of alpha * T over all training pixels: the sum is what the Gaussian paints in total, the
      maximum keeps small Gaussians that own a pixel.
    - `weight-sum`, `weight-max`: either factor alone.
    - `paper`: hits * opacity * gamma (Fan et al. 2024, Eq. 3 and 4).
    - `hits-opacity`, `hits`: the same without the volume, and without both (the rows of the paper's Table 3).

    Raises:
        ValueError: the criterion has none of these names.
    """
    hits, opacity = seen.hits.double(), gaussians.opacities.double().sigmoid()
    criteria: dict[str, Callable[[], Tensor]] = {
        "exact": lambda: (seen.weight_sum.double() * seen.weight_max.double()).sqrt(),
        "weight-sum": lambda: seen.weight_sum.double(),
        "weight-max": lambda: seen.weight_max.double(),
        "paper": lambda: hits * opacity * volume_term(gaussians.scales),
        "hits-opacity": lambda: hits * opacity,
        "hits": lambda: hits,
    }
    if criterion not in criteria:
        raise ValueError(f"significance criterion: got {criterion!r}, expected one of {', '.join(get_args(Criterion))}")
    return criteria[criterion]()


def most_significant(significance: Float[Tensor, " N"], keep: float) -> Tensor:
    """Boolean mask [N] of the round(keep * N) largest, at least one; ties go to the lower index.

    Args:
        significance: [N] scores.
        keep: share to keep, in (0, 1].
    """
    count = max(1, round(keep * len(significance)))
    chosen = significance.argsort(descending=True, stable=True)[:count]
    mask = torch.zeros(len(significance), dtype=torch.bool, device=significance.device)
    mask[chosen] = True
    return mask
