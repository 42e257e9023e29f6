"""Weighted sums of table rows, forward and backward: interpolation between texels that samples share.

What `torch.nn.functional.embedding_bag` does. On the CPU its backward sorts all indices anew and takes three times as
long as everything else of a training step; here every thread adds up columns of its own, in the samples' order, so the
result is the same for any number of threads.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numba import njit
from torch import Tensor

from radcomp_plugins.core.threads import run_striped

_WIDE = 64
_ROWS = 512
"""Samples of a block in the forward pass."""


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _forward(start, step, values, index, weights, out) -> None:
    count, taken = index.shape
    columns = values.shape[1]
    blocks = (count + _ROWS - 1) // _ROWS
    for block in range(start, blocks, step):
        for i in range(block * _ROWS, min((block + 1) * _ROWS, count)):
            for c in range(columns):
                out[i, c] = 0.0
            for k in range(taken):
                row, weight = index[i, k], weights[i, k]
                for c in range(columns):
                    out[i, c] += weight * values[row, c]


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _backward(start, step, grads, index, weights, out) -> None:
    """A thread adds up the rows of `out` that are its own, or, of a wide table with few rows, its own columns."""
    count, taken = index.shape
    columns = grads.shape[1]
    if columns >= _WIDE:
        first, last = columns * start // step, columns * (start + 1) // step
        for i in range(count):
            for k in range(taken):
                row, weight = index[i, k], weights[i, k]
                for c in range(first, last):
                    out[row, c] += weight * grads[i, c]
        return
    for i in range(count):
        for k in range(taken):
            row = index[i, k]
            if (row >> 4) % step != start:
                continue
            weight = weights[i, k]
            for c in range(columns):
                out[row, c] += weight * grads[i, c]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, weights: Tensor) -> Tensor:  # type: ignore[override]
        arrays = [t.detach().contiguous().numpy() for t in (index, weights)]
        out = torch.empty(len(index), values.shape[1], dtype=values.dtype)
        run_striped(_forward, values.detach().contiguous().numpy(), *arrays, out.numpy())
        ctx.arrays, ctx.rows = arrays, len(values)
        return out

    @staticmethod
    def backward(ctx: Any, grads: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        out = torch.zeros(ctx.rows, grads.shape[1], dtype=grads.dtype)
        run_striped(_backward, np.ascontiguousarray(grads.numpy()), *ctx.arrays, out.numpy())
        return out, None, None


def gather(
    values: Float[Tensor, "rows C"], index: Int[Tensor, "M K"], weights: Float[Tensor, "M K"]
) -> Float[Tensor, "M C"]:
    """The sum over k of weights[m, k] * values[index[m, k]].

    Args:
        values: a table; differentiable.
        index: int64 rows of the table.
        weights: of `values`' dtype; not differentiable.
    """
    if values.is_cuda:
        return torch.nn.functional.embedding_bag(
            index.contiguous(), values, per_sample_weights=weights.contiguous(), mode="sum"
        )
    return _Gather.apply(values, index, weights)  # type: ignore[no-any-return]
