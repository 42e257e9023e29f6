"""Image quality of a Gaussian scene against photos, or against another scene."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from radcomp_plugins.core.metrics import Lpips, psnr
from radcomp_plugins.core.ssim import ssim
from radcomp_plugins.splats.draw import picture
from radcomp_plugins.splats.gaussians import Gaussians
from radcomp_plugins.splats.views import PinholeView, pinhole_views


@dataclass(frozen=True)
class HeldOutView:
    """A camera that training never saw, and its photo.

    Attributes:
        view: the camera.
        image: [H, W, 3] float32 in [0, 1], composited on the background.
    """

    view: PinholeView
    image: Float[Tensor, "H W 3"]


def composite(image: Tensor, background: Float[Tensor, " 3"]) -> Float[Tensor, "H W 3"]:
    """A photo of 3 or 4 channels, bytes or floats, on the background, as floats in [0, 1]."""
    image = image.float() / 255 if image.dtype == torch.uint8 else image.float()
    if image.shape[-1] == 4:
        alpha = image[..., 3:]
        return image[..., :3] * alpha + background * (1 - alpha)
    return image


def held_out_views(loader: Iterable[tuple[Cameras, dict]], background: Float[Tensor, " 3"]) -> list[HeldOutView]:
    """The pairs of a datamanager's `fixed_indices_eval_dataloader`."""
    return [HeldOutView(pinhole_views(camera)[0], composite(batch["image"], background)) for camera, batch in loader]


def quality(
    gaussians: Gaussians,
    views: Sequence[HeldOutView],
    background: Float[Tensor, " 3"],
    reference: Gaussians | None = None,
    lpips: Lpips | None = None,
) -> dict[str, Any]:
    """Mean quality over views, against their photos or against a reference scene's pictures of them.

    Args:
        gaussians: the scene under test.
        views: at least one held-out view.
        background: colour behind the scene.
        reference: compare with this scene instead of the photos.
        lpips: also measure LPIPS with this network.

    Returns:
        "psnr" in dB and "ssim"; with `lpips` also "lpips" and "lpips_net", the value None and "lpips_missing" saying
        why where its weights cannot be had.
    """
    psnrs, ssims, distances = [], [], []
    for held_out in views:
        drawn = picture(gaussians, held_out.view, background)
        truth = held_out.image if reference is None else picture(reference, held_out.view, background)
        pair = [image.permute(2, 0, 1)[None] for image in (truth, drawn)]
        psnrs.append(float(psnr(truth, drawn)))
        ssims.append(float(ssim(*pair)))
        if lpips is not None and lpips.reason is None:
            distances.append(lpips(*pair))
    result: dict[str, Any] = {"psnr": sum(psnrs) / len(psnrs), "ssim": sum(ssims) / len(ssims)}
    if lpips is not None:
        missing = lpips.reason is not None
        result["lpips"] = None if missing else sum(distances) / len(distances)
        result.update({"lpips_missing": lpips.reason} if missing else {"lpips_net": lpips.net})
    return result
