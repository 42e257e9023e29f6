"""The choice of codes on the CPU: the nearest code of every latent, and the gradients past it, in one kernel each.

`vqad.choice` has the same in plain torch, for all other devices, types and widths.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from radcomp_plugins.core.simd import LANES, broadcast, lane_numbers, largest, load, select, store, total
from radcomp_plugins.core.threads import claim, claim_block, new_counter, run_striped

WIDTH = LANES
"""Features of a latent that the kernels are made for."""

_BLOCK = 1024
"""Rows whose squared distances are summed together, so that the sum does not depend on the number of threads."""
_NUM_PARTS = 16
"""Parts that rows are cut into for the sums over those of a code, for the same reason."""
_FAR = np.float32(1e30)
"""Half of the squared length of a code that is not there."""

_F0 = np.float32(0.0)


@njit(nogil=True, cache=True, error_model="numpy")
def _nearest(points, at, books, book, codes):  # noqa: ANN001, ANN202
    """Number of the code nearest to points[at : at + 16], the lower one of two equally near.

    books[book : book + 17 * codes] holds, for 16 codes side by side, minus half of their squared lengths and then each
    of their features: the nearest code is that with the largest sum.
    """
    nearest, minus = broadcast(-_FAR), broadcast(_F0)
    for first in range(0, codes, LANES):
        here = book + first * (WIDTH + 1)
        even, odd = load(books, here), broadcast(_F0)
        for c in range(0, WIDTH, 2):
            even = even + load(books, here + (c + 1) * LANES) * points[at + c]
            odd = odd + load(books, here + (c + 2) * LANES) * points[at + c + 1]
        score = even + odd
        closer = score > nearest
        nearest, minus = select(closer, score, nearest), select(closer, broadcast(np.float32(-first)), minus)
    equal = nearest >= broadcast(largest(nearest))
    code = np.int64(-largest(select(equal, minus - lane_numbers(), broadcast(-_FAR))))
    # Where a number is not finite, nothing may be equal: some code of the book even then.
    return max(np.int64(0), min(code, np.int64(codes - 1)))


@njit(nogil=True, cache=True, error_model="numpy")
def _nearest_all(start, step, counter, points, books, codes, index):  # noqa: ANN001, ANN202
    """The nearest code of each of the points, all in one codebook."""
    while True:
        begin, end = claim_block(counter, len(index))
        if begin == end:
            return
        for i in range(begin, end):
            index[i] = _nearest(points, i * WIDTH, books, 0, codes)


@njit(nogil=True, cache=True, error_model="numpy")
def _take(start, step, counter, held, plain, books, codes, rows, bounds, table, apart, index, squares):  # noqa: ANN001, ANN202
    """Choose for each of `rows`; see `ChooseLatents`. squares has a sum for each block of rows."""
    while True:
        block = claim(counter)
        if block >= len(squares):
            return
        summed, level = broadcast(_F0), 0
        for u in range(block * _BLOCK, min((block + 1) * _BLOCK, len(rows))):
            while u >= bounds[level + 1]:
                level += 1
            at = rows[u] * WIDTH
            code = _nearest(held, at, books, level * codes * (WIDTH + 1), codes)
            chosen = load(plain, (level * codes + code) * WIDTH)
            gap = load(held, at) - chosen
            store(table, at, chosen)
            store(apart, u * WIDTH, gap)
            index[u] = level * codes + code
            summed = summed + gap * gap
        squares[block] = total(summed)


@njit(nogil=True, cache=True, error_model="numpy")
def _pass_on(start, step, counter, grads, apart, pull, rows, index, to_held, to_codes):  # noqa: ANN001, ANN202
    """Gradients of latents and, summed over a part of the rows each, of codes: to_codes is [parts, codes * 16]."""
    per_part = (len(rows) + _NUM_PARTS - 1) // _NUM_PARTS
    while True:
        part = claim(counter)
        if part >= _NUM_PARTS:
            return
        sums = to_codes[part]
        for u in range(part * per_part, min((part + 1) * per_part, len(rows))):
            grad = load(grads, rows[u] * WIDTH)
            store(to_held, rows[u] * WIDTH, grad + load(apart, u * WIDTH) * pull)
            store(sums, index[u] * WIDTH, load(sums, index[u] * WIDTH) + grad)


def fits(held: Tensor, codes: Tensor) -> bool:
    """Whether the kernels can choose among these codes for these latents."""
    return all(t.device.type == "cpu" and t.dtype == torch.float32 and t.shape[-1] == WIDTH for t in (held, codes))


def _padded(codebook: Float[Tensor, "L C 16"]) -> Float[Tensor, "L P 16"]:
    """Codebooks filled up with zeros to a multiple of 16 codes."""
    missing = -codebook.shape[1] % LANES
    return torch.nn.functional.pad(codebook.detach(), (0, 0, 0, missing)).contiguous()


def _arranged(padded: Float[Tensor, "L P 16"], codes: int) -> NDArray[np.float32]:
    """What `_nearest` reads, of codebooks of which only the first `codes` are there."""
    half = 0.5 * padded.square().sum(dim=2, keepdim=True)
    half[:, codes:] = float(_FAR)
    rows = torch.cat([-half, padded], dim=2).unflatten(1, (-1, LANES))
    return rows.transpose(2, 3).contiguous().view(-1).numpy()


def nearest(points: Float[Tensor, "N 16"], codes: Float[Tensor, "C 16"]) -> Int[Tensor, " N"]:
    """Index of the nearest code of each point, the lower one where two are equally near."""
    padded, index = _padded(codes[None]), np.empty(len(points), np.int64)
    flat = points.detach().contiguous().view(-1).numpy()
    run_striped(_nearest_all, new_counter(), flat, _arranged(padded, len(codes)), padded.shape[1], index)
    return torch.from_numpy(index)


class ChooseLatents(torch.autograd.Function):
    """`vqad.choice.choose` of latents [m, 16] among codes [L, C, 16]."""

    @staticmethod
    def forward(ctx: Any, held, codebook, rows, bounds):  # type: ignore[override]  # noqa: ANN001, ANN205
        padded = _padded(codebook)
        flat, table = held.detach().contiguous().view(-1), torch.zeros(held.shape)
        apart, index = np.empty(len(rows) * WIDTH, np.float32), np.empty(len(rows), np.int64)
        squares, numbers = np.zeros(-(-len(rows) // _BLOCK), np.float32), rows.numpy()
        run_striped(
            _take, new_counter(), flat.numpy(), padded.view(-1).numpy(), _arranged(padded, codebook.shape[1]),
            padded.shape[1], numbers, np.asarray(bounds), table.view(-1).numpy(), apart, index, squares,
        )  # fmt: skip
        ctx.arrays, ctx.shape, ctx.padded = (apart, numbers, index), codebook.shape, padded.shape
        return table, torch.tensor(squares.sum() / max(len(apart), 1))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_table, grad_commitment):  # type: ignore[override]  # noqa: ANN001, ANN205
        apart, rows, index = ctx.arrays
        levels, codes, width = ctx.padded
        pull = np.float32(float(grad_commitment) * 2.0 / max(len(apart), 1))
        to_held, to_codes = torch.zeros(grad_table.shape), np.zeros((_NUM_PARTS, levels * codes * width), np.float32)
        grads = grad_table.contiguous().view(-1).numpy()
        run_striped(_pass_on, new_counter(), grads, apart, pull, rows, index, to_held.view(-1).numpy(), to_codes)
        to_codebook = torch.from_numpy(to_codes.sum(axis=0)).view(ctx.padded)
        return to_held, to_codebook[:, : ctx.shape[1]], None, None
