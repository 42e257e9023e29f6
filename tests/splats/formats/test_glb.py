"""KHR_gaussian_splatting: a file worked out by hand, exact round trips, SPZ inside, the peer, and hostile files."""

import json
import math
import random
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzz import MUTATIONS, check_damaged, damage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.formats.glb import EXTENSION, SPZ_EXTENSION, gaussians_of_glb, read_glb, write_glb
from radcomp_plugins.splats.formats.ply import write_ply
from radcomp_plugins.splats.formats.spz import gaussians_of_spz, spz_bytes
from radcomp_plugins.splats.frames import HALF_TURN_ABOUT_X, HALF_TURN_ABOUT_Z, rotate


def glb(document: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    body += bytes(-len(body) % 4)
    head = struct.pack("<4sIIII", b"glTF", 2, 28 + len(text) + len(body), len(text), 0x4E4F534A)
    return head + text + struct.pack("<II", len(body), 0x004E4942) + body


def by_hand() -> tuple[dict[str, Any], bytes]:
    """Two Gaussians; rotations as normalised bytes, opacities as normalised shorts, positions interleaved."""
    body = struct.pack("<3f4x3f4x", 1, 2, 3, -1, 0, 0.5)
    body += struct.pack("<8b", 0, 0, 0, 127, 127, 0, 0, -127) + struct.pack("<2H", 0, 65535)
    body += struct.pack("<6f", 1, 2, 0.5, 0, 1, 1) + struct.pack("<6f", 0.25, 0, -1, 0, 0, 0)
    sizes = (32, 8, 4, 24, 24)
    starts = [sum(sizes[:i]) for i in range(5)]
    views: list[dict[str, Any]] = [
        {"buffer": 0, "byteOffset": a, "byteLength": b} for a, b in zip(starts, sizes, strict=True)
    ]
    views[0]["byteStride"] = 16
    names = ["POSITION", *(f"{EXTENSION}:{n}" for n in ("ROTATION", "OPACITY", "SCALE", "SH_DEGREE_0_COEF_0"))]
    kinds = [(5126, "VEC3"), (5120, "VEC4"), (5123, "SCALAR"), (5126, "VEC3"), (5126, "VEC3")]
    accessors = [
        {"bufferView": i, "componentType": kind, "type": shape, "count": 2, "normalized": kind != 5126}
        for i, (kind, shape) in enumerate(kinds)
    ]
    primitive = {"attributes": {n: i for i, n in enumerate(names)}, "mode": 0, "extensions": {EXTENSION: {}}}
    return {
        "asset": {"version": "2.0"},
        "meshes": [{"primitives": [{"attributes": {}}]}, {"primitives": [primitive]}],
        "nodes": [{"mesh": 1}],
        "buffers": [{"byteLength": len(body)}],
        "bufferViews": views,
        "accessors": accessors,
    }, body


def test_a_file_made_by_hand() -> None:
    g = gaussians_of_glb(glb(*by_hand()), "x")
    # x left and y up become x right and y down: half a turn about z.
    assert g.means.tolist() == [[-1.0, -2.0, 3.0], [1.0, 0.0, 0.5]]
    # k times 1, and k (i - 1) / sqrt 2 of length 1.
    r = math.sqrt(0.5)
    unit = torch.nn.functional.normalize(g.quats, dim=1)
    np.testing.assert_allclose(unit, [[0, 0, 0, 1], [0, 0, r, -r]], atol=1e-6)
    np.testing.assert_allclose(g.scales, [[0, math.log(2), -math.log(2)], [-30, 0, 0]], atol=1e-6)
    assert g.opacities.tolist() == [-30.0, 30.0]
    assert g.sh0.tolist() == [[0.25, 0, -1], [0, 0, 0]] and g.sh_degree == 0 and not g.antialiased


def test_the_same_file_in_other_words() -> None:
    """-128 is -1 as -127 is, and an accessor may begin further on in its view."""
    document, body = by_hand()
    document["bufferViews"][2] = {"buffer": 0, "byteOffset": 36, "byteLength": 8}
    document["accessors"][2]["byteOffset"] = 4
    body = body.replace(struct.pack("<b", -127), struct.pack("<b", -128), 1)
    g, plain = gaussians_of_glb(glb(document, body), "x"), gaussians_of_glb(glb(*by_hand()), "x")
    assert all(torch.equal(tensor, plain.tensors[name]) for name, tensor in g.tensors.items())


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(1, 40), degree=st.integers(0, 3), seed=st.integers(0, 99), antialiased=st.booleans())
def test_round_trip_to_rounding(tmp_path: Path, make_scene, n: int, degree: int, seed: int, antialiased: bool) -> None:
    g = make_scene(n, degree, seed, antialiased)
    parts = write_glb(tmp_path / "a.glb", g, overwrite=True)
    data = (tmp_path / "a.glb").read_bytes()
    assert sum(parts.values()) == len(data) == struct.unpack_from("<I", data, 8)[0]
    read = read_glb(tmp_path / "a.glb")
    assert read.antialiased == antialiased and torch.equal(read.means, g.means)
    assert torch.equal(read.sh0, g.sh0) and torch.equal(read.shN, g.shN)
    torch.testing.assert_close(read.scales, g.scales, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(read.opacities.sigmoid(), g.opacities.sigmoid(), atol=1e-6, rtol=1e-5)
    # Two half turns are a whole one, which changes the sign of a quaternion.
    torch.testing.assert_close(read.quats, -torch.nn.functional.normalize(g.quats, dim=1), atol=1e-6, rtol=0)


def test_layout_is_the_standards(tmp_path: Path, make_scene) -> None:
    g = make_scene(3, 1)
    write_glb(tmp_path / "a.glb", g)
    data = (tmp_path / "a.glb").read_bytes()
    length = struct.unpack_from("<I", data, 12)[0]
    document, body = json.loads(data[20 : 20 + length]), data[28 + length :]
    primitive = document["meshes"][0]["primitives"][0]
    assert primitive["mode"] == 0 and primitive["extensions"][EXTENSION]["kernel"] == "ellipse"
    turned = rotate(g, HALF_TURN_ABOUT_Z)
    position = document["accessors"][primitive["attributes"]["POSITION"]]
    assert position["min"] == turned.means.amin(0).tolist() and position["max"] == turned.means.amax(0).tolist()

    def values(name: str) -> np.ndarray:
        accessor = document["accessors"][primitive["attributes"][name]]
        view = document["bufferViews"][accessor["bufferView"]]
        assert view["byteOffset"] % 4 == 0 and accessor["componentType"] == 5126
        return np.frombuffer(body, "<f4", view["byteLength"] // 4, view["byteOffset"]).reshape(3, -1)

    np.testing.assert_array_equal(values(f"{EXTENSION}:SH_DEGREE_1_COEF_2"), turned.shN[:, 2])
    np.testing.assert_allclose(values(f"{EXTENSION}:SCALE"), g.scales.exp(), rtol=1e-6)
    x, y, z, w = values(f"{EXTENSION}:ROTATION").T
    expected = torch.nn.functional.normalize(turned.quats, dim=1).numpy()
    np.testing.assert_allclose(np.stack([w, x, y, z], axis=1), expected, atol=1e-6)


@pytest.mark.parametrize("version", [2, 3])
def test_spz_inside(tmp_path: Path, make_scene, version: int) -> None:
    g = make_scene(30, 2)
    parts = write_glb(tmp_path / "a.glb", g, spz=True, spz_version=version)
    data = (tmp_path / "a.glb").read_bytes()
    document = json.loads(data[20 : 20 + struct.unpack_from("<I", data, 12)[0]])
    nested = document["meshes"][0]["primitives"][0]["extensions"][EXTENSION]["extensions"][SPZ_EXTENSION]
    assert nested == {"bufferView": 0} and document["extensionsRequired"] == [EXTENSION, SPZ_EXTENSION]
    assert all("bufferView" not in accessor and accessor["count"] == 30 for accessor in document["accessors"])
    blob = data[28 + struct.unpack_from("<I", data, 12)[0] :][: document["bufferViews"][0]["byteLength"]]
    assert blob == spz_bytes(g, version, turn=True)[0] and sum(parts.values()) == len(data)
    attributes = document["meshes"][0]["primitives"][0]["attributes"]
    position, turned = document["accessors"][attributes["POSITION"]], rotate(g, HALF_TURN_ABOUT_Z).means
    assert position["min"] == turned.amin(0).tolist() and position["max"] == turned.amax(0).tolist()
    # The blob is x right, y up, z back.
    expected = rotate(gaussians_of_spz(blob, "x"), HALF_TURN_ABOUT_X)
    read = read_glb(tmp_path / "a.glb")
    for name, tensor in expected.tensors.items():
        assert torch.equal(tensor, read.tensors[name])


def test_a_transform_of_the_node_is_told() -> None:
    document, body = by_hand()
    document["nodes"][0]["scale"] = [2, 2, 2]
    with pytest.warns(UserWarning, match="not applied"):
        gaussians_of_glb(glb(document, body), "x")


def test_a_transform_of_another_mesh_is_not_told() -> None:
    document, body = by_hand()
    document["nodes"].append({"mesh": 0, "scale": [2, 2, 2]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gaussians_of_glb(glb(document, body), "x")


def changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    document, body = by_hand()
    change(document)
    return glb(document, body)


def accessor(index: int, **values: Any) -> bytes:
    return changed(lambda d: d["accessors"][index].update(values))


GOOD = glb(*by_hand())
NAN = by_hand()[1].replace(struct.pack("<f", 3), struct.pack("<f", math.nan), 1)
HOSTILE = {
    "empty": (b"", "expected a .glb"),
    "other": (b"PK" + bytes(30), "expected a .glb"),
    "version": (GOOD[:4] + struct.pack("<I", 1) + GOOD[8:], "version 1"),
    "cut off": (GOOD[:-1], "cut off"),
    "cut in JSON": (GOOD[:8] + struct.pack("<I", 100) + GOOD[12:100], "cut off"),
    "no splats": (changed(lambda d: d["meshes"].pop()), "no primitive with"),
    "no position": (changed(lambda d: d["meshes"][1]["primitives"][0]["attributes"].pop("POSITION")), "no POSITION"),
    "no scale": (
        changed(lambda d: d["meshes"][1]["primitives"][0]["attributes"].pop(f"{EXTENSION}:SCALE")),
        "SCALE of shape None",
    ),
    "accessor": (changed(lambda d: d["accessors"].pop()), "accessors has 4 entries"),
    "view": (accessor(0, bufferView=9), "number 9 is named"),
    "view type": (accessor(0, bufferView="0"), "number 0 is named"),
    "too many": (accessor(3, count=2**31 - 1), "cut off"),
    "none": (accessor(0, count=0), "0 values"),
    "fewer": (accessor(3, count=1), "expected .2, 3."),
    "negative": (accessor(0, byteOffset=-4), "not negative"),
    "type": (accessor(0, componentType=5125), "expected a plain"),
    "shape": (accessor(0, type="MAT4"), "expected a plain"),
    "sparse": (accessor(0, sparse={}), "expected a plain"),
    "integers": (accessor(1, normalized=False), "not normalised"),
    "wrong width": (accessor(1, type="VEC3", componentType=5120), "ROTATION of shape"),
    "opacity of 2": (accessor(2, bufferView=3, componentType=5126, normalized=False), "an opacity outside of 0 to 1"),
    "buffer": (changed(lambda d: d["bufferViews"][0].update(buffer=1)), "a buffer view ends"),
    "far view": (changed(lambda d: d["bufferViews"][0].update(byteLength=10**6)), "a buffer view ends"),
    "NaN": (glb(by_hand()[0], NAN), "1 of 2 Gaussians hold NaN"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_one_line(tmp_path: Path, case: str) -> None:
    data, expected = HOSTILE[case]
    (tmp_path / "bad.glb").write_bytes(data)
    with pytest.raises(InputError, match=expected) as error:
        read_glb(tmp_path / "bad.glb")
    assert "\n" not in str(error.value) and "bad.glb" in str(error.value)


def test_values_that_are_not_activated(make_scene) -> None:
    document, body = by_hand()
    with pytest.raises(InputError, match="a scale below 0"):
        gaussians_of_glb(glb(document, body[:44] + struct.pack("<f", -1) + body[48:]), "x")


@pytest.mark.parametrize("spz", [False, True])
def test_fuzz(tmp_path: Path, make_scene, spz: bool) -> None:
    write_glb(tmp_path / "a.glb", make_scene(5, 1), spz=spz)
    good, chance = (tmp_path / "a.glb").read_bytes(), random.Random(spz)
    counts = check_damaged(
        lambda data: gaussians_of_glb(data, "x"), (damage(good, chance, len(good)) for _ in range(MUTATIONS // 2))
    )
    assert min(counts) > MUTATIONS // 200


@pytest.mark.slow
def test_we_read_what_splat_transform_writes(tmp_path: Path, make_scene, splat_transform: Callable[..., None]) -> None:
    g = make_scene(50, 3)
    write_ply(tmp_path / "a.ply", g)
    splat_transform(tmp_path / "a.ply", tmp_path / "a.glb")
    read = read_glb(tmp_path / "a.glb")
    order, other = (torch.from_numpy(np.lexsort(s.means.double().numpy().T)) for s in (g, read))
    a, b = g.select(order), read.select(other)
    torch.testing.assert_close(a.means, b.means, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(a.shN, b.shN, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(a.scales, b.scales, atol=1e-5, rtol=1e-5)
    q = torch.nn.functional.normalize(a.quats, dim=1)
    assert float((q * torch.nn.functional.normalize(b.quats, dim=1)).sum(dim=1).abs().min()) > 1 - 1e-5
