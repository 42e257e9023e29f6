"""The bytes of each attribute: all of a file, those that a format's layout fixes, and those of a compressed stream."""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest

from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.formats.glb import glb_parts, write_glb
from radcomp_plugins.splats.formats.ksplat import ksplat_parts
from radcomp_plugins.splats.formats.parts import ATTRIBUTES, Part, file_parts
from radcomp_plugins.splats.formats.ply import float32_bytes, ply_parts, write_ply
from radcomp_plugins.splats.formats.registry import FORMATS, read_splats, write_splats
from radcomp_plugins.splats.formats.sog import sog_parts
from radcomp_plugins.splats.formats.spz import parts_of_spz, spz_bytes, spz_parts, write_spz

WRITTEN = [f.name for f in FORMATS.values() if f.write is not None]


@pytest.mark.parametrize("degree", [0, 2])
@pytest.mark.parametrize("name", WRITTEN)
def test_the_parts_of_every_format_are_the_whole_file(tmp_path: Path, make_scene, name: str, degree: int) -> None:
    path = tmp_path / f"scene{FORMATS[name].suffixes[0]}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_splats(path, make_scene(300, degree))
    found = FORMATS[name].parts(path)
    assert found.count == 300 and found.bytes == path.stat().st_size == sum(found.by_attribute().values())
    assert {p.attribute for p in found.parts} <= set(ATTRIBUTES) and min(p.bytes for p in found.parts) > 0
    has_rest = any(p.attribute.startswith("shN") for p in found.parts)
    assert has_rest == (degree > 0 and name != "splat")


@pytest.mark.parametrize(
    "name, expected",
    [
        ("ply", {"means": 96, "quats": 128, "scales": 96, "opacities": 32, "sh0": 96, "shN": 288, "other": 96}),
        ("glb", {"means": 96, "quats": 128, "scales": 96, "opacities": 32, "sh0": 96, "shN": 288}),
        ("splat", {"means": 96, "quats": 32, "scales": 96, "opacities": 8, "sh0": 24}),
        # 512 Gaussians are two chunks, each with 24 bytes of ranges.
        ("compressed-ply", {"means": 32.75, "quats": 32, "scales": 32.75, "opacities": 8, "sh0": 24.75, "shN": 72}),
    ],
)
@pytest.mark.filterwarnings("ignore:.*SH are left out")
def test_bits_per_gaussian_where_the_layout_fixes_them(tmp_path: Path, make_scene, name: str, expected: dict) -> None:
    path = tmp_path / f"scene{FORMATS[name].suffixes[0]}"
    write_splats(path, make_scene(512, 1))
    bits = {key: 8 * size / 512 for key, size in FORMATS[name].parts(path).by_attribute().items() if key != "header"}
    assert bits == expected


def test_a_ply_in_any_order_with_more_in_it(tmp_path: Path, make_scene) -> None:
    write_ply(tmp_path / "a.ply", make_scene(7, 0))
    data = (tmp_path / "a.ply").read_bytes()
    head, body = data.split(b"end_header\n")
    head = head.replace(b"property float nx", b"property float label")
    head = head.replace(b"end_header", b"") + b"element note 2\nproperty uchar mark\n"
    (tmp_path / "b.ply").write_bytes(head + b"end_header\n" + body + b"ab")
    parts = {p.name: p for p in ply_parts(tmp_path / "b.ply").parts}
    assert (parts["nx ny nz"].bytes, parts["other properties"].bytes, parts["rest"].bytes) == (7 * 8, 7 * 4, 2)
    assert float32_bytes(make_scene(7, 0)) == len(body)
    text = b"ply\nformat ascii 1.0\n" + head.split(b"\n", 2)[2].split(b"element note")[0] + b"end_header\n"
    rows = "\n".join(" ".join(map(str, row)) for row in np.frombuffer(body, "<f4").reshape(7, -1).tolist()).encode()
    (tmp_path / "c.ply").write_bytes(text + rows)
    assert len(read_splats(tmp_path / "c.ply")) == 7
    assert ply_parts(tmp_path / "c.ply").by_attribute() == {"all attributes": len(rows), "header": len(text)}


@pytest.mark.parametrize("version", [2, 3])
def test_the_arrays_of_a_gzip_stream_end_where_one_that_gets_a_byte_at_a_time_has_them(
    make_scene, version: int
) -> None:
    data, _ = spz_bytes(make_scene(2000, 1), version)
    unpacker, arrived = zlib.decompressobj(31), []
    for k in range(len(data)):
        arrived.append(len(unpacker.decompress(data[k : k + 1])) + (arrived[-1] if arrived else 0))
    ends, total = [], 0
    *parts, last = parts_of_spz(data, "a.spz").parts
    for part in parts:
        total += part.unpacked or 0
        ends.append(1 + next(k for k, size in enumerate(arrived) if size >= total))
    assert total == arrived[-1] == 16 + 2000 * (9 + 1 + 3 + 3 + (3 if version == 2 else 4) + 9)
    # A byte may be read ahead; the checksum and length that end the stream are no array's.
    found = np.cumsum([part.bytes for part in parts])
    assert (np.abs(found - ends) <= 2).all() and last.attribute == "other" and 8 <= last.bytes <= 12
    assert [p.attribute for p in parts] == ["header", "means", "opacities", "sh0", "scales", "quats", "shN"]


def test_the_frames_of_spz_4_and_the_blob_in_a_glb(tmp_path: Path, make_scene) -> None:
    written = write_spz(tmp_path / "a.spz", make_scene(500, 1), version=4)
    found = spz_parts(tmp_path / "a.spz")
    assert {p.name: p.bytes for p in found.parts} == written and found.variant == "version 4"
    assert [p.unpacked for p in found.parts[1:]] == [500 * n for n in (9, 1, 3, 3, 4, 9)]
    written = write_glb(tmp_path / "b.glb", make_scene(500, 1), spz=True)
    inside = glb_parts(tmp_path / "b.glb")
    assert inside.variant == "SPZ version 2" and inside.bytes == (tmp_path / "b.glb").stat().st_size
    assert sum(inside.by_attribute()[name] for name in ("means", "opacities", "sh0", "scales", "quats", "shN")) == (
        pytest.approx(written["spz"], abs=150)
    )


def test_a_spz_that_is_cut_off_or_none(make_scene) -> None:
    data, _ = spz_bytes(make_scene(50, 0), 3)
    with pytest.raises(InputError, match="cannot be unpacked|expected an SPZ file"):
        parts_of_spz(data[:2] + b"\0" + data[3:], "a.spz")
    with pytest.raises(InputError, match="expected an SPZ file"):
        parts_of_spz(data[:12], "a.spz")


def test_rcs_and_sog_are_as_their_writers_say(tmp_path: Path, make_scene) -> None:
    g = make_scene(5000, 1)
    for name in ("rcs", "sog"):
        written = write_splats(tmp_path / f"a.{name}", g)
        found = {p.name: p.bytes for p in FORMATS[name].parts(tmp_path / f"a.{name}").parts}
        if name == "sog":
            written["rest"] = written.pop("zip")
        assert found == written
    assert FORMATS["rcs"].parts(tmp_path / "a.rcs").variant == "version 1, 3 levels of detail"


def test_a_sog_folder_counts_its_own_files_alone(tmp_path: Path, make_scene) -> None:
    import zipfile

    write_splats(tmp_path / "a.sog", make_scene(100, 1))
    folder = tmp_path / "a"
    zipfile.ZipFile(tmp_path / "a.sog").extractall(folder)
    (folder / "notes.txt").write_text("not of the scene")
    found = sog_parts(folder)
    sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.name != "notes.txt"}
    assert {p.name: p.bytes for p in found.parts} == sizes and found.variant == "version 2, folder"
    assert sog_parts(folder / "meta.json").parts == found.parts


def test_a_ksplat_worked_out_by_hand(tmp_path: Path) -> None:
    """Level 1, SH degree 1: 44 bytes a row; one bucket of two and one row that is not used."""
    row = np.dtype([("mean", "<u2", 3), ("scale", "<f2", 3), ("quat", "<f2", 4), ("color", "u1", 4), ("sh", "<f2", 9)])
    rows = np.zeros(3, row)
    rows["scale"], rows["quat"][:, 0], rows["color"] = 0.1, 1.0, 200
    head = struct.pack("<BBHIIIIHH3fff", 0, 1, 0, 1, 1, 2, 2, 1, 0, 0, 0, 0, -1.0, 1.0).ljust(4096, b"\0")
    section = struct.pack("<IIIIfHH", 2, 3, 4, 1, 5.0, 12, 0) + struct.pack("<IIIIH", 32767, 0, 0, 1, 1)
    data = head + section.ljust(1024, b"\0") + struct.pack("<I3f", 2, 0, 0, 0) + rows.tobytes()
    (tmp_path / "a.ksplat").write_bytes(data)
    assert len(read_splats(tmp_path / "a.ksplat")) == 2 and row.itemsize == 42
    found = ksplat_parts(tmp_path / "a.ksplat")
    assert found.parts[-1] == Part("other", "section 0: unused", 42) and found.bytes == len(data)
    assert found.by_attribute() == {
        **{"means": 16 + 12, "quats": 16, "scales": 12, "opacities": 2, "sh0": 6, "shN": 36},
        **{"header": 4096 + 1024, "other": 42},
    }


def test_what_no_part_names_is_the_rest() -> None:
    found = file_parts(3, "", [Part("means", "a", 5), Part("quats", "b", 0)], 9)
    assert found.parts == (Part("means", "a", 5), Part("other", "rest", 4))
    assert found.by_attribute() == {"means": 5, "other": 4}
