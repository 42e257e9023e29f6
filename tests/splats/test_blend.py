"""The blending kernels on bare splats, long thin ones among them, against per-pixel float64 autograd."""

import numpy as np
import pytest
import torch
from torch import Tensor

from radcomp_plugins.splats.rasterize_cpu import rasterize_to_pixels_cpu

WIDTH, HEIGHT, COUNT = 37, 29, 70


def make(channels: int, seed: int = 0) -> dict[str, Tensor]:
    """Splats half a pixel to 40 pixels long and half a pixel wide and up, opaque ones among them."""
    rng = np.random.default_rng(seed)
    long, wide = np.exp(rng.uniform(-0.5, 3.7, COUNT)), np.exp(rng.uniform(-0.6, 1.5, COUNT))
    cos, sin = np.cos(angle := rng.uniform(0, np.pi, COUNT)), np.sin(angle)
    conics = [(cos / long) ** 2 + (sin / wide) ** 2, cos * sin * (long**-2 - wide**-2),
              (sin / long) ** 2 + (cos / wide) ** 2]  # fmt: skip
    arrays = {
        "means2d": rng.uniform(-0.1, 1.1, (COUNT, 2)) * [WIDTH, HEIGHT],
        "conics": np.stack(conics, -1),
        "colors": rng.normal(size=(COUNT, channels)),
        "opacities": rng.choice([0.02, 0.3, 0.8, 1.0], COUNT),
        "depths": rng.permutation(COUNT) + 1.0,
        "radii": np.ceil(3 * np.maximum(long, wide)),
    }
    tensors = {name: torch.tensor(array[None], dtype=torch.float32) for name, array in arrays.items()}
    return {**tensors, "radii": tensors["radii"].int()}


def reference(splats: dict[str, Tensor], background: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Image, alpha and hits in float64; and the centres as each pixel sees them [N, H, W, 2], a leaf."""
    pixels = torch.stack(torch.meshgrid(torch.arange(WIDTH), torch.arange(HEIGHT), indexing="xy"), -1).double()
    centers = splats["means2d"][0].double()[:, None, None].repeat(1, HEIGHT, WIDTH, 1).detach().requires_grad_()
    trans, done = torch.ones(HEIGHT, WIDTH).double(), torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    image, hits = torch.zeros(HEIGHT, WIDTH, len(background)).double(), torch.zeros(COUNT, dtype=torch.int64)
    for i in splats["depths"][0].argsort().tolist():
        mean, radius = splats["means2d"][0, i].detach().double(), splats["radii"][0, i]
        low, high = ((mean - radius) / 16).floor(), ((mean + radius) / 16).ceil()
        boxed = ((pixels // 16 >= low) & (pixels // 16 < high)).all(-1)
        dx, dy = (centers[i] - pixels - 0.5).unbind(-1)
        a, b, c = splats["conics"][0, i].double()
        sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
        alpha = (splats["opacities"][0, i].double() * torch.exp(-sigma)).clamp(max=0.999)
        valid = (alpha >= 1 / 255) & boxed & ~done
        stop = valid & (trans * (1 - alpha) <= 1e-4)
        done, valid = done | stop, valid & ~stop
        weight = torch.where(valid, alpha * trans, 0.0)
        image = image + weight[..., None] * splats["colors"][0, i].double()
        trans = torch.where(valid, trans * (1 - alpha), trans)
        hits[i] = valid.sum()
    return image + trans[..., None] * background.double(), 1 - trans, hits, centers


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 17])
def test_image_gradients_and_absolute_gradients(channels):
    data = make(channels)
    names = ("means2d", "conics", "colors", "opacities")
    ours, theirs = ({**data, **{n: data[n].clone().requires_grad_() for n in names}} for _ in range(2))
    generator = torch.Generator().manual_seed(1)
    backgrounds = torch.rand(1, channels, generator=generator, requires_grad=True)
    weights = torch.randn(HEIGHT, WIDTH, channels + 1, generator=generator)
    # The centres have to be no leaf, as they come from a projection.
    centers = ours["means2d"] * 1.0
    centers.retain_grad()
    stats: dict[str, Tensor] = {}
    image, alpha = rasterize_to_pixels_cpu(
        centers, ours["conics"], ours["colors"], ours["opacities"], data["depths"], data["radii"], WIDTH, HEIGHT,
        backgrounds=backgrounds, absgrad=True, stats=stats,
    )  # fmt: skip
    background = backgrounds[0].detach().requires_grad_()
    expected, opaque, hits, per_pixel = reference(theirs, background)
    assert opaque.max() > 0.99 and (opaque < 0.5).any()
    assert torch.equal(stats["hits"], hits) and hits.sum() > 1000
    assert (image[0].double() - expected).abs().max() < 2e-5
    assert (alpha[0, ..., 0].double() - opaque).abs().max() < 1e-5
    ((image[0] * weights[..., :-1]).sum() + (alpha[0, ..., 0] * weights[..., -1]).sum()).backward()
    ((expected * weights[..., :-1]).sum() + (opaque * weights[..., -1]).sum()).backward()

    def close(got: Tensor | None, want: Tensor | None) -> None:
        assert got is not None and want is not None
        assert (got.double() - want).abs().max() <= 1e-4 * want.abs().max()

    assert per_pixel.grad is not None
    close(centers.grad, per_pixel.grad.sum((1, 2))[None])
    close(centers.absgrad, per_pixel.grad.abs().sum((1, 2))[None])  # type: ignore[attr-defined]
    close(backgrounds.grad, background.grad[None] if background.grad is not None else None)
    for name in names[1:]:
        close(ours[name].grad, theirs[name].grad)


def test_an_opaque_front_hides_all_behind():
    data = make(3)
    data["means2d"][:], data["depths"][0] = torch.tensor([8.0, 8.0]), torch.arange(COUNT) + 1.0
    data["conics"][:], data["opacities"][:], data["radii"][:] = torch.tensor([1e-4, 0.0, 1e-4]), 0.9, 300
    stats: dict[str, Tensor] = {}
    _, alpha = rasterize_to_pixels_cpu(
        data["means2d"], data["conics"], data["colors"], data["opacities"], data["depths"], data["radii"], WIDTH,
        HEIGHT, stats=stats,
    )  # fmt: skip
    # 0.1^4 is 1e-4, at which the fourth is not drawn any more where alpha is 0.9; off the centre it is a little less.
    assert (stats["hits"][:3] == WIDTH * HEIGHT).all() and (stats["hits"][5:] == 0).all()
    assert alpha.min() > 0.998
