"""Differentiable Gaussian splatting behind one signature: gsplat for CUDA tensors, numba kernels for CPU tensors."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from radcomp_plugins.splats._torch_projection import project, sh_colors
from radcomp_plugins.splats.rasterize_cpu import rasterize_to_pixels_cpu

RenderMode = Literal["RGB", "D", "ED", "RGB+D", "RGB+ED"]
RasterizeMode = Literal["classic", "antialiased"]


def rasterize(
    means: Float[Tensor, "N 3"],
    quats: Float[Tensor, "N 4"],
    scales: Float[Tensor, "N 3"],
    opacities: Float[Tensor, " N"],
    colors: Float[Tensor, "N *channels"],
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
) -> tuple[Float[Tensor, "C H W D"], Float[Tensor, "C H W 1"], dict[str, Any]]:
    """Draw Gaussians from C cameras."""
    if means.is_cuda:
        raise NotImplementedError("the CUDA path of rasterize is not there yet")
    C, N = viewmats.shape[0], means.shape[0]  # noqa: N806
    radii, means2d, depths, conics, comp = project(
        means, quats, scales, viewmats, Ks, width, height, near_plane, far_plane, eps2d, radius_clip
    )
    opac = opacities[None].expand(C, N)
    if rasterize_mode == "antialiased":
        opac = opac * comp
    if render_mode in ("D", "ED"):
        feats = depths[..., None]
    else:
        if sh_degree is None:
            feats = colors[None].expand(C, *colors.shape)
        else:
            centers = -torch.einsum("cji,cj->ci", viewmats[:, :3, :3], viewmats[:, :3, 3])
            dirs = means[None] - centers[:, None]
            feats = (sh_colors(sh_degree, dirs, colors) + 0.5).clamp_min(0)
        if render_mode != "RGB":
            feats = torch.cat([feats, depths[..., None]], -1)
    if backgrounds is not None and render_mode != "RGB":
        zero = backgrounds.new_zeros(C, 1)
        backgrounds = zero if render_mode in ("D", "ED") else torch.cat([backgrounds, zero], -1)
    stats: dict[str, Tensor] | None = {} if compute_stats else None
    render, alphas = rasterize_to_pixels_cpu(
        means2d, conics, feats, opac, depths, radii, width, height,
        backgrounds=backgrounds, absgrad=absgrad, stats=stats,
    )  # fmt: skip
    if render_mode in ("ED", "RGB+ED"):
        render = torch.cat([render[..., :-1], render[..., -1:] / alphas.clamp(min=1e-10)], -1)
    info: dict[str, Any] = {
        "means2d": means2d, "radii": radii, "depths": depths, "conics": conics, "opacities": opac,
        "width": width, "height": height, "n_cameras": C, "camera_ids": None, "gaussian_ids": None,
        "tile_size": 16,
    }  # fmt: skip
    return render, alphas, {**info, **(stats or {})}
