"""Volume rendering of packed samples: all rays' samples one after the other, any number to a ray.

Ray r owns samples ray_offsets[r] to ray_offsets[r + 1]. Plain torch, the same for CPU and GPU: at 50,000 samples on one
core, weights take 0.7 ms and seven accumulated channels 1 ms, so a kernel of our own would save nothing that shows.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_OPAQUE = 80.0
"""Optical depth from which a sample lets nothing through: exp(-80) is 1e-35, and 1 - exp(-80) is 1 in float64 too."""


def ray_index(ray_offsets: Int[Tensor, " R_plus_1"]) -> Int[Tensor, " M"]:
    """Ray of each packed sample, ascending.

    Args:
        ray_offsets: [R + 1] first sample of each ray, then their number M; ascending from 0.
    """
    rays = torch.arange(len(ray_offsets) - 1, device=ray_offsets.device)
    return rays.repeat_interleave(ray_offsets.diff())


def render_weights(optical_depth: Float[Tensor, " M"], ray_offsets: Int[Tensor, " R_plus_1"]) -> Float[Tensor, " M"]:
    """Share of a ray's light that each sample sends: what reaches it times 1 - exp(-its optical depth).

    Args:
        optical_depth: density times length of each sample, at least 0; infinity is an opaque wall.
        ray_offsets: [R + 1] first sample of each ray, then M.

    Returns:
        Weights in [0, 1], of `optical_depth`'s dtype; a ray's sum is 1 - exp(-its whole depth).
    """
    # One running sum over all rays, of which each ray's own part is a difference: in float64, and bounded, so that a
    # wall in one ray costs the rays after it no digits. The bound's zero gradient is right: nothing passes a wall.
    bounded = optical_depth.double().clamp(max=_OPAQUE)
    summed = torch.nn.functional.pad(bounded.cumsum(dim=0), (1, 0))
    starts = summed[ray_offsets[:-1]].repeat_interleave(ray_offsets.diff())
    reaching = torch.exp(starts - summed[:-1])
    return (reaching * -torch.expm1(-bounded)).to(optical_depth.dtype)


def accumulate(
    weights: Float[Tensor, " M"],
    values: Float[Tensor, "M C"] | None,
    ray_index: Int[Tensor, " M"],
    num_rays: int,
) -> Float[Tensor, "R C"]:
    """Sum of weight times value over each ray's samples, in the samples' order: the same in every run, on a GPU too.

    Args:
        weights: of each sample.
        values: C numbers for each sample; None to sum the weights alone, as one channel.
        ray_index: ray of each sample, ascending, below `num_rays`.
        num_rays: R; rays without samples get 0.
    """
    weighted = weights[:, None] if values is None else weights[:, None] * values
    # A segmented sum, where index_add would add with atomics on a GPU, in whatever order they come.
    bounds = torch.searchsorted(ray_index, torch.arange(num_rays + 1, device=ray_index.device))
    return torch.segment_reduce(weighted.contiguous(), "sum", offsets=bounds, axis=0, unsafe=True, initial=0)
