"""The safetensors format: what is written comes back, and no damage goes through."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radcomp_plugins.core.safetensors import MAX_HEADER_BYTES, read_tensors, write_tensors
from radcomp_plugins.errors import InputError

ARRAYS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.array([[1.5], [-2.0]], np.float16),
    "c": np.array([250, 1, 2], np.uint8),
    "d": np.array([-128, 127], np.int8),
    "e": np.array([-(2**31)], np.int32),
    "empty": np.zeros((0, 4), np.float32),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_tensors(tmp_path / "x.safetensors", ARRAYS, {"note": "hello"})
    return tmp_path / "x.safetensors"


def rewritten(file: Path, change, body: bytes | None = None) -> Path:
    """The file with another header, and another body if one is given."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + (data[8 + length :] if body is None else body))
    return file


def test_what_is_written_comes_back(file: Path) -> None:
    arrays, metadata = read_tensors(file, 10**6)
    assert metadata == {"note": "hello"} and set(arrays) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype and arrays[name].shape == array.shape
        assert np.array_equal(arrays[name], array)


def test_layout_is_the_published_one(file: Path) -> None:
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0 and header["__metadata__"] == {"note": "hello"}
    assert header["a"] == {"dtype": "F16", "shape": [2, 1], "data_offsets": [0, 4]}
    assert data[8 + length : 12 + length] == np.array([1.5, -2.0], "<f2").tobytes()


def test_arrays_in_any_memory_order_are_written_in_c_order(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    write_tensors(tmp_path / "y", {"t": array}, {})
    assert np.array_equal(read_tensors(tmp_path / "y", 10**6)[0]["t"], array)


def test_same_arrays_same_bytes(file: Path, tmp_path: Path) -> None:
    write_tensors(tmp_path / "again", dict(reversed(ARRAYS.items())), {"note": "hello"})
    assert file.read_bytes() == (tmp_path / "again").read_bytes()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda h: h["a"].update(dtype="F64"), "dtype 'F64'"),
        (lambda h: h["a"].update(shape=[3]), "has 4 bytes, expected 6"),
        (lambda h: h["a"].update(shape=[-2, -1]), "whole numbers"),
        (lambda h: h["a"].update(shape=[True, 2]), "whole numbers"),
        (lambda h: h["a"].update(shape=[2**40, 2**40]), "expected"),
        (lambda h: h["a"].update(data_offsets=[0, 10**9]), "ascending places"),
        (lambda h: h["a"].update(data_offsets=[4, 0]), "ascending places"),
        (lambda h: h["a"].update(data_offsets=[4, 8]), "overlap or leave gaps"),
        (lambda h: h["a"].pop("shape"), "whole numbers"),
        (lambda h: h.update(a=3), "dtype 'int'"),
        (lambda h: h.update(__metadata__={"note": 1}), "not an object of texts"),
        (lambda h: h.pop("b"), "overlap or leave gaps"),
    ],
)
def test_wrong_headers_are_told(file: Path, change, told: str) -> None:
    with pytest.raises(InputError, match=told) as error:
        read_tensors(rewritten(file, change), 10**6)
    assert "\n" not in str(error.value)


def test_wrong_sizes_are_told(file: Path) -> None:
    data = file.read_bytes()
    with pytest.raises(InputError, match="at most 50"):
        read_tensors(file, 50)
    for cut in (0, 7, 20, len(data) - 1):
        file.write_bytes(data[:cut])
        with pytest.raises(InputError):
            read_tensors(file, 10**6)
    file.write_bytes(data + b"x")
    with pytest.raises(InputError, match="the header says"):
        read_tensors(file, 10**6)
    file.write_bytes(struct.pack("<Q", MAX_HEADER_BYTES + 1) + b" " * (MAX_HEADER_BYTES + 1))
    with pytest.raises(InputError, match="header of"):
        read_tensors(file, 10**8)


@settings(max_examples=200)
@given(at=st.integers(0, 10**6), value=st.integers(0, 255))
def test_any_byte_may_be_wrong(tmp_path_factory: pytest.TempPathFactory, at: int, value: int) -> None:
    file = tmp_path_factory.getbasetemp() / "byte.safetensors"
    write_tensors(file, ARRAYS, {"note": "hello"})
    data = bytearray(file.read_bytes())
    data[at % len(data)] = value
    file.write_bytes(bytes(data))
    try:
        read_tensors(file, 10**6)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017 - whether it raises depends on the byte
