"""The CUDA twin of the rasterizer: gsplat, and per-Gaussian statistics from what gsplat's API gives.

gsplat is imported inside the functions: importing it on a machine that has nvcc but no usable GPU can fail.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

_STRIP_ROWS = 8
"""Rows of tiles listed at a time; bounds the memory for (pixel, Gaussian) pairs in `statistics_cuda`."""


def rasterize_cuda(
    means: Float[Tensor, "N 3"],
    quats: Float[Tensor, "N 4"],
    scales: Float[Tensor, "N 3"],
    opacities: Float[Tensor, " N"],
    colors: Tensor,
    viewmats: Float[Tensor, "C 4 4"],
    Ks: Float[Tensor, "C 3 3"],  # noqa: N803
    width: int,
    height: int,
    compute_stats: bool,
    **options: Any,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Arguments and results of `rasterize.rasterize`; `options` go to `gsplat.rasterization` by the same names."""
    from gsplat import rasterization

    render, alphas, info = rasterization(
        means, quats, scales, opacities, colors, viewmats, Ks, width, height, packed=False, **options
    )
    info.setdefault("n_cameras", viewmats.shape[0])
    if compute_stats:
        info.update(statistics_cuda(info, width, height))
    return render, alphas, info


@torch.no_grad()
def statistics_cuda(info: dict[str, Any], width: int, height: int) -> dict[str, Tensor]:
    """Hits and blending weights of each Gaussian, summed (or the largest) over cameras and pixels.

    gsplat's `rasterize_to_indices_in_range` lists who reaches which pixel. It is called for a strip of tile rows at a
    time with the strip's part of the tile lists, never for a part of their depth: its stop at T <= 1e-4 is forgotten
    between calls.

    Args:
        info: of `gsplat.rasterization(packed=False)`.
        width: of the image in pixels.
        height: of the image in pixels.

    Returns:
        "hits" int64 [N], "weight_sum" float64 [N], "weight_max" float32 [N].
    """
    means2d, conics, opacities = info["means2d"].detach(), info["conics"].detach(), info["opacities"].detach()
    cameras, count = means2d.shape[:2]
    tile = info["tile_size"]
    starts, ids = info["isect_offsets"], info["flatten_ids"]
    tiles_y, tiles_x = starts.shape[1:]
    bounds = torch.cat([starts.flatten(), starts.new_tensor([len(ids)])])
    hits = torch.zeros(count, dtype=torch.int64, device=means2d.device)
    weight_sum = torch.zeros(count, dtype=torch.float64, device=means2d.device)
    weight_max = torch.zeros(count, dtype=torch.float32, device=means2d.device)
    for camera in range(cameras):
        for row in range(0, tiles_y, _STRIP_ROWS):
            rows = min(_STRIP_ROWS, tiles_y - row)
            first = (camera * tiles_y + row) * tiles_x
            begin, end = int(bounds[first]), int(bounds[first + rows * tiles_x])
            if begin == end:
                continue
            gaussians, weights = _strip_weights(
                means2d[camera] - means2d.new_tensor([0.0, float(row * tile)]),
                conics[camera],
                opacities[camera],
                width,
                min(rows * tile, height - row * tile),
                tile,
                (bounds[first : first + rows * tiles_x] - begin).view(1, rows, tiles_x),
                ids[begin:end] - camera * count,
            )
            hits += torch.bincount(gaussians, minlength=count)
            weight_sum.index_add_(0, gaussians, weights)
            weight_max.scatter_reduce_(0, gaussians, weights.float(), "amax")
    return {"hits": hits, "weight_sum": weight_sum, "weight_max": weight_max}


def _strip_weights(
    means2d: Float[Tensor, "N 2"],
    conics: Float[Tensor, "N 3"],
    opacities: Float[Tensor, " N"],
    width: int,
    height: int,
    tile: int,
    offsets: Tensor,
    ids: Tensor,
) -> tuple[Tensor, Tensor]:
    """Pairs of one camera's strip: Gaussian numbers int64 [M] and their weights alpha * T float64 [M]."""
    from gsplat.cuda._wrapper import rasterize_to_indices_in_range

    gaussians, pixels, _ = rasterize_to_indices_in_range(
        0,
        2**31 - 1,
        means2d.new_ones(1, height, width),
        means2d[None],
        conics[None],
        opacities[None],
        width,
        height,
        tile,
        offsets.int(),
        ids.int(),
    )
    dx = means2d[gaussians, 0] - (pixels % width + 0.5)
    dy = means2d[gaussians, 1] - (pixels // width + 0.5)
    a, b, c = conics[gaussians].unbind(-1)
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    alpha = (opacities[gaussians] * torch.exp(-sigma)).clamp_max(0.999).double()
    # Front to back within a pixel, pixels one after the other: T is a running product that starts anew at each.
    logs = torch.log1p(-alpha)
    before = logs.cumsum(0) - logs
    starts = torch.ones_like(pixels, dtype=torch.bool)
    starts[1:] = pixels[1:] != pixels[:-1]
    segment = starts.cumsum(0) - 1
    return gaussians, alpha * torch.exp(before - before[starts][segment])
