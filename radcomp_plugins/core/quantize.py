"""Scalar quantisers: the best codebook for a set of numbers, uniform steps, and the signed logarithm before them."""

import numba
import numpy as np
import numpy.typing as npt

HISTOGRAM_BINS = 2048
LLOYD_ITERATIONS = 50

Array64 = npt.NDArray[np.float64]


def signed_log(x: Array64) -> Array64:
    """sign(x) ln(1 + |x|): linear near zero, logarithmic far out, defined everywhere and monotonic."""
    return np.copysign(np.log1p(np.abs(x)), x)


def signed_exp(y: Array64) -> Array64:
    """Inverse of `signed_log`."""
    return np.copysign(np.expm1(np.abs(y)), y)


def quantize_uniform(x: Array64, low: Array64 | float, high: Array64 | float, bits: int) -> npt.NDArray[np.int64]:
    """Nearest of 2^bits evenly spaced levels between `low` and `high`, both included.

    Args:
        x: Values of any shape; outside of the range they are clamped.
        low: Value of level 0, broadcast against `x`.
        high: Value of the last level; where it equals `low`, every value gets level 0.
        bits: 1 to 32.

    Returns:
        Levels, int64, of the shape of `x`. `dequantize_uniform` is within half a step, (high - low) / (2^bits - 1) / 2.
    """
    extent = np.asarray(high, np.float64) - low
    unit = np.clip((x - low) / np.where(extent > 0, extent, 1.0), 0.0, 1.0)
    return np.rint(unit * (2**bits - 1)).astype(np.int64)


def dequantize_uniform(levels: npt.NDArray, low: Array64 | float, high: Array64 | float, bits: int) -> Array64:
    """Values of the levels of `quantize_uniform`."""
    return np.asarray(low, np.float64) + (np.asarray(high, np.float64) - low) * (levels / (2**bits - 1))


def optimal_codebook(values: npt.NDArray, size: int = 256, weights: npt.NDArray | None = None) -> Array64:
    """The codebook of `size` numbers with the least weighted squared error, for all practical purposes.

    A histogram, half of its bins of equal counts and half of equal widths so that tails are resolved too, is cut into
    `size` runs by dynamic programming, which gives the global optimum for that histogram; Lloyd's algorithm on the
    sorted values themselves polishes the result.

    Args:
        values: Any shape, finite.
        size: Entries of the codebook.
        weights: Non-negative, of the shape of `values`; None weighs all alike. If all are zero, all count alike.

    Returns:
        [size] float64, ascending. With no more than `size` different values it holds just these, the last one repeated.

    Raises:
        ValueError: No values, values that are not finite, or weights that are negative or not finite.
    """
    x, w = _sorted_with_weights(values, weights)
    starts = np.flatnonzero(np.concatenate([[True], x[1:] != x[:-1]]))
    if len(starts) <= size:
        return np.pad(x[starts], (0, size - len(starts)), mode="edge")
    x, w = x[starts], np.add.reduceat(w, starts)
    # Moments about the middle of the range lose the fewest digits in the differences of running sums below.
    middle = 0.5 * (x[0] + x[-1])
    edges = _histogram_edges(x, size)
    sums = _running_moments(x - middle, w)
    cuts = edges[_optimal_cuts(sums[:, edges], size)]
    # Values that differ by less than the rounding of the running sums can come out in either order.
    return np.sort(_lloyd(x - middle, sums, cuts)) + middle


def assign_nearest(values: npt.NDArray, codebook: Array64) -> npt.NDArray[np.int64]:
    """Index of the nearest entry of an ascending codebook, the lower one where two are equally near."""
    index = np.searchsorted(0.5 * (codebook[1:] + codebook[:-1]), values, side="left")
    return np.searchsorted(codebook, codebook, side="left")[index]


def _sorted_with_weights(values: npt.NDArray, weights: npt.NDArray | None) -> tuple[Array64, Array64]:
    x = np.asarray(values, np.float64).ravel()
    w = np.ones_like(x) if weights is None else np.asarray(weights, np.float64).ravel()
    if x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"{x.size} values, expected at least one and all finite")
    if w.shape != x.shape or not np.isfinite(w).all() or (w < 0).any():
        raise ValueError(f"weights of shape {w.shape}, expected {x.shape}, finite and not negative")
    order = np.argsort(x, kind="stable")
    w = w[order]
    # A value without weight still has to be coded: it counts a little, so that it cannot end up far from every entry.
    mean = w.mean()
    w = (w / mean if mean > 0 else np.ones_like(w)) + 1e-6
    return x[order], w


def _histogram_edges(x: Array64, size: int) -> npt.NDArray[np.int64]:
    """Ascending indices into the sorted, different values `x` at which bins start, then len(x)."""
    half = max(HISTOGRAM_BINS // 2, 2 * size)
    counts = np.rint(np.linspace(0, len(x), half + 1)).astype(np.int64)
    widths = np.searchsorted(x, np.linspace(x[0], x[-1], half + 1)[1:-1])
    return np.unique(np.concatenate([counts, widths]))


def _running_moments(x: Array64, w: Array64) -> Array64:
    """[3, n + 1] running sums of w, w x and w x^2, starting with 0."""
    return np.concatenate([np.zeros((3, 1)), np.cumsum(np.stack([w, w * x, w * x * x]), axis=1)], axis=1)


@numba.njit(cache=True, nogil=True)
def _run_cost(sums: Array64, i: int, j: int) -> float:
    """Weighted squared error of the bins i to j - 1 about their mean."""
    weight = sums[0, j] - sums[0, i]
    first = sums[1, j] - sums[1, i]
    if weight <= 0.0:
        return 0.0
    return max(sums[2, j] - sums[2, i] - first * first / weight, 0.0)


@numba.njit(cache=True, nogil=True)
def _optimal_cuts(sums: Array64, size: int) -> npt.NDArray[np.int64]:
    """The `size` + 1 cuts of the bins into runs of least total cost, by divide and conquer over monotone argmins."""
    bins = sums.shape[1] - 1
    best = np.empty(bins + 1)
    for j in range(bins + 1):
        best[j] = _run_cost(sums, 0, j)
    choice = np.zeros((size + 1, bins + 1), np.int32)
    stack = np.empty((4 * 64, 4), np.int64)
    for k in range(2, size + 1):
        new = np.full(bins + 1, np.inf)
        depth = 1
        stack[0, 0], stack[0, 1], stack[0, 2], stack[0, 3] = k, bins, k - 1, bins - 1
        while depth > 0:
            depth -= 1
            low, high, first, last = stack[depth, 0], stack[depth, 1], stack[depth, 2], stack[depth, 3]
            if low > high:
                continue
            middle = (low + high) // 2
            where = first
            for i in range(first, min(middle - 1, last) + 1):
                cost = best[i] + _run_cost(sums, i, middle)
                if cost < new[middle]:
                    new[middle] = cost
                    where = i
            choice[k, middle] = where
            stack[depth, 0], stack[depth, 1], stack[depth, 2], stack[depth, 3] = low, middle - 1, first, where
            depth += 1
            stack[depth, 0], stack[depth, 1], stack[depth, 2], stack[depth, 3] = middle + 1, high, where, last
            depth += 1
        best = new
    cuts = np.empty(size + 1, np.int64)
    cuts[size] = bins
    for k in range(size, 0, -1):
        cuts[k - 1] = choice[k, cuts[k]]
    return cuts


def _lloyd(x: Array64, sums: Array64, cuts: npt.NDArray[np.int64]) -> Array64:
    """Alternates means of runs and nearest-entry cuts until the cuts stay; `x` ascending and free of repeats."""
    codebook = _run_means(sums, cuts, np.zeros(len(cuts) - 1))
    for _ in range(LLOYD_ITERATIONS):
        inner = np.searchsorted(x, 0.5 * (codebook[1:] + codebook[:-1]), side="right")
        moved = np.concatenate([[0], inner, [len(x)]])
        if np.array_equal(moved, cuts):
            break
        cuts = moved
        codebook = _run_means(sums, cuts, codebook)
    return codebook


def _run_means(sums: Array64, cuts: npt.NDArray[np.int64], empty: Array64) -> Array64:
    """Weighted means of the runs; an entry that lost all its values to its neighbours stays where it was."""
    at = sums[:2, cuts]
    weight, first = at[0, 1:] - at[0, :-1], at[1, 1:] - at[1, :-1]
    used = np.diff(cuts) > 0
    return np.where(used, first / np.where(used, weight, 1.0), empty)
