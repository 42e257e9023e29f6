"""The safetensors format: named arrays in one file, behind a JSON header, with nothing in it that could run.

Eight bytes with the header's length, little-endian; the header, an object that says of every array its dtype, shape and
place; then the arrays. Read and written here in full, so that every number of a hostile file is checked before memory
is taken, and every mistake is one line.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radcomp_plugins.core.files import atomic_write, parse_json, read_bytes
from radcomp_plugins.errors import InputError

DTYPES = {"F32": "<f4", "F16": "<f2", "U8": "|u1", "I8": "|i1", "I32": "<i4"}
"""Of the format's kinds of numbers, those that we write."""
MAX_HEADER_BYTES = 2**20
_NAMES = {np.dtype(code): name for name, code in DTYPES.items()}
_METADATA = "__metadata__"


def write_tensors(path: Path | str, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write arrays, in the order of their names, atomically; the same bytes for the same arrays.

    Args:
        path: of the file, replaced if it is there.
        tensors: of the dtypes in `DTYPES`.
        metadata: text by name.
    """
    header: dict[str, Any] = {_METADATA: dict(metadata)}
    at, parts = 0, []
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name]).astype(tensors[name].dtype.newbyteorder("<"), copy=False)
        header[name] = {
            "dtype": _NAMES[array.dtype], "shape": list(tensors[name].shape), "data_offsets": [at, at + array.nbytes]
        }  # fmt: skip
        at += array.nbytes
        parts.append(array.tobytes())
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for part in parts:
            file.write(part)


def read_tensors(path: Path | str, max_bytes: int) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Arrays, read-only, and metadata of a file.

    Args:
        path: of the file.
        max_bytes: largest size that is read.

    Raises:
        InputError: missing, too large, or damaged in any way.
    """
    data = read_bytes(path, max_bytes)
    if len(data) < 8:
        raise InputError(f"{path}: {len(data)} bytes, expected at least 8 of a safetensors file")
    (length,) = struct.unpack("<Q", data[:8])
    if not 2 <= length <= min(MAX_HEADER_BYTES, len(data) - 8):
        raise InputError(
            f"{path}: header of {length} bytes in a file of {len(data)}, expected 2 to {MAX_HEADER_BYTES} within it"
        )
    header = parse_json(data[8 : 8 + length], f"{path} (header)")
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError(f"{path}: {_METADATA} is not an object of texts")
    body = memoryview(data)[8 + length :]
    places = sorted(_place(path, name, entry, len(body)) for name, entry in header.items())
    end = 0
    for first, last, name in places:
        if first != end:
            raise InputError(f"{path}: {name} begins at byte {first}, expected {end}: arrays overlap or leave gaps")
        end = last
    if end != len(body):
        raise InputError(f"{path}: {len(body)} bytes of arrays, the header says {end}")
    arrays = {}
    for first, last, name in places:
        shape = [int(n) for n in header[name]["shape"]]
        arrays[name] = np.frombuffer(body[first:last], DTYPES[header[name]["dtype"]]).reshape(shape)
    return arrays, metadata


def _place(path: Path | str, name: str, entry: Any, size: int) -> tuple[int, int, str]:
    """First byte of an array, one past its last, and its name, once its entry makes sense."""
    if not isinstance(entry, dict) or entry.get("dtype") not in DTYPES:
        kind = entry.get("dtype") if isinstance(entry, dict) else type(entry).__name__
        raise InputError(f"{path}: {name} has dtype {kind!r}, expected one of {', '.join(DTYPES)}")
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    for what, numbers in (("shape", shape), ("data_offsets", offsets)):
        fine = isinstance(numbers, list) and len(numbers) <= 8
        if not fine or not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
            raise InputError(f"{path}: {name} has {what} {str(numbers)[:80]}, expected whole numbers from 0 up")
    if len(offsets) != 2 or not offsets[0] <= offsets[1] <= size:
        raise InputError(f"{path}: {name} lies at {offsets}, expected two ascending places up to {size}")
    wanted = np.dtype(DTYPES[entry["dtype"]]).itemsize
    for n in shape:
        wanted *= n
    if wanted != offsets[1] - offsets[0]:
        raise InputError(f"{path}: {name} of shape {shape} has {offsets[1] - offsets[0]} bytes, expected {wanted}")
    return offsets[0], offsets[1], name
