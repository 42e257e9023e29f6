"""Sparse sets of voxels, against dense arrays."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from radcomp_plugins.core import threads
from radcomp_plugins.errors import InputError
from radcomp_plugins.smerf.empty_space import pack_cells
from radcomp_plugins.smerf.voxels import SparseVoxels

RESOLUTIONS = st.sampled_from([1, 5, 8, 13, 16, 24, 31])
SEEDS = st.integers(0, 2**32 - 1)
DENSITIES = st.sampled_from([0.0, 0.01, 0.2, 0.6, 1.0])


def random_dense(resolution: int, seed: int, density: float) -> np.ndarray:
    return np.random.default_rng(seed).random((resolution,) * 3) < density


def pooled(dense: np.ndarray, factor: int) -> np.ndarray:
    pad = [(0, -n % factor) for n in dense.shape]
    n = -(-dense.shape[0] // factor)
    return np.pad(dense, pad).reshape(n, factor, n, factor, n, factor).any(axis=(1, 3, 5))


@given(RESOLUTIONS, SEEDS, DENSITIES)
def test_dense_and_back(resolution, seed, density):
    dense = random_dense(resolution, seed, density)
    voxels = SparseVoxels.from_dense(dense)
    np.testing.assert_array_equal(voxels.dense(), dense)
    assert len(voxels) == dense.sum()
    assert (np.diff(voxels.codes) > 0).all() and voxels.bits.any(axis=-1).all()


@given(RESOLUTIONS, SEEDS, st.integers(0, 4))
def test_coordinates_in_chunks_repeated_and_outside(resolution, seed, chunks):
    rng = np.random.default_rng(seed)
    parts = [rng.integers(-2, resolution + 2, (rng.integers(0, 60), 3)) for _ in range(chunks)]
    voxels = SparseVoxels.from_coords(resolution, iter(parts))
    expected = np.zeros((resolution,) * 3, np.bool_)
    for part in parts:
        kept = part[((part >= 0) & (part < resolution)).all(axis=-1)]
        expected[tuple(kept.T)] = True
    np.testing.assert_array_equal(voxels.dense(), expected)
    queries = rng.integers(-2, resolution + 2, (200, 3))
    inside = ((queries >= 0) & (queries < resolution)).all(axis=-1)
    want = inside & expected[tuple(queries.clip(0, resolution - 1).T)]
    np.testing.assert_array_equal(voxels.contains(queries), want)


@given(RESOLUTIONS, SEEDS)
def test_union(resolution, seed):
    one, two = random_dense(resolution, seed, 0.02), random_dense(resolution, seed + 1, 0.02)
    both = SparseVoxels.from_dense(one) | SparseVoxels.from_dense(two)
    np.testing.assert_array_equal(both.dense(), one | two)


@given(RESOLUTIONS, SEEDS, DENSITIES, st.sampled_from([1, 2, 4, 8, 16, 64]))
def test_pool(resolution, seed, density, factor):
    dense = random_dense(resolution, seed, density)
    got = SparseVoxels.from_dense(dense).pool(factor)
    np.testing.assert_array_equal(got.dense(), pooled(dense, factor))
    assert (np.diff(got.codes) > 0).all() and got.bits.any(axis=-1).all()


@given(RESOLUTIONS, SEEDS, DENSITIES)
def test_median(resolution, seed, density):
    dense = random_dense(resolution, seed, density)
    want = ndimage.median_filter(dense.astype(np.uint8), 3, mode="nearest") > 0
    np.testing.assert_array_equal(SparseVoxels.from_dense(dense).median().dense(), want)


def test_median_removes_a_floater_and_keeps_a_wall():
    dense = np.zeros((16, 16, 16), np.bool_)
    dense[3, 4, 5] = True
    dense[10:12] = True
    want = np.zeros_like(dense)
    want[10:12] = True
    np.testing.assert_array_equal(SparseVoxels.from_dense(dense).median().dense(), want)


@given(RESOLUTIONS, SEEDS, st.integers(0, 3))
def test_dilation(resolution, seed, radius):
    dense = random_dense(resolution, seed, 0.01)
    want = ndimage.maximum_filter(dense, 2 * radius + 1, mode="constant")
    np.testing.assert_array_equal(SparseVoxels.from_dense(dense).dilate(radius).dense(), want)


@given(RESOLUTIONS, SEEDS, DENSITIES, st.integers(0, 2))
def test_projection(resolution, seed, density, axis):
    dense = random_dense(resolution, seed, density)
    np.testing.assert_array_equal(SparseVoxels.from_dense(dense).project(axis), dense.any(axis=axis))


@given(RESOLUTIONS, SEEDS, DENSITIES, st.sampled_from([2, 4, 8, 16]))
def test_occupancy_bytes(resolution, seed, density, factor):
    dense = random_dense(resolution, seed, density)
    got = SparseVoxels.from_dense(dense).occupancy(factor)
    np.testing.assert_array_equal(got, pack_cells(pooled(dense, factor // 2)))


@settings(max_examples=30)
@given(st.sampled_from([(32, 16), (64, 16), (40, 24), (48, 48)]), SEEDS)
def test_blocks_are_those_read_inside_the_voxels(sizes, seed):
    resolution, sparse = sizes
    rng = np.random.default_rng(seed)
    at = rng.integers(0, resolution, (3, 3))
    got = SparseVoxels.from_coords(resolution, [at]).blocks(sparse)
    want = np.zeros((sparse // 8,) * 3, np.bool_)
    for voxel in at:
        # as the shader: position in sparse voxels less a half, cut down to blocks; clamped by the texture
        inside = voxel + np.stack(np.meshgrid(*[np.linspace(1e-6, 1 - 1e-6, 9)] * 3), axis=-1).reshape(-1, 3)
        block = np.floor((inside * sparse / resolution - 0.5) / 8).clip(0, sparse // 8 - 1).astype(int)
        want[tuple(block.T)] = True
    np.testing.assert_array_equal(got, want)


def test_blocks_leave_out_those_a_voxel_only_touches():
    # Voxel 8 of the planes ends at sparse voxel 4.5: the second block of 4 begins at its centre and is not entered.
    voxels = SparseVoxels.from_coords(16, [np.array([[8, 8, 8]])])
    assert voxels.blocks(8, 4).sum() == 1


def test_any_number_of_threads_gives_the_same():
    voxels = SparseVoxels.from_dense(random_dense(31, 5, 0.3))
    before = threads.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            threads.set_num_threads(count)
            results.append(voxels.median())
    finally:
        threads.set_num_threads(before)
    np.testing.assert_array_equal(results[0].codes, results[1].codes)
    np.testing.assert_array_equal(results[0].bits, results[1].bits)


def test_large_grids_stay_sparse():
    corners = np.array([[0, 0, 0], [4095, 4095, 4095], [2048, 17, 4000]])
    voxels = SparseVoxels.from_coords(4096, [corners])
    assert voxels.bits.nbytes == 3 * 64
    assert voxels.contains(corners).all()
    np.testing.assert_array_equal(next(voxels.dilate().pool(4096).coords()), [[0, 0, 0]])
    with pytest.raises(ValueError, match="at most 512"):
        voxels.dense()


def test_wrong_numbers_are_refused():
    voxels = SparseVoxels.empty(8)
    with pytest.raises(InputError, match="resolution is 0"):
        SparseVoxels.empty(0)
    with pytest.raises(ValueError, match="power of two"):
        voxels.pool(3)
    with pytest.raises(ValueError, match="power of two"):
        voxels.occupancy(1)
    with pytest.raises(ValueError, match="united"):
        _ = voxels | SparseVoxels.empty(9)
