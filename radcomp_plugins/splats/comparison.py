"""How near a scene's pictures come to true ones: another scene's, on views of our own, or photos."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from radcomp_plugins.core.ssim import ssim
from radcomp_plugins.splats.draw import draw, picture
from radcomp_plugins.splats.evaluate import HeldOutView
from radcomp_plugins.splats.gaussians import Gaussians
from radcomp_plugins.splats.views import PinholeView

LEAST_ERROR = 1e-10
"""Mean squared error below which pictures count as equal: 100 dB."""

Pair = tuple[Float[Tensor, "H W 3"], Float[Tensor, "H W 3"]]
"""The true picture, and the scene's."""


@dataclass(frozen=True)
class Similarity:
    """Of a scene's pictures to the true ones.

    Attributes:
        psnr: dB over all views, 100 at most.
        ssim: mean over the views.
        per_view: PSNR of each view, dB.
    """

    psnr: float
    ssim: float
    per_view: tuple[float, ...]


class Comparison(ABC):
    """True pictures of some views."""

    views: Sequence[PinholeView]

    @abstractmethod
    def pairs(self, scene: Gaussians, index: int) -> list[Pair]:
        """True and drawn pictures of a view, one pair for each background."""

    @abstractmethod
    def mean_psnr(self, errors: Sequence[float]) -> float:
        """PSNR over all views from the mean squared error of each."""

    def similarity(self, scene: Gaussians) -> Similarity:
        """PSNR and SSIM of a scene, on the device of the views."""
        errors, similar = [], []
        for index in range(len(self.views)):
            pairs = self.pairs(scene, index)
            errors.append(_error(pairs))
            stacked = [
                torch.stack(images).permute(0, 3, 1, 2).float().contiguous() for images in zip(*pairs, strict=True)
            ]
            similar.append(float(ssim(stacked[0], stacked[1])))
        per_view = tuple(_decibels(error) for error in errors)
        return Similarity(self.mean_psnr(errors), sum(similar) / len(similar), per_view)


class SceneComparison(Comparison):
    """With a reference scene, on black and on white alike, for a viewer may have either behind the scene.

    Args:
        reference: The scene whose pictures are the truth.
        views: Cameras to compare in, on its device.
    """

    def __init__(self, reference: Gaussians, views: Sequence[PinholeView]) -> None:
        self.views = views
        self.truths = [draw(reference, view)[:2] for view in views]

    def pairs(self, scene: Gaussians, index: int) -> list[Pair]:
        """The view on black and on white."""
        render, alpha = self.truths[index]
        got, got_alpha = draw(scene.to(render.device), self.views[index])[:2]
        return [
            ((render + (1 - alpha) * background).clamp(0, 1), (got + (1 - got_alpha) * background).clamp(0, 1))
            for background in (0.0, 1.0)
        ]

    def mean_psnr(self, errors: Sequence[float]) -> float:
        """Of the mean error, so that a view that is all background does not decide."""
        return _decibels(sum(errors) / len(errors))

    def psnr_of(self, scene: Gaussians) -> float:
        """PSNR alone, dB."""
        return self.mean_psnr([_error(self.pairs(scene, index)) for index in range(len(self.views))])


class PhotoComparison(Comparison):
    """With photos that training has not seen.

    Args:
        held_out: At least one.
        background: What transparent photos were composited on.
    """

    def __init__(self, held_out: Sequence[HeldOutView], background: Float[Tensor, " 3"]) -> None:
        self.held_out, self.background = held_out, background
        self.views = [shot.view for shot in held_out]

    def pairs(self, scene: Gaussians, index: int) -> list[Pair]:
        """The photo and the picture of its camera."""
        shot = self.held_out[index]
        return [(shot.image, picture(scene.to(shot.image.device), shot.view, self.background))]

    def mean_psnr(self, errors: Sequence[float]) -> float:
        """Mean of the views' PSNR, as papers have it."""
        return sum(_decibels(error) for error in errors) / len(errors)


def _error(pairs: Sequence[Pair]) -> float:
    """Mean squared error over the pairs of a view."""
    return sum(float((a.double() - b.double()).square().mean()) for a, b in pairs) / len(pairs)


def _decibels(error: float) -> float:
    return -10 * math.log10(max(error, LEAST_ERROR))
