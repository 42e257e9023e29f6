"""SuperSplat's `.compressed.ply`: 16 bytes a Gaussian, in chunks of 256 that share their ranges.

Element `chunk` holds the least and greatest position, scale (logarithm) and colour of each 256 Gaussians; element
`vertex` four words each: position and scale in 11, 10 and 11 bits of those ranges, rotation in 2 + 10 + 10 + 10 (the
index of the largest of w, x, y, z, and the other three), colour and opacity in a byte each; element `sh`, if there is
one, a byte for each higher coefficient h, floor(256 (h / 8 + 0.5)), channel by channel. Files of older tools have no
colour ranges: their colours run from 0 to 1. The frame is that of the .ply files.

Format: developer.playcanvas.com/user-manual/gaussian-splatting/formats/ply.
"""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from radcomp_plugins.core.files import atomic_write
from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.formats.parts import FileParts, Part, file_parts
from radcomp_plugins.splats.formats.ply import (
    ANTIALIASED_COMMENT,
    PlyElement,
    PlyHeader,
    check_writable,
    is_antialiased,
    ply_columns,
    read_header,
    read_rows,
)
from radcomp_plugins.splats.gaussians import MAX_SH_DEGREE, SH_C0, Gaussians, num_sh_rest
from radcomp_plugins.splats.order import morton_order

CHUNK = 256
MAX_LOG_SCALE = 20.0
MAX_POSITION = 1e9
MAX_COLOR = 1e4
SH_RANGE = 8.0
OPACITY_MARGIN = 1e-6
"""Opacity bytes 0 and 255 become logits of +-13.8 rather than infinite ones, as in SOG."""

_RANGES = [f"{end}_{axis}" for end in ("min", "max") for axis in "xyz"]
_RANGES += [f"{end}_scale_{axis}" for end in ("min", "max") for axis in "xyz"]
_COLOR_RANGES = [f"{end}_{channel}" for end in ("min", "max") for channel in "rgb"]
_WORDS = ["packed_position", "packed_rotation", "packed_scale", "packed_color"]
_AXIS_SHIFTS, _AXIS_BITS = (21, 11, 0), (11, 10, 11)
_OTHERS = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])

Array64 = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint32]


def write_compressed_ply(path: Path | str, gaussians: Gaussians, *, overwrite: bool = False) -> dict[str, int]:
    """Writes a `.compressed.ply`, its Gaussians in Morton order.

    Args:
        path: Where to write.
        gaussians: The scene; all finite. Logarithms of scales beyond +-20 and SH coefficients beyond +-4 are clamped.
        overwrite: Whether an existing file may be replaced.

    Returns:
        Bytes of each part of the file; their sum is its size.

    Raises:
        InputError: Nothing to write, Gaussians that are not finite, the file exists, or the disk is full.
    """
    check_writable(gaussians, path)
    g = gaussians.to("cpu").select(torch.from_numpy(morton_order(_numpy(gaussians.means))))
    means, mean_ranges, mean_words = _pack_chunks(_numpy(g.means), (11, 10, 11))
    scales = np.clip(_numpy(g.scales), -MAX_LOG_SCALE, MAX_LOG_SCALE)
    _, scale_ranges, scale_words = _pack_chunks(scales, (11, 10, 11))
    _, color_ranges, color_words = _pack_chunks(_numpy(g.sh0) * SH_C0 + 0.5, (8, 8, 8))
    alpha = np.rint(255.0 / (1.0 + np.exp(-_numpy(g.opacities)))).astype(np.uint32)
    words = np.stack(
        [
            _join(mean_words, _AXIS_SHIFTS),
            _pack_quats(_numpy(g.quats)),
            _join(scale_words, _AXIS_SHIFTS),
            _join(color_words, (24, 16, 8)) | alpha,
        ],
        axis=1,
    )
    ranges = np.concatenate([mean_ranges, scale_ranges, color_ranges], axis=1)
    rest = _numpy(g.shN.transpose(1, 2).flatten(1))
    sh = np.clip(np.floor((rest / SH_RANGE + 0.5) * 256.0), 0, 255).astype(np.uint8)
    header = _header(len(means), len(ranges), sh.shape[1], g.antialiased)
    with atomic_write(path, overwrite=overwrite) as file:
        for data in (header, ranges.astype("<f4").tobytes(), words.astype("<u4").tobytes(), sh.tobytes()):
            file.write(data)
    each = {name.removeprefix("packed_"): 4 * len(means) for name in _WORDS}
    return {"header": len(header), "chunks": ranges.size * 4, **each, "sh": sh.size}


def read_compressed_ply(path: Path | str) -> Gaussians:
    """Reads a `.compressed.ply`, with or without colour ranges and higher SH.

    Args:
        path: The file.

    Returns:
        The Gaussians on the CPU, float32, in the order of the file; quaternions of length 1.

    Raises:
        InputError: Not such a file, cut off, counts that do not fit each other or its size, or impossible ranges.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected a .compressed.ply")
    with open(path, "rb") as file:
        header = read_header(file, path)
        chunk, vertex, sh = _check_elements(header, path)
        chunks = read_rows(file, header, chunk, path)
        rows = read_rows(file, header, vertex, path)
        rest = None if sh is None else read_rows(file, header, sh, path)
    ranges = _check_ranges(chunks, path)
    words = {name: rows[name] for name in _WORDS}
    colors = _split(words["packed_color"], (24, 16, 8), (8, 8, 8))
    if ranges.shape[1] == 18:
        colors = _unpack_chunks(colors, ranges[:, 12:])
    alpha = np.clip((words["packed_color"] & 255) / 255.0, OPACITY_MARGIN, 1.0 - OPACITY_MARGIN)
    return Gaussians(
        means=_tensor(_unpack_chunks(_split(words["packed_position"], _AXIS_SHIFTS, _AXIS_BITS), ranges[:, :6])),
        quats=_tensor(_unpack_quats(words["packed_rotation"])),
        scales=_tensor(_unpack_chunks(_split(words["packed_scale"], _AXIS_SHIFTS, _AXIS_BITS), ranges[:, 6:12])),
        opacities=_tensor(np.log(alpha / (1.0 - alpha))),
        sh0=_tensor((colors - 0.5) / SH_C0),
        shN=torch.zeros(len(rows), 0, 3) if rest is None else _unpack_sh(rest),
        antialiased=is_antialiased(header.comments),
    )


def compressed_ply_parts(path: Path | str) -> FileParts:
    """Bytes of each attribute in a file that `read_compressed_ply` reads: its words, and its share of the ranges."""
    path = Path(path)
    with open(path, "rb") as file:
        header = read_header(file, path)
    chunk, vertex, sh = _check_elements(header, path)
    count, colors = vertex.count, "min_r" in chunk.properties
    return file_parts(
        count,
        "with colour ranges" if colors else "without colour ranges",
        [
            Part("header", "header", header.size),
            Part("means", "ranges of positions", 24 * chunk.count),
            Part("scales", "ranges of scales", 24 * chunk.count),
            Part("sh0", "ranges of colours", 24 * chunk.count * colors),
            Part("means", "packed_position", 4 * count),
            Part("quats", "packed_rotation", 4 * count),
            Part("scales", "packed_scale", 4 * count),
            Part("sh0", "packed_color: red green blue", 3 * count),
            Part("opacities", "packed_color: alpha", count),
            Part("shN", "f_rest", 0 if sh is None else len(sh.properties) * count),
        ],
        path.stat().st_size,
    )


def _header(count: int, chunks: int, rest: int, antialiased: bool) -> bytes:
    lines = ["ply", "format binary_little_endian 1.0", "comment written by radcomp"]
    lines += [f"comment {ANTIALIASED_COMMENT}"] if antialiased else []
    lines += [f"element chunk {chunks}", *(f"property float {name}" for name in _RANGES + _COLOR_RANGES)]
    lines += [f"element vertex {count}", *(f"property uint {name}" for name in _WORDS)]
    lines += [f"element sh {count}", *(f"property uchar f_rest_{i}" for i in range(rest))] if rest else []
    return "\n".join([*lines, "end_header", ""]).encode("ascii")


def _check_elements(header: PlyHeader, path: Path) -> tuple[PlyElement, PlyElement, PlyElement | None]:
    """The elements chunk, vertex and sh, once their properties and counts agree; sizes are checked by `read_rows`."""
    chunk, vertex, sh = (header.element(name) for name in ("chunk", "vertex", "sh"))
    if chunk is None or vertex is None or header.format == "ascii" or any(e.has_list for e in header.elements):
        raise InputError(f"{path}: no elements 'chunk' and 'vertex' of fixed size, expected a binary .compressed.ply")
    has_colors = "min_r" in chunk.properties
    for element, kind, names in (
        (chunk, "f4", _RANGES + (_COLOR_RANGES if has_colors else [])),
        (vertex, "u4", _WORDS),
        (sh, "u1", [] if sh is None else [f"f_rest_{i}" for i in range(len(sh.properties))]),
    ):
        wrong = [name for name in names if element is not None and element.properties.get(name) != kind]
        if element is not None and (wrong or not names):
            raise InputError(f"{path}: element {element.name!r} lacks {wrong[:1] or 'properties'} of type {kind}")
    if vertex.count == 0 or chunk.count != -(-vertex.count // CHUNK):
        raise InputError(
            f"{path}: {vertex.count} Gaussians in {chunk.count} chunks, expected at least one and {CHUNK} in a chunk"
        )
    allowed = [3 * num_sh_rest(degree) for degree in range(1, MAX_SH_DEGREE + 1)]
    if sh is not None and (sh.count != vertex.count or len(sh.properties) not in allowed):
        raise InputError(
            f"{path}: SH of {sh.count} Gaussians with {len(sh.properties)} coefficients, expected {vertex.count} with "
            f"{', '.join(map(str, allowed))}"
        )
    return chunk, vertex, sh


def _check_ranges(chunks: np.ndarray, path: Path) -> Array64:
    """Ranges [chunks, 12 or 18] in the order of `_RANGES` and `_COLOR_RANGES`."""
    names = _RANGES + (_COLOR_RANGES if "min_r" in (chunks.dtype.names or ()) else [])
    ranges = ply_columns(chunks, names).double().numpy()
    limits = np.repeat([MAX_POSITION, 100.0, MAX_COLOR], 6)[: len(names)]
    bad = ~(np.abs(ranges) <= limits)
    if bad.any():
        name = names[int(bad.any(axis=0).argmax())]
        raise InputError(
            f"{path}: {name} of a chunk is NaN or beyond {limits[names.index(name)]:g}, expected a possible range"
        )
    return ranges


def _pack_chunks(values: Array64, bits: tuple[int, int, int]) -> tuple[Array64, Array64, Words]:
    """The values [N, 3], ranges [chunks, 6] as float32 holds them, and levels [N, 3] in those ranges."""
    starts = np.arange(0, len(values), CHUNK)
    low = np.minimum.reduceat(values, starts, axis=0).astype(np.float32).astype(np.float64)
    high = np.maximum.reduceat(values, starts, axis=0).astype(np.float32).astype(np.float64)
    where = np.arange(len(values)) // CHUNK
    extent = np.where(high > low, high - low, 1.0)
    unit = np.clip((values - low[where]) / extent[where], 0.0, 1.0)
    levels = np.rint(unit * (2.0 ** np.array(bits) - 1)).astype(np.uint32)
    return values, np.concatenate([low, high], axis=1), levels


def _unpack_chunks(unit: Array64, ranges: Array64) -> Array64:
    """Values of units [N, 3] from 0 to 1 in the ranges [chunks, 6] of their chunks."""
    where = np.arange(len(unit)) // CHUNK
    low, high = ranges[where, :3], ranges[where, 3:]
    return low + (high - low) * unit


def _join(levels: Words, shifts: tuple[int, ...]) -> Words:
    return np.bitwise_or.reduce([levels[:, i] << np.uint32(shift) for i, shift in enumerate(shifts)])


def _split(words: Words, shifts: tuple[int, ...], bits: tuple[int, ...]) -> Array64:
    """Levels as units from 0 to 1, [N, 3]."""
    parts = [(words >> np.uint32(s) & np.uint32(2**b - 1)) / (2**b - 1) for s, b in zip(shifts, bits, strict=True)]
    return np.stack(parts, axis=1)


def _pack_quats(quats: Array64) -> Words:
    q = quats / np.linalg.norm(quats, axis=1, keepdims=True)
    largest = np.abs(q).argmax(axis=1)
    q = q * np.where(np.take_along_axis(q, largest[:, None], axis=1) < 0, -1.0, 1.0)
    three = np.take_along_axis(q, _OTHERS[largest], axis=1)
    levels = np.clip(np.rint((three * math.sqrt(0.5) + 0.5) * 1023.0), 0, 1023).astype(np.uint32)
    return largest.astype(np.uint32) << np.uint32(30) | _join(levels, (20, 10, 0))


def _unpack_quats(words: Words) -> Array64:
    largest = (words >> np.uint32(30)).astype(np.int64)
    three = (_split(words, (20, 10, 0), (10, 10, 10)) - 0.5) * math.sqrt(2.0)
    quats = np.empty((len(words), 4))
    np.put_along_axis(quats, _OTHERS[largest], three, axis=1)
    rest = np.sqrt(np.maximum(1.0 - np.square(three).sum(axis=1, keepdims=True), 0.0))
    np.put_along_axis(quats, largest[:, None], rest, axis=1)
    # Damaged words may hold three components beyond length 1.
    return quats / np.linalg.norm(quats, axis=1, keepdims=True)


def _unpack_sh(rows: np.ndarray) -> Tensor:
    """Coefficients [N, K, 3]; a byte stands for the middle of its interval, but 0 and 255 for the ends of the range."""
    values = ply_columns(rows, [f"f_rest_{i}" for i in range(len(rows.dtype.names or ()))])
    unit = torch.where(values == 0, 0.0, torch.where(values == 255, 1.0, (values + 0.5) / 256))
    return ((unit - 0.5) * SH_RANGE).reshape(len(rows), 3, -1).transpose(1, 2).contiguous()


def _numpy(tensor: Tensor) -> Array64:
    return tensor.detach().cpu().numpy().astype(np.float64)


def _tensor(values: npt.NDArray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))
