"""What `.rcs` decodes is near what it was given, in every part and prefix, and damage is told in one line."""

import random
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from radcomp_plugins.core import entropy
from radcomp_plugins.core.container import read_chunk, read_contents, write_container
from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.formats import rcs, rcs_header, rcs_quantise, rcs_streams
from radcomp_plugins.splats.formats.ply import read_ply
from radcomp_plugins.splats.formats.rcs import MAGIC, RcsSettings, decode_rcs, encode_rcs, read_rcs, write_rcs
from radcomp_plugins.splats.formats.rcs_octree import OctreeModels, decode_octree, encode_octree
from radcomp_plugins.splats.formats.registry import read_splats
from radcomp_plugins.splats.gaussians import Gaussians

DATA = Path(__file__).resolve().parents[2] / "data"
FINE = RcsSettings(position=0.01, scale=0.05, rotation=1 / 256, opacity=1 / 255, colour=0.04, palette=65536, sh=0.01)


def chunks_of(data: bytes) -> list[tuple[str, int, bytes]]:
    return [(c.kind, c.number, read_chunk(data, c, "x")) for c in read_contents(data, MAGIC, 1, "x")]


def matched(g: Gaussians, h: Gaussians) -> Gaussians:
    """`g` in the order of `h`, told by the nearest mean in units of the Gaussians' size."""
    distance = torch.cdist(g.means.double(), h.means.double())
    index = distance.argmin(dim=0)
    assert len(index.unique()) == len(g)
    return g.select(index)


@pytest.mark.parametrize("degree", [0, 1, 3])
def test_every_attribute_is_within_half_a_step(make_scene, covariances, degree: int) -> None:
    g = make_scene(150, degree, seed=degree, antialiased=degree == 1)
    data, sizes = encode_rcs(g, FINE)
    h = decode_rcs(data, "x")
    assert sum(sizes.values()) == len(data)
    assert (len(h), h.sh_degree, h.antialiased) == (150, degree, degree == 1)
    g = matched(g, h)
    size = g.scales.double().sort(dim=1).values[:, 1:].mean(dim=1).exp()
    finest = rcs_quantise.find_cube(g.means.double().numpy())[1] / 2**20
    assert bool(((g.means - h.means).abs().amax(dim=1) <= 0.005 * 1.06 * size + finest + 1e-6).all())
    assert float((g.scales.sort().values - h.scales.sort().values).abs().max()) <= 0.0251
    assert float((g.opacities.sigmoid() - h.opacities.sigmoid()).abs().max()) <= 0.5 / 255 + 1e-5
    assert float((g.sh0 - h.sh0).abs().max()) <= 0.04 * 1.26
    volume = covariances(h).logdet() - covariances(g).logdet()
    assert float(volume.abs().max()) <= 0.16
    if degree:
        # Chroma reaches twice as far as a channel, in 127 steps; a channel has half a step's error of luma and chroma.
        assert float((g.shN - h.shN).abs().max()) <= 2.001 / 127 * float(g.shN.abs().max())


def test_thin_gaussians_keep_their_direction(make_scene, covariances) -> None:
    g = matched(g := make_scene(150, 0), h := decode_rcs(encode_rcs(g, FINE)[0], "x"))
    a, b = covariances(g), covariances(h)
    long = torch.linalg.eigh(a), torch.linalg.eigh(b)
    thin = (long[0].eigenvalues[:, 2] > 50 * long[0].eigenvalues[:, 1]) & (long[0].eigenvalues[:, 2] > 0)
    assert int(thin.sum()) > 5
    cosine = (long[0].eigenvectors[:, :, 2] * long[1].eigenvectors[:, :, 2]).sum(dim=1).abs()
    assert float(cosine[thin].min()) > 0.9995


def test_coarser_steps_make_smaller_files(make_scene) -> None:
    g = make_scene(2000, 2)
    sizes = [len(encode_rcs(g, RcsSettings().scaled(f))[0]) for f in (0.5, 1.0, 2.0)]
    # Thirteen numbers have steps, and lose up to a bit each when these double: 10.9 and 11.7 bits are measured.
    for finer, coarser in zip(sizes[:-1], sizes[1:], strict=True):
        assert 10.0 < 8 * (finer - coarser) / len(g) <= 13.0


def test_levels_of_detail_and_prefixes(make_scene) -> None:
    g = make_scene(5000, 1)
    data, _ = encode_rcs(g)
    whole = decode_rcs(data, "x")
    contents = read_contents(data, MAGIC, 1, "x")
    ends = [max(c.end for c in contents if c.number <= n) for n in range(3)]
    counts = [385, 1538, 5000]
    for n, end in enumerate(ends):
        part = decode_rcs(data[:end], "x", prefix=True)
        for name, tensor in whole.tensors.items():
            assert torch.equal(part.tensors[name], tensor[: counts[n]]), name
        assert len(decode_rcs(data, "x", n + 1)) == counts[n]
        assert len(decode_rcs(data[:end], "x", n + 1)) == counts[n]
    assert len(decode_rcs(data[: ends[1] - 1], "x", prefix=True)) == counts[0]
    with pytest.raises(InputError, match="cut off"):
        decode_rcs(data[: ends[0] - 1], "x", prefix=True)
    with pytest.raises(InputError, match="cut off"):
        decode_rcs(data[:-1], "x")
    # What paints most comes first.
    assert float(rcs.paint(whole)[:385].min()) > 0.5 * float(rcs.paint(whole)[385:].quantile(0.99))


def test_significance_orders_the_levels(make_scene) -> None:
    g = make_scene(400, 0)
    first = torch.zeros(400)
    first[7], first[300] = 2.0, 1.0
    data, _ = encode_rcs(g, RcsSettings(levels=8), first)
    h = decode_rcs(data, "x", 1)
    assert float((h.means[0] - g.means[7]).abs().max()) < 0.2 * float(g.scales[7].sort().values[1:].mean().exp())
    with pytest.raises(ValueError, match="significance"):
        encode_rcs(g, None, -first)


def test_golden_file(covariances) -> None:
    """What version 1 wrote still decodes to the same scene; its .ply twin lies beside it."""
    h = read_rcs(DATA / "golden.rcs")
    g = matched(read_ply(DATA / "golden.ply"), h)
    size = g.scales.double().sort(dim=1).values[:, 1:].mean(dim=1).exp()
    assert bool(((g.means - h.means).abs().amax(dim=1) <= 0.005 * 1.06 * size + 1e-5).all())
    a, b = covariances(g), covariances(h)
    # Scales add 5.1 %; rotations are the coarser the rounder a Gaussian is: 6.41 % in all when it was written.
    assert float(((a - b).flatten(1).norm(dim=1) / a.flatten(1).norm(dim=1)).max()) <= 0.065
    assert float((g.opacities.sigmoid() - h.opacities.sigmoid()).abs().max()) <= 0.5 / 255 + 1e-5
    assert float((g.sh0 - h.sh0).abs().max()) <= 0.04 * 1.26
    assert float((g.shN - h.shN).abs().max()) <= 2.001 / 127 * float(g.shN.abs().max())
    assert len(read_rcs(DATA / "golden.rcs", 1)) < len(h)


def test_same_input_same_bytes(make_scene) -> None:
    g = make_scene(300, 2)
    assert encode_rcs(g)[0] == encode_rcs(g)[0]


def test_odd_scenes(make_scene) -> None:
    g = make_scene(60, 1)
    one = decode_rcs(encode_rcs(g.select(torch.tensor([3])))[0], "x")
    assert len(one) == 1 and float((one.means - g.means[3]).norm()) < 1e-3 * float(g.means[3].norm()) + 1e-3
    same = g.select(torch.full((500,), 5))
    back = decode_rcs(encode_rcs(same)[0], "x")
    assert len(back) == 500 and float((back.means - g.means[5]).abs().max()) < 1e-3
    far = replace(g, means=g.means.clone())
    far.means[0] = torch.tensor([1e30, -3e37, 5.0])
    back = decode_rcs(encode_rcs(far, FINE)[0], "x")
    assert bool((back.means == far.means[0]).all(dim=1).any())
    near = matched(far.select(torch.arange(1, 60)), back.select(back.means.abs().amax(dim=1) < 1e29))
    assert len(near) == 59


def test_one_absurd_scale_leaves_the_others_alone(make_scene) -> None:
    g = make_scene(300, 0)
    g.scales[4] = 80.0
    h = decode_rcs(encode_rcs(g)[0], "x")
    got, want = h.scales.flatten().sort().values[:-3], g.scales.flatten().sort().values[:-3]
    assert float((got - want).abs().max()) < 0.08


def test_many_equal_gaussians_are_no_bomb(make_scene) -> None:
    same = make_scene(1, 0).select(torch.zeros(120_000, dtype=torch.int64))
    data, _ = encode_rcs(same)
    # As long as the reader asks for: a 32nd of the count beyond the free one; 17 chunks with 14 bytes in the contents.
    assert len(decode_rcs(data, "x")) == 120_000
    assert len(data) == (120_000 - rcs.FREE_COUNT) // rcs.COUNT_PER_BYTE + 16 + 17 * 14


def test_bombs_are_refused(make_scene) -> None:
    data, _ = encode_rcs(make_scene(50, 0))
    chunks = chunks_of(data)
    head = bytearray(chunks[0][2])
    struct.pack_into("<I", head, 0, 2**26)
    struct.pack_into("<I", head, len(head) - 4, 2**26)
    lying = write_container(MAGIC, 1, [("HEAD", 0, bytes(head)), *chunks[1:]])
    with pytest.raises(InputError, match="not possible"):
        decode_rcs(lying, "x")


def test_an_octree_stops_where_it_has_too_many_points() -> None:
    codes = np.sort(np.random.default_rng(0).choice(8**5, 200, replace=False))
    data = encode_octree(codes, np.full(200, 5), 5, OctreeModels())
    assert np.array_equal(decode_octree(data, np.full(200, 5), 5, OctreeModels(), "x").codes, codes)
    with pytest.raises(InputError, match="holds more than 20 points"):
        decode_octree(data, np.full(20, 5), 5, OctreeModels(), "x")


def test_files(tmp_path: Path, make_scene) -> None:
    path = tmp_path / "a.rcs"
    sizes = write_rcs(path, make_scene(40, 1))
    assert sum(sizes.values()) == path.stat().st_size and {"HEAD", "POSN", "SHPL", "LABL"} < set(sizes)
    assert len(read_rcs(path)) == 40
    with pytest.raises(InputError, match="exists already"):
        write_rcs(path, make_scene(40, 1))
    bad = make_scene(3, 0)
    bad.means[0, 0] = float("nan")
    with pytest.raises(InputError):
        write_rcs(tmp_path / "b.rcs", bad)
    assert [p.name for p in tmp_path.iterdir()] == ["a.rcs"]
    newer = bytearray(path.read_bytes())
    newer[8] = 2
    with pytest.raises(InputError, match="version 2"):
        decode_rcs(bytes(newer), "a.rcs")
    with pytest.raises(InputError, match="another kind of file"):
        decode_rcs(b"ply\nformat", "a.rcs")


@pytest.mark.parametrize("field", ["position", "scale", "rotation", "opacity", "colour", "sh", "palette", "levels"])
def test_settings_out_of_range(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        replace(FINE, **{field: 10**6 if field in ("palette", "levels") else 1e6})


def test_plain_bits_are_put_back_where_they_were() -> None:
    """Against a string of 0 and 1."""
    rng = np.random.default_rng(0)
    for plain in ([0, 3, 7], [1], [7, 7, 7], [0, 0]):
        values = rng.integers(0, 256, (50, len(plain)))
        data = rcs_streams.pack_plain(values, np.array(plain))
        text = "".join(f"{v:08b}"[8 - p :] for row in values for v, p in zip(row, plain, strict=True))
        assert data == bytes(int(text[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(text), 8))
        high = values >> np.array(plain)
        rcs_streams._add_plain(np.frombuffer(data + bytes(1), np.uint8), np.array(plain), high)
        assert np.array_equal(high, values)


@pytest.mark.parametrize("largest", [0, 7, 8, 127])
def test_palette_numbers_of_any_size_come_back(largest: int) -> None:
    rng = np.random.default_rng(largest)
    levels = rng.integers(-largest, largest + 1, (30, 24))
    levels[3, 5], levels[29, 23] = largest, -largest
    data = rcs_streams.encode_palette(levels)
    assert np.array_equal(rcs_streams.decode_palette(data, 30, 24, "x"), levels)
    # Those up to 7 cost 4 bits at most, no larger ones are paid for.
    assert largest > 7 or len(data) < 4 + 30 * 24 * 4 / 8 * 1.1
    for bad in (data[:3], struct.pack("<I", len(data) - 3) + data[4:]):
        with pytest.raises(InputError, match="x: a piece of"):
            rcs_streams.decode_palette(bad, 30, 24, "x")


def test_only_noise_is_stored_plain(make_scene) -> None:
    g = make_scene(3000, 0)
    g.scales.copy_((g.scales / 1.2).round() * 1.2)
    data, _ = encode_rcs(g)
    head = chunks_of(data)[0][2]
    plain = rcs_header.unpack_header(head, "x").plain
    # Scales lie 8 levels apart, so that their low bits follow from the high ones; rotations are noise throughout.
    assert plain[:3] == (0, 0, 0) and sum(plain[3:6]) >= 2 and plain[10:] == (0, 0)


def test_header_says_what_is_wrong() -> None:
    with pytest.raises(InputError, match="bytes, expected at least"):
        rcs_header.unpack_header(b"\0" * 10, "x")


def test_colour_planes() -> None:
    rgb = np.random.default_rng(0).normal(size=(20, 3))
    planes = rcs_quantise.colour_to_planes(rgb)
    assert np.allclose(
        planes[0], [(rgb[0] * [1, 2, 1]).sum() / 4, rgb[0, 0] - rgb[0, 2], rgb[0, 1] - rgb[0, ::2].mean()]
    )
    assert np.allclose(rcs_quantise.planes_to_colour(planes), rgb)


def damaged(chunks: list[tuple[str, int, bytes]], chance: random.Random) -> list[tuple[str, int, bytes]]:
    """One or two chunks changed, their checksums made right again by whoever writes them."""
    out = list(chunks)
    for _ in range(chance.choice((1, 1, 2))):
        at = chance.randrange(len(out)) if chance.random() < 0.6 else 0
        kind, number, body = out[at]
        data = bytearray(body)
        for _ in range(chance.choice((1, 1, 2, 6))):
            i = chance.randrange(len(data) + 1) if chance.random() < 0.5 else chance.randrange(min(len(data), 12) + 1)
            match chance.randrange(4):
                case 0:
                    del data[i : i + chance.randrange(1, 30)]
                case 1:
                    data[i:i] = chance.randbytes(chance.randrange(1, 9))
                case _ if i < len(data):
                    data[i] = chance.choice((0, 1, 127, 255, chance.randrange(256)))
        out[at] = (kind, number, bytes(data))
    if chance.random() < 0.05:
        del out[chance.randrange(len(out))]
    return out


@pytest.mark.parametrize("seed", range(10))
def test_ten_thousand_damaged_files(make_scene, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind right checksums, so that every reader is reached; no thread pool, which would cost more than decoding."""
    g = make_scene(12 + seed, seed % 3, seed=seed)
    data, _ = encode_rcs(g, RcsSettings(levels=2, palette=4))
    chunks = chunks_of(data)
    chance = random.Random(seed)
    monkeypatch.setattr(rcs, "ThreadPoolExecutor", AtOnce)
    monkeypatch.setattr(rcs, "FREE_COUNT", 64)
    refused = 0
    for turn in range(1000):
        if turn % 4 == 0:
            bad = bytearray(data)
            for _ in range(chance.choice((1, 3))):
                bad[chance.randrange(len(bad))] = chance.randrange(256)
            cut = bytes(bad[: chance.randrange(len(bad) + 1)]) if turn % 8 == 0 else bytes(bad)
        else:
            cut = write_container(MAGIC, 1, damaged(chunks, chance))
        try:
            h = decode_rcs(cut, "file.rcs", prefix=turn % 3 == 0)
            assert bool(h.finite().all()) and len(h) <= 64 + 32 * len(cut)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error) and "file.rcs" in str(error)
    assert refused > 300


class AtOnce:
    """An executor that does each piece of work when it is handed in."""

    def __init__(self, threads: int) -> None:
        pass

    def __enter__(self) -> "AtOnce":
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def submit(self, work, *args):  # noqa: ANN001, ANN002, ANN201
        value = work(*args)
        return type("Done", (), {"result": lambda self: value})()


def test_ascii_kinds_are_what_the_container_takes(make_scene) -> None:
    kinds = {c.kind for c in read_contents(encode_rcs(make_scene(20, 1))[0], MAGIC, 1, "x")}
    assert kinds == {"HEAD", "SHPL", "POSN", "SCAL", "ROTN", "OPAC", "COLR", "LABL"}
    assert entropy.MAX_BITS == 8


@pytest.mark.parametrize(
    "name, measured",
    [("playbot_lod5_0.sog", 8.613), ("playbot_lod3_0.sog", 9.318), ("guitar.compressed.ply", 7.337)],
)
def test_trained_scenes(real_data: Callable[[str], Path], name: str, measured: float) -> None:
    g = read_splats(real_data(f"splats/{name}"))
    data, _ = encode_rcs(g)
    h = decode_rcs(data, "x")
    assert len(h) == len(g) and h.sh_degree == g.sh_degree
    # Other libraries' k-means and logarithms may round otherwise.
    assert len(data) / len(g) == pytest.approx(measured, rel=0.02)
    alphas = [scene.opacities.sigmoid().sort().values for scene in (g, h)]
    assert float((alphas[0] - alphas[1]).abs().max()) <= 0.5 / 48
    scales = g.scales.flatten().sort().values - h.scales.flatten().sort().values
    assert float(scales.abs().quantile(0.999)) <= 0.0751


def test_what_is_trained_through_has_coarser_opacities_and_nothing_else() -> None:
    scaled, trained = RcsSettings().scaled(1.5), RcsSettings().trained(1.5)
    assert trained.opacity == pytest.approx(2 * scaled.opacity) and trained == replace(scaled, opacity=trained.opacity)
    assert RcsSettings(opacity=0.4).trained(1.0).opacity == 0.5
