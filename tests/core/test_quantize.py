"""Codebooks against an exhaustive optimum, and the stated bounds of the uniform quantiser."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from radcomp_plugins.core.quantize import (
    assign_nearest,
    dequantize_uniform,
    optimal_codebook,
    quantize_uniform,
    signed_exp,
    signed_log,
)

finite = st.floats(-1e6, 1e6, allow_subnormal=False)


@given(hnp.arrays(np.float64, st.integers(1, 50), elements=finite))
def test_signed_log_is_undone(x: np.ndarray) -> None:
    np.testing.assert_allclose(signed_exp(signed_log(x)), x, rtol=1e-12, atol=1e-12)


@given(hnp.arrays(np.float64, st.integers(1, 50), elements=finite), st.integers(1, 20))
def test_uniform_is_within_half_a_step(x: np.ndarray, bits: int) -> None:
    low, high = x.min(), x.max()
    levels = quantize_uniform(x, low, high, bits)
    assert levels.min() >= 0 and levels.max() <= 2**bits - 1
    step = (high - low) / (2**bits - 1)
    assert np.abs(dequantize_uniform(levels, low, high, bits) - x).max() <= 0.5 * step * (1 + 1e-9) + 1e-9


def test_uniform_clamps_and_takes_an_empty_range() -> None:
    assert quantize_uniform(np.array([-5.0, 0.0, 9.0]), 0.0, 1.0, 8).tolist() == [0, 0, 255]
    assert quantize_uniform(np.array([3.0]), 3.0, 3.0, 16).tolist() == [0]


def cost(x: np.ndarray, w: np.ndarray, book: np.ndarray) -> float:
    return float((w * (x - book[assign_nearest(x, book)]) ** 2).sum())


def best_cost(x: np.ndarray, w: np.ndarray, size: int) -> float:
    """Least cost over all ways to cut the sorted values into runs."""
    order = np.argsort(x)
    x, w = x[order], w[order]

    def of_cuts(cuts: tuple[int, ...]) -> float:
        total = 0.0
        for i, j in itertools.pairwise((0, *cuts, len(x))):
            mean = np.average(x[i:j], weights=w[i:j])
            total += float((w[i:j] * (x[i:j] - mean) ** 2).sum())
        return total

    return min(of_cuts(cuts) for cuts in itertools.combinations(range(1, len(x)), size - 1))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.floats(-10, 10), min_size=4, max_size=9, unique=True),
    st.integers(2, 4),
    st.randoms(use_true_random=False),
)
def test_codebook_is_optimal(values: list[float], size: int, random) -> None:
    x = np.array(values)
    w = np.array([random.uniform(0.1, 3.0) for _ in values])
    book = optimal_codebook(x, size, w)
    assert book.shape == (size,) and (np.diff(book) >= 0).all()
    assert cost(x, w, book) <= best_cost(x, w, size) * (1 + 1e-4) + 1e-4


def test_codebook_reaches_the_high_rate_limit() -> None:
    x = np.random.default_rng(0).normal(size=100_000)
    book = optimal_codebook(x, 256)
    # Panter and Dite 1951: sqrt(3) pi / 2 sigma^2 / K^2 for a normal distribution.
    assert cost(x, np.ones_like(x), book) / len(x) < np.sqrt(3) * np.pi / 2 / 256**2
    uniform = np.linspace(x.min(), x.max(), 256)
    assert cost(x, np.ones_like(x), book) < 0.5 * cost(x, np.ones_like(x), uniform)


def test_weights_move_the_codebook() -> None:
    x = np.random.default_rng(0).normal(size=20_000)
    w = np.where(x > 1, 100.0, 1.0)
    weighted, plain = optimal_codebook(x, 32, w), optimal_codebook(x, 32)
    assert cost(x, w, weighted) < 0.5 * cost(x, w, plain)
    # No weight at all must still leave a usable codebook for the insignificant values.
    assert np.abs(weighted[assign_nearest(x, weighted)] - x).max() < 2.0


def test_few_values_are_kept_exactly() -> None:
    book = optimal_codebook(np.array([3.0, 1.0, 1.0, 2.0]), 8)
    assert book.tolist() == [1.0, 2.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0]
    assert assign_nearest(np.array([0.0, 1.6, 9.0]), book).tolist() == [0, 1, 2]


def test_zero_weights_count_alike() -> None:
    x = np.random.default_rng(0).normal(size=1000)
    np.testing.assert_array_equal(optimal_codebook(x, 16, np.zeros(1000)), optimal_codebook(x, 16))


@pytest.mark.parametrize(
    ("values", "weights"),
    [([], None), ([np.nan], None), ([np.inf, 1.0], None), ([1.0], [-1.0]), ([1.0], [np.nan]), ([1.0], [1.0, 1.0])],
)
def test_bad_values(values: list[float], weights: list[float] | None) -> None:
    with pytest.raises(ValueError):
        optimal_codebook(np.array(values), 4, None if weights is None else np.array(weights))
