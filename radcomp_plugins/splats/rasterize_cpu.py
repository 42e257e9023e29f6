"""Tile rasterization on the CPU as a torch function: numba kernels of `tiles` and `blend`, gsplat's semantics."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from radcomp_plugins.core.threads import new_counter, run_striped
from radcomp_plugins.splats import blend, tiles


def to_numpy(tensor: Tensor) -> NDArray[Any]:
    """The tensor's memory as a C-contiguous array, copied only where it has gaps."""
    return tensor.detach().contiguous().numpy()


class _Rasterize(torch.autograd.Function):
    """Blend splats that are already projected and coloured."""

    @staticmethod
    def forward(
        ctx: Any,
        means2d: Tensor,
        conics: Tensor,
        colors: Tensor,
        opacities: Tensor,
        backgrounds: Tensor,
        depths: Tensor,
        radii: Tensor,
        width: int,
        height: int,
        absgrad: bool,
        stats: dict[str, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        cameras, count = radii.shape
        channels = colors.shape[-1]
        lists = tiles.build_tile_lists(
            to_numpy(radii),
            to_numpy(means2d),
            to_numpy(depths),
            to_numpy(conics),
            to_numpy(opacities),
            to_numpy(colors),
            width,
            height,
        )
        image = np.empty((cameras, height, width, channels), np.float32)
        final_t = np.empty((cameras, height, width), np.float32)
        ends = np.empty(len(lists.work), np.int64)
        pairs = len(lists.ids) if stats is not None else 0
        reached, pair_stats = np.zeros(pairs, np.bool_), np.empty((pairs, 3), np.float32)
        common = (lists.work, lists.offsets, lists.ids, lists.splats, lists.tiles_x, lists.tiles_y, width, height)
        run_striped(
            blend.blend_forward,
            new_counter(),
            *common,
            to_numpy(backgrounds),
            image,
            final_t,
            ends,
            stats is not None,
            reached,
            pair_stats,
        )
        if stats is not None:
            _reduce_stats(lists.first, reached, pair_stats, cameras, count, stats)
        result = torch.from_numpy(image)
        ctx.save_for_backward(means2d, result)
        ctx.saved = (common, lists, final_t, ends)
        ctx.absgrad = absgrad
        ctx.shape = (cameras, count, channels)
        return result, torch.from_numpy(1.0 - final_t)[..., None]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        v_image, v_alphas = (to_numpy(grad) for grad in grad_outputs)
        means2d, image = ctx.saved_tensors
        common, lists, final_t, ends = ctx.saved
        cameras, count, channels = ctx.shape
        columns = blend.SHAPE_GRADS + channels + (2 if ctx.absgrad else 0)
        reached, grads = np.zeros(len(lists.ids), np.bool_), np.empty((len(lists.ids), columns), np.float32)
        run_striped(
            blend.blend_backward,
            new_counter(),
            *common,
            to_numpy(image),
            final_t,
            ends,
            v_image,
            v_alphas[..., 0],
            ctx.absgrad,
            reached,
            grads,
        )
        total = cameras * count
        v_means2d, v_abs = np.empty((total, 2), np.float32), np.empty((total if ctx.absgrad else 0, 2), np.float32)
        v_conics, v_opacities = np.empty((total, 3), np.float32), np.empty(total, np.float32)
        v_colors = np.empty((total, channels), np.float32)
        run_striped(
            blend.sum_grads,
            new_counter(),
            lists.first,
            reached,
            grads,
            v_means2d,
            v_abs,
            v_conics,
            v_opacities,
            v_colors,
        )
        if ctx.absgrad:
            means2d.absgrad = torch.from_numpy(v_abs).view(cameras, count, 2)
        v_backgrounds = None
        if ctx.needs_input_grad[4]:
            v_backgrounds = torch.from_numpy(np.einsum("chw,chwd->cd", final_t, v_image))
        return (
            torch.from_numpy(v_means2d).view(cameras, count, 2),
            torch.from_numpy(v_conics).view(cameras, count, 3),
            torch.from_numpy(v_colors).view(cameras, count, channels),
            torch.from_numpy(v_opacities).view(cameras, count),
            v_backgrounds,
            None,
            None,
            None,
            None,
            None,
            None,
        )


def _reduce_stats(
    first: NDArray[np.int64],
    reached: NDArray[np.bool_],
    pair_stats: NDArray[np.float32],
    cameras: int,
    count: int,
    out: dict[str, Tensor],
) -> None:
    hits, weight_sum = np.empty(count, np.int64), np.empty(count, np.float64)
    weight_max = np.empty(count, np.float32)
    run_striped(blend.sum_stats, new_counter(), cameras, first, reached, pair_stats, hits, weight_sum, weight_max)
    out["hits"] = torch.from_numpy(hits)
    out["weight_sum"] = torch.from_numpy(weight_sum)
    out["weight_max"] = torch.from_numpy(weight_max)


def rasterize_to_pixels_cpu(
    means2d: Float[Tensor, "C N 2"],
    conics: Float[Tensor, "C N 3"],
    colors: Float[Tensor, "C N D"],
    opacities: Float[Tensor, "C N"],
    depths: Float[Tensor, "C N"],
    radii: Int[Tensor, "C N"],
    width: int,
    height: int,
    *,
    backgrounds: Float[Tensor, "C D"] | None = None,
    absgrad: bool = False,
    stats: dict[str, Tensor] | None = None,
) -> tuple[Float[Tensor, "C H W D"], Float[Tensor, "C H W 1"]]:
    """Sort splats into tiles and blend them front to back.

    Args:
        means2d: [C, N, 2] float32 centres in pixels; the centre of the first pixel is (0.5, 0.5).
        conics: [C, N, 3] float32 inverse 2D covariance (xx, xy, yy), 1/pixel^2.
        colors: [C, N, D] float32, any D >= 1.
        opacities: [C, N] float32 peak alpha, 0 .. 1.
        depths: [C, N] float32, only for the order.
        radii: [C, N] int32 half side of gsplat's box in pixels, 0 for splats to leave out. What the other tensors
            hold there is not looked at.
        width: of the image in pixels.
        height: of the image in pixels.
        backgrounds: [C, D] colour behind everything, black by default.
        absgrad: give `means2d` an attribute `absgrad` [C, N, 2] in backward: sums of the absolute per-pixel gradients.
        stats: filled with "hits" int64, "weight_sum" float64 and "weight_max" float32, [N] each, if given.

    Returns:
        The image [C, H, W, D] and alpha [C, H, W, 1], float32.
    """
    if backgrounds is None:
        backgrounds = colors.new_zeros(colors.shape[0], colors.shape[-1])
    return _Rasterize.apply(  # type: ignore[return-value]
        means2d, conics, colors, opacities, backgrounds, depths, radii, width, height, absgrad, stats
    )
