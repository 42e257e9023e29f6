"""`.rcs`, our own container: few bytes, plain Gaussians after decoding, no network, and every prefix renders.

Gaussians are sorted into levels of detail by how much they paint, and within a level in Morton order. Positions are an
octree (`rcs_octree`), the other attributes are quantised by what their error costs (`rcs_quantise`) and coded by
context-mixing range coding (`core.entropy`, `rcs_streams`); higher SH are labels into a palette. All lies in a
container of checked chunks (`core.container`), the coarse levels first. Byte layout: docs/formats/rcs.md.
"""

import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from radcomp_plugins.core.container import Chunk, read_chunk, read_contents, write_container
from radcomp_plugins.core.files import atomic_write, read_bytes
from radcomp_plugins.core.threads import get_num_threads
from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.formats.parts import FileParts, Part, file_parts
from radcomp_plugins.splats.formats.ply import check_writable
from radcomp_plugins.splats.formats.rcs_header import Header, unpack_header
from radcomp_plugins.splats.formats.rcs_octree import OctreeModels, decode_octree, encode_octree
from radcomp_plugins.splats.formats.rcs_plan import (
    check_weights,
    level_order,
    level_slices,
    own_palette,
    paint,
    plan_columns,
)
from radcomp_plugins.splats.formats.rcs_quantise import (
    Quantised,
    RcsSettings,
    dequantise_colours,
    dequantise_means,
    dequantise_opacity,
    dequantise_palette,
    dequantise_quats,
    dequantise_scales,
    far_ones,
    palette_levels,
    quantise,
    rotation_classes,
    wanted_depths,
)
from radcomp_plugins.splats.formats.rcs_streams import STREAMS, StreamModel, decode_palette, encode_palette, plan_plain
from radcomp_plugins.splats.gaussians import Gaussians, num_sh_rest
from radcomp_plugins.splats.order import smallest_columns

__all__ = ["MAGIC", "VERSION", "RcsSettings", "decode_rcs", "encode_rcs", "paint", "rcs_parts", "read_rcs", "write_rcs"]

MAGIC = b"RADC.RCS"
VERSION = 1

MAX_FILE_BYTES = 2**31
FREE_COUNT = 2**16
COUNT_PER_BYTE = 32
"""More Gaussians than this per byte, beyond the first 65,536, can only be a bomb."""


_FAR = struct.Struct("<Ifff")
_ATTRIBUTES = {
    **{"contents": "header", "HEAD": "header", "POSN": "means", "FARP": "means", "SCAL": "scales", "ROTN": "quats"},
    **{"OPAC": "opacities", "COLR": "sh0", "SHPL": "shN palette", "LABL": "shN labels"},
}

Ints = NDArray[np.int64]


def write_rcs(
    path: Path | str,
    gaussians: Gaussians,
    *,
    settings: RcsSettings | None = None,
    significance: Float[Tensor, " N"] | None = None,
    plan: Header | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, int]:
    """Writes an `.rcs` file; the same arguments give the same bytes on the same machine.

    Args:
        path: Where to write.
        gaussians: The scene; all finite.
        settings: Steps of the quantisers; None takes the defaults.
        significance: How much each Gaussian matters, not negative: orders the levels of detail and weighs the SH
            palette. None takes `paint`.
        plan: Range and step of each attribute to use as they are, such as those a scene was trained through
            (`fake_quantise`); None takes the best for this scene. With a plan the different SH vectors of the scene are
            the palette, and of `settings` only the levels of detail count.
        seed: Seeds k-means.
        overwrite: Whether an existing file may be replaced.

    Returns:
        Bytes of each part of the file; their sum is its size.

    Raises:
        InputError: Nothing to write, Gaussians that are not finite, the file exists, or the disk is full.
        ValueError: A significance of the wrong shape or range, a plan for another SH degree or for fewer SH vectors.
    """
    path = Path(path)
    check_writable(gaussians, path)
    with atomic_write(path, overwrite=overwrite) as file:
        data, sizes = encode_rcs(gaussians, settings, significance, seed, plan)
        file.write(data)
    return sizes


def read_rcs(path: Path | str, levels: int | None = None) -> Gaussians:
    """Reads an `.rcs` file.

    Args:
        path: The file.
        levels: How many levels of detail to decode, the coarsest first; None decodes all.

    Returns:
        The Gaussians on the CPU, float32, in the order of the file; quaternions of length 1.

    Raises:
        InputError: Not such a file, damaged, cut off, or of a later version.
    """
    return decode_rcs(read_bytes(path, MAX_FILE_BYTES), str(path), levels)


def rcs_parts(path: Path | str) -> FileParts:
    """Bytes of each chunk of a file that `read_rcs` reads; those of all levels of detail together."""
    data, where = read_bytes(Path(path), MAX_FILE_BYTES), str(path)
    chunks = read_contents(data, MAGIC, VERSION, where)
    header = unpack_header(_body(data, {(c.kind, c.number): c for c in chunks}, "HEAD", 0, where), where)
    sizes: dict[str, int] = {"contents": chunks[0].offset}
    for chunk in chunks:
        sizes[chunk.kind] = sizes.get(chunk.kind, 0) + chunk.length
    parts = [Part(_ATTRIBUTES.get(kind, "other"), kind, size) for kind, size in sizes.items()]
    return file_parts(header.count, f"version {VERSION}, {len(header.levels)} levels of detail", parts, len(data))


def encode_rcs(
    gaussians: Gaussians,
    settings: RcsSettings | None = None,
    significance: Float[Tensor, " N"] | None = None,
    seed: int = 0,
    plan: Header | None = None,
) -> tuple[bytes, dict[str, int]]:
    """The bytes of a file, and how many each part takes; arguments as for `write_rcs`."""
    settings = settings or RcsSettings()
    weights = check_weights(gaussians, significance)
    g = smallest_columns(gaussians)
    if plan is None:
        header, palette = plan_columns(gaussians, g, settings, weights, seed)
    else:
        header = replace(plan, count=len(gaussians), far=int(far_ones(plan, g["means"]).sum()))
        palette = own_palette(gaussians, plan)
    q = quantise(g, header)
    order, counts = level_order(q.codes, weights, settings.levels)
    q = Quantised(**{name: values[order] for name, values in vars(q).items()})
    header = replace(header, levels=counts)
    chunks: list[tuple[str, int, bytes]] = []
    labels = np.zeros((len(order), 1), np.int64)
    if palette is not None:
        vectors, used_by = palette
        entries, labels = palette_levels(vectors.astype(np.float64), header.sh_step), used_by[order, None]
        header = replace(header, palette=len(entries))
        if len(entries) > 256:
            labels = np.concatenate([labels >> 8, labels & 255], axis=1)
        chunks.append(("SHPL", 0, encode_palette(entries)))
    if header.far:
        chunks.insert(0, ("FARP", 0, _pack_far(g["means"][order], header)))
    values = {"SCAL": q.scales, "ROTN": q.rotations, "OPAC": q.opacities, "COLR": q.colours}
    if palette is not None:
        values["LABL"] = labels
    header = replace(header, plain=plan_plain(header, values, rotation_classes(header, q.scales)))
    chunks.insert(0, ("HEAD", 0, header.pack()))
    chunks += _encode_levels(header, q, values)
    lacking = (header.count - FREE_COUNT) // COUNT_PER_BYTE - sum(len(data) for _, _, data in chunks)
    if lacking > 0:
        # A scene of all the same Gaussians would otherwise look like a bomb to the reader.
        chunks.append(("PADD", 0, bytes(lacking)))
    data = write_container(MAGIC, VERSION, chunks)
    sizes: dict[str, int] = {}
    for kind, _, body in chunks:
        sizes[kind] = sizes.get(kind, 0) + len(body)
    sizes["contents"] = len(data) - sum(sizes.values())
    return data, sizes


def decode_rcs(data: bytes, where: str, levels: int | None = None, *, prefix: bool = False) -> Gaussians:
    """The Gaussians of a file's bytes.

    Args:
        data: The file, or its beginning.
        where: Name for error lines.
        levels: How many levels of detail to decode at most; None decodes all.
        prefix: Decode the levels that lie completely in `data`, at least one, rather than refuse a cut-off file.

    Raises:
        InputError: As for `read_rcs`.
    """
    chunks = {(c.kind, c.number): c for c in read_contents(data, MAGIC, VERSION, where)}
    header = unpack_header(_body(data, chunks, "HEAD", 0, where), where)
    kinds = _level_kinds(header)
    number = len(header.levels) if levels is None else min(max(levels, 1), len(header.levels))
    if prefix:
        while number > 1 and any((k, number - 1) in chunks and chunks[k, number - 1].end > len(data) for k in kinds):
            number -= 1
    count = sum(header.levels[:number])
    if count > FREE_COUNT + COUNT_PER_BYTE * len(data):
        raise InputError(f"{where}: {count} Gaussians in {len(data)} bytes, not possible: the file is damaged")
    bodies = {(k, n): _body(data, chunks, k, n, where) for n in range(number) for k in kinds}
    rest = torch.zeros((count, 0, 3))
    with ThreadPoolExecutor(get_num_threads()) as pool:
        decoding = {k: pool.submit(_decode_stream, k, header, bodies, number, where) for k in kinds if k in _ALONE}
        if header.degree:
            body = _body(data, chunks, "SHPL", 0, where)
            shpl = pool.submit(decode_palette, body, header.palette, _width(header), where)
        scales = decoding["SCAL"].result()
        positions = pool.submit(_decode_positions, header, bodies, scales, where)
        rotations = pool.submit(_decode_rotations, header, bodies, scales, where)
        if header.degree:
            rest = _decode_rest(header, shpl.result(), decoding["LABL"].result(), where)
        opacities = dequantise_opacity(header, decoding["OPAC"].result())
        colours = dequantise_colours(header, decoding["COLR"].result())
        means, quats = positions.result(), rotations.result()
    if header.far:
        _place_far(_body(data, chunks, "FARP", 0, where), header, means, where)
    tensors = {
        **{"means": means, "quats": quats, "scales": dequantise_scales(header, scales)},
        **{"opacities": opacities, "sh0": colours},
    }
    scene = {k: _tensor(v) for k, v in tensors.items()}
    if not all(np.isfinite(v.numpy()).all() for v in scene.values()):
        raise InputError(f"{where}: decodes to numbers that are not finite: the file is damaged")
    return Gaussians(**scene, shN=rest, antialiased=header.antialiased)


_ALONE = ("SCAL", "OPAC", "COLR", "LABL")
"""Streams that need no other one to be decoded."""


def _level_kinds(header: Header) -> list[str]:
    return ["POSN", *(k for k in STREAMS if k != "LABL" or header.degree)]


def _width(header: Header) -> int:
    return 3 * num_sh_rest(header.degree)


def _encode_levels(header: Header, q: Quantised, values: dict[str, Ints]) -> list[tuple[str, int, bytes]]:
    """The chunks of every level of detail, the coarsest first."""
    slices = level_slices(header.levels, len(header.levels))
    side = rotation_classes(header, q.scales)
    wanted = wanted_depths(header, q.scales)

    def stream(kind: str) -> list[bytes]:
        if kind == "POSN":
            models = OctreeModels()
            return [encode_octree(q.codes[s], wanted[s], header.depth, models) for s in slices]
        model = StreamModel(kind, header)
        return [model.encode(values[kind][s], side[s] if kind == "ROTN" else None) for s in slices]

    kinds = _level_kinds(header)
    with ThreadPoolExecutor(get_num_threads()) as pool:
        parts = dict(zip(kinds, pool.map(stream, kinds), strict=True))
    return [(kind, n, parts[kind][n]) for n in range(len(slices)) for kind in kinds]


def _body(data: bytes, chunks: dict[tuple[str, int], Chunk], kind: str, number: int, where: str) -> bytes:
    chunk = chunks.get((kind, number))
    if chunk is None:
        raise InputError(f"{where} has no chunk {kind}{number}: the file is not complete")
    return read_chunk(data, chunk, where)


def _decode_stream(kind: str, header: Header, bodies: dict[Any, bytes], number: int, where: str) -> Ints:
    model = StreamModel(kind, header)
    return np.concatenate([model.decode(bodies[kind, n], header.levels[n], where) for n in range(number)])


def _decode_rotations(header: Header, bodies: dict[Any, bytes], scales: Ints, where: str) -> NDArray[np.float64]:
    model, side = StreamModel("ROTN", header), rotation_classes(header, scales)
    parts = _each_level(
        header, len(scales), lambda n, s: model.decode(bodies["ROTN", n], header.levels[n], where, side[s])
    )
    return dequantise_quats(header, np.concatenate(parts), scales)


def _decode_positions(header: Header, bodies: dict[Any, bytes], scales: Ints, where: str) -> NDArray[np.float64]:
    models, wanted = OctreeModels(), wanted_depths(header, scales)
    parts = _each_level(
        header, len(scales), lambda n, s: decode_octree(bodies["POSN", n], wanted[s], header.depth, models, where)
    )
    codes, depths = (np.concatenate([getattr(p, name) for p in parts]) for name in ("codes", "depths"))
    return dequantise_means(header, codes, depths)


def _each_level(header: Header, count: int, work: Callable[[int, slice], Any]) -> list[Any]:
    """Results of work(level, its slice) for the levels that hold the first `count` Gaussians."""
    number = int(np.searchsorted(np.cumsum(header.levels), count)) + 1
    return [work(n, s) for n, s in enumerate(level_slices(header.levels, number))]


def _decode_rest(header: Header, entries: Ints, labels: Ints, where: str) -> Float[Tensor, "N R 3"]:
    """Rows of the palette; finite, for the header's step is."""
    index = labels[:, 0] if labels.shape[1] == 1 else 256 * labels[:, 0] + labels[:, 1]
    if index.max() >= header.palette:
        raise InputError(f"{where}: SH label {index.max()}, expected below {header.palette}: the file is damaged")
    # Made float32 while it is short: rows for all Gaussians are most of what is written to memory.
    return _tensor(dequantise_palette(entries, header.sh_step))[torch.from_numpy(index)]


def _pack_far(means: NDArray[np.float64], header: Header) -> bytes:
    far = np.flatnonzero(far_ones(header, means))
    return b"".join(_FAR.pack(i, *means[i]) for i in far.tolist())


def _place_far(data: bytes, header: Header, means: NDArray[np.float64], where: str) -> None:
    if len(data) != _FAR.size * header.far:
        raise InputError(f"{where}: chunk FARP has {len(data)} bytes, expected {_FAR.size * header.far}: damaged")
    rows = np.frombuffer(data, np.dtype([("index", "<u4"), ("mean", "<f4", 3)]))
    if rows["index"].max() >= header.count:
        raise InputError(f"{where}: chunk FARP names Gaussian {rows['index'].max()} of {header.count}: damaged")
    rows = rows[rows["index"] < len(means)]
    means[rows["index"]] = rows["mean"]


def _tensor(values: NDArray[Any]) -> Tensor:
    with np.errstate(over="ignore"):
        return torch.from_numpy(np.ascontiguousarray(values, np.float32))
