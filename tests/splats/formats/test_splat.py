""".splat files: bytes worked out by hand, error bounds, the peer, and hostile files."""

import math
import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzz import MUTATIONS, check_damaged, damage

from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.formats.ply import read_ply
from radcomp_plugins.splats.formats.splat import MAX_LOG_SCALE, gaussians_of_splat, read_splat, write_splat
from radcomp_plugins.splats.gaussians import SH_C0, Gaussians

ROW = struct.pack("<6f8B", 1.0, -2.0, 0.5, 0.25, 1.0, 4.0, 255, 0, 128, 51, 255, 128, 0, 192)


def test_bytes_worked_out_by_hand(tmp_path: Path) -> None:
    g = gaussians_of_splat(ROW, "x")
    assert g.means.tolist() == [[1.0, -2.0, 0.5]] and g.sh_degree == 0
    np.testing.assert_allclose(g.scales[0], [-math.log(4), 0.0, math.log(4)], atol=1e-6)
    np.testing.assert_allclose(g.sh0[0] * SH_C0 + 0.5, [1.0, 0.0, 128 / 255], atol=1e-6)
    assert float(g.opacities.sigmoid()) == pytest.approx(0.2)
    # (127, 0, -128, 64) / 128, made a unit.
    np.testing.assert_allclose(g.quats[0], np.array([127, 0, -128, 64]) / math.sqrt(127**2 + 128**2 + 64**2), atol=1e-6)
    parts = write_splat(tmp_path / "a.splat", g)
    data = (tmp_path / "a.splat").read_bytes()
    assert sum(parts.values()) == 32 and data[24:28] == ROW[24:28]
    assert struct.unpack_from("<3f", data) == (1.0, -2.0, 0.5)
    np.testing.assert_allclose(struct.unpack_from("<3f", data, 12), [0.25, 1.0, 4.0], rtol=1e-6)
    # 0.664 128 + 128 = 212.98, 128, 42.3, 170.8.
    assert list(data[28:]) == [213, 128, 42, 171]


def test_round_trip(tmp_path: Path, make_scene) -> None:
    g = make_scene(300, 0)
    write_splat(tmp_path / "a.splat", g)
    read = read_splat(tmp_path / "a.splat")
    # The larger and more opaque come first.
    weight = g.scales.double().sum(dim=1).exp() * g.opacities.double().sigmoid()
    g = g.select(torch.argsort(-weight, stable=True))
    assert torch.equal(read.means, g.means)
    torch.testing.assert_close(read.scales, g.scales, atol=1e-5, rtol=0)
    colours = (g.sh0 * SH_C0 + 0.5).clamp(0, 1)
    assert float((read.sh0 * SH_C0 + 0.5 - colours).abs().max()) <= 0.5 / 255 + 1e-6
    assert float((read.opacities.sigmoid() - g.opacities.sigmoid()).abs().max()) <= 0.5 / 255 + 2e-6
    dots = (read.quats * torch.nn.functional.normalize(g.quats, dim=1)).sum(dim=1).abs()
    assert float(dots.min()) > 1 - 1e-4


def test_higher_sh_are_left_out_with_a_warning(tmp_path: Path, make_scene) -> None:
    with pytest.warns(UserWarning, match="SH are left out"):
        write_splat(tmp_path / "a.splat", make_scene(5, 2))
    assert read_splat(tmp_path / "a.splat").sh_degree == 0


@pytest.mark.parametrize(
    "bad",
    [
        struct.pack("<6f8B", math.nan, 0, 0, 1, 1, 1, *[200] * 8),
        struct.pack("<6f8B", 0, 0, 0, 1, 1, -1, *[200] * 8),
        struct.pack("<6f8B", 0, 0, 0, 1, 1, 1, *[200] * 4, *[128] * 4),
    ],
    ids=["NaN", "negative scale", "zero rotation"],
)
def test_impossible_gaussians_are_left_out(bad: bytes) -> None:
    flat = struct.pack("<6f8B", 0, 0, 0, 1, 1, 0, *[200] * 8)
    with pytest.warns(UserWarning, match="left out 1 of 3"):
        g = gaussians_of_splat(ROW + bad + flat, "x")
    assert len(g) == 2 and float(g.scales[1, 2]) == pytest.approx(-30)


def test_scales_beyond_what_is_read_are_clamped(tmp_path: Path, make_scene) -> None:
    g = make_scene(2, 0)
    g.scales[0], g.opacities[0] = 200.0, 9.0
    write_splat(tmp_path / "a.splat", g)
    read = read_splat(tmp_path / "a.splat")
    assert len(read) == 2 and read.scales[0].tolist() == pytest.approx([MAX_LOG_SCALE] * 3)


@pytest.mark.parametrize("data", [b"", ROW[:-1], ROW + b"\0", b"\xff" * 320, bytes(range(255)) * 32])
def test_hostile_files_are_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bad.splat").write_bytes(data)
    with pytest.raises(InputError, match="expected a") as error:
        read_splat(tmp_path / "bad.splat")
    assert "\n" not in str(error.value) and "bad.splat" in str(error.value)


def test_fuzz(tmp_path: Path, make_scene) -> None:
    write_splat(tmp_path / "a.splat", make_scene(10, 0))
    good, chance = (tmp_path / "a.splat").read_bytes(), random.Random(0)
    counts = check_damaged(
        lambda data: gaussians_of_splat(data, "x"), (damage(good, chance, len(good)) for _ in range(MUTATIONS))
    )
    assert min(counts) > MUTATIONS // 100


@pytest.mark.slow
def test_splat_transform_reads_the_same(tmp_path: Path, make_scene, splat_transform: Callable[..., None]) -> None:
    write_splat(tmp_path / "a.splat", make_scene(100, 0))
    splat_transform(tmp_path / "a.splat", tmp_path / "a.ply")

    def sort(g: Gaussians) -> Gaussians:
        return g.select(torch.from_numpy(np.lexsort(g.means.double().numpy().T)))

    a, b = sort(read_splat(tmp_path / "a.splat")), sort(read_ply(tmp_path / "a.ply"))
    torch.testing.assert_close(a.means, b.means)
    torch.testing.assert_close(a.scales, b.scales, atol=1e-4, rtol=0)
    torch.testing.assert_close(a.sh0, b.sh0, atol=1e-4, rtol=0)
    # The peer divides rotation bytes by 127.5, not by 128.
    assert float((a.quats * torch.nn.functional.normalize(b.quats, dim=1)).sum(dim=1).abs().min()) > 1 - 1e-4
