"""Vector quantisation with weights: k-means, nearest codes, and LightGaussian's moving-average update.

The weight of a vector says how much its error matters; LightGaussian weighs by global significance. Every result is
the same for any number of threads: points are spread over threads, sums over points are made in one order.
"""

import numba
import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from radcomp_plugins.core.threads import run_striped

TILE = 128
"""Codes that the kernel holds side by side: a tile of 48 dimensions, 24 kB, stays in the first-level cache."""

BLOCK = 32
"""Points that go through one tile before the next is loaded."""

SEEDING_ROUNDS = 8
CUDA_CHUNK = 2**25
"""Distances (points times codes) held at once on a GPU."""

Array32 = npt.NDArray[np.float32]
Array64 = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


def kmeans(
    x: Float[Tensor, "N D"],
    k: int,
    weights: Float[Tensor, " N"] | None = None,
    iters: int = 10,
    seed: int = 0,
) -> tuple[Float[Tensor, "K D"], Int[Tensor, " N"]]:
    """Lloyd's algorithm on weighted vectors, seeded by k-means|| and free of empty clusters.

    Args:
        x: float32 vectors, finite.
        k: Number of codes, 1 to N.
        weights: Non-negative; None weighs all alike. If all are zero, all count alike.
        iters: Rounds of assignment and update; fewer if the labels settle before.
        seed: Seeds the choice of the first codes. The same seed gives the same bits for any number of threads.

    Returns:
        codebook: [k, D] float32 on the device of `x`: weighted means of their members. A cluster that loses all its
            members takes over the vector with the largest weighted error. Only where `x` has fewer than k different
            vectors do codes repeat.
        labels: [N] int64, the nearest code of each vector, the lower one where two are equally near.

    Raises:
        ValueError: k out of range, a vector that is not finite, or weights that are negative or not finite.

    Source: Lloyd 1982; Bahmani et al. 2012 (k-means||); Fan et al. 2024, section 3.4, for the weights.
    """
    points = _check_points(x)
    w = _check_weights(weights, len(points))
    if not 1 <= k <= len(points):
        raise ValueError(f"{k} codes for {len(points)} vectors, expected 1 to {len(points)}")
    codebook = _seed_codes(points, w, k, np.random.default_rng(seed))
    labels, errors = _nearest(points, codebook, x.device)
    for _ in range(iters):
        codebook = _means(points, w, labels, codebook)
        _refill_empty(codebook, points, w, labels, errors)
        settled = labels
        labels, errors = _nearest(points, codebook, x.device)
        if np.array_equal(settled, labels):
            break
    return torch.from_numpy(codebook).to(x.device), torch.from_numpy(labels).to(x.device)


def assign(x: Float[Tensor, "N D"], codebook: Float[Tensor, "K D"]) -> Int[Tensor, " N"]:
    """Index of the nearest code by Euclidean distance, the lower one where two are equally near.

    Args:
        x: float32 vectors, finite. On a GPU the search runs there.
        codebook: float32 codes, at least one.

    Returns:
        [N] int64 on the device of `x`.
    """
    labels, _ = _nearest(_check_points(x), _check_points(codebook), x.device)
    return torch.from_numpy(labels).to(x.device)


def ema_update(
    codebook: Float[Tensor, "K D"],
    x: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
    weights: Float[Tensor, " N"],
    decay: float = 0.8,
) -> Float[Tensor, "K D"]:
    """LightGaussian's codebook update on one batch: c <- decay c + (1 - decay) sum(w x) / sum(w) over its members.

    Args:
        codebook: float32 codes.
        x: The batch, float32.
        labels: Code of each vector of the batch, as `assign` gives it.
        weights: Global significance of each vector, non-negative. If all are zero, all count alike.
        decay: Share of the old code that is kept, 0 to 1; the paper has 0.8.

    Returns:
        The new codebook, on the device of `codebook`. Codes without members stay as they are.

    Source: Fan et al. 2024, section 3.4.
    """
    points, old = _check_points(x), _check_points(codebook)
    w = _check_weights(weights, len(points))
    ids = labels.detach().cpu().numpy().astype(np.int64)
    if ids.shape != (len(points),) or (len(ids) and (ids.min() < 0 or ids.max() >= len(old))):
        raise ValueError(f"labels of shape {ids.shape}, expected ({len(points)},) with values 0 to {len(old) - 1}")
    mean = _means(points, w, ids, old)
    new = (decay * old.astype(np.float64) + (1.0 - decay) * mean).astype(np.float32)
    used = np.bincount(ids, minlength=len(old)) > 0
    return torch.from_numpy(np.where(used[:, None], new, old)).to(codebook.device)


def reseed_unused(
    codebook: Float[Tensor, "K D"],
    usage: Int[Tensor, " K"],
    x: Float[Tensor, "N D"],
    weights: Float[Tensor, " N"],
) -> Float[Tensor, "K D"]:
    """Gives every code that nobody uses the vector with the next largest weighted error.

    Args:
        codebook: float32 codes.
        usage: Members of each code since the last call; 0 marks a code to be replaced.
        x: Vectors to choose from, float32.
        weights: Their significance, non-negative.

    Returns:
        The new codebook, on the device of `codebook`; deterministic.
    """
    points, new = _check_points(x), _check_points(codebook).copy()
    labels, errors = _nearest(points, new, x.device)
    unused = np.flatnonzero(usage.detach().cpu().numpy() == 0)
    worst = np.argsort(-(_check_weights(weights, len(points)) * errors), kind="stable")[: len(unused)]
    new[unused[: len(worst)]] = points[worst]
    return torch.from_numpy(new).to(codebook.device)


def _check_points(x: Tensor) -> Array32:
    if x.ndim != 2 or x.shape[0] == 0:
        raise ValueError(f"vectors of shape {tuple(x.shape)}, expected [N, D] with N at least 1")
    points = np.ascontiguousarray(x.detach().cpu().numpy(), np.float32)
    if not np.isfinite(points).all():
        raise ValueError("vectors with NaN or infinity, expected finite ones")
    return points


def _check_weights(weights: Tensor | None, count: int) -> Array64:
    """Weights as float64 of mean 1."""
    if weights is None:
        return np.ones(count)
    w = weights.detach().cpu().numpy().astype(np.float64)
    if w.shape != (count,) or not np.isfinite(w).all() or (w < 0).any():
        raise ValueError(f"weights of shape {w.shape}, expected ({count},), finite and not negative")
    mean = w.mean()
    return w / mean if mean > 0 else np.ones(count)


def _seed_codes(points: Array32, w: Array64, k: int, rng: np.random.Generator) -> Array32:
    """First codes: rounds of sampling with probability proportional to weight times squared distance to the last ones.

    k-means|| with the number of samples per round chosen so that no reclustering is needed; all rounds together cost
    one assignment.
    """
    if k == len(points):
        return points.copy()
    chosen = _sample(w, max(1, k // (2 * SEEDING_ROUNDS)), rng)
    errors = _nearest(points, points[chosen], torch.device("cpu"))[1].astype(np.float64)
    for left in range(SEEDING_ROUNDS, 0, -1):
        count = (k - len(chosen) + left - 1) // left
        errors[chosen] = 0.0
        score = w * errors
        fresh = _sample(score, min(count, int((score > 0).sum())), rng)
        if len(fresh) == 0:
            break
        chosen = np.concatenate([chosen, fresh])
        if left > 1:
            errors = np.minimum(errors, _nearest(points, points[fresh], torch.device("cpu"))[1])
    # Fewer different vectors (with weight) than codes: the rest are taken in order, so that there are k.
    rest = np.setdiff1d(np.arange(len(points)), chosen)[: k - len(chosen)]
    return points[np.concatenate([chosen, rest])]


def _sample(score: Array64, count: int, rng: np.random.Generator) -> Labels:
    """`count` different indices, each drawn with probability proportional to its score (Efraimidis and Spirakis)."""
    with np.errstate(divide="ignore"):
        keys = rng.standard_exponential(len(score)) / score
    return np.sort(np.argsort(keys, kind="stable")[:count])


def _means(points: Array32, w: Array64, labels: Labels, codebook: Array32) -> Array32:
    """Weighted mean of each code's members; without members the code itself, with members of weight 0 their mean."""
    sums, totals = np.zeros(codebook.shape), np.zeros(len(codebook))
    # A floor under the weights gives clusters of insignificant vectors a mean, and moves no other by more than 1e-6.
    _sum_members(points, np.maximum(w, 1e-9), labels, sums, totals)
    used = totals > 0
    means = sums / np.where(used, totals, 1.0)[:, None]
    return np.where(used[:, None], means, codebook).astype(np.float32)


def _refill_empty(codebook: Array32, points: Array32, w: Array64, labels: Labels, errors: Array32) -> None:
    """Moves each code without members onto a vector of its own, those with the largest weighted errors first."""
    empty = np.flatnonzero(np.bincount(labels, minlength=len(codebook)) == 0)
    worst = np.argsort(-(w * errors), kind="stable")[: len(empty)]
    codebook[empty[: len(worst)]] = points[worst]


def _nearest(points: Array32, codebook: Array32, device: torch.device) -> tuple[Labels, Array32]:
    """Nearest code of each point and the squared distance to it."""
    if device.type == "cuda":
        labels = _nearest_cuda(points, codebook, device)
    else:
        labels = _nearest_cpu(points, codebook)
    return labels, np.square(points - codebook[labels]).sum(axis=1)


def _nearest_cuda(points: Array32, codebook: Array32, device: torch.device) -> Labels:
    """The same on a GPU, by matrix products of bounded size in float32."""
    codes = torch.from_numpy(codebook).to(device)
    half = 0.5 * codes.square().sum(dim=1)
    rows = max(1, CUDA_CHUNK // len(codebook))
    parts = torch.from_numpy(points).to(device).split(rows)
    return torch.cat([torch.addmm(half, part, codes.T, alpha=-1.0).argmin(dim=1) for part in parts]).cpu().numpy()


def _nearest_cpu(points: Array32, codebook: Array32) -> Labels:
    """Lays the codes out in tiles that numba can vectorise over, padded with codes at infinity."""
    n, d = points.shape
    dims, tiles = -(-d // 4) * 4, -(-len(codebook) // TILE)
    # Distances are compared as |c|^2 / 2 - x.c: subtracting the mean first keeps the digits that tell codes apart.
    centre = codebook.mean(axis=0)
    padded = np.zeros((n, dims), np.float32)
    padded[:, :d] = points - centre
    codes = np.zeros((tiles * TILE, dims), np.float32)
    codes[: len(codebook), :d] = codebook - centre
    half = np.full(tiles * TILE, np.inf, np.float32)
    half[: len(codebook)] = 0.5 * np.square(codes[: len(codebook)]).sum(axis=1)
    tiled = np.ascontiguousarray(codes.reshape(tiles, TILE, dims).transpose(0, 2, 1))
    labels = np.empty(n, np.int64)
    run_striped(_nearest_kernel, padded, tiled, half.reshape(tiles, TILE), labels)
    return labels


@numba.njit(cache=True, nogil=True, fastmath={"contract", "nnan", "nsz"})
def _nearest_kernel(start, step, points, tiles, half, labels) -> None:
    """Labels of the blocks start, start + step, ...; points [N, D], tiles [T, D, TILE], half [T, TILE]."""
    n, dims = points.shape
    scores = np.empty((2, TILE), np.float32)
    best = np.empty(BLOCK, np.float32)
    where = np.empty(BLOCK, np.int64)
    for block in range(start, (n + BLOCK - 1) // BLOCK, step):
        first = block * BLOCK
        count = min(BLOCK, n - first)
        best[:] = np.inf
        where[:] = 0
        for t in range(tiles.shape[0]):
            tile = tiles[t]
            for p in range(0, count, 2):
                # An odd last point is done twice rather than by code of its own.
                q = min(p + 1, count - 1)
                a, b = points[first + p], points[first + q]
                _score_two(a, b, tile, half[t], scores)
                _keep_best(scores[0], t * TILE, best, where, p)
                _keep_best(scores[1], t * TILE, best, where, q)
        labels[first : first + count] = where[:count]


@numba.njit(inline="always", fastmath={"contract", "nnan", "nsz"})
def _score_two(a, b, tile, half, scores) -> None:
    """Half the squared distance, up to a constant, of two points to all codes of a tile."""
    for j in range(TILE):
        scores[0, j] = half[j]
        scores[1, j] = half[j]
    for d in range(0, tile.shape[0], 4):
        a0, a1, a2, a3 = a[d], a[d + 1], a[d + 2], a[d + 3]
        b0, b1, b2, b3 = b[d], b[d + 1], b[d + 2], b[d + 3]
        for j in range(TILE):
            c0, c1, c2, c3 = tile[d, j], tile[d + 1, j], tile[d + 2, j], tile[d + 3, j]
            scores[0, j] = scores[0, j] - a0 * c0 - a1 * c1 - a2 * c2 - a3 * c3
            scores[1, j] = scores[1, j] - b0 * c0 - b1 * c1 - b2 * c2 - b3 * c3


@numba.njit(inline="always", fastmath={"nnan", "nsz"})
def _keep_best(score, offset, best, where, p) -> None:
    """Takes over the smallest score of a tile if it beats the best so far."""
    low = score[0]
    for j in range(1, TILE):
        low = min(low, score[j])
    if low < best[p]:
        best[p] = low
        for j in range(TILE):
            if score[j] == low:
                where[p] = offset + j
                break


@numba.njit(cache=True, nogil=True)
def _sum_members(points, w, labels, sums, totals) -> None:
    """sums [K, D] and totals [K] of the weighted members, in the order of the points."""
    for i in range(len(labels)):
        label = labels[i]
        totals[label] += w[i]
        for d in range(points.shape[1]):
            sums[label, d] += w[i] * points[i, d]
