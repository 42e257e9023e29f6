"""Similarity of pictures: against values worked out by hand, for scenes and for photos."""

import math
from dataclasses import replace

import pytest
import torch

from radcomp_plugins.core.metrics import psnr
from radcomp_plugins.core.ssim import ssim
from radcomp_plugins.splats.comparison import PhotoComparison, SceneComparison
from radcomp_plugins.splats.draw import draw, picture
from radcomp_plugins.splats.evaluate import HeldOutView
from radcomp_plugins.splats.gaussians import Gaussians
from radcomp_plugins.splats.virtual_views import virtual_views


def blob(colour: float = 0.0, count: int = 40) -> Gaussians:
    generator = torch.Generator().manual_seed(0)
    means, quats = torch.randn(count, 3, generator=generator), torch.randn(count, 4, generator=generator)
    sh0 = torch.full((count, 3), colour)
    return Gaussians(means, quats, torch.full((count, 3), -1.0), torch.ones(count), sh0, torch.zeros(count, 0, 3))


def test_equal_scenes_are_as_near_as_can_be() -> None:
    found = SceneComparison(blob(), virtual_views(blob(), 2, 24)).similarity(blob())
    assert found.psnr == pytest.approx(100) and found.ssim == pytest.approx(1) and found.per_view == (100.0, 100.0)


@pytest.mark.parametrize("colour", [0.0, 4.0])
def test_a_scene_is_compared_on_black_and_on_white(colour: float) -> None:
    """A scene that is fainter, so that what is behind it counts; brighter than white, as far as can be shown."""
    other = replace(blob(colour), opacities=torch.full((40,), -1.0))
    views = virtual_views(blob(), 3, 24)
    errors, similar = [], []
    for view in views:
        (a, alpha), (b, beta) = draw(blob(colour), view)[:2], draw(other, view)[:2]
        on = [((a + (1 - alpha) * c).clamp(0, 1), (b + (1 - beta) * c).clamp(0, 1)) for c in (0.0, 1.0)]
        errors.append([float((x - y).double().square().mean()) for x, y in on])
        similar += [float(ssim(x.permute(2, 0, 1)[None], y.permute(2, 0, 1)[None])) for x, y in on]
    comparison = SceneComparison(blob(colour), views)
    found = comparison.similarity(other)
    pooled = -10 * math.log10(sum(map(sum, errors)) / 6)
    assert found.psnr == pytest.approx(pooled, abs=1e-4) == comparison.psnr_of(other)
    assert found.ssim == pytest.approx(sum(similar) / 6, abs=1e-5)
    assert found.per_view == pytest.approx([-10 * math.log10(sum(pair) / 2) for pair in errors], abs=1e-4)


def test_photos_are_compared_view_by_view() -> None:
    views, background = virtual_views(blob(), 2, 24), torch.tensor([0.2, 0.4, 0.6])
    photos = [HeldOutView(view, torch.full((24, 24, 3), 0.5)) for view in views]
    found = PhotoComparison(photos, background).similarity(blob(0.7))
    expected = [float(psnr(torch.full((24, 24, 3), 0.5), picture(blob(0.7), view, background))) for view in views]
    assert found.psnr == pytest.approx(sum(expected) / 2, abs=1e-4)
    assert found.per_view == pytest.approx(expected, abs=1e-4) and 0 < found.ssim < 1
