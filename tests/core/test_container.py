import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radcomp_plugins.core.container import (
    CutOffError,
    contents_length,
    read_chunk,
    read_contents,
    write_container,
)
from radcomp_plugins.errors import InputError

MAGIC = b"TEST\r\n\x1a\n"
CHUNKS = [("HEAD", 0, b"abc"), ("DATA", 7, b""), ("DATA", 65535, bytes(300))]


def test_layout_by_hand() -> None:
    data = write_container(MAGIC, 1, [("HEAD", 2, b"hello")])
    head = MAGIC + struct.pack("<HH4sHII", 1, 1, b"HEAD", 2, 5, zlib.crc32(b"hello"))
    assert data == head + struct.pack("<I", zlib.crc32(head)) + b"hello"
    assert contents_length(data[:12], MAGIC, "x") == len(head) + 4


def test_round_trip() -> None:
    data = write_container(MAGIC, 3, CHUNKS)
    chunks = read_contents(data, MAGIC, 3, "x")
    assert [(c.kind, c.number, read_chunk(data, c, "x")) for c in chunks] == CHUNKS
    assert chunks[-1].end == len(data)


@given(st.integers(0, 400))
@settings(deadline=None)
def test_every_cut_is_told_and_what_is_whole_is_read(size: int) -> None:
    data = write_container(MAGIC, 1, CHUNKS)
    cut = data[:size]
    if size < contents_length(data, MAGIC, "x"):
        with pytest.raises(CutOffError, match="cut off"):
            read_contents(cut, MAGIC, 1, "x")
        return
    for chunk, (_, _, body) in zip(read_contents(cut, MAGIC, 1, "x"), CHUNKS, strict=True):
        if chunk.end <= len(cut):
            assert read_chunk(cut, chunk, "x") == body
        else:
            with pytest.raises(CutOffError, match=f"expected {chunk.end}"):
                read_chunk(cut, chunk, "x")


def test_every_flipped_bit_is_told() -> None:
    data = write_container(MAGIC, 1, CHUNKS)
    for place in range(8 * len(data)):
        broken = bytearray(data)
        broken[place // 8] ^= 1 << place % 8
        with pytest.raises(InputError, match="^x: [^\n]*$"):
            for chunk in read_contents(bytes(broken), MAGIC, 1, "x"):
                read_chunk(bytes(broken), chunk, "x")


def test_lies_behind_a_right_checksum() -> None:
    def sealed(head: bytes) -> bytes:
        return head + struct.pack("<I", zlib.crc32(head))

    entry = struct.pack("<4sHII", b"HEAD", 0, 2**32 - 1, 0)
    with pytest.raises(InputError, match="4294967295 bytes"):
        read_contents(sealed(MAGIC + struct.pack("<HH", 1, 1) + entry), MAGIC, 1, "x")
    entry = struct.pack("<4sHII", b"\xff\0\n ", 0, 0, 0)
    with pytest.raises(InputError, match="damaged"):
        read_contents(sealed(MAGIC + struct.pack("<HH", 1, 1) + entry), MAGIC, 1, "x")
    for count in (0, 257):
        with pytest.raises(InputError, match=f"{count} chunks"):
            read_contents(MAGIC + struct.pack("<HH", 1, count) + bytes(9999), MAGIC, 1, "x")
    for version in (0, 2):
        with pytest.raises(InputError, match=f"version {version}, expected 1 to 1"):
            read_contents(MAGIC + struct.pack("<HH", version, 1), MAGIC, 1, "x")


def test_what_cannot_be_written_is_refused() -> None:
    for chunks in ([("TOOLONG", 0, b"")], [("HEAD", -1, b"")], [("HEAD", 0, b"")] * 257):
        with pytest.raises(ValueError):
            write_container(MAGIC, 1, chunks)
    with pytest.raises(ValueError, match="8 bytes"):
        write_container(b"short", 1, [])
