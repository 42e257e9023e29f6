"""SOG version 2 and 1, PlayCanvas's "Spatially Ordered Gaussians": a meta.json and lossless WebP images of numbers.

Pixel i (row by row) of each image is Gaussian i. Positions are 16-bit steps of sign(x) ln(1 + |x|) in two images of
low and high bytes; scales (logarithms) and the constant SH coefficient are bytes that index a codebook of 256 entries;
opacity is the alpha channel of `sh0`, activated; quaternions keep their three smallest components, alpha 252 + i tells
which is left out; higher SH are 16-bit labels into a palette, 64 entries per row of `shN_centroids`, whose bytes index
a third codebook. All of it lies in a folder, or in one zip file with the suffix `.sog`.

Version 1, which is only read, has no number of its version. In place of codebooks each channel of scales, SH and
opacity (there a logit) is a byte between a least and a greatest number; count and SH degree are told by shapes.

Format: developer.playcanvas.com/user-manual/gaussian-splatting/formats/sog. The frame is that of the .ply files.
"""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from radcomp_plugins.core.files import parse_json, read_bytes, safe_relative
from radcomp_plugins.core.quantize import dequantize_uniform
from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.formats.parts import FileParts, Part, file_parts
from radcomp_plugins.splats.formats.sog_quantise import (
    CODEBOOK_SIZE,
    QUAT_TAG,
    dequantise_means,
    dequantise_opacity,
    dequantise_quats,
)
from radcomp_plugins.splats.formats.sog_writer import MAX_PALETTE, PALETTE_COLUMNS, write_sog
from radcomp_plugins.splats.formats.webp import Pixels, decode_webp
from radcomp_plugins.splats.gaussians import MAX_SH_DEGREE, Gaussians, num_sh_rest

__all__ = ["read_sog", "sog_parts", "write_sog"]

_IMAGES = {
    "means": ("means", "means"),
    "scales": ("scales",),
    "quats": ("quats",),
    "sh0": ("sh0 and opacities",),
    "shN": ("shN palette", "shN labels"),
}
"""What the images of each section of the metadata hold."""

MAX_META_BYTES = 2**20
MAX_ZIP_ENTRIES = 1000
MAX_LOG_POSITION = 60.0

GAUSSIANS_PER_BYTE = 4
"""More Gaussians than this per byte of the position images, beyond the first 65,536, can only be a bomb."""


class _Parts:
    """The files of a SOG by name, from a folder or a zip, each read with a bound on its size."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.archive: zipfile.ZipFile | None = None
        self.folder = path

    def open(self, file: BinaryIO | None) -> "_Parts":
        if file is None:
            return self
        try:
            self.archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
            raise InputError(f"{self.path} is no readable zip file ({error}), expected a SOG bundle") from error
        names = self.archive.namelist()
        if len(names) > MAX_ZIP_ENTRIES or len(set(names)) != len(names):
            raise InputError(f"{self.path} holds {len(names)} files or repeated names, expected a SOG bundle")
        for name in names:
            safe_relative(name, str(self.path))
        return self

    def where(self, name: str) -> str:
        return f"{self.path}/{name}"

    def size(self, name: str) -> int:
        """Bytes of a file that is there: as they lie in the zip, without the zip's own entry for it."""
        return (self.folder / name).stat().st_size if self.archive is None else self.archive.getinfo(name).compress_size

    def read(self, name: str, limit: int) -> bytes:
        safe_relative(name, str(self.path))
        if self.archive is None:
            file = self.folder / name
            if file.is_file() and not file.resolve().is_relative_to(self.folder.resolve()):
                raise InputError(f"{file} is a link that leads out of the folder")
            return read_bytes(file, limit)
        try:
            entry = self.archive.getinfo(name)
            if entry.file_size > limit or entry.flag_bits & 1:
                raise InputError(f"{self.where(name)}: {entry.file_size} bytes or encrypted, expected at most {limit}")
            with self.archive.open(entry) as stream:
                # A lying header cannot get past this: no more than it declares is ever unpacked.
                return stream.read(limit)
        except KeyError as error:
            raise InputError(f"{self.path} has no file {name!r}: the SOG bundle is not complete") from error
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
            raise InputError(f"{self.where(name)} cannot be unpacked ({error}): cut off or damaged") from error


def read_sog(path: Path | str) -> Gaussians:
    """Reads a SOG scene of version 2 or 1.

    Args:
        path: A `.sog` bundle, a folder with `meta.json`, or that `meta.json`.

    Returns:
        The Gaussians on the CPU, float32, in the order of the file; quaternions of length 1.

    Raises:
        InputError: Not such a file, a part missing, damaged or of a wrong size, an index out of range.
    """
    with _opened(Path(path)) as (parts, meta_name):
        return _decode(parts, meta_name)


def sog_parts(path: Path | str) -> FileParts:
    """Bytes of each image of a scene that `read_sog` reads; those of a bundle's zip around them are `rest`."""
    path = Path(path)
    with _opened(path) as (files, meta_name):
        meta = parse_json(files.read(meta_name, MAX_META_BYTES), files.where(meta_name))
        parts = [Part("header", meta_name, files.size(meta_name))]
        for key, attributes in _IMAGES.items():
            names = (meta.get(key) or {}).get("files", [])
            parts += [Part(a, name, files.size(name)) for a, name in zip(attributes, names, strict=False)]
        version = meta.get("version", 1)
        count = meta["count"] if version == 2 else meta["means"]["shape"][0]
        size = path.stat().st_size if files.archive is not None else sum(part.bytes for part in parts)
    return file_parts(count, f"version {version}, {'folder' if files.archive is None else 'bundle'}", parts, size)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[_Parts, str]]:
    """The files of a bundle or folder, and the name of its metadata.

    Raises:
        InputError: Nothing there, or no readable zip.
    """
    if path.is_dir():
        yield _Parts(path), "meta.json"
    elif not path.is_file():
        raise InputError(f"{path}: no such file, expected a SOG bundle, folder or meta.json")
    elif path.name.endswith(".json"):
        yield _Parts(path.parent), path.name
    else:
        with open(path, "rb") as file:
            yield _Parts(path).open(file), "meta.json"


def _decode(parts: _Parts, meta_name: str = "meta.json") -> Gaussians:
    meta = parse_json(parts.read(meta_name, MAX_META_BYTES), parts.where(meta_name))
    where = parts.where(meta_name)
    section = {name: _object(meta, name, where) for name in ("means", "scales", "quats", "sh0")}
    if "version" not in meta and isinstance(section["means"].get("shape"), list):
        return _decode_version_1(meta, section, parts, where)
    if meta.get("version") != 2:
        raise InputError(f"{where}: SOG version {str(meta.get('version'))[:20]}, expected 2 or 1")
    count = _integer(meta, "count", 1, 2**31, where)
    images = _Images(parts, where, count)
    means = _decode_means(section["means"], images, where)
    scales = _codebook(section["scales"], "scales", where)[images.load(section["scales"], "scales", 0)[:, :3]]
    quats = _decode_quats(images.load(section["quats"], "quats", 0), where)
    sh0 = images.load(section["sh0"], "sh0", 0)
    rest = _decode_rest(_object(meta, "shN", where), images, where) if meta.get("shN") is not None else None
    return Gaussians(
        means=_tensor(means),
        quats=_tensor(quats),
        scales=_tensor(scales),
        opacities=_tensor(dequantise_opacity(sh0[:, 3])),
        sh0=_tensor(_codebook(section["sh0"], "sh0", where)[sh0[:, :3]]),
        shN=_tensor(np.zeros((count, 0, 3)) if rest is None else rest),
        antialiased=meta.get("model") == "antialiased" or meta.get("antialias") is True,
    )


def _decode_version_1(meta: dict[str, Any], section: dict[str, dict[str, Any]], parts: _Parts, where: str) -> Gaussians:
    count = _integer({"means.shape": (section["means"]["shape"] or [None])[0]}, "means.shape", 1, 2**31, where)
    images = _Images(parts, where, count)
    means = _decode_means(section["means"], images, where)
    scales = _between(section["scales"], images.load(section["scales"], "scales", 0)[:, :3], "scales", where)
    colors = _between(section["sh0"], images.load(section["sh0"], "sh0", 0), "sh0", where)
    rest = np.zeros((count, 0, 3))
    if meta.get("shN") is not None:
        shn = _object(meta, "shN", where)
        values, labels = _load_palette(shn, images, where, None)
        low, high = (_numbers({key: [shn.get(key)]}, key, 1, "shN", where) for key in ("mins", "maxs"))
        rest = dequantize_uniform(values, low, high, 8).astype(np.float32)[labels]
    return Gaussians(
        means=_tensor(means),
        quats=_tensor(_decode_quats(images.load(section["quats"], "quats", 0), where)),
        scales=_tensor(scales),
        opacities=_tensor(colors[:, 3]),
        sh0=_tensor(colors[:, :3]),
        shN=_tensor(rest),
        antialiased=meta.get("antialias") is True,
    )


def _between(section: dict[str, Any], levels: Pixels, name: str, where: str) -> npt.NDArray[np.float64]:
    """Values of bytes [N, channels] between the numbers "mins" and "maxs" of each channel."""
    low, high = (_numbers(section, key, levels.shape[1], name, where) for key in ("mins", "maxs"))
    return dequantize_uniform(levels, low, high, 8)


class _Images:
    """Loads the images that have one pixel per Gaussian; the first ones loaded bound the count by their bytes."""

    def __init__(self, parts: _Parts, where: str, count: int) -> None:
        self.parts, self.where, self.count = parts, where, count
        self.max_pixels = 4 * count + 2**20

    def name(self, section: dict[str, Any], key: str, index: int) -> str:
        files = section.get("files")
        if not isinstance(files, list) or len(files) <= index or not isinstance(files[index], str):
            raise InputError(f'{self.where}: "{key}.files" has no file name number {index + 1}')
        return files[index]

    def load(self, section: dict[str, Any], key: str, index: int) -> Pixels:
        """Pixels [count, 4] of an image."""
        name = self.name(section, key, index)
        data = self.parts.read(name, 2**16 + 4 * self.max_pixels)
        if self.count > 2**16 + GAUSSIANS_PER_BYTE * len(data) and key == "means":
            raise InputError(f"{self.where}: {self.count} Gaussians in {len(data)} bytes of positions, not possible")
        pixels = decode_webp(data, self.parts.where(name), min_pixels=self.count, max_pixels=self.max_pixels)
        return pixels.reshape(-1, 4)[: self.count]


def _decode_means(section: dict[str, Any], images: _Images, where: str) -> npt.NDArray[np.float64]:
    low, high = (_numbers(section, key, 3, "means", where) for key in ("mins", "maxs"))
    if (high < low).any() or max(abs(low).max(), abs(high).max()) > MAX_LOG_POSITION:
        raise InputError(f'{where}: "means.mins" and "means.maxs" out of order or beyond {MAX_LOG_POSITION}')
    # The widest type of the product with 256 has to be stated: bytes would wrap around.
    levels = images.load(section, "means", 0)[:, :3] + 256 * images.load(section, "means", 1)[:, :3].astype(np.int64)
    return dequantise_means(levels, low, high)


def _decode_quats(pixels: Pixels, where: str) -> npt.NDArray[np.float64]:
    if (pixels[:, 3] < QUAT_TAG).any():
        raise InputError(f"{where}: a quaternion has tag {int(pixels[:, 3].min())}, expected 252 to 255")
    return dequantise_quats(pixels)


def _decode_rest(section: dict[str, Any], images: _Images, where: str) -> npt.NDArray[np.float32]:
    bands = _integer(section, "bands", 1, MAX_SH_DEGREE, f'{where}: "shN"')
    entries = _integer(section, "count", 1, MAX_PALETTE, f'{where}: "shN"')
    codebook = _codebook(section, "shN", where).astype(np.float32)
    values, labels = _load_palette(section, images, where, (bands, entries))
    return codebook[values][labels]


def _load_palette(
    section: dict[str, Any], images: _Images, where: str, stated: tuple[int, int] | None
) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """Bytes [entries, K, 3] of the SH palette, and the label of each Gaussian.

    `stated` are SH degree and entries; without them the image's size tells.
    """
    name = images.name(section, "shN", 0)
    bands, entries = stated or (MAX_SH_DEGREE, 1)
    width, rows = PALETTE_COLUMNS * num_sh_rest(bands), -(-entries // PALETTE_COLUMNS)
    most = width * MAX_PALETTE // PALETTE_COLUMNS
    data = images.parts.read(name, 2**16 + 4 * most)
    least = width * rows if stated else PALETTE_COLUMNS
    pixels = decode_webp(data, images.parts.where(name), min_pixels=least, max_pixels=most)
    widths = [width] if stated else [PALETTE_COLUMNS * num_sh_rest(d) for d in range(1, MAX_SH_DEGREE + 1)]
    if pixels.shape[1] not in widths:
        raise InputError(
            f"{images.parts.where(name)} is {pixels.shape[1]} pixels wide, expected {' or '.join(map(str, widths))}"
        )
    entries = entries if stated else min(pixels.shape[0] * PALETTE_COLUMNS, MAX_PALETTE)
    values = pixels.reshape(-1, pixels.shape[1] // PALETTE_COLUMNS, 4)[:entries, :, :3]
    labels = images.load(section, "shN", 1).astype(np.int64)
    labels = labels[:, 0] + 256 * labels[:, 1]
    if labels.max() >= entries:
        raise InputError(f"{where}: a Gaussian has SH label {labels.max()}, but the palette has {entries} entries")
    return values, labels


def _object(meta: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    value = meta.get(key)
    if not isinstance(value, dict):
        raise InputError(f'{where}: "{key}" is {type(value).__name__}, expected an object')
    return value


def _integer(section: dict[str, Any], key: str, low: int, high: int, where: str) -> int:
    value = section.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(f'{where}: "{key}" is {str(value)[:20]}, expected a whole number from {low} to {high}')
    return value


def _numbers(section: dict[str, Any], key: str, count: int, name: str, where: str) -> npt.NDArray[np.float64]:
    value = section.get(key)
    numbers = value if isinstance(value, list) else []
    good = len(numbers) == count and all(isinstance(v, int | float) and not isinstance(v, bool) for v in numbers)
    if not good or not all(abs(v) < 1e30 for v in numbers):
        raise InputError(f'{where}: "{name}.{key}" has {len(numbers)} entries, expected {count} finite numbers')
    return np.array(numbers, np.float64)


def _codebook(section: dict[str, Any], name: str, where: str) -> npt.NDArray[np.float64]:
    return _numbers(section, "codebook", CODEBOOK_SIZE, name, where)


def _tensor(values: npt.NDArray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))
