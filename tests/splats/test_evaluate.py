"""Drawing a scene without gradients, and its quality against photos or another scene."""

import dataclasses
import math

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from pytorch_msssim import ssim
from tiny_runs import FOCAL, SIZE, make_scene, orbit, views_of

from radcomp_plugins.core import metrics
from radcomp_plugins.core.metrics import Lpips
from radcomp_plugins.splats.draw import draw, picture
from radcomp_plugins.splats.evaluate import HeldOutView, composite, held_out_views, quality
from radcomp_plugins.splats.rasterize import rasterize

# draw -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("antialiased", [False, True])
def test_draw_activates_the_scene_and_keeps_its_mode(antialiased):
    scene, view = make_scene(antialiased=antialiased), views_of(orbit())[1]
    render, alpha, info = draw(scene, view, render_mode="RGB+ED")
    expected, alphas, _ = rasterize(
        scene.means, scene.quats, scene.scales.exp(), scene.opacities.sigmoid(),
        torch.cat([scene.sh0[:, None], scene.shN], dim=1), view.viewmat[None], view.K[None], SIZE, SIZE, sh_degree=3,
        render_mode="RGB+ED", rasterize_mode="antialiased" if antialiased else "classic",
    )  # fmt: skip
    assert torch.equal(render, expected[0]) and torch.equal(alpha, alphas[0]) and render.shape == (SIZE, SIZE, 4)
    other = dataclasses.replace(scene, antialiased=not antialiased)
    assert not torch.allclose(draw(other, view)[0], expected[0, ..., :3], atol=1e-3)


def test_draw_has_no_gradient():
    scene = make_scene(count=4)
    scene.means.requires_grad_(True)
    assert not draw(scene, views_of(orbit())[0])[0].requires_grad


def test_picture_is_composited_and_clamped():
    scene, view = make_scene(), views_of(orbit())[0]
    bright = dataclasses.replace(scene, sh0=scene.sh0 + 5)
    render, alpha, _ = draw(bright, view)
    background = torch.tensor([0.2, 0.4, 0.6])
    drawn = picture(bright, view, background)
    assert float(render.max()) > 1 and float(drawn.max()) == 1.0
    torch.testing.assert_close(drawn, torch.minimum(render + (1 - alpha) * background, torch.ones(())))


# quality --------------------------------------------------------------------------------------------------------------


def test_composite_knows_bytes_floats_and_alpha():
    background = torch.tensor([1.0, 0.0, 0.5])
    pixel = torch.tensor([[[255, 0, 51, 51]]], dtype=torch.uint8)
    expected = torch.tensor([[[1.0, 0.0, 0.2 * 0.2 + 0.5 * 0.8]]])
    torch.testing.assert_close(composite(pixel, background), expected)
    torch.testing.assert_close(composite(pixel.float() / 255, background), expected)
    torch.testing.assert_close(composite(pixel[..., :3], background), torch.tensor([[[1.0, 0.0, 0.2]]]))


def test_held_out_views_are_the_pairs_of_the_loader():
    cameras = Cameras(orbit(2), FOCAL, FOCAL, SIZE / 2, SIZE / 2, SIZE, SIZE)
    images = [torch.rand(SIZE, SIZE, 4), torch.rand(SIZE, SIZE, 3)]
    loader = [(cameras[k : k + 1], {"image": images[k]}) for k in range(2)]
    views = held_out_views(loader, torch.ones(3))
    for got, expected, image in zip(views, views_of(orbit(2)), images, strict=True):
        assert torch.equal(got.view.viewmat, expected.viewmat) and torch.equal(got.view.K, expected.K)
        torch.testing.assert_close(got.image, composite(image, torch.ones(3)))


def views_with_photos() -> list[HeldOutView]:
    return [HeldOutView(view, torch.rand(SIZE, SIZE, 3)) for view in views_of(orbit(3))]


def test_quality_is_the_mean_over_the_views():
    scene, views, background = make_scene(), views_with_photos(), torch.ones(3)
    psnrs, ssims = [], []
    for held_out in views:
        drawn = picture(scene, held_out.view, background)
        psnrs.append(-10 * math.log10(float((drawn - held_out.image).double().square().mean())))
        pair = [image.permute(2, 0, 1)[None].double() for image in (held_out.image, drawn)]
        ssims.append(float(ssim(*pair, data_range=1.0)))
    result = quality(scene, views, background)
    assert result == {"psnr": pytest.approx(sum(psnrs) / 3, abs=1e-4), "ssim": pytest.approx(sum(ssims) / 3, abs=1e-4)}


def test_quality_against_a_reference_ignores_the_photos():
    scene, worse, views = make_scene(), make_scene(seed=1), views_with_photos()
    others = [HeldOutView(held_out.view, torch.zeros(SIZE, SIZE, 3)) for held_out in views]
    background = torch.ones(3)
    assert quality(worse, views, background, scene) == quality(worse, others, background, scene)
    assert quality(scene, views, background, scene)["ssim"] == pytest.approx(1.0)
    pictures = [HeldOutView(held_out.view, picture(scene, held_out.view, background)) for held_out in views]
    assert quality(worse, views, background, scene) == quality(worse, pictures, background)


def test_lpips_is_averaged_and_named(monkeypatch):
    values = iter([0.1, 0.2, 0.6])
    monkeypatch.setattr(Lpips, "__call__", lambda self, target, image: next(values))
    result = quality(make_scene(), views_with_photos(), torch.ones(3), lpips=Lpips("vgg"))
    assert result["lpips"] == pytest.approx(0.3) and result["lpips_net"] == "vgg" and "lpips_missing" not in result


def test_lpips_that_cannot_be_had_is_null_with_the_reason(monkeypatch):
    monkeypatch.setattr(metrics, "_networks", {})
    monkeypatch.setattr(metrics, "_failures", {"alex": "no network"})
    result = quality(make_scene(), views_with_photos(), torch.ones(3), lpips=Lpips())
    assert result["lpips"] is None and result["lpips_missing"] == "no network" and "lpips_net" not in result
