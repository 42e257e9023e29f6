""".ksplat files, made here by the format's description at each of its levels, and hostile ones."""

import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzz import MUTATIONS, check_damaged, damage

from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.formats.ksplat import gaussians_of_ksplat, read_ksplat
from radcomp_plugins.splats.formats.ply import read_ply
from radcomp_plugins.splats.gaussians import SH_C0, Gaussians

STEPS = 32767
BLOCK = 5.0


def header(count: int, sections: int, level: int, sh: tuple[float, float] = (-1.0, 2.0), major: int = 0) -> bytes:
    head = struct.pack("<BBHIIIIHH3fff", major, 1, 0, sections, sections, count, count, level, 0, 0, 0, 0, *sh)
    return head.ljust(4096, b"\0")


def section_header(
    count: int, room: int, level: int, degree: int, capacity: int = 4, full: int = 0, sizes: tuple[int, ...] = ()
) -> bytes:
    buckets = full + len(sizes)
    head = struct.pack("<IIIIfHH", count, room, capacity, buckets, BLOCK, 12, 0)
    head += struct.pack("<IIIIH", STEPS if level else 1, 0, full, len(sizes), degree)
    return head.ljust(1024, b"\0")


def rows(g: Gaussians, level: int, centers: np.ndarray) -> bytes:
    """The Gaussians one after another; `centers` [N, 3] are those of their buckets."""
    number = "<f4" if level == 0 else "<f2"
    out = []
    for i in range(len(g)):
        if level == 0:
            out.append(g.means[i].numpy().astype("<f4").tobytes())
        else:
            levels = np.rint((g.means[i].numpy() - centers[i]) / (BLOCK / 2) * STEPS + STEPS)
            out.append(levels.astype("<u2").tobytes())
        out.append(g.scales[i].exp().numpy().astype(number).tobytes() + g.quats[i].numpy().astype(number).tobytes())
        color = torch.cat([g.sh0[i] * SH_C0 + 0.5, g.opacities[i : i + 1].sigmoid()])
        out.append(np.rint(color.clamp(0, 1).nan_to_num(0.5).numpy() * 255).astype("u1").tobytes())
        for degree in range(1, g.sh_degree + 1):
            # All of a band's red, then green, then blue.
            band = g.shN[i, degree * degree - 1 : (degree + 1) ** 2 - 1].T.numpy().ravel()
            if level == 2:
                out.append(np.rint((band.clip(-1, 2) + 1) / 3 * 255).astype("u1").tobytes())
            else:
                out.append(band.astype(number).tobytes())
    return b"".join(out)


def near(g: Gaussians) -> Gaussians:
    return Gaussians(g.means.clamp(-1.9, 1.9), g.quats, g.scales, g.opacities, g.sh0.clamp(-1.7, 1.7), g.shN)


def make(g: Gaussians, level: int) -> bytes:
    """One section of buckets of four, and a last one that is not full; one Gaussian's room is left empty."""
    n = len(g)
    full, rest = divmod(n, 4)
    centers = np.linspace(-0.5, 0.5, full + (rest > 0))[:, None] * np.ones(3)
    which = np.arange(n) // 4
    data = header(n, 1, level) + section_header(n, n + 1, level, g.sh_degree, 4, full, (rest,) if rest else ())
    data += struct.pack("<I", rest) if rest else b""
    data += centers.astype("<f4").tobytes() + rows(g, level, centers[which])
    return data + bytes(len(rows(g, level, centers[which])) // n)


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("degree", [0, 1, 2])
def test_each_level(make_scene, level: int, degree: int) -> None:
    g = near(make_scene(11, degree))
    read = gaussians_of_ksplat(make(g, level), "x")
    assert len(read) == 11 and read.sh_degree == degree
    assert float((read.means - g.means).abs().max()) <= (0 if level == 0 else BLOCK / 2 / STEPS / 2 * 1.01)
    inside = g.scales > -9 if level else g.scales > -100
    torch.testing.assert_close(read.scales[inside], g.scales[inside], atol=1e-3 if level else 1e-5, rtol=0)
    torch.testing.assert_close(read.quats, g.quats, atol=0, rtol=1e-3)
    torch.testing.assert_close(read.sh0, g.sh0, atol=0.5 / 255 / SH_C0 * 1.001, rtol=0)
    torch.testing.assert_close(read.opacities.sigmoid(), g.opacities.sigmoid(), atol=0.5 / 255 + 2e-6, rtol=0)
    expected = g.shN.clamp(-1, 2) if level == 2 else g.shN
    torch.testing.assert_close(read.shN, expected, atol=(1e-7, 1e-3, 1.5 / 255 * 1.001)[level], rtol=0)


def test_sections_of_different_degree(make_scene) -> None:
    a, b = near(make_scene(3, 2)), near(make_scene(2, 0, seed=1))
    data = header(5, 3, 0)
    data += section_header(3, 3, 0, 2) + section_header(0, 0, 0, 0) + section_header(2, 2, 0, 0)
    data += rows(a, 0, np.zeros((3, 3))) + rows(b, 0, np.zeros((2, 3)))
    read = gaussians_of_ksplat(data, "x")
    assert read.sh_degree == 2 and torch.equal(read.means, torch.cat([a.means, b.means]))
    assert torch.equal(read.shN[:3], a.shN) and not bool(read.shN[3:].any())


def test_gaussians_that_are_not_finite_are_left_out(make_scene) -> None:
    g = near(make_scene(4, 0))
    g.means[1, 0] = float("nan")
    with pytest.warns(UserWarning, match="left out 1 of 4"):
        assert torch.equal(gaussians_of_ksplat(make(g, 0), "x").means, g.means[[0, 2, 3]])


def test_numbers_that_a_header_leaves_at_zero_have_defaults(make_scene) -> None:
    g = near(make_scene(11, 1))
    data = bytearray(make(g, 2))
    struct.pack_into("<ff", data, 36, 0, 0)
    struct.pack_into("<I", data, 4096 + 24, 0)
    read, plain = gaussians_of_ksplat(bytes(data), "x"), gaussians_of_ksplat(make(g, 2), "x")
    # Steps of 1 / 32767; SH from -1.5 to 1.5 and not, as the file of the other tests says, from -1 to 2.
    assert torch.equal(read.means, plain.means)
    torch.testing.assert_close(read.shN, plain.shN - 0.5)


def test_buckets_may_hold_more_than_their_centre(make_scene) -> None:
    g = near(make_scene(11, 0))
    data = make(g, 1)
    start, buckets = 5120 + 4, 3
    centers = [data[start + 12 * i : start + 12 * (i + 1)] + b"more" for i in range(buckets)]
    wide = bytearray(data[:start] + b"".join(centers) + data[start + 12 * buckets :])
    struct.pack_into("<H", wide, 4096 + 20, 16)
    assert torch.equal(gaussians_of_ksplat(bytes(wide), "x").means, gaussians_of_ksplat(data, "x").means)


def test_a_flat_gaussian_has_a_scale_all_the_same(make_scene) -> None:
    first_scale = 5120 + 4 + 3 * 12 + 12
    read = gaussians_of_ksplat(put(first_scale, "<f", 0.0, level=0)(near(make_scene(11, 0))), "x")
    assert len(read) == 11 and float(read.scales[0, 0]) == -30.0


def put(at: int, form: str, value: float, level: int = 1) -> Callable[[Gaussians], bytes]:
    def change(g: Gaussians) -> bytes:
        data = bytearray(make(g, level))
        struct.pack_into(form, data, at, value)
        return bytes(data)

    return change


HOSTILE = {
    "empty": (lambda g: b"", "cut off"),
    "short": (lambda g: make(g, 1)[:-1], "it is cut off"),
    "version": (put(0, "<B", 1), "version 1.1"),
    "old version": (put(1, "<B", 0), "version 0.0"),
    "level": (put(20, "<H", 3), "level 3"),
    "sections": (put(4, "<I", 2**32 - 1), "4294967295 sections"),
    "count": (put(16, "<I", 12), "12 in its header"),
    "SH range": (put(36, "<f", float("nan")), "damaged"),
    "more than room": (put(4096, "<I", 99), "99 in room for 12"),
    "room": (put(4100, "<I", 2**32 - 1), "it is cut off"),
    "degree": (put(4096 + 40, "<H", 4), "SH degree 4"),
    "block": (put(4096 + 16, "<f", float("inf")), "blocks of inf"),
    "bucket bytes": (put(4096 + 20, "<H", 4), "expected 12 bytes"),
    "buckets": (put(4096 + 12, "<I", 2**31), "it is cut off"),
    "full buckets": (put(4096 + 32, "<I", 9), "9 full"),
    "all buckets": (put(4096 + 12, "<I", 2), "2 full and 1 other buckets of 2"),
    "bucket size": (put(5120, "<I", 1), "buckets for 9 of 11"),
    "nothing": (lambda g: header(0, 0, 0), "0 Gaussians"),
    "NaN throughout": (lambda g: make(Gaussians(*(t * float("nan") for t in g.tensors.values())), 0), "hold NaN"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_one_line(tmp_path: Path, make_scene, case: str) -> None:
    change, expected = HOSTILE[case]
    (tmp_path / "bad.ksplat").write_bytes(change(near(make_scene(11, 1))))
    with pytest.raises(InputError, match=expected) as error:
        read_ksplat(tmp_path / "bad.ksplat")
    assert "\n" not in str(error.value) and "bad.ksplat" in str(error.value)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_fuzz(make_scene, level: int) -> None:
    good, chance = make(near(make_scene(11, 1)), level), random.Random(level)
    # The headers are mostly padding: what counts in them lies in the first 48 bytes of each.
    places = [*range(48), *range(4096, 4144), *range(5120, len(good))]

    def files():  # noqa: ANN202
        for i in range(MUTATIONS // 2):
            if i % 4 == 0:
                yield damage(good, chance, len(good))
                continue
            data = bytearray(good)
            for _ in range(chance.choice((1, 1, 2, 5))):
                at = chance.choice(places)
                data[at : at + 1] = bytes([chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))])
            yield bytes(data)

    assert min(check_damaged(lambda data: gaussians_of_ksplat(data, "x"), files())) > MUTATIONS // 100


@pytest.mark.slow
@pytest.mark.parametrize("level", [0, 1, 2])
def test_splat_transform_reads_the_same(
    tmp_path: Path, make_scene, splat_transform: Callable[..., None], level: int
) -> None:
    (tmp_path / "a.ksplat").write_bytes(make(near(make_scene(11, 2)), level))
    splat_transform(tmp_path / "a.ksplat", tmp_path / "a.ply")
    a, b = read_ksplat(tmp_path / "a.ksplat"), read_ply(tmp_path / "a.ply")
    for name in ("means", "scales", "sh0", "shN", "quats"):
        torch.testing.assert_close(a.tensors[name], b.tensors[name], atol=1e-5, rtol=1e-4)
