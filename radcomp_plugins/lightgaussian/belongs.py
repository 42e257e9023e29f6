"""Whether photos show the scene that is to be compressed, told before an hour is spent on it."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from radcomp_plugins.core.metrics import psnr
from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.draw import picture
from radcomp_plugins.splats.evaluate import HeldOutView
from radcomp_plugins.splats.gaussians import Gaussians

LEAST_GAIN_DB = 4.0
"""How much better than one colour a scene's pictures of its photos have to be. Trained scenes had 15.8 to 20 dB
more on three datasets; other scenes, half the size, and turns by 20 degrees or more had -10 to 3.4 (by 5 degrees, 4.0
to 6.0)."""
VIEWS = 6


def spread(count: int, wanted: int = VIEWS) -> list[int]:
    """At most `wanted` indices below `count`, evenly spread."""
    used = min(wanted, count)
    return [round(k * (count - 1) / max(used - 1, 1)) for k in range(used)]


def gain_over_flat(
    gaussians: Gaussians, views: Sequence[HeldOutView], background: Float[Tensor, " 3"]
) -> tuple[float, float]:
    """PSNR of a scene's pictures of photos, and of pictures in the one colour that fits each photo best, means in dB.

    A picture of another scene, or from another place, is no better than that colour: its errors are those of two
    pictures that know nothing of each other.
    """
    drawn, flat = [], []
    for view in views:
        drawn.append(psnr(view.image, picture(gaussians, view.view, background)))
        flat.append(psnr(view.image, view.image.mean(dim=(0, 1)).expand_as(view.image)))
    return float(torch.stack(drawn).mean()), float(torch.stack(flat).mean())


def check_photos(gaussians: Gaussians, views: Sequence[HeldOutView], background: Float[Tensor, " 3"]) -> None:
    """Refuse photos that do not show the scene.

    Raises:
        InputError: its pictures of them are hardly better than one colour.
    """
    if not views:
        return
    drawn, flat = gain_over_flat(gaussians, views, background)
    # Photos of one colour can say nothing.
    if flat < 60.0 and drawn < flat + LEAST_GAIN_DB:
        raise InputError(
            f"--pipeline.teacher: its pictures of {len(views)} training photos have {drawn:.1f} dB, where one colour "
            f"has {flat:.1f} dB, so the photos do not show it, or not in its frame; expected {LEAST_GAIN_DB:g} dB "
            "more: give the dataset and parser options it was trained with, or --pipeline.check-photos False"
        )
