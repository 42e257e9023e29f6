"""SPZ, Niantic's compressed splats, versions 2, 3 and 4.

Versions 2 and 3 are one gzip stream: a header of 16 bytes, then each array of `spz_packed.STREAMS` in turn. Version 4
has a plain header of 32 bytes, extension records, a table of sizes, and each array as a zstd frame of its own. Version
2 stores rotations in three bytes; 3, which most viewers open, and 4 in four.

SPZ's own page says that files are in the frame x right, y up, z back (RUB), which callers have to ask its library for.
Its command line tool, gsply and splat-transform 3 do not ask, and write a .ply's numbers as they stand; so do we unless
told otherwise. splat-transform 2.7 asks. `turn=True`, of writer and reader, is for files in the frame of the page.

Format: github.com/nianticlabs/spz, README and extensions/README.
"""

import math
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import zstandard

from radcomp_plugins.core.files import atomic_write, read_bytes
from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.formats.parts import FileParts, Part, file_parts
from radcomp_plugins.splats.formats.ply import check_writable
from radcomp_plugins.splats.formats.spz_packed import MAX_POSITION, STREAMS, Bytes, Layout, pack, unpack
from radcomp_plugins.splats.frames import HALF_TURN_ABOUT_X, rotate
from radcomp_plugins.splats.gaussians import Gaussians

GZIP_MAGIC = b"\x1f\x8b"
MAGIC = b"NGSP"
VERSIONS = (2, 3, 4)

MAX_FILE_BYTES = 2**32
FREE_GAUSSIANS = 2**16
GAUSSIANS_PER_BYTE = 4
"""More Gaussians than this per byte of the file, beyond the first 65,536, can only be a bomb."""

MAX_FRACTION_BITS = 23
STEP_PER_SCALE = 0.25
"""Largest step of the positions that is taken unasked, as a share of the smaller Gaussians' size."""

SMALL_GAUSSIANS = 0.1
"""Share of the Gaussians that may be smaller than the size meant above."""

_ATTRIBUTES: dict[str, str] = dict(zip(STREAMS, ("means", "opacities", "sh0", "scales", "quats", "shN"), strict=True))
_ANTIALIASED, _EXTENSIONS = 1, 2
_FRAME_EXTENSION = 0xADBE0003
_MAX_TAIL = 2**20
_GZIP_END = 8
_ZSTD_LEVEL = 19
_MAX_WINDOW = 2**27


def write_spz(
    path: Path | str,
    gaussians: Gaussians,
    *,
    version: int = 3,
    fraction_bits: int | None = None,
    sh_bits: tuple[int, int] = (5, 4),
    turn: bool = False,
    overwrite: bool = False,
) -> dict[str, int]:
    """Writes an .spz file.

    Args:
        path: Where to write.
        gaussians: The scene; all finite.
        version: 2, 3 or 4. Most viewers open 3; 4 is a little smaller.
        fraction_bits: Bits of a position after the point, 0 to 23; None takes `default_fraction_bits`.
        sh_bits: Bits that are kept of each SH coefficient of degree 1, and of higher degrees, 1 to 8.
        turn: Whether to turn the scene from y down, z forward to y up, z back, the frame of SPZ's page.
        overwrite: Whether an existing file may be replaced.

    Returns:
        Bytes of each part of the file; of versions 2 and 3, one gzip stream, a share by what each array takes alone.

    Raises:
        InputError: Nothing to write, Gaussians that are not finite or too far out, the file exists, the disk is full.
        ValueError: An option out of range.
    """
    check_writable(gaussians, path)
    data, parts = spz_bytes(gaussians, version, fraction_bits, sh_bits, turn, str(path))
    with atomic_write(path, overwrite=overwrite) as file:
        file.write(data)
    return parts


def read_spz(path: Path | str, *, turn: bool = False) -> Gaussians:
    """Reads an .spz file of version 2, 3 or 4.

    Args:
        path: The file. SH of degree 4 are cut to 3, with a warning.
        turn: Whether to turn the scene back from y up, z back, the frame of SPZ's page, to y down, z forward. Nothing
            in a file says whether it needs that.

    Returns:
        The Gaussians on the CPU, float32, in the order of the file, and in its frame unless turned; quaternions of
        length 1.

    Raises:
        InputError: Not such a file, another version, damaged, cut off, or a count that does not fit its size.
    """
    path = Path(path)
    return gaussians_of_spz(read_bytes(path, MAX_FILE_BYTES), str(path), turn)


def default_fraction_bits(gaussians: Gaussians) -> int:
    """Bits after the point that the positions of a scene need: a step of a quarter of its small Gaussians' size.

    The size of a Gaussian is its middle scale, since flat ones are seen from the side that is wide. Fewer bits than
    that are taken where the scene reaches too far out for 24 bits in all; `spz_bytes` warns then.
    """
    size = math.exp(float(gaussians.scales.median(dim=1).values.double().quantile(SMALL_GAUSSIANS)))
    wanted = math.ceil(-math.log2(max(STEP_PER_SCALE * size, 1e-30)))
    return max(min(wanted, MAX_FRACTION_BITS, _most_fraction_bits(gaussians)), 0)


def spz_bytes(
    gaussians: Gaussians,
    version: int = 3,
    fraction_bits: int | None = None,
    sh_bits: tuple[int, int] = (5, 4),
    turn: bool = False,
    where: str = "spz",
) -> tuple[bytes, dict[str, int]]:
    """The file that `write_spz` writes, and the bytes of its parts; the arguments are the same."""
    if version not in VERSIONS or len(sh_bits) != 2 or not all(1 <= bits <= 8 for bits in sh_bits):
        raise ValueError(f"SPZ version {version}, SH bits {sh_bits}, expected 2, 3 or 4 and two numbers from 1 to 8")
    if fraction_bits is not None and not 0 <= fraction_bits <= MAX_FRACTION_BITS:
        raise ValueError(f"{fraction_bits} fraction bits, expected 0 to {MAX_FRACTION_BITS}")
    most = _most_fraction_bits(gaussians)
    bits = default_fraction_bits(gaussians) if fraction_bits is None else fraction_bits
    if bits > most:
        reach = float(gaussians.means.abs().max())
        end = 2.0 ** (23 - bits)
        raise InputError(f"{where}: a Gaussian at {reach:.6g} with {bits} fraction bits, SPZ ends at {end:g}")
    _warn_if_coarse(gaussians, bits, where)
    g = rotate(gaussians, HALF_TURN_ABOUT_X) if turn else gaussians
    layout = Layout(len(g), g.sh_degree, 3 if version == 2 else 4)
    streams = {name: array.tobytes() for name, array in pack(g, layout.quat_bytes, bits, sh_bits).items()}
    head = struct.pack("<4sIIBBB", MAGIC, version, len(g), g.sh_degree, bits, _ANTIALIASED if g.antialiased else 0)
    return _assemble_zstd(head, streams) if version == 4 else _assemble_gzip(head, streams)


def gaussians_of_spz(data: bytes, where: str, turn: bool = False) -> Gaussians:
    """The scene in the bytes of an SPZ file; see `read_spz`."""
    if data[:2] == GZIP_MAGIC:
        scene = _read_gzip(data, where)
    elif data[:4] == MAGIC:
        scene = _read_zstd(data, where)
    else:
        raise InputError(f"{where}: starts with {data[:4]!r}, expected an SPZ file (gzip, or NGSP)")
    return rotate(scene, HALF_TURN_ABOUT_X) if turn else scene


def spz_parts(path: Path | str) -> FileParts:
    """Bytes of each attribute in a file that `read_spz` reads; see `parts_of_spz`."""
    return parts_of_spz(read_bytes(Path(path), MAX_FILE_BYTES), str(path))


def parts_of_spz(data: bytes, where: str) -> FileParts:
    """Bytes of each array: of a zstd frame its own, of one gzip stream those from which the array is unpacked.

    Raises:
        InputError: What `read_spz` refuses for its sizes.
    """
    if data[:4] == MAGIC:
        layout, spans = _zstd_frames(data, where)[:2]
        each = layout.bytes_each()
        parts = [Part(_ATTRIBUTES[name], name, end - start, each[name] * layout.count) for name, start, end in spans]
        header = Part("header", "header", spans[0][1], spans[0][1])
        return file_parts(layout.count, "version 4", [header, *parts], len(data))
    unpacker = zlib.decompressobj(31)
    try:
        head = unpacker.decompress(data, 16)
        layout = _parse_header(head.ljust(16, b"\0"), len(data), (2, 3), where)[0]
        left = len(unpacker.unconsumed_tail)
        parts = [Part("header", "header", len(data) - left, 16)]
        for name, each in layout.bytes_each().items():
            if each:
                unpacker.decompress(unpacker.unconsumed_tail, each * layout.count)
                # With the last byte of the stream its checksum and length are read as well.
                after = len(unpacker.unconsumed_tail) + len(unpacker.unused_data) + _GZIP_END * unpacker.eof
                parts.append(Part(_ATTRIBUTES[name], name, left - after, each * layout.count))
                left = after
    except zlib.error as error:
        raise InputError(f"{where} cannot be unpacked ({error}): it is cut off or damaged") from error
    return file_parts(layout.count, f"version {2 if layout.quat_bytes == 3 else 3}", parts, len(data))


def _most_fraction_bits(g: Gaussians) -> int:
    """Bits after the point with which the farthest position still fits 24 bits and sign; negative if none do."""
    reach = float(g.means.detach().abs().max().double())
    return MAX_FRACTION_BITS if reach == 0 else min(math.floor(math.log2(MAX_POSITION / reach)), MAX_FRACTION_BITS)


def _warn_if_coarse(g: Gaussians, bits: int, where: str) -> None:
    size = math.exp(float(g.scales.median(dim=1).values.double().quantile(SMALL_GAUSSIANS)))
    step = 2.0**-bits
    if step > size:
        warnings.warn(
            f"{where}: SPZ stores positions in steps of {step:.2g}, but a tenth of the Gaussians are smaller than "
            f"{size:.2g}: details will be lost; leave out far Gaussians, or raise the fraction bits",
            stacklevel=4,
        )


def _assemble_gzip(head: bytes, streams: dict[str, bytes]) -> tuple[bytes, dict[str, int]]:
    parts = {name: len(zlib.compress(stream, 6)) for name, stream in streams.items() if stream}
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    data = packer.compress(b"".join([head, b"\0", *streams.values()])) + packer.flush()
    total = sum(parts.values())
    shares = {name: size * len(data) // total for name, size in parts.items()}
    return data, {"header": len(data) - sum(shares.values()), **shares}


def _assemble_zstd(head: bytes, streams: dict[str, bytes]) -> tuple[bytes, dict[str, int]]:
    packer = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
    packed = {name: packer.compress(stream) for name, stream in streams.items() if stream}
    table = b"".join(struct.pack("<QQ", len(frame), len(streams[name])) for name, frame in packed.items())
    header = head + struct.pack("<BI12x", len(packed), 32) + table
    parts = {"header": len(header), **{name: len(frame) for name, frame in packed.items()}}
    return b"".join([header, *packed.values()]), parts


def _parse_header(head: bytes, size: int, versions: tuple[int, ...], where: str) -> tuple[Layout, int, int]:
    """Layout, fraction bits and flags of a header, once the file of `size` bytes can hold so many Gaussians."""
    magic, version, count, degree, bits, flags = struct.unpack_from("<4sIIBBB", head)
    if magic != MAGIC:
        raise InputError(f"{where}: the gzip stream starts with {magic!r}, expected an SPZ file (NGSP)")
    if version not in versions:
        raise InputError(f"{where}: SPZ version {version}, expected {', '.join(map(str, versions))} in this container")
    if not 1 <= count <= FREE_GAUSSIANS + GAUSSIANS_PER_BYTE * size:
        raise InputError(f"{where}: {count} Gaussians in a file of {size} bytes, not possible")
    if degree > 4 or bits > MAX_FRACTION_BITS:
        raise InputError(f"{where}: SH degree {degree}, {bits} fraction bits, expected up to 4 and {MAX_FRACTION_BITS}")
    if degree == 4:
        warnings.warn(f"{where}: SH of degree 4, of which degrees up to 3 are read", stacklevel=5)
    return Layout(count, degree, 3 if version == 2 else 4), bits, flags


def _read_gzip(data: bytes, where: str) -> Gaussians:
    unpacker = zlib.decompressobj(31)
    try:
        head = unpacker.decompress(data, 16)
        if len(head) < 16:
            raise InputError(f"{where}: {len(head)} bytes in the gzip stream, expected an SPZ header: it is cut off")
        layout, bits, flags = _parse_header(head, len(data), (2, 3), where)
        need = layout.count * sum(layout.bytes_each().values())
        # Extensions may follow; reading on to the end lets zlib compare the checksum.
        body = unpacker.decompress(unpacker.unconsumed_tail, need + _MAX_TAIL)
    except zlib.error as error:
        raise InputError(f"{where} cannot be unpacked ({error}): it is cut off or damaged") from error
    if len(body) < need or not unpacker.eof:
        raise InputError(
            f"{where}: {len(body)} bytes of {layout.count} Gaussians, expected {need} to the end of the gzip stream: "
            "it is cut off or its count is wrong"
        )
    streams, start = {}, 0
    for name, each in layout.bytes_each().items():
        end = start + each * layout.count
        streams[name] = np.frombuffer(body[start:end], np.uint8).reshape(layout.count, each)
        start = end
    if flags & _EXTENSIONS:
        _check_extensions(body[need:], where)
    return unpack(streams, layout, bits, bool(flags & _ANTIALIASED))


def _read_zstd(data: bytes, where: str) -> Gaussians:
    layout, spans, bits, flags = _zstd_frames(data, where)
    if flags & _EXTENSIONS:
        _check_extensions(data[32 : spans[0][1] - 16 * len(spans)], where)
    each = layout.bytes_each()
    streams = {name: np.zeros((layout.count, 0), np.uint8) for name in STREAMS}
    for name, start, end in spans:
        frame = _unpack_frame(data[start:end], each[name] * layout.count, f"{where}: {name}")
        streams[name] = frame.reshape(-1, each[name])
    return unpack(streams, layout, bits, bool(flags & _ANTIALIASED))


def _zstd_frames(data: bytes, where: str) -> tuple[Layout, list[tuple[str, int, int]], int, int]:
    """Layout, (array, first byte, end) of each frame, fraction bits and flags of a file of version 4."""
    if len(data) < 32:
        raise InputError(f"{where}: {len(data)} bytes, expected an SPZ header of 32: it is cut off")
    layout, bits, flags = _parse_header(data, len(data), (4,), where)
    frames, table = struct.unpack_from("<BI", data, 15)
    each = {name: size for name, size in layout.bytes_each().items() if size}
    if frames != len(each) or not 32 <= table <= len(data) - 16 * frames:
        raise InputError(
            f"{where}: {frames} streams with their table at byte {table}, expected {len(each)} in {len(data)} bytes"
        )
    spans, start = [], table + 16 * frames
    for i, (name, size) in enumerate(each.items()):
        packed, unpacked = struct.unpack_from("<QQ", data, table + 16 * i)
        if packed > len(data) - start or unpacked != size * layout.count:
            raise InputError(
                f"{where}: {name} of {packed} bytes for {unpacked}, expected at most {len(data) - start} for "
                f"{size * layout.count}: it is cut off or damaged"
            )
        spans.append((name, start, start + packed))
        start += packed
    return layout, spans, bits, flags


def _unpack_frame(frame: bytes, size: int, where: str) -> Bytes:
    """One zstd frame, from which no more than `size` bytes are ever taken."""
    try:
        with zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).stream_reader(frame) as reader:
            out = reader.read(size)
            more = reader.read(1)
    except zstandard.ZstdError as error:
        raise InputError(f"{where} cannot be unpacked ({error}): it is cut off or damaged") from error
    if len(out) != size or more:
        raise InputError(f"{where}: {len(out)} bytes or more, expected {size}: it is cut off or damaged")
    return np.frombuffer(out, np.uint8)


def _check_extensions(data: bytes, where: str) -> None:
    """Skips extension records; one that would turn the scene is told."""
    start = 0
    while start + 8 <= len(data):
        kind, size = struct.unpack_from("<II", data, start)
        if kind == _FRAME_EXTENSION:
            warnings.warn(f"{where}: an extension names its frame; the scene is read in it as it is", stacklevel=5)
        start += 8 + size
