"""The losses of Zip-NeRF (Barron et al. 2023) that are not about colour."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def _integral_of_cdf(
    x: Float[Tensor, "R Q"], edges: Float[Tensor, "R edges"], weights: Float[Tensor, "R intervals"]
) -> Float[Tensor, "R Q"]:
    """A(x): the integral up to x of the cumulative distribution of a histogram; 0 before it, linear behind it."""
    width = edges[:, 1:] - edges[:, :-1]
    cdf = torch.cat([torch.zeros_like(weights[:, :1]), weights.cumsum(dim=-1)], dim=-1)
    area = 0.5 * (cdf[:, 1:] + cdf[:, :-1]) * width
    area = torch.cat([torch.zeros_like(area[:, :1]), area.cumsum(dim=-1)], dim=-1)
    inside = x.clamp(min=edges[:, :1], max=edges[:, -1:])
    index = (torch.searchsorted(edges, inside, right=True) - 1).clamp(0, weights.shape[1] - 1)
    into = inside - edges.gather(1, index)
    slope = weights.gather(1, index) / width.gather(1, index).clamp_min(1e-7)
    behind = (x - edges[:, -1:]).clamp_min(0) * cdf[:, -1:]
    return area.gather(1, index) + into * (cdf.gather(1, index) + 0.5 * into * slope) + behind


@torch.no_grad()
def blurred_weights(
    query: Float[Tensor, "R new_edges"],
    edges: Float[Tensor, "R edges"],
    weights: Float[Tensor, "R intervals"],
    half_width: float,
) -> Float[Tensor, "R new_intervals"]:
    """Weights that fall between new edges once the histogram is blurred by a box (Barron et al. 2023, Sec. 3.3).

    The paper blurs the step function into a piecewise linear one and integrates that. The cumulative distribution of
    the result is (A(x + r) - A(x - r)) / 2r, with A the integral of the histogram's own, which needs no sorting.

    Args:
        query: ascending, normalised distance.
        edges: ascending, normalised distance.
        weights: 0 or more.
        half_width: r of the box, normalised distance.
    """
    precise = (query.double(), edges.double().contiguous(), weights.double())
    ends = torch.cat([precise[0] - half_width, precise[0] + half_width], dim=-1)
    before, behind = _integral_of_cdf(ends, precise[1], precise[2]).chunk(2, dim=-1)
    cumulative = (behind - before) / (2 * half_width)
    return (cumulative[:, 1:] - cumulative[:, :-1]).to(weights.dtype)


def interlevel_loss(
    proposal_edges: Float[Tensor, "R new_edges"],
    proposal_weights: Float[Tensor, "R new_intervals"],
    edges: Float[Tensor, "R edges"],
    weights: Float[Tensor, "R intervals"],
    half_width: float,
) -> Float[Tensor, ""]:
    """Anti-aliased interlevel loss: what the blurred final weights exceed the proposal by, squared and relative.

    Barron et al. 2023, Eq. 12: sum over intervals of max(0, w - w_hat)^2 / w_hat; the mean over rays. Gradients reach
    the proposal's weights only.
    """
    wanted = blurred_weights(proposal_edges, edges.detach(), weights.detach(), half_width)
    excess = (wanted - proposal_weights).clamp_min(0)
    return (excess**2 / (proposal_weights + 1e-5)).sum(dim=-1).mean()


def distortion_loss(edges: Float[Tensor, "R edges"], weights: Float[Tensor, "R intervals"]) -> Float[Tensor, ""]:
    """Distortion of mip-NeRF 360 (Eq. 15), in normalised distance: spread of each ray's weights; the mean over rays.

    The double sum over pairs of midpoints is a single one over running sums, because midpoints ascend.
    """
    middle = 0.5 * (edges[:, 1:] + edges[:, :-1])
    total, moment = weights.cumsum(dim=-1), (weights * middle).cumsum(dim=-1)
    between = 2 * (weights * (middle * total - moment)).sum(dim=-1)
    within = (weights**2 * (edges[:, 1:] - edges[:, :-1])).sum(dim=-1) / 3
    return (between + within).mean()


class _MeanSquare(torch.autograd.Function):
    """x.square().mean() in one pass each way; autograd takes five, over tables that are larger than the caches."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        flat = x.detach().flatten()
        return torch.dot(flat, flat) / flat.numel()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Tensor:
        (x,) = ctx.saved_tensors
        return x * (2 * grad_outputs[0] / x.numel())


def hash_decay(table: Float[Tensor, "entries F"], num_levels: int) -> Float[Tensor, ""]:
    """Normalised weight decay (Barron et al. 2023, Sec. 3.4): the sum over levels of the mean squared feature."""
    return _MeanSquare.apply(table) * num_levels  # type: ignore[return-value]
