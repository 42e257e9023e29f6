"""Arrays as files: their order, and reading no further than they may be long."""

import gzip
import hashlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from radcomp_plugins.errors import InputError
from radcomp_plugins.smerf.formats.arrays import (
    find_file,
    grid_rows,
    read_at_most,
    read_exactly,
    read_object,
    read_png,
    rows_grid,
    slice_bounds,
    write_gz,
)


def test_x_is_fastest_then_y_then_z():
    grid = np.arange(2 * 3 * 4 * 2, dtype=np.uint8).reshape(2, 3, 4, 2)
    rows = grid_rows(grid)
    assert rows.shape == (12, 2, 2)
    x, y, z = 1, 2, 3
    np.testing.assert_array_equal(rows[z * 3 + y, x], grid[x, y, z])
    np.testing.assert_array_equal(rows_grid(rows.reshape(-1), (2, 3, 4)), grid)
    np.testing.assert_array_equal(grid_rows(grid[..., 0])[..., 0], rows[..., 0])


def test_large_grids_are_cut_in_eight_along_z():
    assert slice_bounds(256) == [(0, 256)]
    assert slice_bounds(512) == [(64 * k, 64 * k + 64) for k in range(8)]
    uneven = slice_bounds(258)
    assert uneven[0] == (0, 33) and uneven[-1] == (231, 258)


def test_same_content_gives_the_same_file(tmp_path):
    assert write_gz(tmp_path / "a.gz", [b"one", b"two"]) == 6
    write_gz(tmp_path / "b.gz", [b"onetwo"])
    one, two = (tmp_path / "a.gz").read_bytes(), (tmp_path / "b.gz").read_bytes()
    assert gzip.decompress(one) == gzip.decompress(two) == b"onetwo"
    # no flags, so no name; and no time
    assert one[3:8] == two[3:8] == bytes(5)


@pytest.mark.parametrize("name", ["x.raw", "x.raw.gz"])
def test_read_exactly(tmp_path, name):
    path = tmp_path / name
    data = bytes(range(200))
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert read_exactly(path, 200).tobytes() == data
    with pytest.raises(InputError, match=r"x\.raw.*size is 200 bytes, expected 201 bytes"):
        read_exactly(path, 201)
    with pytest.raises(InputError, match="more than 199 bytes"):
        read_exactly(path, 199)


def test_a_bomb_is_given_up_before_it_fills_the_memory(tmp_path):
    path = tmp_path / "bomb.raw.gz"
    path.write_bytes(gzip.compress(bytes(200_000_000), 9))
    tracemalloc.start()
    with pytest.raises(InputError, match="more than 1000 bytes"):
        read_exactly(path, 1000)
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()


def test_a_file_too_small_for_what_it_should_hold_is_not_read(tmp_path):
    path = tmp_path / "cut.raw.gz"
    path.write_bytes(gzip.compress(bytes(10)))
    with pytest.raises(InputError, match="compressed size"):
        read_exactly(path, 10**12)


@given(st.integers(0, 10**6), st.integers(0, 255), st.booleans())
def test_mutated_gzip_files_are_refused_or_read_whole(tmp_path_factory, at, value, cut):
    folder = tmp_path_factory.getbasetemp() / "mutated"
    folder.mkdir(exist_ok=True)
    content = hashlib.sha256(b"x").digest() * 20
    data = bytearray(gzip.compress(content, mtime=0))
    at %= len(data)
    data = data[:at] if cut else data[:at] + bytes([value]) + data[at + 1 :]
    path = folder / "x.raw.gz"
    path.write_bytes(data)
    try:
        assert read_exactly(path, len(content)).tobytes() == content
    except InputError as error:
        assert "x.raw.gz" in str(error) and "\n" not in str(error)


def test_png_files(tmp_path):
    texels = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    path = tmp_path / "x.png"
    Image.fromarray(texels).save(path)
    np.testing.assert_array_equal(read_png(path, 7, 5, 4), texels.reshape(-1))
    with pytest.raises(InputError, match="size is 7 x 5 texels, expected 5 x 7"):
        read_png(path, 5, 7, 4)
    with pytest.raises(InputError, match="mode is RGBA, expected RGB"):
        read_png(path, 7, 5, 3)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match="damaged"):
        read_png(path, 7, 5, 4)
    path.write_bytes(b"GIF89a")
    with pytest.raises(InputError, match="no PNG"):
        read_png(path, 7, 5, 4)


def test_find_file_and_objects(tmp_path):
    (tmp_path / "x.raw").touch()
    assert find_file(tmp_path, "x", (".raw.gz", ".raw")).name == "x.raw"
    with pytest.raises(InputError, match=r"y\.raw\.gz.*missing"):
        find_file(tmp_path, "y", (".raw.gz", ".raw"))
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(InputError, match="expected a JSON object"):
        read_object(tmp_path / "a.json", 100)
    with pytest.raises(InputError, match="cannot|damaged"):
        read_at_most(tmp_path, 10)
