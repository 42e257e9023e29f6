"""A Gaussian scene drawn into one view, without gradients."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from radcomp_plugins.splats.gaussians import Gaussians
from radcomp_plugins.splats.rasterize import rasterize
from radcomp_plugins.splats.views import PinholeView


@torch.no_grad()
def draw(gaussians: Gaussians, view: PinholeView, **options: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Rasterize a scene into one view: colours [H, W, D], alphas [H, W, 1] and the rasterizer's info."""
    colors = torch.cat([gaussians.sh0[:, None], gaussians.shN], dim=1)
    render, alpha, info = rasterize(
        gaussians.means,
        gaussians.quats,
        gaussians.scales.exp(),
        gaussians.opacities.sigmoid(),
        colors,
        view.viewmat[None],
        view.K[None],
        view.width,
        view.height,
        sh_degree=gaussians.sh_degree,
        rasterize_mode="antialiased" if gaussians.antialiased else "classic",
        **options,
    )
    return render[0], alpha[0], info


def picture(gaussians: Gaussians, view: PinholeView, background: Float[Tensor, " 3"]) -> Float[Tensor, "H W 3"]:
    """The scene drawn on a background colour, clamped to [0, 1]."""
    render, alpha, _ = draw(gaussians, view)
    return (render + (1 - alpha) * background).clamp(0, 1)
