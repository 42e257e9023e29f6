"""SOG version 2: stated error bounds, the peers' reading of our files, and hostile files refused in one line."""

import io
import json
import math
import struct
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from radcomp_plugins.core import threads, vq
from radcomp_plugins.core.quantize import signed_log
from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.formats import sog, sog_writer
from radcomp_plugins.splats.formats.ply import read_ply, write_ply
from radcomp_plugins.splats.formats.sog import read_sog, write_sog
from radcomp_plugins.splats.formats.sog_quantise import dequantise_opacity, dequantise_quats
from radcomp_plugins.splats.formats.sog_writer import sog_plan
from radcomp_plugins.splats.gaussians import Gaussians
from radcomp_plugins.splats.order import axis_rotations, morton_order, smallest_rotation

DATA = Path(__file__).resolve().parents[2] / "data"


@pytest.fixture(autouse=True)
def quick_webp(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The least effort of libwebp: sizes are not what these tests look at."""
    if request.node.get_closest_marker("slow"):
        return

    def encode(pixels: np.ndarray) -> bytes:
        return webp(pixels)

    monkeypatch.setattr(sog_writer, "encode_webp", encode)


def webp(pixels: np.ndarray, lossless: bool = True) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=lossless, quality=0, method=0, exact=True)
    return buffer.getvalue()


def in_file_order(g: Gaussians) -> Gaussians:
    return g.select(torch.from_numpy(morton_order(g.means.double().numpy())))


def in_common_order(g: Gaussians) -> Gaussians:
    """Sorted by position, for readers and writers with orders of their own."""
    return g.select(torch.from_numpy(np.lexsort(g.means.double().numpy().T)))


def check_error_bounds(g: Gaussians, read: Gaussians, covariances: Callable[[Gaussians], Tensor]) -> None:
    """`read` is `g` in the same order, each number within the half step of its quantiser."""
    a, b = signed_log(g.means.double().numpy()), signed_log(read.means.double().numpy())
    assert (np.abs(a - b) <= np.ptp(a, axis=0) / 65535 * 0.5 + 2e-6).all()
    assert float((g.opacities.sigmoid() - read.opacities.sigmoid()).abs().max()) <= 0.5 / 255 + 1e-6
    # Three components within half of sqrt(2) / 255 turn a Gaussian by at most 2 * 0.0048 radians; scales add theirs.
    # The codebook's cells are wide where values are rare, so a few Gaussians may be further off.
    a, b = covariances(g), covariances(read)
    change = (a - b).flatten(1).norm(dim=1) / a.flatten(1).norm(dim=1)
    assert float(change.quantile(0.99)) < 0.06 and float(change.max()) < 0.2
    assert float((g.sh0 - read.sh0).square().mean().sqrt()) < 0.02
    assert read.sh_degree == g.sh_degree and read.antialiased == g.antialiased


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(1, 80), degree=st.integers(0, 3), seed=st.integers(0, 99), antialiased=st.booleans())
def test_round_trip(tmp_path: Path, make_scene, covariances, n: int, degree: int, seed: int, antialiased: bool) -> None:
    g = make_scene(n, degree, seed, antialiased)
    parts = write_sog(tmp_path / "a.sog", g, overwrite=True)
    read = read_sog(tmp_path / "a.sog")
    # At most 80 Gaussians have at most 240 scales, and 64 palette entries or more: the codebooks are exact.
    check_error_bounds(in_file_order(g), read, covariances)
    torch.testing.assert_close(read.scales.sort().values, in_file_order(g).scales.sort().values, rtol=1e-4, atol=1e-4)
    assert sum(parts.values()) == (tmp_path / "a.sog").stat().st_size


def test_round_trip_of_a_larger_scene(tmp_path: Path, make_scene, covariances) -> None:
    g = make_scene(5000, 2)
    write_sog(tmp_path / "a.sog", g, palette_size=4096)
    read = read_sog(tmp_path / "a.sog")
    g = in_file_order(g)
    check_error_bounds(g, read, covariances)
    assert float((g.shN - read.shN).square().mean().sqrt()) < 0.05
    # Written once more with the same palette, nothing moves but by a rounding of what is on the grid already.
    write_sog(tmp_path / "b.sog", read, palette_size=4096)
    again = read_sog(tmp_path / "b.sog")
    torch.testing.assert_close(again.shN, read.shN, rtol=0, atol=1e-3)
    torch.testing.assert_close(again.opacities, read.opacities, rtol=0, atol=0)


def test_the_24_axis_rotations(covariances, make_scene) -> None:
    rotations, source = axis_rotations()
    assert rotations.shape == (24, 4)
    np.testing.assert_allclose(np.linalg.norm(rotations, axis=1), 1.0)
    distinct = np.abs(rotations @ rotations.T)
    assert (distinct[~np.eye(24, dtype=bool)] < 0.99).all()
    g = make_scene(500, 0)
    quats, scales = smallest_rotation(g.quats.double().numpy(), g.scales.double().numpy())
    # No rotation is further than 62.8 degrees from the nearest of the 24 (the octahedral group's covering radius).
    assert quats[:, 0].min() > np.cos(np.deg2rad(62.8 / 2)) - 1e-3
    turned = Gaussians(g.means, torch.from_numpy(quats), torch.from_numpy(scales), g.opacities, g.sh0, g.shN)
    torch.testing.assert_close(covariances(turned), covariances(g), rtol=1e-6, atol=1e-12)


def test_a_z_curve_by_hand() -> None:
    """x is the lowest bit, then y, then z; what lies in one place stays in its order."""
    corners = np.array(list(np.ndindex(2, 2, 2)), np.float64)
    assert morton_order(corners).tolist() == [0, 4, 2, 6, 1, 5, 3, 7]
    many = np.repeat(corners, 50, axis=0)[::-1]
    order = morton_order(many)
    assert all((np.diff(order[k : k + 50]) > 0).all() for k in range(0, 400, 50))


def test_bytes_of_a_rotation_by_hand() -> None:
    """The tag says which of w, x, y, z is left out, the others stand in their order."""
    r = math.sqrt(0.5)
    # 51, 204 and 153 are -0.6, 0.6 and 0.2 of r; their squares are 0.18, 0.18 and 0.02.
    a, b, c, rest = -0.6 * r, 0.6 * r, 0.2 * r, math.sqrt(0.62)
    read = dequantise_quats(np.array([[51, 204, 153, tag] for tag in (252, 253, 254, 255)]))
    np.testing.assert_allclose(read, [[rest, a, b, c], [a, rest, b, c], [a, b, rest, c], [a, b, c, rest]], atol=1e-12)
    # Three that are too long already leave nothing for the fourth.
    np.testing.assert_allclose(dequantise_quats(np.full((1, 4), 255)), [[r, r, r, 0]], atol=1e-12)


def test_the_first_and_the_last_opacity_are_finite() -> None:
    np.testing.assert_allclose(dequantise_opacity(np.array([0, 255])), [-13.8155, 13.8155], atol=1e-4)


def test_sides_of_images_are_multiples_of_four(tmp_path: Path, make_scene) -> None:
    write_sog(tmp_path / "a.sog", make_scene(17, 0))
    # The root of 17 is 4.1, so 8 columns; 3 rows, so 4.
    assert pixels(unpack(tmp_path / "a.sog")["means_l.webp"]).shape[:2] == (4, 8)


def test_significance_decides_which_numbers_a_palette_has(make_scene) -> None:
    g = make_scene(4, 1)
    palette = (torch.tensor([0.0, 1.0, 10.0, 11.0])[:, None].expand(4, 9), torch.arange(4))
    for significance, numbers in ((None, [0.5, 10.5]), (torch.tensor([1.0, 1.0, 0.0, 0.0]), [0.0, 1.0])):
        plan, _ = sog_plan(g, sh_palette=palette, significance=significance, sh_levels=2)
        assert sorted(set(plan.rest.tolist())) == pytest.approx(numbers, abs=1e-4)


def test_significance_of_nothing_is_as_none(tmp_path: Path, make_scene) -> None:
    for name, significance in (("a", None), ("b", torch.zeros(60))):
        write_sog(tmp_path / f"{name}.sog", make_scene(60, 1), significance=significance)
    assert (tmp_path / "a.sog").read_bytes() == (tmp_path / "b.sog").read_bytes()


def test_entries_of_the_palette_go_from_small_to_large(make_scene) -> None:
    _, palette = sog_plan(make_scene(300, 1), palette_size=70)
    assert palette is not None
    lengths = palette[0].flatten(1).norm(dim=1)
    assert torch.equal(lengths, lengths.sort().values)


def test_the_same_bytes_for_any_thread_count(tmp_path: Path, make_scene) -> None:
    g = make_scene(300, 1)
    before = threads.get_num_threads()
    written = []
    try:
        for count in (1, 3):
            threads.set_num_threads(count)
            write_sog(tmp_path / f"{count}.sog", g, palette_size=64)
            written.append((tmp_path / f"{count}.sog").read_bytes())
    finally:
        threads.set_num_threads(before)
    assert written[0] == written[1]


def test_a_palette_is_used_as_it_is(tmp_path: Path, make_scene) -> None:
    g = make_scene(400, 2)
    codebook, labels = vq.kmeans(g.shN.flatten(1), 50, torch.rand(400))
    codebook = torch.cat([codebook, torch.full((1, 24), 9.0)])
    for entries in (codebook, codebook.reshape(51, 8, 3)):
        write_sog(tmp_path / "a.sog", g, sh_palette=(entries, labels), sh_levels=256, overwrite=True)
        expected = codebook[labels].reshape(400, 8, 3)[torch.from_numpy(morton_order(g.means.double().numpy()))]
        assert float((read_sog(tmp_path / "a.sog").shN - expected).abs().max()) < 0.02
    with zipfile.ZipFile(tmp_path / "a.sog") as archive:
        # The entry that nobody uses costs nothing and is not written.
        assert json.loads(archive.read("meta.json"))["shN"]["count"] == 50


def test_significance_decides_whose_errors_are_small(tmp_path: Path, make_scene) -> None:
    g = in_file_order(make_scene(3000, 1))
    heavy = torch.arange(3000) % 4 == 0

    def errors(significance: Tensor | None) -> tuple[float, float, float]:
        write_sog(tmp_path / "a.sog", g, palette_size=64, significance=significance, overwrite=True)
        read = read_sog(tmp_path / "a.sog")
        rest = (read.shN - g.shN)[heavy].square().mean()
        return float(rest), float((read.sh0 - g.sh0)[heavy].square().mean()), float(read.scales[heavy].std())

    plain, weighted = errors(None), errors(torch.where(heavy, 1e4, 1.0))
    assert weighted[0] < 0.9 * plain[0]
    assert weighted[1] < 0.9 * plain[1]


def test_the_palette_is_no_finer_than_its_own_error(tmp_path: Path, make_scene) -> None:
    g = in_file_order(make_scene(3000, 2))

    def write(**options: Any) -> tuple[float, int, int]:
        parts = write_sog(tmp_path / "a.sog", g, overwrite=True, **options)
        meta = json.loads(unpack(tmp_path / "a.sog")["meta.json"])
        error = (read_sog(tmp_path / "a.sog").shN - g.shN).square().mean()
        return float(error), len(set(meta["shN"]["codebook"])), parts["shN_centroids.webp"]

    error, levels, size = write(palette_size=256)
    finest, most, largest = write(palette_size=256, sh_levels=256)
    assert levels < most == 256 and size < largest
    assert finest < error < 1.03 * finest
    assert write(palette_size=256, sh_levels=5)[1] == 5
    # An exact palette is worth all levels.
    assert write(palette_size=4096)[1] == 256
    codebook, labels = vq.kmeans(g.shN.flatten(1), 256)
    assert levels <= write(sh_palette=(codebook, labels))[1] <= 64


def test_fewer_position_bits(tmp_path: Path, make_scene) -> None:
    g = in_file_order(make_scene(1000, 0))
    write_sog(tmp_path / "a.sog", g, position_bits=12)
    a, b = signed_log(g.means.double().numpy()), signed_log(read_sog(tmp_path / "a.sog").means.double().numpy())
    step = np.ptp(a, axis=0) / 4095
    assert (np.abs(a - b) <= 0.5 * step + 2e-6).all()
    assert np.abs(a - b).max() > 0.4 * step.max()
    with zipfile.ZipFile(tmp_path / "a.sog") as archive:
        low = np.asarray(Image.open(io.BytesIO(archive.read("means_l.webp"))).convert("RGB"))
    assert (low % 16 == 0).all()


def test_all_in_one_place(tmp_path: Path, make_scene) -> None:
    g = make_scene(10, 0)
    g.means[:] = torch.tensor([1.0, -2.0, 0.0])
    write_sog(tmp_path / "a.sog", g)
    torch.testing.assert_close(read_sog(tmp_path / "a.sog").means, g.means, rtol=1e-6, atol=1e-6)


def test_colours_survive_under_alpha_zero(tmp_path: Path, make_scene) -> None:
    g = in_file_order(make_scene(60, 0))
    g.opacities[:] = -20.0
    write_sog(tmp_path / "a.sog", g)
    torch.testing.assert_close(read_sog(tmp_path / "a.sog").sh0, g.sh0, rtol=1e-3, atol=1e-3)


def test_nothing_of_the_machine_or_moment_is_written(tmp_path: Path, make_scene) -> None:
    write_sog(tmp_path / "a.sog", make_scene(10, 1, antialiased=True))
    with zipfile.ZipFile(tmp_path / "a.sog") as archive:
        assert all(e.date_time == (1980, 1, 1, 0, 0, 0) and e.create_system == 3 for e in archive.infolist())
        assert all(e.compress_type == zipfile.ZIP_STORED for e in archive.infolist() if e.filename.endswith("webp"))
        meta = json.loads(archive.read("meta.json"))
    assert meta["version"] == 2 and meta["model"] == "antialiased" and meta["antialias"] is True
    assert all(len(meta[key]["codebook"]) == 256 for key in ("scales", "sh0", "shN"))


@pytest.mark.parametrize("key", ["model", "antialias"])
def test_either_word_says_that_a_scene_is_antialiased(tmp_path: Path, make_scene, key: str) -> None:
    write_sog(tmp_path / "a.sog", make_scene(10, 0, antialiased=True))
    files = unpack(tmp_path / "a.sog")
    with_meta(lambda meta: meta.pop(key))(files)
    pack(tmp_path / "b.sog", files)
    assert read_sog(tmp_path / "b.sog").antialiased


def test_writer_refuses(tmp_path: Path, make_scene) -> None:
    g = make_scene(10, 1)
    path = tmp_path / "a.sog"
    bad: tuple[dict[str, Any], ...] = (
        {"palette_size": 0},
        {"palette_size": 65537},
        {"position_bits": 17},
        {"sh_levels": 257},
        {"significance": torch.ones(9)},
        {"significance": -torch.ones(10)},
        {"significance": torch.full((10,), float("nan"))},
        {"sh_palette": (torch.zeros(3, 8), torch.zeros(10, dtype=torch.long))},
        {"sh_palette": (torch.zeros(3, 9), torch.full((10,), 3))},
        {"sh_palette": (torch.zeros(3, 9), torch.zeros(9, dtype=torch.long))},
    )
    for options in bad:
        with pytest.raises(ValueError):
            write_sog(path, g, **options)
    with pytest.raises(InputError, match="no Gaussians"):
        write_sog(path, g.select(torch.zeros(10, dtype=torch.bool)))
    assert not list(tmp_path.iterdir())
    path.write_bytes(b"mine")
    with pytest.raises(InputError, match="exists already"):
        write_sog(path, g)
    assert path.read_bytes() == b"mine"


Files = dict[str, bytes]


def unpack(path: Path) -> Files:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(path: Path, files: Files, method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def pixels(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)))


def with_meta(change: Callable[[dict[str, Any]], object]) -> Callable[[Files], None]:
    def damage(files: Files) -> None:
        meta = json.loads(files["meta.json"])
        change(meta)
        files["meta.json"] = json.dumps(meta).encode()

    return damage


def with_pixels(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Files], None]:
    def damage(files: Files) -> None:
        files[name] = webp(np.ascontiguousarray(change(pixels(files[name]))))

    return damage


def filled(image: np.ndarray, channel: int, value: int) -> np.ndarray:
    image[..., channel] = value
    return image


def huge_webp(files: Files) -> None:
    """A header of 16383 x 16383 pixels, which would take a gigabyte, over a few bytes."""
    bits = 16382 | 16382 << 14
    body = b"VP8L" + struct.pack("<IBI", 5, 0x2F, bits) + b"\0"
    files["scales.webp"] = b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def lossy(files: Files) -> None:
    files["sh0.webp"] = webp(pixels(files["sh0.webp"])[..., :3], lossless=False)


def raw_meta(text: bytes) -> Callable[[Files], None]:
    return lambda files: files.update({"meta.json": text})


HOSTILE: dict[str, tuple[Callable[[Files], object], str]] = {
    "missing image": (lambda f: f.pop("quats.webp"), "no file 'quats.webp'"),
    "missing palette": (lambda f: f.pop("shN_centroids.webp"), "no file 'shN_centroids.webp'"),
    "missing meta": (lambda f: f.pop("meta.json"), "no file 'meta.json'"),
    "image too small": (with_pixels("scales.webp", lambda p: p[:4]), "pixels, expected"),
    "labels too small": (with_pixels("shN_labels.webp", lambda p: p[:4]), "pixels, expected"),
    "palette too small": (with_meta(lambda m: m["shN"].update(count=65)), "pixels, expected 384"),
    "palette too wide": (with_pixels("shN_centroids.webp", lambda p: np.hstack([p, p])), "wide, expected 192"),
    "image huge": (huge_webp, "16383x16383 pixels, expected"),
    "image truncated": (lambda f: f.update({"sh0.webp": f["sh0.webp"][:-40]}), "cannot be decoded"),
    "image empty": (lambda f: f.update({"sh0.webp": b""}), "expected a WebP"),
    "image cut in its header": (lambda f: f.update({"sh0.webp": f["sh0.webp"][:18]}), "no lossless WebP"),
    "image lossy": (lossy, "lossy"),
    "image of another kind": (lambda f: f.update({"sh0.webp": b"\x89PNG\r\n\x1a\n" + bytes(99)}), "expected a WebP"),
    "label out of range": (with_pixels("shN_labels.webp", lambda p: filled(p, 1, 1)), "has SH label"),
    "quaternion tag": (with_pixels("quats.webp", lambda p: filled(p, 3, 251)), "tag 251"),
    "codebook too short": (with_meta(lambda m: m["scales"]["codebook"].pop()), "255 entries, expected 256"),
    "codebook too long": (with_meta(lambda m: m["sh0"]["codebook"].append(0.0)), "257 entries"),
    "codebook of text": (with_meta(lambda m: m["shN"].update(codebook="x" * 256)), "0 entries"),
    "codebook of booleans": (with_meta(lambda m: m["shN"].update(codebook=[True] * 256)), "finite numbers"),
    "codebook huge": (with_meta(lambda m: m["shN"].update(codebook=[1e300] * 256)), "finite numbers"),
    "no codebook": (with_meta(lambda m: m["sh0"].pop("codebook")), "0 entries"),
    "NaN": (with_meta(lambda m: m["means"]["mins"].__setitem__(0, float("nan"))), "not finite"),
    "infinity": (with_meta(lambda m: m["means"]["maxs"].__setitem__(0, float("inf"))), "not finite"),
    "overflow": (lambda f: f.update({"meta.json": f["meta.json"].replace(b'"mins":[', b'"mins":[1e999,')}), "range"),
    "range too wide": (with_meta(lambda m: m["means"]["maxs"].__setitem__(1, 1e9)), "out of order or beyond"),
    "range reversed": (with_meta(lambda m: m["means"]["mins"].__setitem__(1, 59.0)), "out of order or beyond"),
    "count too large": (with_meta(lambda m: m.update(count=10**6)), "not possible"),
    "count a little too large": (with_meta(lambda m: m.update(count=500)), "pixels, expected 500"),
    "count huge": (with_meta(lambda m: m.update(count=10**15)), '"count" is'),
    "count zero": (with_meta(lambda m: m.update(count=0)), '"count" is 0'),
    "count fractional": (with_meta(lambda m: m.update(count=1.5)), '"count" is 1.5'),
    "count true": (with_meta(lambda m: m.update(count=True)), '"count" is True'),
    "palette count": (with_meta(lambda m: m["shN"].update(count=65537)), '"count" is 65537'),
    "bands": (with_meta(lambda m: m["shN"].update(bands=4)), '"bands" is 4'),
    "version 1": (with_meta(lambda m: m.pop("version")), "SOG version None, expected 2"),
    "version 3": (with_meta(lambda m: m.update(version=3)), "SOG version 3, expected 2"),
    "section missing": (with_meta(lambda m: m.pop("quats")), '"quats" is NoneType'),
    "section no object": (with_meta(lambda m: m.update(means=[1])), '"means" is list'),
    "files missing": (with_meta(lambda m: m["means"].update(files=["means_l.webp"])), "file name number 2"),
    "files no names": (with_meta(lambda m: m["sh0"].update(files=[7])), "no file name number 1"),
    "file outside": (with_meta(lambda m: m["sh0"].update(files=["../sh0.webp"])), "leads out"),
    "no object": (raw_meta(b"[]"), "got a JSON list"),
    "no json": (raw_meta(b"{'version': 2}"), "not readable as JSON"),
    "json too deep": (raw_meta(b'{"a":' * 100_000), "nested too deeply"),
    "json too long": (raw_meta(b" " * (sog.MAX_META_BYTES + 1)), "expected at most"),
    "name outside": (lambda f: f.update({"../evil": b""}), "leads out"),
    "absolute name": (lambda f: f.update({"/etc/passwd": b""}), "leads out"),
    "bomb": (lambda f: f.update({"scales.webp": bytes(64 * 2**20)}), "expected at most"),
    "many files": (lambda f: f.update({f"{i}": b"" for i in range(1001)}), "files or repeated names"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, make_scene) -> Files:
    folder = tmp_path_factory.mktemp("good")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sog_writer, "encode_webp", webp)
        write_sog(folder / "a.sog", make_scene(300, 1), palette_size=64)
    return unpack(folder / "a.sog")


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_one_line(tmp_path: Path, good: Files, case: str) -> None:
    damage, expected = HOSTILE[case]
    files = dict(good)
    damage(files)
    pack(tmp_path / "bad.sog", files, zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match=expected) as error:
        read_sog(tmp_path / "bad.sog")
    assert "\n" not in str(error.value) and "bad.sog" in str(error.value)


def test_a_zip_that_lies_about_its_sizes(tmp_path: Path, good: Files) -> None:
    files = dict(good) | {"scales.webp": bytes(2**20)}
    pack(tmp_path / "bad.sog", files, zipfile.ZIP_DEFLATED)
    data = (tmp_path / "bad.sog").read_bytes()
    (tmp_path / "bad.sog").write_bytes(data.replace(struct.pack("<I", 2**20), struct.pack("<I", 1000)))
    with pytest.raises(InputError, match=r"bad\.sog/scales\.webp"):
        read_sog(tmp_path / "bad.sog")


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_a_truncated_zip(tmp_path: Path, good: Files, keep: float) -> None:
    pack(tmp_path / "bad.sog", good)
    data = (tmp_path / "bad.sog").read_bytes()
    (tmp_path / "bad.sog").write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(InputError, match="no readable zip"):
        read_sog(tmp_path / "bad.sog")


def test_an_encrypted_or_oddly_packed_zip(tmp_path: Path, good: Files) -> None:
    path = tmp_path / "bad.sog"
    pack(path, good)
    data = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = -1
        while (at := data.find(signature, at + 1)) >= 0:
            data[at + flags] |= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="encrypted"):
        read_sog(path)
    pack(path, good)
    data = bytearray(path.read_bytes())
    data[data.find(b"PK\1\2") + 10] = 99
    data[8] = 99
    path.write_bytes(data)
    with pytest.raises(InputError, match="cannot be unpacked"):
        read_sog(path)


def test_a_damaged_byte_is_noticed(tmp_path: Path, good: Files) -> None:
    pack(tmp_path / "bad.sog", good)
    data = bytearray((tmp_path / "bad.sog").read_bytes())
    data[data.find(good["means_l.webp"]) + 100] ^= 1
    (tmp_path / "bad.sog").write_bytes(data)
    with pytest.raises(InputError, match="cannot be unpacked"):
        read_sog(tmp_path / "bad.sog")


def test_folder_and_meta_json_are_read_alike(tmp_path: Path, good: Files) -> None:
    pack(tmp_path / "a.sog", good)
    folder = tmp_path / "unpacked"
    folder.mkdir()
    for name, data in good.items():
        (folder / name).write_bytes(data)
    bundle = read_sog(tmp_path / "a.sog")
    for path in (folder, folder / "meta.json"):
        read = read_sog(path)
        assert all(torch.equal(tensor, read.tensors[name]) for name, tensor in bundle.tensors.items())
    (folder / "sh0.webp").unlink()
    with pytest.raises(InputError, match=r"sh0\.webp: no such file"):
        read_sog(folder)
    (tmp_path / "secret").write_bytes(good["sh0.webp"])
    (folder / "sh0.webp").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="leads out"):
        read_sog(folder)
    with pytest.raises(InputError, match="no such file"):
        read_sog(tmp_path / "none.sog")


def test_golden_file(covariances) -> None:
    """What an earlier version wrote still decodes to the same scene; its .ply twin lies beside it."""
    g, read = read_ply(DATA / "golden.ply"), read_sog(DATA / "golden.sog")
    check_error_bounds(in_file_order(g), read, covariances)
    # Decoded once and written down: the first Gaussian in the file's order.
    expected = {
        "means": [0.004860051, -1.360267, -6.555164],
        "quats": [0.9825819, 0.174697, -0.02495671, 0.05823232],
        "scales": [-6.8096, -7.4249, -4.8289],
        "sh0": [0.37841, 0.95978, -1.3718],
    }
    for name, values in expected.items():
        torch.testing.assert_close(read.tensors[name][0], torch.tensor(values), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(read.shN[0, 1], torch.tensor([-0.044503, -0.014556, 0.11754]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "count"), [("playbot_lod5_0.sog", 3000), ("playbot_lod3_0.sog", 31000)])
def test_real_scenes(real_data: Callable[[str], Path], tmp_path: Path, covariances, name: str, count: int) -> None:
    g = read_sog(real_data(f"splats/{name}"))
    assert (len(g), g.sh_degree) == (count, 2)
    assert float(g.means.abs().max()) < 1.1 and bool(g.finite().all())
    assert 0.0 < float(g.opacities.sigmoid().mean()) < 1.0
    # A palette of the same size is the scene's own: all of it is kept to the digits of the codebook.
    write_sog(tmp_path / "a.sog", g, palette_size=65536)
    read = read_sog(tmp_path / "a.sog")
    g, read = in_common_order(g), in_common_order(read)
    torch.testing.assert_close(read.means, g.means, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(read.shN, g.shN, rtol=0, atol=1e-4)
    check_error_bounds(g, read, covariances)


@pytest.fixture
def gsply_sogread(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """gsply's reader; where its optional image decoder is missing, Pillow stands in for that part."""
    gsply = pytest.importorskip("gsply", reason="gsply is not installed: pip install gsply")
    reader = pytest.importorskip("gsply.sog_reader", reason="this gsply has no SOG reader")
    if reader.imagecodecs is None:
        monkeypatch.setattr(reader, "imagecodecs", types.SimpleNamespace(webp_decode=pixels))
    return gsply.sogread


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_gsply_reads_the_same_gaussians(tmp_path: Path, make_scene, gsply_sogread, degree: int) -> None:
    write_sog(tmp_path / "a.sog", make_scene(500, degree))
    ours, theirs = read_sog(tmp_path / "a.sog"), gsply_sogread(str(tmp_path / "a.sog"))
    for name, tensor in ours.tensors.items():
        got = np.asarray(getattr(theirs, name)).reshape(tensor.shape)
        np.testing.assert_allclose(got, tensor.numpy(), rtol=1e-5, atol=1e-6, err_msg=name)


def compare(a: Gaussians, b: Gaussians) -> None:
    for name, tensor in a.tensors.items():
        torch.testing.assert_close(b.tensors[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_splat_transform_reads_the_same_gaussians(tmp_path: Path, make_scene, splat_transform, degree: int) -> None:
    write_sog(tmp_path / "a.sog", make_scene(500, degree))
    splat_transform(tmp_path / "a.sog", tmp_path / "b.ply")
    compare(read_sog(tmp_path / "a.sog"), read_ply(tmp_path / "b.ply"))


@pytest.mark.parametrize("degree", [0, 3])
def test_we_read_what_splat_transform_writes(
    tmp_path: Path, make_scene, splat_transform, covariances, degree: int
) -> None:
    g = make_scene(1500, degree)
    write_ply(tmp_path / "a.ply", g)
    splat_transform("-g", "cpu", "-i", "2", tmp_path / "a.ply", tmp_path / "b.sog")
    splat_transform(tmp_path / "b.sog", tmp_path / "c.ply")
    read = read_sog(tmp_path / "b.sog")
    compare(read_ply(tmp_path / "c.ply"), read)
    # It truncates where we round, so a whole step of 2^-16 is allowed; the frame must be the one of the .ply.
    g, read = in_common_order(g), in_common_order(read)
    near = torch.cdist(signed_tensor(g.means), signed_tensor(read.means)).min(dim=1).values
    assert float(near.max()) < 2.0 * float(np.ptp(signed_log(g.means.double().numpy()))) / 65535


def signed_tensor(x: Tensor) -> Tensor:
    return torch.from_numpy(signed_log(x.double().numpy()))


@pytest.mark.slow
def test_smaller_than_the_peers_file(tmp_path: Path, real_data: Callable[[str], Path]) -> None:
    path = real_data("splats/playbot_lod5_0.sog")
    theirs = sum(file.stat().st_size for file in path.iterdir())
    parts = write_sog(tmp_path / "a.sog", read_sog(path), palette_size=65536)
    assert sum(parts.values()) < 0.88 * theirs
