"""Differentiable Gaussian splatting behind one signature: gsplat for CUDA tensors, numba kernels for CPU tensors."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from radcomp_plugins.splats.projection import project_gaussians
from radcomp_plugins.splats.rasterize_cpu import rasterize_to_pixels_cpu
from radcomp_plugins.splats.rasterize_cuda import rasterize_cuda
from radcomp_plugins.splats.sh import sh_to_colors
from radcomp_plugins.splats.tiles import TILE

RenderMode = Literal["RGB", "D", "ED", "RGB+D", "RGB+ED"]
RasterizeMode = Literal["classic", "antialiased"]


def rasterize(
    means: Float[Tensor, "N 3"],
    quats: Float[Tensor, "N 4"],
    scales: Float[Tensor, "N 3"],
    opacities: Float[Tensor, " N"],
    colors: Float[Tensor, "N *channels"] | tuple[Float[Tensor, "N 3"], Float[Tensor, "N K 3"]],
    viewmats: Float[Tensor, "C 4 4"],
    Ks: Float[Tensor, "C 3 3"],  # noqa: N803
    width: int,
    height: int,
    *,
    sh_degree: int | None = None,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    eps2d: float = 0.3,
    radius_clip: float = 0.0,
    backgrounds: Float[Tensor, "C D"] | None = None,
    render_mode: RenderMode = "RGB",
    rasterize_mode: RasterizeMode = "classic",
    absgrad: bool = False,
    compute_stats: bool = False,
) -> tuple[Float[Tensor, "C H W E"], Float[Tensor, "C H W 1"], dict[str, Any]]:
    """Draw N Gaussians from C pinhole cameras with the semantics of gsplat 1.4.0.

    CUDA tensors are drawn by the installed gsplat, CPU tensors by our own kernels. There the result and all gradients
    have the same bits for any number of threads, and Gaussians with NaN or infinite parameters are left out.
    Differentiable in means, quats, scales, opacities, colors and backgrounds; on CUDA in viewmats too.

    Args:
        means: [N, 3] float32 centres, world units.
        quats: [N, 4] float32 rotations (w, x, y, z) of any length but zero.
        scales: [N, 3] float32 standard deviations, world units (not their logarithms).
        opacities: [N] float32 peak alpha in 0 .. 1 (not logits).
        colors: [N, D] float32 colours or features without `sh_degree`; with it SH coefficients [N, K, 3], or the
            constant ones [N, 3] and the others [N, K - 1, 3] apart, which saves the CPU a copy of them.
        viewmats: [C, 4, 4] float32 world to camera, OpenCV axes.
        Ks: [C, 3, 3] float32 intrinsics in pixels.
        width: of the images in pixels.
        height: of the images in pixels.
        sh_degree: degree of the harmonics to use, 0 to 3.
        near_plane: Gaussians nearer than this are left out.
        far_plane: Gaussians farther than this are left out.
        eps2d: pixels^2 added to the diagonal of every 2D covariance.
        radius_clip: splats of this radius in pixels and smaller are left out.
        backgrounds: [C, D] colour behind everything; depth has none. Black if not given.
        render_mode: colours, accumulated depth "D", expected depth "ED" (divided by alpha), or colours and depth.
        rasterize_mode: "antialiased" lowers the opacity of splats smaller than the blur (Yu et al. 2024).
        absgrad: after backward `info["means2d"].absgrad` [C, N, 2] holds the sums of absolute per-pixel gradients.
        compute_stats: also report who is seen how much; costs the CPU a few percent, CUDA a second pass.

    Returns:
        render [C, H, W, E] (E = D, D + 1 with depth, 1 for depth alone); alphas [C, H, W, 1] in 0 .. 1; info with
        gsplat's keys, among them those `gsplat.DefaultStrategy` needs: "means2d" [C, N, 2] in the graph, "radii"
        [C, N] int32, "depths", "conics", "opacities" [C, N], "width", "height", "n_cameras". With `compute_stats`
        also, over all cameras and pixels: "hits" int64 [N], "weight_sum" float64 [N] and "weight_max" float32 [N] of
        alpha * T.

    Raises:
        ValueError: tensors of the wrong shape, type or device, an unknown mode, or a size below 1.
    """
    _check(means, quats, scales, opacities, viewmats, Ks, width, height, render_mode, rasterize_mode)
    options: dict[str, Any] = {"near_plane": near_plane, "far_plane": far_plane, "eps2d": eps2d}
    options["radius_clip"] = radius_clip
    if means.is_cuda:
        if isinstance(colors, tuple):
            colors = torch.cat([colors[0][:, None], colors[1]], dim=1)
        return rasterize_cuda(
            means, quats, scales, opacities, colors, viewmats, Ks, width, height, compute_stats, sh_degree=sh_degree,
            backgrounds=backgrounds, render_mode=render_mode, rasterize_mode=rasterize_mode, absgrad=absgrad,
            **options,
        )  # fmt: skip
    if viewmats.requires_grad:
        raise ValueError("viewmats require a gradient, which the CPU rasterizer does not give: switch off the camera "
                         "optimizer or pass viewmats.detach()")  # fmt: skip
    splats = project_gaussians(
        means, quats, scales, opacities, viewmats, Ks, width, height, antialiased=rasterize_mode == "antialiased",
        **options,
    )  # fmt: skip
    features = _features(means, colors, sh_degree, viewmats, splats.radii, splats.depths, render_mode)
    stats: dict[str, Tensor] | None = {} if compute_stats else None
    render, alphas = rasterize_to_pixels_cpu(
        splats.means2d, splats.conics, features, splats.opacities, splats.depths, splats.radii, width, height,
        backgrounds=_pad_backgrounds(backgrounds, render_mode), absgrad=absgrad, stats=stats,
    )  # fmt: skip
    if render_mode in ("ED", "RGB+ED"):
        render = torch.cat([render[..., :-1], render[..., -1:] / alphas.clamp(min=1e-10)], dim=-1)
    info = {**vars(splats), "width": width, "height": height, "n_cameras": len(viewmats), "tile_size": TILE}
    return render, alphas, {**info, "camera_ids": None, "gaussian_ids": None, **(stats or {})}


def _check(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    viewmats: Tensor,
    ks: Tensor,
    width: int,
    height: int,
    render_mode: str,
    rasterize_mode: str,
) -> None:
    count, cameras = len(means), len(viewmats)
    expected = {
        "means": (means, (count, 3)),
        "quats": (quats, (count, 4)),
        "scales": (scales, (count, 3)),
        "opacities": (opacities, (count,)),
        "viewmats": (viewmats, (cameras, 4, 4)),
        "Ks": (ks, (cameras, 3, 3)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
        if tensor.dtype != torch.float32 or tensor.device != means.device:
            raise ValueError(f"{name} is {tensor.dtype} on {tensor.device}, expected float32 on {means.device}")
    if width < 1 or height < 1:
        raise ValueError(f"image of {width} x {height} pixels, expected 1 x 1 or more")
    if render_mode not in ("RGB", "D", "ED", "RGB+D", "RGB+ED"):
        raise ValueError(f"render_mode is {render_mode!r}, expected RGB, D, ED, RGB+D or RGB+ED")
    if rasterize_mode not in ("classic", "antialiased"):
        raise ValueError(f"rasterize_mode is {rasterize_mode!r}, expected classic or antialiased")


def _features(
    means: Tensor,
    colors: Tensor | tuple[Tensor, Tensor],
    sh_degree: int | None,
    viewmats: Tensor,
    radii: Tensor,
    depths: Tensor,
    render_mode: str,
) -> Tensor:
    """What is blended, [C, N, D]: colours, depths or both."""
    if render_mode in ("D", "ED"):
        return depths[..., None]
    if sh_degree is not None:
        features = sh_to_colors(sh_degree, means, colors, viewmats, radii)
    elif isinstance(colors, tuple) or colors.shape[:-1] != means.shape[:1]:
        got = "a pair" if isinstance(colors, tuple) else f"of shape {tuple(colors.shape)}"
        raise ValueError(f"colors are {got}, expected [{len(means)}, D] without sh_degree")
    else:
        features = colors[None].expand(len(viewmats), -1, -1)
    return features if render_mode == "RGB" else torch.cat([features, depths[..., None]], dim=-1)


def _pad_backgrounds(backgrounds: Tensor | None, render_mode: str) -> Tensor | None:
    """Depth gets a background of 0."""
    if backgrounds is None or render_mode == "RGB":
        return backgrounds
    zero = backgrounds.new_zeros(len(backgrounds), 1)
    return zero if render_mode in ("D", "ED") else torch.cat([backgrounds, zero], dim=-1)
