"""Where Zip-NeRF looks along a ray: the curve of distances, and resampling (Barron et al. 2023)."""

import torch
from jaxtyping import Float
from torch import Tensor

_CDF_PADDING = 1e-5
"""Added to the weights that are resampled, as a share of all, so that a ray that sees nothing is sampled evenly."""


def power_transform(x: Tensor, power: float) -> Tensor:
    """P(x, lambda) = |lambda - 1| / lambda ((x / |lambda - 1| + 1)^lambda - 1) (Barron et al. 2023, supplement).

    Args:
        x: 0 or more.
        power: lambda, neither 0 nor 1.

    Returns:
        Same shape; it is x near 0 and, for lambda < 0, tends to |lambda - 1| / |lambda|.
    """
    scale = abs(power - 1)
    return scale / power * ((x / scale + 1) ** power - 1)


def inverse_power_transform(y: Tensor, power: float) -> Tensor:
    """The inverse of `power_transform`."""
    scale = abs(power - 1)
    return scale * ((y * power / scale + 1) ** (1 / power) - 1)


def curve_to_distance(
    s: Float[Tensor, "R edges"],
    near: Float[Tensor, "R 1"],
    far: Float[Tensor, "R 1"],
    power: float | None,
) -> Float[Tensor, "R edges"]:
    """Distances along the unit direction, scene units, of normalised distances s in [0, 1].

    Args:
        s: 0 is near, 1 is far.
        near: scene units.
        far: scene units, not below near.
        power: lambda of the curve g(t) = P(2 t, lambda); None for an even division.
    """
    if power is None:
        return near + (far - near) * s
    low, high = power_transform(2 * near, power), power_transform(2 * far, power)
    return 0.5 * inverse_power_transform(low + (high - low) * s, power)


def distance_to_curve(
    t: Float[Tensor, "R edges"],
    near: Float[Tensor, "R 1"],
    far: Float[Tensor, "R 1"],
    power: float | None,
) -> Float[Tensor, "R edges"]:
    """The inverse of `curve_to_distance`."""
    if power is None:
        return (t - near) / (far - near)
    low, high = power_transform(2 * near, power), power_transform(2 * far, power)
    return (power_transform(2 * t, power) - low) / (high - low)


def box_bounds(
    origins: Float[Tensor, "R 3"], directions: Float[Tensor, "R 3"], box: Float[Tensor, "2 3"]
) -> tuple[Float[Tensor, "R 1"], Float[Tensor, "R 1"]]:
    """Distances at which rays enter and leave a box; equal for a ray that misses it, so that nothing is sampled."""
    # A direction of exactly 0 would make 0 * inf on a face; this small it stays on its side.
    safe = torch.where(directions.abs() < 1e-9, torch.full_like(directions, 1e-9), directions)
    hits = (box[:, None, :] - origins) / safe  # [2, R, 3]
    near = hits.amin(dim=0).amax(dim=-1, keepdim=True).clamp_min(0.0)
    far = hits.amax(dim=0).amin(dim=-1, keepdim=True)
    return near, torch.maximum(near, far)


def resample(
    edges: Float[Tensor, "R edges"], weights: Float[Tensor, "R intervals"], count: int, jitter: bool
) -> Float[Tensor, "R new_edges"]:
    """Edges of `count` new intervals, about the points that part the piecewise-constant density into equal shares.

    Points are drawn first and their midpoints are the inner edges, so that each interval has its own point inside
    (mip-NeRF 360, Sec. 4). The ends mirror the first and last inner edge, within the old range.

    Args:
        edges: ascending, in [0, 1].
        weights: 0 or more, of any sum.
        count: number of new intervals.
        jitter: move all points of a ray by one random part of a share, from torch's global generator.
    """
    rays = len(edges)
    share = weights / weights.sum(dim=-1, keepdim=True).clamp_min(1e-30)
    share = share + _CDF_PADDING * (edges[:, 1:] - edges[:, :-1])
    cdf = torch.cat([torch.zeros_like(edges[:, :1]), share.cumsum(dim=-1)], dim=-1)
    cdf = cdf / cdf[:, -1:]
    grid = torch.arange(count, dtype=edges.dtype, device=edges.device)
    offset = torch.rand(rays, 1, dtype=edges.dtype, device=edges.device) if jitter else 0.5
    u = ((grid + offset) / count).expand(rays, count).contiguous()
    above = torch.searchsorted(cdf, u, right=True).clamp(1, edges.shape[1] - 1)
    low, high = cdf.gather(1, above - 1), cdf.gather(1, above)
    start, end = edges.gather(1, above - 1), edges.gather(1, above)
    points = start + (end - start) * ((u - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    inner = 0.5 * (points[:, 1:] + points[:, :-1])
    first = torch.maximum(2 * points[:, :1] - inner[:, :1], edges[:, :1])
    last = torch.minimum(2 * points[:, -1:] - inner[:, -1:], edges[:, -1:])
    return torch.cat([first, inner, last], dim=-1)
