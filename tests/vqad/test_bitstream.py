import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vqad_scenes import assert_same_scene, toy_scene

from radcomp_plugins.core.container import Chunk, CutOffError, read_contents, write_container
from radcomp_plugins.errors import InputError
from radcomp_plugins.vqad import bitstream
from radcomp_plugins.vqad.bitstream import (
    MAGIC,
    VERSION,
    decode_scene,
    encode_scene,
    join_streams,
    read_scene,
    split_streams,
    write_scene,
)
from radcomp_plugins.vqad.scene import VqadLevel


@pytest.fixture(scope="module")
def scene():
    return toy_scene()


@pytest.fixture(scope="module")
def data(scene) -> bytes:
    return encode_scene(scene)


def rebuilt(data: bytes, change, version: int = VERSION) -> bytes:
    """The same file with other chunks, and checksums that are right."""
    chunks = [(c.kind, c.number, data[c.offset : c.end]) for c in read_contents(data, MAGIC, VERSION, "")]
    return write_container(MAGIC, version, change(chunks))


@pytest.mark.parametrize("bits", range(1, 9))
def test_round_trip(bits: int) -> None:
    scene = toy_scene(bits=bits)
    decoded = decode_scene(encode_scene(scene))
    assert_same_scene(decoded.scene, scene)
    assert decoded.missing == [] and decoded.note is None


def test_round_trip_of_one_voxel_at_level_zero_and_leaves() -> None:
    scene = toy_scene((0, 1, 2))
    # A voxel of level 1 may have no children.
    fine = scene.levels[2]
    kept = fine.voxels[fine.voxels >> 3 != 0]
    vertices = len(replace(fine, voxels=kept).vertices)
    scene.levels[2] = replace(fine, voxels=kept, indices=np.zeros(vertices, np.uint8))
    assert_same_scene(decode_scene(encode_scene(scene)).scene, scene)


def test_same_scene_same_bytes(scene, data: bytes) -> None:
    assert encode_scene(scene) == data


def test_every_prefix_is_a_truncated_scene_or_one_clear_error(scene, data: bytes) -> None:
    chunks = read_contents(data, MAGIC, VERSION, "")
    ends = [chunk.end for chunk in chunks]
    for size in range(len(data)):
        if size < ends[1]:
            with pytest.raises(CutOffError, match="cut off"):
                decode_scene(data[:size])
            continue
        if size not in (*ends, *(end - 1 for end in ends), *(end + 1 for end in ends)):
            continue
        decoded = decode_scene(data[:size])
        count = sum(end <= size for end in ends[1:])
        last = scene.levels[count - 1].level
        assert_same_scene(decoded.scene, scene.truncated(last))
        assert decoded.bytes_read == ends[count]
        assert decoded.missing == [level.level for level in scene.levels[count:]]
        assert decoded.note is not None and f"up to {last}" in decoded.note


@given(st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_flipped_bit_is_always_found(data: bytes, draw) -> None:
    broken = bytearray(data)
    place = draw.draw(st.integers(0, 8 * len(data) - 1))
    broken[place // 8] ^= 1 << place % 8
    with pytest.raises(InputError):
        decode_scene(bytes(broken))


@given(st.data())
@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_lies_behind_right_checksums_are_one_error_or_a_sound_scene(data: bytes, draw) -> None:
    """Fuzzing: whoever wrote the file may also have worked out the checksums."""

    def lie(chunks):
        which = draw.draw(st.integers(0, len(chunks) - 1))
        body = bytearray(chunks[which][2])
        for _ in range(draw.draw(st.integers(1, 4))):
            body[draw.draw(st.integers(0, len(body) - 1))] = draw.draw(st.integers(0, 255))
        cut = draw.draw(st.integers(0, len(body)))
        chunks[which] = (*chunks[which][:2], bytes(body[:cut] if draw.draw(st.booleans()) else body))
        return chunks

    try:
        decoded = decode_scene(rebuilt(data, lie), "lie.vqad")
    except InputError as error:
        assert "lie.vqad" in str(error) and "\n" not in str(error)
        return
    decoded.scene.check()


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_refused(junk: bytes) -> None:
    for begun in (b"", MAGIC, MAGIC + struct.pack("<HH", 1, 2)):
        with pytest.raises(InputError):
            decode_scene(begun + junk)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: [c[0], c[2], c[1], c[3]], "levels in the order 3 2 4"),
        (lambda c: [c[0], c[1], c[3]], "levels in the order 2 4"),
        (lambda c: [c[1], c[0]], "expected HEAD"),
        (lambda c: c[:1], "expected HEAD"),
        (lambda c: [c[0], ("LEVL", 3, c[1][2])], "tree steps"),
        (lambda c: [c[0], ("LEVL", 11, c[1][2])], "up to 10"),
        (lambda c: [("HEAD", 0, b""), c[1]], "head: 0 bytes"),
    ],
)
def test_chunks_that_are_out_of_order(data: bytes, change, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        decode_scene(rebuilt(data, change))


@pytest.mark.parametrize(
    ("offset", "fmt", "value", "expected"),
    [
        (0, "<B", 0, "0 bits"),
        (0, "<B", 9, "9 bits"),
        (1, "<B", 7, "7 tree steps"),
        (2, "<H", 7, "7 features"),
        (4, "<I", 0, "0 voxels"),
        (4, "<I", 2**32 - 1, "4294967295 voxels"),
        (4, "<I", 20, "says 20"),
        (8, "<I", 9, "says 9 vertices"),
        (8, "<I", 2**32 - 1, "4294967295 vertices"),
    ],
)
def test_lying_counts(data: bytes, offset: int, fmt: str, value: int, expected: str) -> None:
    def lie(chunks):
        body = bytearray(chunks[1][2])
        struct.pack_into(fmt, body, offset, value)
        return [chunks[0], (*chunks[1][:2], bytes(body)), *chunks[2:]]

    with pytest.raises(InputError, match=expected):
        decode_scene(rebuilt(data, lie))


def test_a_newer_version_and_another_file(data: bytes) -> None:
    with pytest.raises(InputError, match="version 2, expected 1 to 1: update"):
        decode_scene(rebuilt(data, lambda c: c, version=2))
    with pytest.raises(InputError, match="another kind of file"):
        decode_scene(b"PK\3\4" + data[4:])


def test_something_behind_the_end(data: bytes) -> None:
    with pytest.raises(InputError, match="behind its end"):
        decode_scene(data + b"\0")


def test_file_size_is_what_is_said(tmp_path: Path, scene) -> None:
    path = tmp_path / "scene.vqad"
    size = write_scene(path, scene)
    assert path.stat().st_size == size == read_scene(path).bytes_read
    with pytest.raises(InputError, match="overwrite"):
        write_scene(path, scene)
    path.write_bytes(path.read_bytes()[:-3])
    decoded = read_scene(path)
    assert decoded.missing == [4] and len(decoded.scene.levels) == 2


def test_coding_beats_packed_bits_where_neighbours_agree() -> None:
    scene = toy_scene((3, 4, 5))
    level = scene.levels[-1]
    data = encode_scene(scene)
    chunk = read_contents(data, MAGIC, VERSION, "")[-1]
    packed = len(level.indices) * level.bits / 8
    assert chunk.length < 0.75 * packed


def test_noise_costs_hardly_more_than_packed_bits() -> None:
    scene = toy_scene((3, 4))
    level = scene.levels[-1]
    noise = np.random.default_rng(1).integers(0, 16, len(level.indices)).astype(np.uint8)
    coder = bitstream.LevelCoder(scene.num_features)
    coder.encode(scene.levels[0])
    size = len(coder.encode(replace(level, indices=noise)))
    rest = bitstream.LevelCoder(scene.num_features)
    rest.encode(scene.levels[0])
    rest_size = len(rest.encode(replace(level, indices=np.zeros_like(noise))))
    assert size - rest_size < 1.06 * len(noise) * 4 / 8


def test_a_scene_that_does_not_fit_is_not_written(scene) -> None:
    level = scene.levels[0]
    for broken, expected in (
        (replace(level, indices=level.indices[:-1]), "indices for"),
        (replace(level, indices=np.full_like(level.indices, 16)), "index 16"),
        (replace(level, voxels=level.voxels[::-1]), "not ascending"),
        (replace(level, voxels=level.voxels[:0]), "empty"),
        (replace(level, codebook=level.codebook * np.float16(np.nan)), "finite"),
        (replace(level, bits=9), "9 bits"),
    ):
        with pytest.raises(InputError, match=expected):
            encode_scene(replace(scene, levels=[broken]))
    orphan = VqadLevel(3, np.array([511]), np.zeros(8, np.uint8), level.codebook, 4)
    with pytest.raises(InputError, match="parents"):
        encode_scene(replace(scene, levels=[level, orphan]))


@given(st.lists(st.binary(max_size=400), min_size=1, max_size=6))
@settings(deadline=None)
def test_streams_round_trip(streams: list[bytes]) -> None:
    assert split_streams(join_streams(streams), len(streams), "x") == streams


def test_streams_that_lie() -> None:
    with pytest.raises(InputError, match="ends within"):
        split_streams(b"", 2, "x")
    with pytest.raises(InputError, match="five bytes"):
        split_streams(b"\xff" * 9, 2, "x")
    with pytest.raises(InputError, match="at most 1"):
        split_streams(b"\x02a", 2, "x")


def test_checksums_are_those_of_zlib(data: bytes) -> None:
    chunks: list[Chunk] = read_contents(data, MAGIC, VERSION, "")
    assert [zlib.crc32(data[c.offset : c.end]) for c in chunks] == [c.checksum for c in chunks]
