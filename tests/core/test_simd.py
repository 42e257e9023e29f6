"""Vectors in kernels against numpy."""

import numpy as np
import pytest
from numba import njit

from radcomp_plugins.core import simd


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.normal(size=16).astype(np.float32), rng.normal(size=16).astype(np.float32)


@njit
def arithmetic(x, out):
    a, b = simd.load(x, 0), simd.load(x, 16)
    simd.store(out, 0, a + b)
    simd.store(out, 16, a - b)
    simd.store(out, 32, a * b)
    simd.store(out, 48, a / b)
    simd.store(out, 64, np.float32(2.0) - a)
    simd.store(out, 80, simd.minimum(a, b))
    simd.store(out, 96, simd.maximum(a, np.float32(0.5)))
    simd.store(out, 112, simd.absolute(a))
    simd.store(out, 128, simd.lane_numbers())
    simd.store(out, 144, simd.broadcast(np.float32(7.0)))


def test_arithmetic(pair):
    a, b = pair
    out = np.empty(160, np.float32)
    arithmetic(np.concatenate(pair), out)
    expected = [
        a + b,
        a - b,
        a * b,
        a / b,
        2 - a,
        np.minimum(a, b),
        np.maximum(a, 0.5),
        abs(a),
        np.arange(16),
        [7] * 16,
    ]
    np.testing.assert_allclose(out.reshape(10, 16), np.stack(expected), rtol=1e-6)


@njit
def comparisons(x, out):
    a, b = simd.load(x, 0), simd.load(x, 16)
    masks = (a < b, a <= b, a > b, a >= b, (a < b) & (a > np.float32(0.0)), (a < b) | (a > np.float32(0.0)))
    for i in range(6):
        out[i] = simd.lane_bits(masks[i])


def test_comparisons(pair):
    a, b = pair
    b[3] = a[3]
    out = np.empty(6, np.int64)
    comparisons(np.concatenate([a, b]), out)
    expected = [a < b, a <= b, a > b, a >= b, (a < b) & (a > 0), (a < b) | (a > 0)]
    assert out.tolist() == [int((mask * (1 << np.arange(16))).sum()) for mask in expected]


@njit
def reductions(x, limit):
    v = simd.load(x, 0)
    chosen = simd.select(v > limit, v, np.float32(0.0))
    return simd.total(chosen), simd.largest(v), simd.any_lane(v > limit)


def test_reductions_and_select(pair):
    x = pair[0]
    total, largest, some = reductions(x, np.float32(0.2))
    assert total == pytest.approx(float(x[x > 0.2].sum()), rel=1e-5) and largest == x.max() and some
    assert not reductions(x, np.float32(1e6))[2]


@njit
def loop(x, rounds):
    v = simd.broadcast(np.float32(0.0))
    for i in range(rounds):
        v = v + simd.load(x, 16 * i) * np.float32(i)
    return simd.total(v)


def test_a_vector_lives_across_a_loop():
    x = np.arange(16 * 9, dtype=np.float32)
    assert loop(x, 9) == float((x.reshape(9, 16) * np.arange(9)[:, None]).sum())


@njit
def bits_in_order(bits, out):
    n = 0
    while bits != 0:
        out[n] = simd.lowest_bit(bits)
        bits &= bits - 1
        n += 1
    return n


def test_lowest_bit():
    out = np.empty(16, np.int64)
    assert out[: bits_in_order(0b1000_0110_0000_0001, out)].tolist() == [0, 9, 10, 15]


@njit
def bytes_and_lanes(data, start, out):
    v = simd.load_bytes(data, start)
    simd.store(out, 0, v)
    simd.store(out, 16, simd.swap_halves(v))
    simd.store(out, 32, simd.floor(v * np.float32(0.3)))
    return simd.lane(v, 6)


def test_bytes_and_lanes():
    data = np.random.default_rng(5).integers(0, 256, 40, dtype=np.uint8)
    data[7:9] = 0, 255
    out = np.empty(48, np.float32)
    assert bytes_and_lanes(data, 3, out) == data[9]
    expected = data[3:19].astype(np.float32)
    np.testing.assert_array_equal(out[:16], expected)
    np.testing.assert_array_equal(out[16:32], np.roll(expected, 8))
    np.testing.assert_array_equal(out[32:], np.floor(expected * np.float32(0.3)))


@njit
def exponentials(x, out):
    v = simd.load(x, 0)
    simd.store(out, 0, simd.exp(v))
    simd.store(out, 16, simd.sigmoid(v))


@pytest.mark.parametrize("scale", [0.3, 5.0, 80.0])
def test_exp_and_sigmoid(scale):
    x = np.linspace(-scale, scale, 16).astype(np.float32)
    out = np.empty(32, np.float32)
    exponentials(x, out)
    exact = np.exp(x.astype(np.float64))
    np.testing.assert_allclose(out[:16], exact, rtol=4e-7)
    np.testing.assert_allclose(out[16:], exact / (1 + exact), rtol=4e-7)


def test_exp_is_clamped():
    out = np.empty(32, np.float32)
    exponentials(np.full(16, 1e6, np.float32), out)
    assert np.isfinite(out[0]) and out[0] > 1e37 and out[16] == 1
    exponentials(np.full(16, -1e6, np.float32), out)
    assert 0 < out[0] < 1e-37 and 0 <= out[16] < 1e-37


@njit
def one_in_all_lanes(data, at, out):
    simd.store(out, 0, simd.broadcast_at(data, at))


def test_one_float_in_all_lanes():
    data, out = np.arange(40, dtype=np.float32), np.empty(16, np.float32)
    one_in_all_lanes(data, 33, out)
    assert out.tolist() == [33.0] * 16
