"""SPZ 2, 3 and 4: bytes worked out by hand, error bounds, the peers' reading of our files, and hostile files."""

import gzip
import math
import random
import struct
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from fuzz import MUTATIONS, check_damaged, damage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.formats.ply import read_ply, write_ply
from radcomp_plugins.splats.formats.spz import default_fraction_bits, gaussians_of_spz, read_spz, spz_bytes, write_spz
from radcomp_plugins.splats.formats.spz_packed import SpzPlan
from radcomp_plugins.splats.gaussians import Gaussians
from radcomp_plugins.splats.order import morton_order, smallest_columns, smallest_rotation

VERSIONS = (2, 3, 4)


def in_file_order(g: Gaussians) -> Gaussians:
    return g.select(torch.from_numpy(morton_order(g.means.double().numpy())))


def in_common_order(g: Gaussians) -> Gaussians:
    return g.select(torch.from_numpy(np.lexsort(g.means.double().numpy().T)))


def one() -> Gaussians:
    return Gaussians(
        means=torch.tensor([[1.5, -0.25, 2.0]]),
        quats=torch.tensor([[0.9, 0.1, -0.3, 0.3]]),
        scales=torch.tensor([[-5.0, -9.5, 1.0]]),
        opacities=torch.tensor([0.0]),
        sh0=torch.tensor([[0.0, 1.0, -1.0]]),
        shN=torch.tensor([[[0.5, -0.5, 0.0], [0.1, 0.2, -0.1], [2.0, -2.0, 0.0]]]),
    )


HAND = {
    # 12 bits after the point: 1.5 is 6144 = 0x1800, -0.25 is -1024 = 0xfffc00, 2 is 8192 = 0x2000.
    "positions": "001800" + "00fcff" + "002000",
    # sigmoid(0) 255 = 127.5, to the even 128.
    "alphas": "80",
    # 127.5 to the even 128; 127.5 + 38.25 = 165.75; 89.25.
    "colors": "80a659",
    # 16 (5, 0.5, 11).
    "scales": "5008b0",
    # 0.5, -0.5 and 0 with 5 bits are 192, 64, 128; 0.1, 0.2, -0.1 are 140.8, 153.6, 115.2 to multiples of 8;
    # beyond the range 255 and 0.
    "sh": "c04080" + "909870" + "ff0080",
}


def hand_made(version: int) -> bytes:
    # Of length 1; magnitudes 511 sqrt(2) (0.1, 0.3, 0.3): 72.27, 216.8, 216.8; y is negative; w is number 3.
    word = 3 << 30 | 72 << 20 | (512 + 217) << 10 | 217
    # 127.5 + 127.5 (0.1, -0.3, 0.3) = 140.25, 89.25, 165.75.
    rotation = "8c59a6" if version == 2 else struct.pack("<I", word).hex()
    order = ("positions", "alphas", "colors", "scales")
    streams = [bytes.fromhex(h) for h in (*(HAND[name] for name in order), rotation, HAND["sh"])]
    head = struct.pack("<4sIIBBB", b"NGSP", version, 1, 1, 12, 0)
    if version < 4:
        return gzip.compress(head + b"\0" + b"".join(streams))
    frames = [zstandard.compress(s) for s in streams]
    table = b"".join(struct.pack("<QQ", len(f), len(s)) for f, s in zip(frames, streams, strict=True))
    return head + struct.pack("<BI12x", 6, 32) + table + b"".join(frames)


@pytest.mark.parametrize("version", VERSIONS)
def test_bytes_worked_out_by_hand(version: int) -> None:
    data, _ = spz_bytes(one(), version, fraction_bits=12)
    by_hand = hand_made(version)
    if version < 4:
        assert gzip.decompress(data) == gzip.decompress(by_hand)
    else:
        assert data[:32] == by_hand[:32]
    for file in (data, by_hand):
        g, expected = gaussians_of_spz(file, "x"), one()
        assert torch.equal(g.means, expected.means) and torch.equal(g.scales, expected.scales)
        np.testing.assert_allclose(g.sh0[0], [(128 / 255 - 0.5) / 0.15, 1.00654, -1.00654], atol=1e-5)
        assert g.shN[0].tolist() == [[0.5, -0.5, 0.0], [0.125, 0.1875, -0.125], [127 / 128, -1.0, 0.0]]
        q = torch.nn.functional.normalize(expected.quats, dim=1)
        torch.testing.assert_close(g.quats, q, atol=1 / 127 if version == 2 else 1.5e-3, rtol=0)
        assert abs(float(g.opacities)) < 0.01


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(1, 60),
    degree=st.integers(0, 3),
    seed=st.integers(0, 99),
    version=st.sampled_from(VERSIONS),
    antialiased=st.booleans(),
)
def test_round_trip(tmp_path: Path, make_scene, covariances, n, degree, seed, version, antialiased) -> None:  # noqa: ANN001
    g = make_scene(n, degree, seed, antialiased)
    parts = write_spz(tmp_path / "a.spz", g, version=version, fraction_bits=10, sh_bits=(8, 8), overwrite=True)
    assert sum(parts.values()) == (tmp_path / "a.spz").stat().st_size
    read, g = read_spz(tmp_path / "a.spz"), in_file_order(g)
    assert (read.sh_degree, read.antialiased, len(read)) == (degree, antialiased, n)
    assert float((read.means - g.means).abs().max()) <= 0.5 / 1024 * 1.001
    assert float((read.opacities.sigmoid() - g.opacities.sigmoid()).abs().max()) <= 0.5 / 255 + 1e-6
    assert float((read.sh0.clamp(-3.3, 3.3) - g.sh0.clamp(-3.3, 3.3)).abs().max()) <= 0.5 / 255 / 0.15 + 1e-5
    if degree:
        assert float((read.shN - g.shN.clamp(-1, 127 / 128)).abs().max()) <= 0.5 / 128 + 1e-6
    inside = ((g.scales > -10.0) & (g.scales < 5.9)).all(dim=1)
    a, b = covariances(g)[inside], covariances(read)[inside]
    change = (a - b).flatten(1).norm(dim=1) / a.flatten(1).norm(dim=1)
    # Scales within 1 / 32 change variances by 6.5 %; rotations add theirs.
    assert (change < (0.13 if version == 2 else 0.08)).all()


def test_sh_bits_and_the_range(make_scene) -> None:
    g = make_scene(300, 3)
    rest = gaussians_of_spz(spz_bytes(g, 3)[0], "x").shN * 128 + 128
    assert set((rest[:, :3] % 8).unique().tolist()) <= {0.0, 7.0}
    assert set((rest[:, 3:] % 16).unique().tolist()) <= {0.0, 15.0}
    error = (gaussians_of_spz(spz_bytes(g, 4, sh_bits=(8, 6))[0], "x").shN - in_file_order(g).shN.clamp(-1, 1)).abs()
    assert float(error[:, :3].max()) < 1.01 / 128 and float(error[:, 3:].max()) < 4.01 / 128


def test_positions_are_as_fine_as_the_gaussians_are_small(make_scene) -> None:
    g = make_scene(500, 0)
    small = Gaussians(g.means * 1e-3, g.quats, g.scales - 6.9, g.opacities, g.sh0, g.shN)
    # A thousandth of the size takes ten bits more, up to the format's end.
    assert default_fraction_bits(small) == min(default_fraction_bits(g) + 10, 23)
    read = gaussians_of_spz(spz_bytes(small)[0], "x")
    size = small.scales.median(dim=1).values.exp().quantile(0.1)
    assert float((read.means - in_file_order(small).means).abs().max()) <= 0.125 * float(size) * 1.01
    far = torch.cat([g.means[:-1], torch.tensor([[4000.0, 0.0, 0.0]])])
    wide = Gaussians(far, g.quats, g.scales - 6.9, g.opacities, g.sh0, g.shN)
    with pytest.warns(UserWarning, match="details will be lost"):
        data, _ = spz_bytes(wide)
    assert float(gaussians_of_spz(data, "x").means.max()) == pytest.approx(4000.0, abs=1e-3)
    with pytest.raises(InputError, match="4000 with 23 fraction bits, SPZ ends at 1"):
        spz_bytes(wide, fraction_bits=23)


def test_the_frame_of_its_page_by_hand() -> None:
    """x right, y up, z back: y and z change sign, and with them the SH of degree 1 in y and z."""
    data, _ = spz_bytes(one(), 3, fraction_bits=12, turn=True)
    # -0.25 becomes 0.25 = 0x000400, 2 becomes -2 = 0xffe000.
    positions = "001800" + "000400" + "00e0ff"
    # Axes are named anew, so that the turned Gaussian is (0.9, 0.1, 0.3, -0.3) with the scales as they were.
    rotation = struct.pack("<I", 3 << 30 | 72 << 20 | 217 << 10 | (512 + 217)).hex()
    # 115.2, 102.4, 140.8 to multiples of 8.
    sh = "40c080" + "706890" + "ff0080"
    streams = (positions, HAND["alphas"], HAND["colors"], HAND["scales"], rotation, sh)
    assert gzip.decompress(data)[16:].hex() == "".join(streams)
    back = gaussians_of_spz(data, "x", turn=True)
    assert torch.equal(back.means, one().means) and torch.equal(back.shN[0, 2], torch.tensor([127 / 128, -1.0, 0.0]))


@pytest.mark.parametrize("version", VERSIONS)
def test_turned_to_the_frame_of_its_page_and_back(tmp_path: Path, make_scene, covariances, version: int) -> None:
    g = make_scene(50, 3)
    write_spz(tmp_path / "a.spz", g, version=version, fraction_bits=12, sh_bits=(8, 8), turn=True)
    again = in_common_order(read_spz(tmp_path / "a.spz", turn=True))
    plain = in_common_order(gaussians_of_spz(spz_bytes(g, version, 12, (8, 8))[0], "x"))
    assert torch.equal(again.means, plain.means)
    torch.testing.assert_close(again.shN, plain.shN, atol=1.01 / 128, rtol=0)
    a, b = covariances(again), covariances(plain)
    assert float(((a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).max()) < (0.05 if version == 2 else 0.01)


def test_options_are_checked(tmp_path: Path, make_scene) -> None:
    g = make_scene(3, 0)
    wrong: list[dict[str, Any]] = [{"version": 1}, {"version": 5}, {"fraction_bits": 24}]
    wrong += [{"sh_bits": (0, 4)}, {"sh_bits": (5, 9)}]
    for options in wrong:
        with pytest.raises(ValueError, match="expected"):
            write_spz(tmp_path / "a.spz", g, **options)
    with pytest.raises(InputError, match="no Gaussians"):
        write_spz(tmp_path / "a.spz", g.select(torch.zeros(3, dtype=torch.bool)))
    assert not (tmp_path / "a.spz").exists()


def test_the_order_of_axes_is_that_of_least_turn(make_scene) -> None:
    g = in_file_order(make_scene(40, 0))
    scales = smallest_rotation(g.quats.double().numpy(), g.scales.double().numpy())[1]
    read = gaussians_of_spz(spz_bytes(g)[0], "x")
    np.testing.assert_allclose(read.scales, np.clip(scales, -10, 255 / 16 - 10), atol=1 / 32 + 1e-6)


def header(version: int = 3, count: int = 1, degree: int = 1, bits: int = 12, flags: int = 0) -> bytes:
    return struct.pack("<4sIIBBBB", b"NGSP", version, count, degree, bits, flags, 0)


BODY = bytes(9 + 1 + 3 + 3 + 4 + 9)

HOSTILE = {
    "empty": (b"", "expected an SPZ"),
    "other": (b"ply\nformat", "expected an SPZ"),
    "gzip cut off": (hand_made(3)[:-9], "cut off"),
    "gzip of little": (gzip.compress(b"NGSP"), "4 bytes in the gzip stream"),
    "gzip of other": (gzip.compress(bytes(100)), "starts with"),
    "gzip damaged": (hand_made(3)[:30] + b"\xff" + hand_made(3)[31:], "damaged"),
    "version 1": (gzip.compress(header(1) + BODY), "SPZ version 1, expected 2, 3"),
    "future gzip": (gzip.compress(header(9) + BODY), "SPZ version 9"),
    "future": (header(5) + bytes(80), "SPZ version 5, expected 4"),
    "zero": (gzip.compress(header(count=0) + BODY), "0 Gaussians"),
    "too many": (gzip.compress(header(count=2**32 - 1) + BODY), "4294967295 Gaussians"),
    "one too many": (gzip.compress(header(count=2) + BODY), "count is wrong"),
    "degree": (gzip.compress(header(degree=5) + BODY), "SH degree 5"),
    "fraction bits": (gzip.compress(header(bits=24) + BODY), "24 fraction bits"),
    "bomb": (gzip.compress(header() + BODY + bytes(2**24)), "count is wrong"),
    "short 4": (header(4), "cut off"),
    "streams of 4": (hand_made(4)[:15] + b"\5" + hand_made(4)[16:], "5 streams"),
    "table of 4": (hand_made(4)[:16] + b"\xff\xff\0\0" + hand_made(4)[20:], "table at byte 65535"),
    "cut 4": (hand_made(4)[:-1], "cut off"),
    "size of 4": (hand_made(4)[:40] + b"\xff" + hand_made(4)[41:], "for 255, expected"),
    "frame of 4": (hand_made(4)[:128] + b"\0" + hand_made(4)[129:], "damaged"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_one_line(tmp_path: Path, case: str) -> None:
    data, expected = HOSTILE[case]
    (tmp_path / "bad.spz").write_bytes(data)
    with pytest.raises(InputError, match=expected) as error:
        read_spz(tmp_path / "bad.spz")
    assert "\n" not in str(error.value) and "bad.spz" in str(error.value)


def test_a_frame_that_holds_more_than_it_says() -> None:
    data = bytearray(hand_made(4))
    bomb = zstandard.compress(bytes(2**26))
    first = struct.unpack_from("<Q", data, 32)[0]
    struct.pack_into("<Q", data, 32, len(bomb))
    with pytest.raises(InputError, match="expected 9"):
        gaussians_of_spz(bytes(data[:128]) + bomb + bytes(data[128 + first :]), "x")


def test_extensions_are_skipped_and_a_frame_is_told() -> None:
    data = hand_made(4)
    record = struct.pack("<II4s", 0xADBE0002, 4, b"abcd")
    frame = struct.pack("<III", 0xADBE0003, 4, 4)

    def with_records(records: bytes) -> bytes:
        return (
            data[:14] + b"\2" + data[15:16] + struct.pack("<I", 32 + len(records)) + data[20:32] + records + data[32:]
        )

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(gaussians_of_spz(with_records(record), "x").means, one().means)
    with pytest.warns(UserWarning, match="names its frame"):
        gaussians_of_spz(with_records(record + frame), "x")


@pytest.mark.parametrize("version", [2, 3])
def test_extensions_at_the_end_of_a_gzip_stream(version: int) -> None:
    body = BODY if version == 3 else BODY[:-1]
    frame = struct.pack("<III", 0xADBE0003, 4, 4)
    with pytest.warns(UserWarning, match="names its frame"):
        gaussians_of_spz(gzip.compress(header(version, flags=2) + body + frame), "x")


def rotations(version: int, *rows: bytes) -> np.ndarray:
    """The rotations [N, 4] in a file of degree 0 that is otherwise zero."""
    n = len(rows)
    data = gzip.compress(header(version, n, degree=0) + bytes(16 * n) + b"".join(rows))
    return gaussians_of_spz(data, "x").quats.double().numpy()


def test_rotations_by_hand_whichever_component_is_the_largest() -> None:
    a, b, c = np.array([73, -146, 219]) / (511 * math.sqrt(2))
    rest = math.sqrt(1 - a * a - b * b - c * c)
    words = [k << 30 | 73 << 20 | (512 + 146) << 10 | 219 for k in range(4)]
    read = rotations(3, *(struct.pack("<I", word) for word in words))
    # The file has x, y, z, w; the scene w, x, y, z.
    expected = [[c, rest, a, b], [c, a, rest, b], [c, a, b, rest], [rest, a, b, c]]
    np.testing.assert_allclose(read, expected, atol=1e-6)


@pytest.mark.parametrize("version, row", [(2, b"\xff\xff\xff"), (3, struct.pack("<I", 3 << 30 | 0x1FF7FDFF))])
def test_rotations_beyond_length_1_are_made_units(version: int, row: bytes) -> None:
    third = math.sqrt(1 / 3)
    np.testing.assert_allclose(rotations(version, row), [[0, third, third, third]], atol=1e-6)


def test_positions_beyond_the_range_of_a_plan_end_there() -> None:
    """In training, where a Gaussian may move out farther than the bits that were chosen reach."""
    far = replace(one(), means=torch.tensor([[5000.0, -5000.0, 1.0]]))
    end = (2**23 - 1) / 4096
    assert SpzPlan(12).decoded(smallest_columns(far))["means"].tolist() == [[end, -end, 1.0]]


def test_steps_wider_than_the_small_gaussians_are_told() -> None:
    g = replace(one(), scales=torch.full((1, 3), math.log(0.01)))
    with pytest.warns(UserWarning, match="details will be lost"):
        spz_bytes(g, fraction_bits=6)  # 1 / 64
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spz_bytes(g, fraction_bits=7)  # 1 / 128


def test_a_scene_too_wide_for_any_bits_is_refused() -> None:
    g = replace(one(), means=torch.tensor([[1e7, 0.0, 0.0]]))
    assert default_fraction_bits(g) == 0
    with pytest.raises(InputError, match=r"a Gaussian at 1e\+07 with 0 fraction bits, SPZ ends at 8.38861e\+06"):
        spz_bytes(g)


@pytest.mark.parametrize("version", [2, 3])
def test_the_arrays_share_a_gzip_stream_to_rounding(make_scene, version: int) -> None:
    _, parts = spz_bytes(make_scene(200, 1), version)
    assert 0 <= parts["header"] < len(parts)


def test_degree_4_is_cut_with_a_warning() -> None:
    body = bytes(20) + bytes([128 + k for k in range(72)])
    with pytest.warns(UserWarning, match="degree 4"):
        g = gaussians_of_spz(gzip.compress(header(degree=4) + body), "x")
    assert g.sh_degree == 3 and g.shN[0, 14].tolist() == [42 / 128, 43 / 128, 44 / 128]


@pytest.mark.parametrize("version", VERSIONS)
def test_fuzz(make_scene, version: int) -> None:
    chance = random.Random(version)
    good = spz_bytes(make_scene(12, 2), version)[0]

    def files():  # noqa: ANN202
        for i in range(MUTATIONS):
            if version < 4 and i % 2:
                # Behind the checksum.
                yield gzip.compress(damage(gzip.decompress(good), chance, 24), 1)
            else:
                yield damage(good, chance, 140)

    read, refused = check_damaged(lambda data: gaussians_of_spz(data, "x"), files())
    assert read > MUTATIONS // 100 and refused > MUTATIONS // 10


def scene_of_gsply(data) -> Gaussians:  # noqa: ANN001
    rest = np.zeros((len(data.means), 0, 3)) if data.shN is None else data.shN.reshape(len(data.means), -1, 3)
    parts = {"means": data.means, "quats": data.quats, "scales": data.scales, "opacities": data.opacities.reshape(-1)}
    parts |= {"sh0": data.sh0.reshape(-1, 3), "shN": rest}
    tensors = {name: torch.from_numpy(np.array(part, np.float32)) for name, part in parts.items()}
    return Gaussians(**tensors, antialiased=False)


def check_same(a: Gaussians, b: Gaussians, covariances: Callable[[Gaussians], torch.Tensor]) -> None:
    torch.testing.assert_close(a.means, b.means, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(a.scales, b.scales, atol=1e-5, rtol=0)
    torch.testing.assert_close(a.sh0, b.sh0, atol=1e-4, rtol=0)
    torch.testing.assert_close(a.shN, b.shN, atol=1e-5, rtol=0)
    torch.testing.assert_close(a.opacities.sigmoid(), b.opacities.sigmoid(), atol=1e-3, rtol=0)
    # Turned scenes may have other quaternions, for a Gaussian's own axes have no sign.
    x, y = covariances(a), covariances(b)
    assert float(((x - y).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)).max()) < 1e-4


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("degree", [0, 2, 3])
def test_gsply_reads_and_writes_the_same(tmp_path: Path, make_scene, covariances, version: int, degree: int) -> None:
    gsply = pytest.importorskip("gsply")
    g = make_scene(40, degree)
    write_spz(tmp_path / "a.spz", g, version=version)
    check_same(read_spz(tmp_path / "a.spz"), scene_of_gsply(gsply.read_spz(tmp_path / "a.spz")), covariances)
    if version > 2:
        write_ply(tmp_path / "a.ply", g)
        gsply.write_spz(tmp_path / "b.spz", gsply.plyread(tmp_path / "a.ply"), version=version)
        theirs = read_spz(tmp_path / "b.spz")
        check_same(theirs, scene_of_gsply(gsply.read_spz(tmp_path / "b.spz")), covariances)
        assert float((in_common_order(theirs).means - in_common_order(g).means).abs().max()) < 2**-12


@pytest.mark.slow
@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("degree", [0, 3])
def test_splat_transform_reads_and_writes_the_same(
    tmp_path: Path, make_scene, covariances, splat_transform: Callable[..., None], version: int, degree: int
) -> None:
    # Version 2.7 keeps to the frame of SPZ's page, version 3 writes and reads the .ply's numbers.
    write_ply(tmp_path / "one.ply", one())
    splat_transform(tmp_path / "one.ply", tmp_path / "one.spz")
    turn = float(read_spz(tmp_path / "one.spz").means[0, 1]) > 0
    g = make_scene(100, degree)
    write_spz(tmp_path / "a.spz", g, version=version, turn=turn)
    splat_transform(tmp_path / "a.spz", tmp_path / "a.ply")
    theirs = read_ply(tmp_path / "a.ply")
    check_same(read_spz(tmp_path / "a.spz", turn=turn), theirs, covariances)
    step = 2.0 ** -default_fraction_bits(g)
    torch.testing.assert_close(in_common_order(theirs).means, in_common_order(g).means, atol=0.51 * step, rtol=1e-6)
    write_ply(tmp_path / "b.ply", g)
    splat_transform("--spz-version", str(version), tmp_path / "b.ply", tmp_path / "b.spz")
    splat_transform(tmp_path / "b.spz", tmp_path / "c.ply")
    check_same(read_spz(tmp_path / "b.spz", turn=turn), read_ply(tmp_path / "c.ply"), covariances)
