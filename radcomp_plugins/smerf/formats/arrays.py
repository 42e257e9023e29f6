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

import numpy as np
from jaxtyping import Shaped, UInt8
from numpy.typing import NDArray

from radcomp_plugins.errors import InputError

SLICED_EDGE = 256
"""Grids with more cells along a side than this lie in `NUM_SLICES` files, cut along z."""
NUM_SLICES = 8
_CHUNK = 1 << 20


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
        InputError: none does.
    """
    for extension in extensions:
        if (folder / f"{name}{extension}").is_file():
            return folder / f"{name}{extension}"
    raise InputError(f"{folder / (name + extensions[0])} is missing: the asset is not complete")


def read_exactly(path: Path, size: int) -> NDArray[np.uint8]:
    """The bytes of a `.raw` or `.raw.gz` file, which has to hold exactly `size` once decompressed.

    Raises:
        InputError: another number of bytes, or a damaged file. A file that decompresses to more than was expected is
            given up at the first byte too many.
    """
    data = read_at_most(path, size)
    if len(data) != size:
        raise InputError(f"{path} holds {len(data)} bytes, expected {size}: it is cut off or not of this asset")
    return np.frombuffer(data, np.uint8)


def read_at_most(path: Path, size: int) -> bytearray:
    """The bytes of a file, decompressed if its name ends in `.gz`.

    Raises:
        InputError: more than `size` bytes, or a damaged file.
    """
    data = bytearray()
    try:
        with open(path, "rb") as file:
            source = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
            while chunk := source.read(min(_CHUNK, size + 1 - len(data))):
                data += chunk
                if len(data) > size:
                    raise InputError(f"{path} holds more than {size} bytes, expected no more")
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is damaged: {error}".replace("\n", " ")) from error
    return data


def read_png(path: Path, width: int, height: int, channels: int) -> NDArray[np.uint8]:
    """The texels [height * width * channels] of a PNG file.

    Raises:
        InputError: another size than expected (found in the header, before anything is decoded), or a damaged file.
    """
    from PIL import Image

    modes = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
    try:
        head = path.open("rb").read(24)
        if len(head) < 24 or head[:8] != b"\x89PNG\r\n\x1a\n":
            raise InputError(f"{path} is no PNG file")
        got = struct.unpack(">II", head[16:24])
        if got != (width, height):
            raise InputError(f"{path} is {got[0]} x {got[1]} texels, expected {width} x {height}")
        with Image.open(io.BytesIO(path.read_bytes()), formats=["PNG"]) as image:
            if image.mode != modes[channels]:
                raise InputError(f"{path} has mode {image.mode}, expected {modes[channels]}")
            return np.asarray(image, np.uint8).reshape(-1)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged: {error}".replace("\n", " ")) from error
