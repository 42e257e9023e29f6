"""The arrays of an asset as files: their order, their names, and reading them no further than they may be long.

An array of texels [x, y, z, channel] lies in its file as WebGL takes it: x fastest but for the channels, then y, then
z. `.raw.gz` files are those bytes, compressed; a server answers a request for `X.raw` with `X.raw.gz` and
`Content-Encoding: gzip`.
"""

import gzip
import io
import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Shaped, UInt8
from numpy.typing import NDArray
from PIL import Image

from radcomp_plugins.core.files import parse_json
from radcomp_plugins.errors import InputError
from radcomp_plugins.smerf.formats.problem import fail

SLICED_EDGE = 256
"""Grids with more cells along a side than this lie in `NUM_SLICES` files, cut along z."""
NUM_SLICES = 8
_CHUNK = 1 << 20
_MOST_DEFLATED = 1040
"""Deflate shrinks to a 1032nd at best: a file that would have to do better is cut off, which is known unread."""
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_HEAD = struct.Struct(">16sII")


def grid_rows(grid: Shaped[np.ndarray, "X Y Z *C"]) -> Shaped[np.ndarray, "rows X C"]:
    """A grid [x, y, z] or [x, y, z, channel] as the rows of its file [z * y, x, channel]."""
    grid = grid if grid.ndim == 4 else grid[..., None]
    x, y, z, channels = grid.shape
    return np.ascontiguousarray(grid.transpose(2, 1, 0, 3)).reshape(z * y, x, channels)


def rows_grid(rows: NDArray[np.uint8], shape: tuple[int, int, int]) -> UInt8[np.ndarray, "X Y Z C"]:
    """The inverse of `grid_rows`: bytes of a file as [x, y, z, channel]."""
    x, y, z = shape
    return np.ascontiguousarray(rows.reshape(z, y, x, -1).transpose(2, 1, 0, 3))


def slice_count(edge: int) -> int:
    """Files that a grid of cells lies in."""
    return NUM_SLICES if edge > SLICED_EDGE else 1


def slice_bounds(edge: int) -> list[tuple[int, int]]:
    """First and one past the last layer along z of each of a grid's files."""
    depth = -(-edge // slice_count(edge))
    return [(min(k * depth, edge), min((k + 1) * depth, edge)) for k in range(slice_count(edge))]


def write_gz(path: Path, parts: Iterable[bytes]) -> int:
    """Write a gzip file that is the same for the same content: no name, no time.

    Returns:
        Bytes before compression.
    """
    total = 0
    with open(path, "wb") as file, gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as packed:
        for part in parts:
            total += len(part)
            packed.write(part)
    return total


def find_file(folder: Path, name: str, extensions: Sequence[str]) -> Path:
    """The first of `name` + extension that exists.

    Raises:
        AssetError: none does.
    """
    for extension in extensions:
        if (folder / f"{name}{extension}").is_file():
            return folder / f"{name}{extension}"
    fail(folder / f"{name}{extensions[0]}", "the file", "missing", "a file: the asset is not complete")


def read_exactly(path: Path, size: int) -> NDArray[np.uint8]:
    """The bytes of a file, decompressed if its name ends in `.gz`, which have to be `size` many.

    Raises:
        AssetError: another number of bytes, or a damaged file. A file that decompresses to more than was expected is
            given up at the first byte too many.
    """
    check_size(path, size)
    data = read_at_most(path, size)
    if len(data) != size:
        fail(path, "size", f"{len(data)} bytes", f"{size} bytes: it is cut off, or of another asset")
    return np.frombuffer(data, np.uint8)


def check_size(path: Path, size: int) -> None:
    """Refuse a file that is too small to hold `size` bytes, however well they were compressed."""
    packed = path.stat().st_size
    if path.suffix == ".gz" and size > packed * _MOST_DEFLATED:
        fail(path, "compressed size", f"{packed} bytes", f"enough for {size} bytes: it is cut off")
    if path.suffix != ".gz" and size > packed:
        fail(path, "size", f"{packed} bytes", f"{size} bytes: it is cut off, or of another asset")


def read_at_most(path: Path, size: int) -> bytearray:
    """The bytes of a file, decompressed if its name ends in `.gz`.

    Raises:
        AssetError: more than `size` bytes, or a damaged file.
    """
    data = bytearray()
    try:
        with open(path, "rb") as file:
            source: BinaryIO | gzip.GzipFile = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
            while chunk := source.read(min(_CHUNK, size + 1 - len(data))):
                data += chunk
                if len(data) > size:
                    fail(path, "size", f"more than {size} bytes", f"{size} bytes at most")
    except (OSError, EOFError, zlib.error) as error:
        fail(path, "content", f"damaged ({error})", "a whole gzip file" if path.suffix == ".gz" else "a readable file")
    return data


def read_object(path: Path, size: int) -> dict[str, Any]:
    """The JSON object in a file of at most `size` bytes, decompressed if its name ends in `.gz`.

    Raises:
        AssetError: larger, damaged, or no JSON object.
    """
    data = bytes(read_at_most(path, size))
    try:
        return parse_json(data, path.name)
    except InputError as error:
        fail(path, "content", str(error).removeprefix(f"{path.name}: "), "a JSON object")


def read_png(path: Path, width: int, height: int, channels: int) -> NDArray[np.uint8]:
    """The texels [height * width * channels] of a PNG file.

    Raises:
        AssetError: another size than expected (found in the header, before anything is decoded), or a damaged file.
    """
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
    most = height * (width * channels + 1) + _CHUNK  # stored without compression, and room for what is not texels
    data = bytes(read_at_most(path, most))
    if len(data) < _PNG_HEAD.size or not data.startswith(_PNG_MAGIC):
        fail(path, "content", "no PNG", "a PNG file")
    got = _PNG_HEAD.unpack_from(data)[1:]
    if got != (width, height):
        fail(path, "size", f"{got[0]} x {got[1]} texels", f"{width} x {height} texels")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            found, texels = image.mode, np.array(image)
    except (OSError, SyntaxError, ValueError, zlib.error) as error:
        fail(path, "content", f"damaged ({error})", "a whole PNG file")
    if found != mode:
        fail(path, "mode", found, mode)
    return texels.reshape(-1)
