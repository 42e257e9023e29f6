"""Binary glTF with KHR_gaussian_splatting: splats as a point primitive, float attributes or one SPZ blob.

Attributes per Gaussian: POSITION; of the extension ROTATION (x y z w), SCALE (linear), OPACITY (activated), and each SH
coefficient as SH_DEGREE_d_COEF_n, degree 0 the constant one. Rotations, scales and opacities may be normalised
integers. With KHR_gaussian_splatting_compression_spz_2 the attributes hold no data, a buffer view holds an SPZ file.

glTF's frame is x left, y up, z forward, as the SPZ library names it, half a turn about z from the .ply files'; an SPZ
blob is x right, y up, z back, half a turn about x from them. Both are turned on writing and back on reading.

Format: github.com/KhronosGroup/glTF, extensions/2.0/Khronos/KHR_gaussian_splatting; the compression is its PR 2531.
"""

import json
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from radcomp_plugins.core.files import atomic_write, parse_json, read_bytes
from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.formats.parts import FileParts, Part, file_parts
from radcomp_plugins.splats.formats.ply import INFINITE_LOGIT, check_writable
from radcomp_plugins.splats.formats.spz import gaussians_of_spz, parts_of_spz, spz_bytes
from radcomp_plugins.splats.frames import HALF_TURN_ABOUT_Z, rotate
from radcomp_plugins.splats.gaussians import MAX_SH_DEGREE, Gaussians

MAGIC = b"glTF"
EXTENSION = "KHR_gaussian_splatting"
SPZ_EXTENSION = "KHR_gaussian_splatting_compression_spz_2"
MAX_FILE_BYTES = 2**32 - 1
MAX_JSON_CHUNK = 2**24
MAX_COUNT = 2**31

_JSON, _BIN = 0x4E4F534A, 0x004E4942
_COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5126: "<f4"}
_FLOAT = 5126
_WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}
_TRANSFORMS = ("matrix", "translation", "rotation", "scale")

Floats = npt.NDArray[np.float32]


def write_glb(
    path: Path | str, gaussians: Gaussians, *, spz: bool = False, spz_version: int = 2, overwrite: bool = False
) -> dict[str, int]:
    """Writes a .glb with KHR_gaussian_splatting.

    Args:
        path: Where to write.
        gaussians: The scene; all finite.
        spz: Whether to store an SPZ blob (small, lossy, Cesium opens it) in place of float attributes.
        spz_version: Version of that blob; 2 is the one the extension names.
        overwrite: Whether an existing file may be replaced.

    Returns:
        Bytes of each part of the file; their sum is its size.

    Raises:
        InputError: Nothing to write, Gaussians that are not finite, the file exists, or the disk is full.
    """
    check_writable(gaussians, path)
    if spz:
        blob, _ = spz_bytes(gaussians, spz_version, turn=True, where=str(path))
        blobs = {"spz": blob}
        shapes = _attributes(rotate(gaussians.select(torch.zeros(1, dtype=torch.long)), HALF_TURN_ABOUT_Z))
        accessors = [_accessor(values, len(gaussians), None) for values in shapes.values()]
        means = rotate(gaussians, HALF_TURN_ABOUT_Z).means
    else:
        shapes = _attributes(rotate(gaussians.to("cpu"), HALF_TURN_ABOUT_Z))
        blobs = {name: values.astype("<f4").tobytes() for name, values in shapes.items()}
        accessors = [_accessor(values, len(gaussians), i) for i, values in enumerate(shapes.values())]
        means = torch.from_numpy(shapes["POSITION"])
    accessors[0] |= {"min": means.amin(dim=0).tolist(), "max": means.amax(dim=0).tolist()}
    document = _document(list(shapes), accessors, [len(b) for b in blobs.values()], spz, gaussians.antialiased)
    text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode("ascii")
    text += b" " * (-len(text) % 4)
    body = b"".join(blob + bytes(-len(blob) % 4) for blob in blobs.values())
    head = struct.pack("<4sIIII", MAGIC, 2, 28 + len(text) + len(body), len(text), _JSON)
    with atomic_write(path, overwrite=overwrite) as file:
        for data in (head, text, struct.pack("<II", len(body), _BIN), body):
            file.write(data)
    parts = {name.removeprefix(f"{EXTENSION}:").lower(): len(b) + -len(b) % 4 for name, b in blobs.items()}
    return {"header": 28 + len(text), **parts}


def read_glb(path: Path | str) -> Gaussians:
    """Reads the first Gaussian splat primitive of a .glb.

    Args:
        path: The file. Nodes' transforms are not applied; one that is not the identity is told in a warning.

    Returns:
        The Gaussians on the CPU, float32, in the order of the file and the frame of the .ply files.

    Raises:
        InputError: Not such a file, no splats in it, an accessor out of bounds, or values that are not finite.
    """
    path = Path(path)
    return gaussians_of_glb(read_bytes(path, MAX_FILE_BYTES), str(path))


def gaussians_of_glb(data: bytes, where: str) -> Gaussians:
    """The scene in the bytes of a .glb; see `read_glb`."""
    document, body = _chunks(data, where)
    primitive = _primitive(document, where)
    spz = _spz_blob(document, primitive, body, where)
    extras = primitive.get("extras")
    if spz is not None:
        return gaussians_of_spz(spz, f"{where}: SPZ", turn=True)
    attributes = primitive.get("attributes")
    if not isinstance(attributes, dict) or not isinstance(attributes.get("POSITION"), int):
        raise InputError(f"{where}: the splat primitive has no POSITION, expected attributes or {SPZ_EXTENSION}")
    values = {name: _values(document, body, index, str(name)[:60], where) for name, index in attributes.items()}
    antialiased = isinstance(extras, dict) and extras.get("antialiased") is True
    return rotate(_gaussians(values, antialiased, where), HALF_TURN_ABOUT_Z)


def glb_parts(path: Path | str) -> FileParts:
    """Bytes of each attribute in a file that `read_glb` reads."""
    data, where = read_bytes(Path(path), MAX_FILE_BYTES), str(path)
    document, body = _chunks(data, where)
    primitive = _primitive(document, where)
    header = Part("header", "JSON and headers", len(data) - len(body))
    spz = _spz_blob(document, primitive, body, where)
    if spz is not None:
        blob = parts_of_spz(spz, f"{where}: SPZ")
        return file_parts(blob.count, f"SPZ {blob.variant}", [header, *blob.parts], len(data))
    parts, count = [header], 0
    for name, index in primitive["attributes"].items():
        accessor = _entry(document, "accessors", index, where)
        component = np.dtype(_COMPONENTS[accessor["componentType"]])
        count = accessor["count"]
        short = name.removeprefix(f"{EXTENSION}:")
        parts.append(Part(_purpose(short), short, count * component.itemsize * _WIDTHS[accessor["type"]]))
    return file_parts(count, "attributes", parts, len(data))


def _purpose(name: str) -> str:
    """The attribute of a scene that an attribute of the primitive holds."""
    known = {"POSITION": "means", "ROTATION": "quats", "SCALE": "scales", "OPACITY": "opacities"}
    if name.startswith("SH_DEGREE_"):
        return "sh0" if name == "SH_DEGREE_0_COEF_0" else "shN"
    return known.get(name, "other")


def _spz_blob(document: dict[str, Any], primitive: dict[str, Any], body: bytes, where: str) -> bytes | None:
    """The SPZ file that a primitive names in place of attributes, if it does."""
    nested = primitive["extensions"][EXTENSION].get("extensions")
    spz = nested.get(SPZ_EXTENSION) if isinstance(nested, dict) else None
    return _view(document, spz.get("bufferView"), body, where)[0] if isinstance(spz, dict) else None


def _attributes(g: Gaussians) -> dict[str, Floats]:
    """Arrays [N, 1, 3 or 4] by the name of their attribute, POSITION first."""
    arrays = {
        "POSITION": g.means,
        f"{EXTENSION}:ROTATION": torch.nn.functional.normalize(g.quats, dim=1)[:, (1, 2, 3, 0)],
        f"{EXTENSION}:SCALE": g.scales.exp(),
        f"{EXTENSION}:OPACITY": g.opacities.sigmoid()[:, None],
        f"{EXTENSION}:SH_DEGREE_0_COEF_0": g.sh0,
    }
    for degree in range(1, g.sh_degree + 1):
        for n in range(2 * degree + 1):
            arrays[f"{EXTENSION}:SH_DEGREE_{degree}_COEF_{n}"] = g.shN[:, degree * degree - 1 + n]
    return {name: tensor.detach().cpu().float().numpy() for name, tensor in arrays.items()}


def _accessor(values: Floats, count: int, view: int | None) -> dict[str, Any]:
    kind = next(name for name, width in _WIDTHS.items() if width == values.shape[1])
    where = {} if view is None else {"bufferView": view}
    return {**where, "componentType": _FLOAT, "count": count, "type": kind}


def _document(
    names: list[str], accessors: list[dict[str, Any]], sizes: list[int], spz: bool, antialiased: bool
) -> dict[str, Any]:
    starts = np.cumsum([0, *(size + -size % 4 for size in sizes)]).tolist()
    extension: dict[str, Any] = {
        "kernel": "ellipse",
        "colorSpace": "srgb_rec709_display",
        "sortingMethod": "cameraDistance",
        "projection": "perspective",
    }
    if spz:
        extension["extensions"] = {SPZ_EXTENSION: {"bufferView": 0}}
    primitive: dict[str, Any] = {
        "attributes": {name: i for i, name in enumerate(names)},
        "mode": 0,
        "extensions": {EXTENSION: extension},
    }
    if antialiased:
        primitive["extras"] = {"antialiased": True}
    used = [EXTENSION, SPZ_EXTENSION] if spz else [EXTENSION]
    return {
        "asset": {"version": "2.0", "generator": "radcomp"},
        "extensionsUsed": used,
        **({"extensionsRequired": used} if spz else {}),
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        "buffers": [{"byteLength": starts[-1]}],
        "bufferViews": [{"buffer": 0, "byteOffset": a, "byteLength": b} for a, b in zip(starts, sizes, strict=False)],
        "accessors": accessors,
    }


def _chunks(data: bytes, where: str) -> tuple[dict[str, Any], bytes]:
    """The JSON document and the binary chunk."""
    if len(data) < 20 or data[:4] != MAGIC:
        raise InputError(f"{where}: starts with {data[:4]!r}, {len(data)} bytes, expected a .glb file")
    _, version, total, length, kind = struct.unpack_from("<4sIIII", data)
    if version != 2 or total > len(data) or kind != _JSON or length > min(len(data) - 20, MAX_JSON_CHUNK):
        raise InputError(
            f"{where}: glTF version {version}, {total} bytes of which {length} JSON, expected version 2 in {len(data)} "
            "bytes: it is cut off or damaged"
        )
    document = parse_json(data[20 : 20 + length], where)
    start = 20 + length
    if start + 8 > len(data):
        return document, b""
    size, kind = struct.unpack_from("<II", data, start)
    if kind != _BIN or size > len(data) - start - 8:
        raise InputError(f"{where}: a binary chunk of {size} bytes, expected at most {len(data) - start - 8}: cut off")
    return document, data[start + 8 : start + 8 + size]


def _primitive(document: dict[str, Any], where: str) -> dict[str, Any]:
    """The first primitive with the extension."""
    for index, mesh in enumerate(_list(document, "meshes")):
        for primitive in _list(mesh, "primitives"):
            extensions = primitive.get("extensions") if isinstance(primitive, dict) else None
            if isinstance(extensions, dict) and isinstance(extensions.get(EXTENSION), dict):
                _warn_if_moved(document, index, where)
                return primitive
    raise InputError(f"{where}: no primitive with {EXTENSION}, expected Gaussian splats, this looks like a mesh")


def _warn_if_moved(document: dict[str, Any], mesh: int, where: str) -> None:
    nodes = [node for node in _list(document, "nodes") if isinstance(node, dict)]
    if any(node.get("mesh") == mesh and any(key in node for key in _TRANSFORMS) for node in nodes):
        warnings.warn(f"{where}: the node of the splats has a transform, which is not applied", stacklevel=5)


def _list(value: Any, key: str) -> list[Any]:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, list) else []


def _entry(document: dict[str, Any], key: str, index: Any, where: str) -> dict[str, Any]:
    entries = _list(document, key)
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(entries):
        raise InputError(f"{where}: {key} has {len(entries)} entries, number {str(index)[:20]} is named")
    if not isinstance(entries[index], dict):
        raise InputError(f"{where}: {key} {index} is no object")
    return entries[index]


def _size(entry: dict[str, Any], key: str, default: int | None, where: str) -> int:
    value = entry.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_FILE_BYTES:
        raise InputError(f'{where}: "{key}" is {str(value)[:20]}, expected a whole number, not negative')
    return value


def _view(document: dict[str, Any], index: Any, body: bytes, where: str) -> tuple[bytes, int]:
    """Bytes of a buffer view, and its stride, 0 if it has none."""
    view = _entry(document, "bufferViews", index, where)
    start, size = _size(view, "byteOffset", 0, where), _size(view, "byteLength", None, where)
    if _size(view, "buffer", None, where) != 0 or start + size > len(body):
        raise InputError(f"{where}: a buffer view ends at byte {start + size} of {len(body)}: cut off or damaged")
    return body[start : start + size], _size(view, "byteStride", 0, where)


def _values(document: dict[str, Any], body: bytes, index: Any, name: str, where: str) -> Floats:
    """Values [N, width] of an accessor, normalised integers as floats."""
    where = f"{where}: {name}"
    accessor = _entry(document, "accessors", index, where)
    kind, width = _COMPONENTS.get(_size(accessor, "componentType", None, where)), accessor.get("type")
    columns = _WIDTHS.get(width) if isinstance(width, str) else None
    if kind is None or columns is None or "sparse" in accessor:
        raise InputError(f"{where}: accessor of type {str(width)[:20]}, expected a plain scalar or vector of numbers")
    data, stride = _view(document, accessor.get("bufferView"), body, where)
    dtype, count = np.dtype(kind), _size(accessor, "count", None, where)
    row = columns * dtype.itemsize
    start, stride = _size(accessor, "byteOffset", 0, where), stride or row
    if not 1 <= count <= MAX_COUNT or stride < row or start + stride * (count - 1) + row > len(data):
        raise InputError(f"{where}: {count} values of {row} bytes, expected 1 or more in {len(data)}: it is cut off")
    values = np.ndarray((count, columns), dtype, data, start, (stride, dtype.itemsize)).astype(np.float32)
    if kind == "<f4":
        return values
    if accessor.get("normalized") is not True:
        raise InputError(f"{where}: integers that are not normalised, expected floats or normalised integers")
    return np.maximum(values / np.iinfo(dtype).max, -1.0)


def _gaussians(values: dict[str, Floats], antialiased: bool, where: str) -> Gaussians:
    """The scene of arrays by attribute, in their frame."""
    count = len(values["POSITION"])

    def take(name: str, width: int) -> torch.Tensor:
        array = values.get(name if name == "POSITION" else f"{EXTENSION}:{name}")
        if array is None or array.shape != (count, width):
            shape = None if array is None else array.shape
            raise InputError(f"{where}: {name} of shape {shape}, expected ({count}, {width})")
        return torch.from_numpy(np.ascontiguousarray(array))

    degree = 0
    while degree < MAX_SH_DEGREE and f"{EXTENSION}:SH_DEGREE_{degree + 1}_COEF_0" in values:
        degree += 1
    names = [f"SH_DEGREE_{d}_COEF_{n}" for d in range(1, degree + 1) for n in range(2 * d + 1)]
    rest = [take(name, 3) for name in names]
    scales, opacity = take("SCALE", 3), take("OPACITY", 1)[:, 0]
    if bool((scales < 0).any()) or not bool(((opacity >= 0) & (opacity <= 1)).all()):
        raise InputError(f"{where}: a scale below 0 or an opacity outside of 0 to 1, expected activated values")
    scene = Gaussians(
        means=take("POSITION", 3),
        quats=take("ROTATION", 4)[:, (3, 0, 1, 2)],
        scales=scales.log().clamp(min=-INFINITE_LOGIT),
        opacities=opacity.double().logit().clamp(-INFINITE_LOGIT, INFINITE_LOGIT).float(),
        sh0=take("SH_DEGREE_0_COEF_0", 3),
        shN=torch.stack(rest, dim=1) if rest else torch.zeros(count, 0, 3),
        antialiased=antialiased,
    )
    bad = count - int(scene.finite().sum())
    if bad:
        raise InputError(f"{where}: {bad} of {count} Gaussians hold NaN or infinity, expected finite numbers")
    return scene
