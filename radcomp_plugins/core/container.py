"""A file of checked chunks behind a table of contents, made to be read from its beginning as it arrives.

Layout, little-endian: magic (8 bytes), version (u16), number of chunks (u16), then for each chunk its kind (4 letters),
its number (u16), its length (u32) and its CRC-32 (u32); the CRC-32 of all this (u32); then the chunks' bytes, one after
the other, and nothing more. Whoever has the beginning knows where every chunk lies, and can ask a server for it.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from radcomp_plugins.errors import InputError

MAGIC_BYTES = 8
MAX_CHUNKS = 256
MAX_CHUNK_BYTES = 2**30
_FIXED = struct.Struct("<8sHH")
_ENTRY = struct.Struct("<4sHII")
_SUM = struct.Struct("<I")
LONGEST_CONTENTS = _FIXED.size + MAX_CHUNKS * _ENTRY.size + _SUM.size
"""Bytes from which on every table of contents is complete."""


class CutOffError(InputError):
    """The file ends before what was asked for."""


@dataclass(frozen=True)
class Chunk:
    """Where a chunk lies.

    Attributes:
        kind: four ASCII letters.
        number: tells chunks of a kind apart.
        offset: of the first byte, from the file's beginning.
        length: bytes.
        checksum: CRC-32 of the bytes.
    """

    kind: str
    number: int
    offset: int
    length: int
    checksum: int

    @property
    def end(self) -> int:
        """Offset behind the last byte."""
        return self.offset + self.length

    @property
    def name(self) -> str:
        """For error lines."""
        return f"chunk {self.kind}{self.number}"


def write_container(magic: bytes, version: int, chunks: Sequence[tuple[str, int, bytes]]) -> bytes:
    """The whole file of chunks (kind, number, bytes), in the given order.

    Raises:
        ValueError: a name or size that the layout cannot hold.
    """
    if len(magic) != MAGIC_BYTES or not len(chunks) <= MAX_CHUNKS:
        raise ValueError(
            f"magic {magic!r} and {len(chunks)} chunks: expected {MAGIC_BYTES} bytes, at most {MAX_CHUNKS}"
        )
    head = _FIXED.pack(magic, version, len(chunks))
    for kind, number, data in chunks:
        if len(kind) != 4 or not kind.isascii() or not 0 <= number < 2**16 or len(data) > MAX_CHUNK_BYTES:
            raise ValueError(f"chunk {kind!r} {number} of {len(data)} bytes cannot be written")
        head += _ENTRY.pack(kind.encode(), number, len(data), zlib.crc32(data))
    return head + _SUM.pack(zlib.crc32(head)) + b"".join(data for _, _, data in chunks)


def contents_length(data: bytes, magic: bytes, where: str) -> int:
    """Bytes of the table of contents, told from the first `MAGIC_BYTES` + 4 of them.

    Raises:
        CutOffError: fewer bytes than that.
        InputError: the file is of another kind, or says that it has too many chunks.
    """
    if data[: len(magic)] != magic[: len(data)]:
        raise InputError(
            f"{where}: begins with {bytes(data[: len(magic)])!r}, expected {magic!r}: another kind of file"
        )
    if len(data) < _FIXED.size:
        raise CutOffError(f"{where}: has {len(data)} bytes, expected at least {_FIXED.size}: the file is cut off")
    count = _FIXED.unpack_from(data)[2]
    if not 1 <= count <= MAX_CHUNKS:
        raise InputError(f"{where}: {count} chunks, expected 1 to {MAX_CHUNKS}: the file is damaged")
    return _FIXED.size + count * _ENTRY.size + _SUM.size


def read_contents(data: bytes, magic: bytes, version: int, where: str) -> list[Chunk]:
    """The table of contents at the beginning of a file.

    Args:
        data: the file, or as much of its beginning as there is.
        magic: what the file has to begin with.
        version: the newest that can be read.
        where: name for error lines.

    Raises:
        CutOffError: the table itself is not complete.
        InputError: another kind of file, a newer version, or a table that is damaged or lies.
    """
    size = contents_length(data, magic, where)
    _, written, count = _FIXED.unpack_from(data)
    # Before the checksum: a later version may well have another table.
    if not 1 <= written <= version:
        hint = "update this program" if written > version else "the file is damaged"
        raise InputError(f"{where}: version {written}, expected 1 to {version}: {hint}")
    if len(data) < size:
        raise CutOffError(f"{where}: has {len(data)} bytes, expected {size} of its contents: the file is cut off")
    got, expected = zlib.crc32(data[: size - _SUM.size]), _SUM.unpack_from(data, size - _SUM.size)[0]
    if got != expected:
        raise InputError(f"{where}: checksum of the contents {got:08x}, expected {expected:08x}: the file is damaged")
    chunks, offset = [], size
    for place in range(count):
        kind, number, length, checksum = _ENTRY.unpack_from(data, _FIXED.size + place * _ENTRY.size)
        if length > MAX_CHUNK_BYTES or not all(48 <= letter < 91 for letter in kind):
            raise InputError(f"{where}: entry {place} is {kind!r} of {length} bytes: the file is damaged")
        chunks.append(Chunk(kind.decode(), number, offset, length, checksum))
        offset += length
    return chunks


def read_chunk(data: bytes, chunk: Chunk, where: str) -> bytes:
    """Bytes of a chunk, once its checksum is right.

    Raises:
        CutOffError: the file ends before the chunk does.
        InputError: the bytes are not those that were written.
    """
    if len(data) < chunk.end:
        raise CutOffError(
            f"{where}: has {len(data)} bytes, expected {chunk.end} at the end of {chunk.name}: the file is cut off"
        )
    body = data[chunk.offset : chunk.end]
    if (got := zlib.crc32(body)) != chunk.checksum:
        raise InputError(
            f"{where}: checksum of {chunk.name} {got:08x}, expected {chunk.checksum:08x}: the file is damaged"
        )
    return body
