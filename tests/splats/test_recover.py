"""Training towards the original's pictures brings a changed scene back, and leaves its arguments alone."""

from dataclasses import replace

import pytest
import torch

from radcomp_plugins.splats.fake_quantise import Encoding, fake_quantiser
from radcomp_plugins.splats.formats.rcs_quantise import RcsSettings
from radcomp_plugins.splats.formats.sog_quantise import SogPlan
from radcomp_plugins.splats.gaussians import Gaussians
from radcomp_plugins.splats.rate_control import Meter
from radcomp_plugins.splats.recover import recover
from radcomp_plugins.splats.virtual_views import virtual_views


class Nothing:
    """No format at all."""

    moves = ()

    def encode(self, gaussians, point, significance):  # noqa: ANN001, ANN201
        raise AssertionError

    def decode(self, data):  # noqa: ANN001, ANN201
        raise AssertionError


def cloud(n: int = 60) -> Gaussians:
    generator = torch.Generator().manual_seed(3)
    quats = torch.tensor([[1.0, 0, 0, 0]]).repeat(n, 1)
    colours = torch.randn(n, 3, generator=generator), torch.zeros(n, 3, 3)
    means = torch.randn(n, 3, generator=generator)
    return Gaussians(means, quats, torch.full((n, 3), -1.5), torch.full((n,), 1.0), *colours)


def test_a_faded_scene_comes_back() -> None:
    original = cloud()
    faded = replace(original, sh0=original.sh0 * 0.8, opacities=original.opacities - 0.3)
    views = virtual_views(original, 4, 32)
    meter = Meter(original, torch.ones(60), Nothing(), virtual_views(original, 3, 32, seed=1))
    kept = {name: tensor.clone() for name, tensor in faded.tensors.items()}
    trained = recover(faded, original, views, 60)
    assert meter.psnr_of(trained) > meter.psnr_of(faded) + 3
    assert all(torch.equal(kept[name], tensor) for name, tensor in faded.tensors.items())
    again = recover(faded, original, views, 60)
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in trained.tensors.items())
    assert not any(tensor.requires_grad for tensor in trained.tensors.values())


def test_steps_become_a_tenth_and_alphas_are_compared() -> None:
    """A black scene, whose pictures on black are the same whatever its opacities: these are led by its alphas alone.

    The gradient of an opacity keeps its sign, so Adam goes the learning rate at each step: 0.025 times the sum of
    0.1^(k / 8) for k from 0 to 7.
    """
    original = replace(cloud(1), sh0=torch.full((1, 3), -4.0))
    faded = replace(original, opacities=original.opacities - 2)
    trained = recover(faded, original, virtual_views(original, 1, 16), 8)
    expected = 0.025 * sum(0.1 ** (k / 8) for k in range(8))
    assert float(trained.opacities - faded.opacities) == pytest.approx(expected, rel=0.02)


def test_no_steps_change_nothing() -> None:
    g = cloud(5)
    assert recover(g, g, virtual_views(g, 1, 16), 0) is g


@pytest.mark.parametrize("encoding", ["sog", "rcs"])
def test_training_through_a_format_gives_a_better_file(encoding: Encoding) -> None:
    """Steps so coarse that what they cost is most of the error: training before rounding cannot mend that."""
    original = cloud()
    coarse = replace(RcsSettings(palette=8).scaled(4.0), sh=0.5, opacity=1 / 12)
    quantiser, palette = fake_quantiser(encoding, original, palette_size=8, settings=coarse)
    if encoding == "sog":
        assert isinstance(quantiser.plan, SogPlan)
        few = replace(quantiser.plan, colours=quantiser.plan.colours.round(), scales=quantiser.plan.scales.round())
        quantiser = replace(quantiser, plan=few)
    views = virtual_views(original, 6, 32)
    meter = Meter(original, torch.ones(60), Nothing(), virtual_views(original, 3, 32, seed=1))

    def decoded(scene: Gaussians) -> Gaussians:
        return quantiser(scene)

    plain = recover(original, original, views, 80)
    through = recover(original, original, views, 80, quantiser=quantiser, palette=palette)
    assert len(torch.unique(through.shN, dim=0)) <= (8 if palette is not None else 60)
    assert not any(tensor.requires_grad for tensor in through.tensors.values())
    gain = meter.psnr_of(decoded(through)) - max(meter.psnr_of(decoded(plain)), meter.psnr_of(decoded(original)))
    assert gain > 0.2, gain
