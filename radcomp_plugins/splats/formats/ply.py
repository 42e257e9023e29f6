"""The .ply files of 3D Gaussian splatting, as Inria's trainer, nerfstudio, gsplat and most tools write them.

Per Gaussian: x y z, (nx ny nz, always zero), f_dc_0..2, f_rest_* channel by channel (all coefficients of red first),
opacity (logit), scale_0..2 (natural logarithm), rot_0..3 (w x y z). SH degree 3 is 62 floats, 248 bytes. The comment
`SplatRenderMode: mip` marks a scene trained with the antialiased rasterize mode.
"""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from radcomp_plugins.core.files import atomic_write
from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.formats.parts import FileParts, Part, file_parts
from radcomp_plugins.splats.gaussians import MAX_SH_DEGREE, SH_C0, Gaussians, num_sh_rest

MAX_HEADER_BYTES = 2**16
ROWS_PER_BLOCK = 2**16
INFINITE_LOGIT = 30.0
"""Stands for an infinite opacity logit or the logarithm of a zero scale: sigmoid and exp are exact to 1e-13 there."""

ANTIALIASED_COMMENT = "SplatRenderMode: mip"
_RENDER_MODES = {
    "splatrendermode: mip": True,
    "splatrendermode: default": False,
    "antialiased 1": True,
    "antialiased 0": False,
}
"""Comments that tell the rasterize mode, lower case: Brush's, which is the one written, and Postshot's."""

_BYTE_ORDER = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "="}
_DTYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"float": "f4", "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2"},
    **{"int32": "i4", "uint32": "u4", "float32": "f4", "float64": "f8"},
}
_MEANS = ("x", "y", "z")
_SH0 = ("f_dc_0", "f_dc_1", "f_dc_2")
_RGB = ("red", "green", "blue")
_SCALES = ("scale_0", "scale_1", "scale_2")
_QUATS = ("rot_0", "rot_1", "rot_2", "rot_3")
_PURPOSES = {
    **dict.fromkeys(_MEANS, ("means", "x y z")),
    **dict.fromkeys(("nx", "ny", "nz"), ("other", "nx ny nz")),
    **dict.fromkeys(_SH0, ("sh0", "f_dc")),
    **dict.fromkeys(_RGB, ("sh0", "red green blue")),
    **dict.fromkeys(_SCALES, ("scales", "scale")),
    **dict.fromkeys(_QUATS, ("quats", "rot")),
    "opacity": ("opacities", "opacity"),
}
"""Attribute, and name of the part, that a property belongs to."""

FloatArray = npt.NDArray[np.float32]


@dataclass
class PlyElement:
    """One element of the header; `properties` maps name to numpy type, `has_list` if a row's size is not fixed."""

    name: str
    count: int
    properties: dict[str, str]
    has_list: bool = False

    def row_dtype(self, order: str) -> np.dtype:
        return np.dtype([(name, order + kind) for name, kind in self.properties.items()])


@dataclass
class PlyHeader:
    """The header of a .ply file; `size` is its length in bytes."""

    format: str
    elements: list[PlyElement]
    comments: list[str]
    size: int

    def element(self, name: str) -> PlyElement | None:
        """The element of that name, if there is one."""
        return next((e for e in self.elements if e.name == name), None)


def read_ply(path: Path | str) -> Gaussians:
    """Reads a Gaussian splat .ply: any order and type of properties, binary of either byte order or ascii.

    Args:
        path: The file. Properties it does not know are ignored.

    Returns:
        The Gaussians on the CPU, float32, with the SH degree of the file. Gaussians that hold a NaN or a zero
        quaternion are left out with a warning; infinite opacity logits become +-30, scales of -infinity -30.

    Raises:
        InputError: Not such a file, cut off, a count that does not fit its size, no Gaussians, or values that make
            no sense (NaN throughout, wrong byte order).
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected a Gaussian splat .ply")
    with open(path, "rb") as file:
        header = read_header(file, path)
        element = header.element("vertex")
        _check_is_splat(header, element, path)
        assert element is not None
        rest_names = _rest_names(element, path)
        rows = read_rows(file, header, element, path)
    return _to_gaussians(rows, rest_names, is_antialiased(header.comments), path)


def write_ply(
    path: Path | str, gaussians: Gaussians, *, sh_degree: int | None = None, overwrite: bool = False
) -> dict[str, int]:
    """Writes a binary little-endian .ply that every splat tool opens.

    Args:
        path: Where to write.
        gaussians: The scene; all finite.
        sh_degree: SH degree in the file, 0 to 3; None keeps the scene's. A higher one is padded with zeros, for
            readers that insist on 45 coefficients.
        overwrite: Whether an existing file may be replaced.

    Returns:
        Bytes of each part of the file: header and vertices.

    Raises:
        InputError: Nothing to write, Gaussians that are not finite, the file exists, or the disk is full.
    """
    check_writable(gaussians, path)
    g = gaussians.to("cpu")
    if sh_degree is not None:
        if not 0 <= sh_degree <= MAX_SH_DEGREE:
            raise InputError(f"SH degree {sh_degree}, expected 0 to {MAX_SH_DEGREE}")
        g = g.with_sh_degree(sh_degree)
    names = ply_property_names(g.sh_degree)
    lines = ["ply", "format binary_little_endian 1.0", "comment written by radcomp"]
    if g.antialiased:
        lines.append(f"comment {ANTIALIASED_COMMENT}")
    lines += [f"element vertex {len(g)}", *(f"property float {name}" for name in names), "end_header", ""]
    header = "\n".join(lines).encode("ascii")
    with atomic_write(path, overwrite=overwrite) as file:
        file.write(header)
        for start in range(0, len(g), ROWS_PER_BLOCK):
            file.write(_rows(g, slice(start, start + ROWS_PER_BLOCK)).tobytes())
    return {"header": len(header), "vertices": len(g) * len(names) * 4}


def ply_parts(path: Path | str) -> FileParts:
    """Bytes of each group of properties in a file that `read_ply` reads; of text they cannot be told apart."""
    path = Path(path)
    with open(path, "rb") as file:
        header = read_header(file, path)
        size = os.fstat(file.fileno()).st_size
    element = header.element("vertex")
    _check_is_splat(header, element, path)
    assert element is not None
    parts = {"header": Part("header", "header", header.size)}
    if header.format == "ascii":
        parts["text"] = Part("all attributes", "text", size - header.size)
        return file_parts(element.count, header.format, parts.values(), size)
    for name, kind in element.properties.items():
        rest = ("shN", "f_rest") if name.startswith("f_rest_") else ("other", "other properties")
        attribute, group = _PURPOSES.get(name, rest)
        before = parts[group].bytes if group in parts else 0
        parts[group] = Part(attribute, group, before + element.count * np.dtype(kind).itemsize)
    return file_parts(element.count, header.format, parts.values(), size)


def float32_bytes(gaussians: Gaussians) -> int:
    """Bytes of the vertices of the .ply that `write_ply` makes of a scene: what compressed files are compared with."""
    return 4 * len(gaussians) * len(ply_property_names(gaussians.sh_degree))


def ply_property_names(sh_degree: int) -> list[str]:
    """The properties of a splat .ply, in Inria's order: 17 + 3 ((d + 1)^2 - 1) names."""
    rest = [f"f_rest_{i}" for i in range(3 * num_sh_rest(sh_degree))]
    return [*_MEANS, "nx", "ny", "nz", *_SH0, *rest, "opacity", *_SCALES, *_QUATS]


def check_writable(gaussians: Gaussians, path: Path | str) -> None:
    """Stops a writer that was given nothing, or Gaussians that are not finite.

    Raises:
        InputError: No Gaussians, or one with a NaN, an infinity or a zero quaternion.
    """
    if len(gaussians) == 0:
        raise InputError(f"{path}: the scene has no Gaussians, nothing was written")
    bad = len(gaussians) - int(gaussians.finite().sum())
    if bad:
        raise InputError(f"{path}: {bad} of {len(gaussians)} Gaussians hold NaN or infinity, nothing was written")


def _rows(g: Gaussians, rows: slice) -> FloatArray:
    """Rows of the file as float32 [n, properties]."""
    rest = g.shN[rows].transpose(1, 2).flatten(1)
    parts = [g.means[rows], torch.zeros_like(g.means[rows]), g.sh0[rows], rest]
    parts += [g.opacities[rows, None], g.scales[rows], g.quats[rows]]
    return np.ascontiguousarray(torch.cat(parts, dim=1).detach().float().numpy(), dtype="<f4")


def read_header(file: BinaryIO, path: Path) -> PlyHeader:
    """The header of a .ply whose first byte `file` is at; InputError if it is none."""
    head = file.read(MAX_HEADER_BYTES)
    if not head.startswith(b"ply"):
        raise InputError(f"{path}: starts with {head[:4]!r}, expected a .ply file (its first line is 'ply')")
    end = head.find(b"end_header")
    newline = head.find(b"\n", end)
    if end < 0 or newline < 0:
        raise InputError(f"{path}: no 'end_header' line in the first {len(head)} bytes, the .ply header is cut off")
    header = PlyHeader("", [], [], newline + 1)
    for line in head[:end].decode("ascii", errors="replace").splitlines()[1:]:
        _parse_line(line.strip(), header, path)
    if header.format not in _BYTE_ORDER:
        raise InputError(f"{path}: .ply format {header.format!r}, expected one of {', '.join(_BYTE_ORDER)}")
    return header


def _parse_line(line: str, header: PlyHeader, path: Path) -> None:
    words = line.split()
    match words:
        case [] | ["obj_info", *_]:
            return
        case ["comment", *_]:
            header.comments.append(line.removeprefix("comment").strip())
        case ["format", name, "1.0"] if not header.format:
            header.format = name
        case ["element", name, count] if count.isascii() and count.isdigit() and len(count) < 19:
            header.elements.append(PlyElement(name, int(count), {}))
        case ["property", "list", _, _, _] if header.elements:
            header.elements[-1].has_list = True
        case ["property", kind, name] if header.elements and kind in _DTYPES:
            if name in header.elements[-1].properties:
                raise InputError(f"{path}: property {name!r} appears twice in the .ply header")
            header.elements[-1].properties[name] = _DTYPES[kind]
        case _:
            raise InputError(f"{path}: cannot read the .ply header line {line[:60]!r}")


def _check_is_splat(header: PlyHeader, element: PlyElement | None, path: Path) -> None:
    if element is None:
        raise InputError(f"{path}: no 'element vertex' in the .ply header, expected a Gaussian splat .ply")
    if "packed_position" in element.properties:
        raise InputError(f"{path} is a compressed .ply (packed_position), expected a plain one")
    colours = _RGB if all(name in element.properties for name in _RGB) else _SH0
    missing = [n for n in (*_MEANS, *colours, "opacity", *_SCALES, *_QUATS) if n not in element.properties]
    if missing:
        raise InputError(
            f"{path} has no property {missing[0]!r}: expected a Gaussian splat .ply (x, f_dc_0, opacity, scale_0, "
            "rot_0, ...), this looks like a point cloud or a mesh"
        )
    before = header.elements[: header.elements.index(element)]
    if element.has_list or any(e.has_list for e in before):
        raise InputError(f"{path}: a list property before or in the vertices, expected properties of fixed size")
    if element.count == 0:
        raise InputError(f"{path} has 0 Gaussians, expected at least one")


def is_antialiased(comments: list[str]) -> bool:
    """The last comment on the rasterize mode decides; without any it is the classic one."""
    known = [
        _RENDER_MODES[c] for c in (" ".join(comment.lower().split()) for comment in comments) if c in _RENDER_MODES
    ]
    return bool(known) and known[-1]


def _rest_names(element: PlyElement, path: Path) -> list[str]:
    count = sum(name.startswith("f_rest_") for name in element.properties)
    names = [f"f_rest_{i}" for i in range(count)]
    allowed = [3 * num_sh_rest(degree) for degree in range(MAX_SH_DEGREE + 1)]
    if count not in allowed or any(name not in element.properties for name in names):
        raise InputError(
            f"{path} has {count} f_rest_ properties, expected f_rest_0 to f_rest_(n-1) with n one of "
            f"{', '.join(map(str, allowed))} (SH degree 0 to 3)"
        )
    return names


def read_rows(file: BinaryIO, header: PlyHeader, element: PlyElement, path: Path) -> np.ndarray:
    """The rows of an element as a structured array [N]; sizes are checked against the file before memory is taken."""
    order = _BYTE_ORDER[header.format]
    size = os.fstat(file.fileno()).st_size
    index = header.elements.index(element)
    if header.format == "ascii":
        return _read_ascii_rows(file, header, element, size, path)
    dtype = element.row_dtype(order)
    start = header.size + sum(e.count * e.row_dtype(order).itemsize for e in header.elements[:index])
    need, have = element.count * dtype.itemsize, max(size - start, 0)
    is_last = index == len(header.elements) - 1
    if have < need or (is_last and have >= need + dtype.itemsize):
        raise InputError(
            f"{path}: the header says {element.count} Gaussians of {dtype.itemsize} bytes ({need} bytes), but the file "
            f"holds {have}: it is cut off or its count is wrong"
        )
    file.seek(start)
    return np.fromfile(file, dtype=dtype, count=element.count)


def _read_ascii_rows(file: BinaryIO, header: PlyHeader, element: PlyElement, size: int, path: Path) -> np.ndarray:
    before = sum(e.count for e in header.elements[: header.elements.index(element)])
    width = len(element.properties)
    if (before + element.count) * 2 > size or element.count * width * 2 > size + 2:
        raise InputError(
            f"{path}: the header says {element.count} Gaussians of {width} numbers, too many for {size} bytes of text"
        )
    file.seek(header.size)
    try:
        table = np.loadtxt(file, dtype=np.float64, comments=None, skiprows=before, max_rows=element.count, ndmin=2)
    except ValueError as error:
        raise InputError(f"{path}: cannot read the vertices as numbers ({error})".replace("\n", " ")) from error
    if table.shape != (element.count, width):
        raise InputError(f"{path}: {table.shape[0]} rows of {table.shape[1]} numbers, expected {element.count}x{width}")
    rows = np.empty(element.count, np.dtype([(name, "f8") for name in element.properties]))
    for i, name in enumerate(element.properties):
        rows[name] = table[:, i]
    return rows


def _to_gaussians(rows: np.ndarray, rest_names: list[str], antialiased: bool, path: Path) -> Gaussians:
    means, scales, quats = ply_columns(rows, _MEANS), ply_columns(rows, _SCALES), ply_columns(rows, _QUATS)
    opacities = ply_columns(rows, ("opacity",))[:, 0].clamp(-INFINITE_LOGIT, INFINITE_LOGIT)
    if all(name in rows.dtype.names for name in _SH0):
        sh0 = ply_columns(rows, _SH0)
    else:
        # ns-export --ply-color-mode rgb stores 8-bit colours instead of SH.
        sh0 = (ply_columns(rows, _RGB) / 255 - 0.5) / SH_C0
    rest = ply_columns(rows, rest_names).reshape(len(rows), 3, -1).transpose(1, 2).contiguous()
    scales = torch.where(scales == -torch.inf, torch.full_like(scales, -INFINITE_LOGIT), scales)
    _check_plausible(means, scales, quats, path)
    g = Gaussians(means, quats, scales, opacities, sh0, rest, antialiased)
    keep = g.finite()
    dropped = len(g) - int(keep.sum())
    if dropped == len(g):
        raise InputError(f"{path}: all {len(g)} Gaussians hold NaN or infinity, expected finite numbers")
    if dropped:
        warnings.warn(f"{path}: left out {dropped} of {len(g)} Gaussians that hold NaN or infinity", stacklevel=3)
        return g.select(keep)
    return g


def _check_plausible(means: Tensor, scales: Tensor, quats: Tensor, path: Path) -> None:
    """Refuses a file most of whose Gaussians cannot be such: bytes in the wrong order, or a wrong layout."""
    norm = quats.norm(dim=1)
    possible = (means.abs() < 1e9).all(dim=1) & (scales.abs() < 100).all(dim=1) & (norm > 1e-9) & (norm < 1e9)
    if 2 * int(possible.sum()) < len(means):
        raise InputError(
            f"{path}: {len(means) - int(possible.sum())} of {len(means)} Gaussians have impossible values (NaN, or "
            "log scales beyond 100): expected finite numbers in the byte order that the header states"
        )


def ply_columns(rows: np.ndarray, names: tuple[str, ...] | list[str]) -> Tensor:
    """Named columns as a float32 tensor [N, len(names)]."""
    out = np.empty((len(rows), len(names)), dtype=np.float32)
    # A double beyond float32 becomes infinite, and is refused or left out with the other infinities.
    with np.errstate(over="ignore", invalid="ignore"):
        for i, name in enumerate(names):
            out[:, i] = rows[name]
    return torch.from_numpy(out)
