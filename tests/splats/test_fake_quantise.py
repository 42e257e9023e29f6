"""A scene in training is, to the bit, the file it will be written to; and gradients go past the rounding."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.fake_quantise import (
    Encoding,
    FakeQuantiser,
    Palette,
    fake_quantiser,
    straight_through,
    unpack_quantiser,
)
from radcomp_plugins.splats.formats.rcs_quantise import RcsSettings
from radcomp_plugins.splats.formats.registry import read_splats, write_splats
from radcomp_plugins.splats.formats.spz import default_fraction_bits
from radcomp_plugins.splats.formats.spz_packed import SpzPlan
from radcomp_plugins.splats.gaussians import Gaussians, num_sh_rest

ENCODINGS = ("sog", "spz", "rcs")


def scene(n: int = 700, degree: int = 2, seed: int = 0, far: bool = False) -> Gaussians:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    means = normal(n, 3)
    # Some in one place, so that octree cells are shared, and some far out.
    means[: n // 20] = means[0]
    means[-3:] *= 300 if far else 1
    rest = 0.2 * normal(n, num_sh_rest(degree), 3)
    return Gaussians(means, normal(n, 4), normal(n, 3) * 0.7 - 3, 2 * normal(n), normal(n, 3), rest)


def rows(g: Gaussians) -> np.ndarray:
    """All numbers of each Gaussian, in an order that depends on them alone."""
    flat = torch.cat([t.detach().reshape(len(g), -1) for t in g.tensors.values()], dim=1).numpy()
    return flat[np.lexsort(flat.T)]


def with_palette(g: Gaussians, palette: Palette | None) -> Gaussians:
    return g if palette is None else replace(g, shN=palette.entries[palette.labels])


def moved(g: Gaussians, seed: int = 5) -> Gaussians:
    """The scene after some training."""
    generator = torch.Generator().manual_seed(seed)
    noise = {k: 0.05 * torch.randn(t.shape, generator=generator) for k, t in g.tensors.items()}
    return replace(g, **{k: t + noise[k] for k, t in g.tensors.items()})


def written(folder: Path, q: FakeQuantiser, g: Gaussians, palette: Palette | None, weights: Tensor) -> Gaussians:
    options = q.options() | ({} if q.encoding == "spz" else {"significance": weights})
    if q.encoding == "sog" and palette is not None:
        options["sh_palette"] = (palette.entries, palette.labels)
    path = folder / f"a.{q.encoding}"
    write_splats(path, with_palette(g, palette), overwrite=True, **options)
    return read_splats(path)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("degree", [0, 2])
@pytest.mark.parametrize("count, far", [(700, True), (5000, False), (1, False)])
def test_the_quantised_scene_is_the_decoded_file(
    tmp_path: Path, encoding: Encoding, degree: int, count: int, far: bool
) -> None:
    g = scene(count, degree, far=far)
    weights = torch.rand(count, generator=torch.Generator().manual_seed(1))
    coarse = RcsSettings(palette=40).scaled(2.0)
    q, palette = fake_quantiser(encoding, g, significance=weights, palette_size=40, settings=coarse)
    for now in (g, moved(g)):
        decoded = written(tmp_path, q, now, palette, weights)
        np.testing.assert_array_equal(rows(q(now, palette)), rows(decoded))
        # A checkpoint brings the same quantiser back.
        again = unpack_quantiser(q.pack(), now, weights)
        np.testing.assert_array_equal(rows(again(now, palette)), rows(decoded))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_writer_without_a_plan_chooses_the_same(tmp_path: Path, encoding: Encoding) -> None:
    g = scene(600, 1)
    q, palette = fake_quantiser(encoding, g, palette_size=64)
    options: dict[str, Any] = {"sog": {"palette_size": 64}, "rcs": {"settings": RcsSettings(palette=64)}, "spz": {}}[
        encoding
    ]
    write_splats(tmp_path / f"a.{encoding}", g, **options)
    np.testing.assert_array_equal(rows(q(g, palette)), rows(read_splats(tmp_path / f"a.{encoding}")))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_order_and_the_ellipsoids_stay(encoding: Encoding) -> None:
    g = scene(500, 1)
    q, palette = fake_quantiser(encoding, g, palette_size=200, settings=RcsSettings().scaled(0.25))
    decoded = q(g, palette)
    assert float((decoded.means - g.means).abs().max()) < 0.05
    assert float((decoded.opacities.sigmoid() - g.opacities.sigmoid()).abs().max()) < 0.01

    def axes(s: Gaussians) -> Tensor:
        return s.scales.sort(dim=1).values

    assert float((axes(decoded) - axes(g)).abs().max()) < 0.1


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_gradients_pass_as_if_nothing_was_rounded(encoding: Encoding) -> None:
    g = scene(300, 1)
    leaves = {k: t.clone().requires_grad_() for k, t in g.tensors.items()}
    q, palette = fake_quantiser(encoding, g, palette_size=20)
    if palette is not None:
        palette = replace(palette, entries=palette.entries.clone().requires_grad_())
    decoded = q(replace(g, **leaves), palette)
    weights = {k: torch.randn(t.shape, generator=torch.Generator().manual_seed(2)) for k, t in g.tensors.items()}
    sum((decoded.tensors[k] * weights[k]).sum() for k in weights).backward()  # type: ignore[union-attr]
    for name in ("means", "opacities", "sh0"):
        torch.testing.assert_close(leaves[name].grad, weights[name], rtol=0, atol=0)
    if palette is None:
        torch.testing.assert_close(leaves["shN"].grad, weights["shN"], rtol=0, atol=0)
    else:
        members = torch.zeros_like(palette.entries).index_add(0, palette.labels, weights["shN"])
        torch.testing.assert_close(palette.entries.grad, members)


def test_each_axis_gets_its_own_gradient_when_axes_are_renamed() -> None:
    """What makes an ellipsoid's covariance grow does so whatever its axes are called."""
    g = scene(200, 0)
    q, _ = fake_quantiser("sog", g)

    def covariance(s: Gaussians) -> Tensor:
        w, x, y, z = torch.nn.functional.normalize(s.quats, dim=1).T
        rotation = torch.stack([
            1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
        ], dim=1).view(-1, 3, 3)  # fmt: skip
        return rotation @ torch.diag_embed((2 * s.scales).exp()) @ rotation.transpose(1, 2)

    direction = torch.randn(200, 3, 3, generator=torch.Generator().manual_seed(4))
    grads = []
    for through in (lambda s: s, lambda s: q(s)):
        leaves = {k: t.double().clone().requires_grad_() for k, t in g.tensors.items()}
        (covariance(through(replace(g, **leaves))) * direction).sum().backward()
        grads.append((leaves["quats"].grad, leaves["scales"].grad))
    for plain, passed in zip(*grads, strict=True):
        # Not equal, for the gradient is taken at the rounded values; but of the same direction.
        assert plain is not None and passed is not None
        cosine = torch.nn.functional.cosine_similarity(plain, passed, dim=1)
        assert float(cosine.median()) > 0.999 and float((cosine > 0.9).double().mean()) > 0.97


def test_spz_leaves_room_to_move_out() -> None:
    """2000 lies within 12 bits after the point, which reach to 2048; a tenth more does not."""
    g = replace(scene(1, 0), means=torch.tensor([[2000.0, 0.0, 0.0]]), scales=torch.full((1, 3), -9.0))
    q, _ = fake_quantiser("spz", g)
    assert isinstance(q.plan, SpzPlan) and (default_fraction_bits(g), q.plan.fraction_bits) == (12, 11)


def test_straight_through_is_exact_and_the_identity() -> None:
    x = torch.tensor([1e8, -3.0, 1e-8], requires_grad=True)
    got = straight_through(x, np.array([1.0, 2.0, 3.0]))
    assert got.tolist() == [1.0, 2.0, 3.0]
    (got * torch.tensor([2.0, 3.0, 4.0])).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [2.0, 3.0, 4.0]


def test_a_checkpoint_of_17_bits_is_refused() -> None:
    data = fake_quantiser("sog", scene(5, 0))[0].pack()
    assert data.count(b'"position_bits": 16') == 1
    with pytest.raises(InputError, match="a plan of a SOG file with arrays of wrong sizes"):
        unpack_quantiser(data.replace(b'"position_bits": 16', b'"position_bits": 17'), scene(5), None)


@pytest.mark.parametrize("data", [b"sog{}", b"sognothing", b"rcs", b"spz123", b"ply", b""])
def test_a_damaged_checkpoint_is_one_line(data: bytes) -> None:
    with pytest.raises(InputError, match=r"quantisers b'\w*' in a checkpoint"):
        unpack_quantiser(data, scene(5), None)
