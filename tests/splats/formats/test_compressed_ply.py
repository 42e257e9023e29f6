"""SuperSplat's compressed .ply: words worked out by hand, error bounds, the peers, and hostile files."""

import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzz import MUTATIONS, check_damaged, damage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.formats.compressed_ply import read_compressed_ply, write_compressed_ply
from radcomp_plugins.splats.formats.ply import read_ply, write_ply
from radcomp_plugins.splats.gaussians import SH_C0, Gaussians, num_sh_rest
from radcomp_plugins.splats.order import morton_order


def in_file_order(g: Gaussians) -> Gaussians:
    return g.select(torch.from_numpy(morton_order(g.means.double().numpy())))


def in_common_order(g: Gaussians) -> Gaussians:
    return g.select(torch.from_numpy(np.lexsort(g.means.double().numpy().T)))


def body_of(path: Path) -> bytes:
    return path.read_bytes().split(b"end_header\n", 1)[1]


def two() -> Gaussians:
    return Gaussians(
        means=torch.tensor([[0.0, 0.0, 0.0], [4.0, 2.0, 1.0]]),
        quats=torch.tensor([[0.0, 0.0, 0.0, -2.0], [1.0, 1.0, 0.0, 0.0]]),
        scales=torch.tensor([[-4.0, -4.0, 30.0], [-2.0, -4.0, 1.0]]),
        opacities=torch.tensor([0.0, 20.0]),
        sh0=torch.tensor([[0.0, 0.5 / SH_C0, 0.0], [0.5 / SH_C0, 0.0, 0.0]]),
        shN=torch.tensor([[[0.0, 1.0, -9.0], [9.0, -0.5, 3.98], [0.0, 0.0, 0.0]], [[0.1, 0.0, 0.0]] * 3]),
    )


def test_words_worked_out_by_hand(tmp_path: Path) -> None:
    write_compressed_ply(tmp_path / "a.compressed.ply", two())
    body = body_of(tmp_path / "a.compressed.ply")
    floats = struct.unpack_from("<18f", body)
    # Scales are clamped to 20; colours are 0.5 + SH_C0 c.
    assert floats[:12] == (0, 0, 0, 4, 2, 1, -4, -4, 1, -2, -4, 20)
    np.testing.assert_allclose(floats[12:], [0.5, 0.5, 0.5, 1, 1, 0.5])
    words = np.frombuffer(body, "<u4", 8, 72).reshape(2, 4)
    assert words[:, 0].tolist() == [0, 0xFFFFFFFF]
    # z is the largest, of index 3, the others zero: 511.5 to the even 512. Then w = x, the first counts as the
    # largest; x is sqrt(1/2), 1/2 after scaling, so 1023.
    assert words[:, 1].tolist() == [3 << 30 | 512 << 20 | 512 << 10 | 512, 1023 << 20 | 512 << 10 | 512]
    # Second scale has no extent.
    assert words[:, 2].tolist() == [2047, 2047 << 21]
    assert words[:, 3].tolist() == [255 << 16 | 128, 255 << 24 | 255]
    sh = np.frombuffer(body, np.uint8, 18, 104).reshape(2, 9)
    # Red of three coefficients, then green, then blue: floor(256 (h / 8 + 0.5)).
    assert sh[0].tolist() == [128, 255, 128, 160, 112, 128, 0, 255, 128]
    assert sh[1, 0] == 131
    read = read_compressed_ply(tmp_path / "a.compressed.ply")
    assert read.means.tolist() == two().means.tolist()
    assert read.scales.tolist() == [[-4.0, -4.0, 20.0], [-2.0, -4.0, 1.0]]
    np.testing.assert_allclose(read.shN[0, :, 0], [0.5 / 32, 4.0, 0.5 / 32])
    np.testing.assert_allclose(read.shN[0, :, 2], [-4.0, 4.0, 0.5 / 32])
    np.testing.assert_allclose(read.quats[1], [np.sqrt(0.5), np.sqrt(0.5), 0, 0], atol=1.5e-3)
    np.testing.assert_allclose(read.quats[0].abs(), [0, 0, 0, 1], atol=1e-3)
    np.testing.assert_allclose(read.sh0 * SH_C0 + 0.5, [[0.5, 1, 0.5], [1, 0.5, 0.5]], atol=1e-6)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(1, 600), degree=st.integers(0, 3), seed=st.integers(0, 99), antialiased=st.booleans())
def test_round_trip(tmp_path: Path, make_scene, n: int, degree: int, seed: int, antialiased: bool) -> None:
    g = make_scene(n, degree, seed, antialiased)
    path = tmp_path / "a.compressed.ply"
    parts = write_compressed_ply(path, g, overwrite=True)
    assert sum(parts.values()) == path.stat().st_size
    assert parts["chunks"] == 72 * -(-n // 256) and parts["sh"] == n * 3 * num_sh_rest(degree)
    read, g = read_compressed_ply(path), in_file_order(g)
    assert (read.sh_degree, read.antialiased) == (degree, antialiased)
    for start in range(0, n, 256):
        rows = slice(start, start + 256)
        for a, b in ((read.means, g.means), (read.scales, g.scales)):
            extent = b[rows].amax(0) - b[rows].amin(0)
            steps = extent / torch.tensor([2047.0, 1023.0, 2047.0])
            assert ((a[rows] - b[rows]).abs() <= 0.5 * steps * 1.001 + 1e-5 * (1 + b[rows].abs())).all()
        extent = g.sh0[rows].amax(0) - g.sh0[rows].amin(0)
        assert ((read.sh0[rows] - g.sh0[rows]).abs() <= 0.5 / 255 * extent * 1.001 + 1e-5).all()
    assert float((read.opacities.sigmoid() - g.opacities.sigmoid()).abs().max()) <= 0.5 / 255 + 1e-6
    q = torch.nn.functional.normalize(g.quats, dim=1)
    assert float((read.quats * q).sum(dim=1).abs().min()) > 1 - 1e-5
    if degree:
        assert float((read.shN - g.shN.clamp(-4, 4)).abs().max()) <= 1 / 64 + 1e-6


def make(chunks: int = 1, count: int = 2, **changes: tuple[str, str]) -> bytes:
    ranges = [f"{end}_{axis}" for end in ("min", "max") for axis in "xyz"]
    ranges += [f"{end}_scale_{axis}" for end in ("min", "max") for axis in "xyz"]
    head = f"ply\nformat binary_little_endian 1.0\nelement chunk {chunks}\n"
    head += "".join(f"property float {name}\n" for name in ranges) + f"element vertex {count}\n"
    head += "".join(f"property uint packed_{name}\n" for name in ("position", "rotation", "scale", "color"))
    for old, new in changes.values():
        assert old in head
        head = head.replace(old, new)
    return (head + "end_header\n").encode() + struct.pack("<12f", *[0, 0, 0, 1, 1, 1, -3, -3, -3, -1, -1, -1])


ROWS = struct.pack("<8I", 0, 0, 0, 0xFF8000FF, 0, 0, 0, 0)


def test_files_without_colour_ranges(tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    path.write_bytes(make() + ROWS)
    read = read_compressed_ply(path)
    np.testing.assert_allclose(read.sh0[0] * SH_C0 + 0.5, [1, 128 / 255, 0], atol=1e-6)
    assert float(read.opacities[0]) == pytest.approx(13.8, abs=0.1) and read.scales[0].tolist() == [-3, -3, -3]


def test_rotations_beyond_length_1_are_made_units(tmp_path: Path) -> None:
    (tmp_path / "a.ply").write_bytes(make(count=1) + struct.pack("<4I", 0, 0x3FFFFFFF, 0, 0))
    third = np.sqrt(1 / 3)
    np.testing.assert_allclose(read_compressed_ply(tmp_path / "a.ply").quats, [[0, third, third, third]], atol=1e-6)


def test_values_beyond_a_range_that_was_rounded_to_float32_are_at_its_end(tmp_path: Path, make_scene) -> None:
    """Colours about 8745 that lie closer together than float32 can tell there: its largest is below theirs."""
    g = make_scene(5, 0)
    g.means[:], g.sh0[:] = 0.0, 31000.0 + torch.arange(5)[:, None] / 512
    write_compressed_ply(tmp_path / "a.ply", g)
    colours = read_compressed_ply(tmp_path / "a.ply").sh0.double() * SH_C0
    assert float((colours - g.sh0.double() * SH_C0).abs().max()) < 1.1e-3


BAD_RANGE = struct.pack("<12f", *[0, 0, 0, float("nan"), 1, 1, -3, -3, -3, -1, -1, -1])
HOSTILE = {
    "cut off": (make() + ROWS[:-1], "cut off"),
    "no rows": (make(), "cut off"),
    "zero": (make(0, 0), "0 Gaussians in 0 chunks"),
    "too few chunks": (make(1, 257) + bytes(257 * 16), "257 Gaussians in 1 chunks"),
    "huge": (make(2**40, 2**48), "cut off"),
    "NaN range": (make().replace(make()[-48:], BAD_RANGE) + ROWS, "max_x of a chunk is NaN"),
    "far range": (make()[:-48] + struct.pack("<12f", *[1e10] * 12) + ROWS, "beyond 1e"),
    "far scale": (make()[:-4] + struct.pack("<f", 101) + ROWS, "max_scale_z .* beyond 100"),
    "lacks": (make(a=("min_scale_y", "min_scale_q")) + ROWS, "lacks .'min_scale_y'"),
    "type": (make(a=("uint packed_scale", "float packed_scale")) + ROWS, "of type u4"),
    "no chunks": (make(a=("element chunk", "element chunky")) + ROWS, "no elements"),
    "sh count": (make(a=("element vertex 2", "element sh 3\nproperty uchar f_rest_0\nelement vertex 2")), "SH of 3"),
    "ascii": (make(a=("binary_little_endian", "ascii")) + ROWS, "binary"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_one_line(tmp_path: Path, case: str) -> None:
    data, expected = HOSTILE[case]
    (tmp_path / "bad.ply").write_bytes(data)
    with pytest.raises(InputError, match=expected) as error:
        read_compressed_ply(tmp_path / "bad.ply")
    assert "\n" not in str(error.value) and "bad.ply" in str(error.value)


def test_fuzz(tmp_path: Path, make_scene) -> None:
    chance = random.Random(0)
    write_compressed_ply(tmp_path / "good.ply", make_scene(20, 1))
    good, path = (tmp_path / "good.ply").read_bytes(), tmp_path / "bad.ply"
    head = good.find(b"end_header") + 90

    def read(data: bytes) -> Gaussians:
        path.write_bytes(data)
        return read_compressed_ply(path)

    counts = check_damaged(read, (damage(good, chance, head) for _ in range(MUTATIONS)))
    assert min(counts) > MUTATIONS // 100


def test_real_scene(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    g = read_compressed_ply(real_data("splats/guitar.compressed.ply"))
    assert len(g) == 90854 and g.sh_degree == 0 and bool(g.finite().all())
    write_compressed_ply(tmp_path / "a.compressed.ply", g)
    a, b = in_file_order(g), read_compressed_ply(tmp_path / "a.compressed.ply")
    assert float((a.means - b.means).abs().max()) < 0.01 * float((g.means.amax(0) - g.means.amin(0)).max())


@pytest.mark.parametrize("degree", [0, 1, 3])
def test_gsply_reads_and_writes_the_same(tmp_path: Path, make_scene, degree: int) -> None:
    gsply = pytest.importorskip("gsply")
    g = make_scene(300, degree)
    path = tmp_path / "a.compressed.ply"
    write_compressed_ply(path, g)
    theirs, ours = gsply.plyread(path), read_compressed_ply(path)
    np.testing.assert_allclose(ours.means, theirs.means, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(ours.scales, theirs.scales, atol=1e-4)
    np.testing.assert_allclose(ours.sh0, theirs.sh0.reshape(-1, 3), atol=1e-4)
    q = torch.nn.functional.normalize(torch.from_numpy(np.array(theirs.quats)), dim=1)
    assert float((q * ours.quats).sum(dim=1).abs().min()) > 1 - 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("degree", [0, 2])
def test_splat_transform_reads_and_writes_the_same(
    tmp_path: Path, make_scene, splat_transform: Callable[..., None], degree: int
) -> None:
    g = make_scene(300, degree)
    write_compressed_ply(tmp_path / "a.compressed.ply", g)
    splat_transform(tmp_path / "a.compressed.ply", tmp_path / "a.ply")
    write_ply(tmp_path / "b.ply", g)
    splat_transform(tmp_path / "b.ply", tmp_path / "b.compressed.ply")
    splat_transform(tmp_path / "b.compressed.ply", tmp_path / "c.ply")
    for packed, plain in (("a.compressed.ply", "a.ply"), ("b.compressed.ply", "c.ply")):
        a = in_common_order(read_compressed_ply(tmp_path / packed))
        b = in_common_order(read_ply(tmp_path / plain))
        for name in ("means", "scales", "sh0", "shN"):
            torch.testing.assert_close(a.tensors[name], b.tensors[name], atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(a.opacities.sigmoid(), b.opacities.sigmoid(), atol=1e-4, rtol=0)
        q = torch.nn.functional.normalize(b.quats, dim=1)
        assert float((q * a.quats).sum(dim=1).abs().min()) > 1 - 1e-5
