"""How an `.rcs` file codes a scene before a byte is written: weights, levels of detail, SH palette, steps."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from radcomp_plugins.core import vq
from radcomp_plugins.splats.formats.rcs_header import MAX_PALETTE, Header
from radcomp_plugins.splats.formats.rcs_octree import kept_cells
from radcomp_plugins.splats.formats.rcs_quantise import (
    PALETTE_LIMIT,
    RcsSettings,
    colour_to_planes,
    dequantise_colours,
    dequantise_means,
    dequantise_opacity,
    dequantise_palette,
    dequantise_quats,
    dequantise_scales,
    far_ones,
    palette_levels,
    plan_header,
    quantise,
    wanted_depths,
)
from radcomp_plugins.splats.formats.sog_writer import (
    ASSUMED_PALETTE_ERROR,
    Palette,
    check_significance,
    default_palette_size,
)
from radcomp_plugins.splats.gaussians import Gaussians
from radcomp_plugins.splats.order import smallest_columns

SMALLEST_LEVELLED = 4096
KMEANS_ITERATIONS = 8

Ints = NDArray[np.int64]
Vectors = NDArray[np.float32]


def paint(gaussians: Gaussians) -> Float[Tensor, " N"]:
    """What a Gaussian paints when nothing is known of the cameras: alpha times the area of its widest section."""
    widest = gaussians.scales.double().sort(dim=1).values[:, 1:].sum(dim=1)
    return gaussians.opacities.double().sigmoid() * widest.clamp(-60, 60).exp()


def check_weights(gaussians: Gaussians, significance: Tensor | None) -> NDArray[np.float64]:
    """The significance [N], or `paint` where there is none, as float64.

    Raises:
        ValueError: A wrong shape or range.
    """
    return check_significance(paint(gaussians) if significance is None else significance, len(gaussians))


def level_order(codes: Ints, weights: NDArray[np.float64], levels: int | None) -> tuple[Ints, tuple[int, ...]]:
    """Order of the Gaussians in the file, and how many each level of detail has."""
    count = len(codes)
    number = (3 if count >= SMALLEST_LEVELLED else 1) if levels is None else min(levels, count)
    # The shares grow by a factor of 3 from level to level.
    ends = [round(count * (3.0 ** (n + 1) - 1) / (3.0**number - 1)) for n in range(number)]
    ends = [max(end, n + 1) for n, end in enumerate(ends)]
    level = np.empty(count, np.int64)
    level[np.argsort(-weights, kind="stable")] = np.searchsorted(ends, np.arange(count), side="right")
    order = np.lexsort((codes, level))
    return order, tuple(np.diff([0, *ends]).tolist())


def level_slices(counts: tuple[int, ...], number: int) -> list[slice]:
    """Where each of the first levels of detail lies in the order of the file."""
    ends = np.cumsum((0, *counts[:number])).tolist()
    return [slice(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]


def plan_rcs(
    gaussians: Gaussians,
    settings: RcsSettings | None = None,
    significance: Float[Tensor, " N"] | None = None,
    seed: int = 0,
    sh_palette: Palette | None = None,
) -> tuple[Header, tuple[Vectors, Ints] | None]:
    """Range and step of each attribute, and the SH palette: vectors [K, R, 3] and labels [N]; None at degree 0.

    Arguments as for `write_rcs`; `sh_palette` is one to use in place of k-means, as for `write_sog`.
    """
    weights = check_weights(gaussians, significance)
    return plan_columns(
        gaussians, smallest_columns(gaussians), settings or RcsSettings(), weights, seed, sh_palette=sh_palette
    )


def plan_columns(
    gaussians: Gaussians,
    columns: dict[str, NDArray[np.float64]],
    settings: RcsSettings,
    weights: NDArray[np.float64],
    seed: int,
    sh_palette: Palette | None = None,
) -> tuple[Header, tuple[Vectors, Ints] | None]:
    """The same for Gaussians whose `smallest_columns` and weights [N] are at hand."""
    header = plan_header(columns, settings, gaussians.sh_degree, gaussians.antialiased)
    if gaussians.sh_degree == 0:
        return header, None
    x = gaussians.shN.detach().cpu().float().flatten(1)
    if sh_palette is None:
        entries, labels = _cluster(x, weights, settings, seed)
        error = float((entries[labels] - x).double().square().mean().sqrt())
    else:
        entries, labels = sh_palette[0].detach().cpu().float().flatten(1), sh_palette[1].detach().cpu().long()
        # Its vectors may have been trained on, so what they replace is not known here.
        error = math.sqrt(ASSUMED_PALETTE_ERROR * float(entries[labels].double().square().mean()))
    vectors, used_by = _most_used_first(entries, labels)
    largest = float(np.abs(colour_to_planes(vectors.astype(np.float64))).max())
    step = max(settings.sh * error, largest / PALETTE_LIMIT, 1e-6)
    return replace(header, palette=len(vectors), sh_step=step), (vectors, used_by)


def _cluster(x: Tensor, weights: NDArray[np.float64], settings: RcsSettings, seed: int) -> tuple[Tensor, Tensor]:
    """Palette [K, D] and labels [N] of the SH vectors [N, D]."""
    size = min(settings.palette or default_palette_size(len(x)), len(x))
    if len(x) <= 2**16:
        entries, labels = torch.unique(x, dim=0, return_inverse=True)
        if len(entries) <= size:
            return entries, labels
    # A few huge Gaussians must not have the palette to themselves.
    w = np.minimum(weights, np.quantile(weights, 0.95))
    w = w + (0.05 * w.mean() or 1.0)
    return vq.kmeans(x, size, torch.from_numpy(w / w.mean()).float(), KMEANS_ITERATIONS, seed)


def own_palette(gaussians: Gaussians, plan: Header) -> tuple[Vectors, Ints] | None:
    """The different SH vectors of a scene, and who has which."""
    if gaussians.sh_degree != plan.degree:
        raise ValueError(f"a scene of SH degree {gaussians.sh_degree} with a plan for {plan.degree}")
    if gaussians.sh_degree == 0:
        return None
    x = gaussians.shN.detach().cpu().float().flatten(1)
    vectors, used_by = _most_used_first(*torch.unique(x, dim=0, return_inverse=True))
    if len(vectors) > MAX_PALETTE:
        raise ValueError(f"{len(vectors)} different SH vectors with a plan, expected up to {MAX_PALETTE}")
    return vectors, used_by


def _most_used_first(entries: Tensor, labels: Tensor) -> tuple[Vectors, Ints]:
    """The entries [K, R, 3] in use, those of most Gaussians first, and the labels [N] of these."""
    used, labels, uses = torch.unique(labels, return_inverse=True, return_counts=True)
    rank = torch.argsort(uses, descending=True, stable=True)
    place = torch.empty_like(rank)
    place[rank] = torch.arange(len(rank))
    return entries[used][rank].reshape(len(used), -1, 3).numpy(), place[labels].numpy()


@dataclass(frozen=True)
class RcsPlan:
    """What decides, with an attribute's value, which value the file gives back.

    Attributes:
        header: ranges and steps.
        weights: [N] of the Gaussians: they are sorted into levels of detail by them, each level an octree of its own.
        levels: of detail, as in `RcsSettings`.
    """

    header: Header
    weights: NDArray[np.float64]
    levels: int | None = None

    def decoded(self, columns: dict[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
        """What a file gives back for `smallest_columns`, all but the higher SH; float64, in their order."""
        header, q = self.header, quantise(columns, self.header)
        order, counts = level_order(q.codes, self.weights, self.levels)
        wanted = wanted_depths(header, q.scales)
        means = np.empty_like(columns["means"])
        for part in level_slices(counts, len(counts)):
            cells = kept_cells(q.codes[order[part]], wanted[order[part]], header.depth)
            means[order[part]] = dequantise_means(header, cells.codes, cells.depths)
        far = far_ones(header, columns["means"])
        means[far] = columns["means"][far].astype(np.float32)
        return {
            "means": means,
            "quats": dequantise_quats(header, q.rotations, q.scales),
            "scales": dequantise_scales(header, q.scales),
            "opacities": dequantise_opacity(header, q.opacities),
            "sh0": dequantise_colours(header, q.colours),
        }

    def decoded_rest(self, rest: NDArray[np.float64]) -> NDArray[np.float64]:
        """What a file gives back for palette vectors [K, R, 3]."""
        return dequantise_palette(palette_levels(rest, self.header.sh_step), self.header.sh_step) if rest.size else rest

    def pack(self) -> bytes:
        """The plan without the weights, as in the chunk HEAD."""
        return self.header.pack()
