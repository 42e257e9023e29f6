"""Training pixels of several sizes, so that a field of cones learns what wide ones look like."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def draw_exponents(
    count: int, num_scales: int, coarse_share: float, device: torch.device | str
) -> Int[Tensor, " count"]:
    """Base-2 logarithms of the pixels' sides: 0, or for `coarse_share` of them one of 1 .. num_scales - 1 evenly."""
    coarse = torch.randint(1, max(num_scales, 2), (count,), device=device)
    return torch.where(torch.rand(count, device=device) < coarse_share, coarse, torch.zeros_like(coarse))


def coarse_pixels(
    images: Float[Tensor, "I H W C"],
    image: Int[Tensor, " N"],
    row: Int[Tensor, " N"],
    column: Int[Tensor, " N"],
    exponents: Int[Tensor, " N"],
) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N 2"]]:
    """Colours and centres of the coarse pixels that fine pixels lie in.

    A coarse pixel of side 2^e covers the fine ones of its cell in a raster from the upper left corner, as box filtering
    has it; a fine pixel beyond the last whole cell is given that one.

    Args:
        images: with straight alpha where C is 4, in [0, 1].
        image: which image.
        row: of the fine pixel.
        column: of the fine pixel.
        exponents: e of each, such that 2^e is at most H and W.

    Returns:
        The mean colour, of light where there is alpha, with straight alpha again; and the centre (y, x) in pixels.
    """
    height, width = images.shape[1:3]
    colors = images.new_empty(len(row), images.shape[-1])
    centers = torch.empty(len(row), 2, device=images.device)
    for exponent in exponents.unique().tolist():
        side = 1 << exponent
        these = exponents == exponent
        top = (row[these] // side).clamp(max=height // side - 1) * side
        left = (column[these] // side).clamp(max=width // side - 1) * side
        inside = torch.arange(side, device=images.device)
        cells = images[
            image[these][:, None, None],
            top[:, None, None] + inside[:, None],
            left[:, None, None] + inside,
        ]  # [n, side, side, C]
        mean = cells.mean(dim=(1, 2))
        if images.shape[-1] == 4:
            light = (cells[..., :3] * cells[..., 3:]).mean(dim=(1, 2))
            mean = torch.cat([light / mean[:, 3:].clamp_min(1e-6), mean[:, 3:]], dim=-1)
        colors[these] = mean
        centers[these] = torch.stack([top, left], dim=-1) + 0.5 * side
    return colors, centers
