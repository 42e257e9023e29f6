"""Decoder and field: the direction's part, activations, and the way to a scene and back."""

import numpy as np
import pytest
import torch
from tiny_vqad import rays_at_sphere, sphere_field

from radcomp_plugins.vqad import activations
from radcomp_plugins.vqad.field import DirectionalDecoder, field_from_scene, scene_from_field
from radcomp_plugins.vqad.render import draw


def test_papers_decoder() -> None:
    decoder = DirectionalDecoder()
    assert decoder.first.weight.shape == (128, 16 + 27) and decoder.last.weight.shape == (4, 128)
    assert sum(p.numel() for p in decoder.parameters()) == 6148


@pytest.mark.parametrize("frequencies", [0, 4])
def test_base_and_features_are_one_layer(frequencies: int) -> None:
    decoder = DirectionalDecoder(16, 32, frequencies, "exp", density_bias=0.3, density_scale=2.0)
    features = torch.randn(10, 16)
    directions = torch.nn.functional.normalize(torch.randn(10, 3), dim=1)
    inputs = features if decoder.encode is None else torch.cat([features, decoder.encode(directions)], dim=1)
    raw = decoder.last(torch.relu(decoder.first(inputs)))
    density, colour = decoder(features, decoder.ray_base(directions))
    assert torch.allclose(density, torch.exp(raw[:, 0] + 0.3) * 2.0, rtol=1e-5)
    assert torch.allclose(colour, torch.sigmoid(raw[:, 1:]), atol=1e-6)


def test_activations_by_hand() -> None:
    raw = torch.tensor([-2.0, 0.0, 3.0, 100.0])
    assert activations.density(raw, "relu", 1.0, 2.0).tolist() == [0.0, 2.0, 8.0, 202.0]
    assert torch.allclose(
        activations.density(raw, "softplus", 0.0, 1.0), torch.tensor([0.126928, 0.693147, 3.0486, 100])
    )
    assert float(activations.density(raw, "exp", 0.0, 1.0)[3]) == pytest.approx(np.exp(15.0))


@pytest.mark.parametrize("mode", ["logits", "latent", "fixed"])
def test_scene_and_back(mode: str) -> None:
    field = sphere_field(mode)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.copy_(parameter.half().float())
    scene = scene_from_field(field, torch.tensor([0.1, 0.2, 0.3]))
    scene.check()
    assert scene.background.tolist() == pytest.approx([0.1, 0.2, 0.3])
    read = field_from_scene(scene)
    rays = rays_at_sphere(100)
    with torch.no_grad():
        before, after = draw(field, *rays), draw(read, *rays)
    assert torch.equal(before.rgb, after.rgb) and torch.equal(before.depth, after.depth)


def test_no_scene_of_full_precision() -> None:
    with pytest.raises(ValueError, match="full"):
        scene_from_field(sphere_field("full"))


def test_levels_that_are_asked_for() -> None:
    field = sphere_field("full")
    assert [field.finest(level) for level in (None, 0, 3, 9)] == [4, 2, 3, 4]
    assert field.sampled_level(3) == 3
    field.samples_at = "coarsest"
    assert field.sampled_level(3) == 2
    assert float(field.side) == 2.0
    assert torch.allclose(field.to_box(torch.tensor([[0.0, 1.0, -1.0]])), torch.tensor([[0.5, 1.0, 0.0]]))
