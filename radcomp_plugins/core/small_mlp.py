"""A network of one hidden layer and one output, as one kernel: for the many cheap questions to proposal fields.

Matrix products of such shapes (a handful of inputs, 16 hidden) spend their time on memory and on starting; here a block
of samples goes through the whole network inside the first-level cache, and backward recomputes what forward had.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numba import njit
from torch import Tensor

from radcomp_plugins.core.threads import run_striped

_BLOCK = 128
"""Samples that go through the network together."""
_F0 = np.float32(0.0)


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _hidden(x, first, count, w1, b1, inputs, hidden):
    """Copy a block of inputs, feature by feature, and compute its hidden layer before the ReLU."""
    for k in range(count):
        for c in range(w1.shape[1]):
            inputs[c, k] = x[first + k, c]
    for j in range(w1.shape[0]):
        row = hidden[j]
        for k in range(_BLOCK):
            row[k] = b1[j]
        for c in range(w1.shape[1]):
            weight, column = w1[j, c], inputs[c]
            for k in range(_BLOCK):
                row[k] += weight * column[k]


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _forward(start, step, x, w1, b1, w2, b2, out):
    inputs = np.zeros((w1.shape[1], _BLOCK), np.float32)
    hidden = np.empty((w1.shape[0], _BLOCK), np.float32)
    total = np.empty(_BLOCK, np.float32)
    for first in range(start * _BLOCK, len(x), step * _BLOCK):
        count = min(_BLOCK, len(x) - first)
        _hidden(x, first, count, w1, b1, inputs, hidden)
        for k in range(_BLOCK):
            total[k] = b2
        for j in range(w1.shape[0]):
            weight, row = w2[j], hidden[j]
            for k in range(_BLOCK):
                total[k] += weight * max(row[k], _F0)
        for k in range(count):
            out[first + k] = total[k]


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _backward(start, step, x, w1, b1, w2, grad, parts, grad_x):
    """Gradients of a sixteenth of the samples each, so that sums do not depend on the number of threads.

    Args:
        start: first part of this thread.
        step: number of threads.
        x: [N, C].
        w1: [H, C].
        b1: [H].
        w2: [H].
        grad: [N] of the output.
        parts: [P, H * C + 2 H + 1] sums over each part's samples, for w1, b1, w2, b2, added to.
        grad_x: [N, C], written.
    """
    width, depth = w1.shape[0], w1.shape[1]
    inputs = np.zeros((depth, _BLOCK), np.float32)
    hidden = np.empty((width, _BLOCK), np.float32)
    back = np.empty((depth, _BLOCK), np.float32)
    g = np.zeros(_BLOCK, np.float32)
    per_part = ((len(x) + len(parts) - 1) // len(parts) + _BLOCK - 1) // _BLOCK * _BLOCK
    for part in range(start, len(parts), step):
        sums = parts[part]
        for first in range(part * per_part, min((part + 1) * per_part, len(x)), _BLOCK):
            count = min(_BLOCK, len(x) - first)
            _hidden(x, first, count, w1, b1, inputs, hidden)
            back[:] = _F0
            for k in range(_BLOCK):
                g[k] = grad[first + k] if k < count else _F0
            total = _F0
            for k in range(_BLOCK):
                total += g[k]
            sums[width * depth + 2 * width] += total
            for j in range(width):
                row, weight = hidden[j], w2[j]
                to_w2, to_b1 = _F0, _F0
                for k in range(_BLOCK):
                    to_w2 += g[k] * max(row[k], _F0)
                    row[k] = weight * g[k] if row[k] > _F0 else _F0
                    to_b1 += row[k]
                sums[width * depth + width + j] += to_w2
                sums[width * depth + j] += to_b1
                for c in range(depth):
                    column, target, factor, to_w1 = inputs[c], back[c], w1[j, c], _F0
                    for k in range(_BLOCK):
                        to_w1 += row[k] * column[k]
                        target[k] += factor * row[k]
                    sums[j * depth + c] += to_w1
            for k in range(count):
                for c in range(depth):
                    grad_x[first + k, c] = back[c, k]


_NUM_PARTS = 16


class _SmallMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        arrays = [tensor.detach().contiguous().numpy() for tensor in (x, w1, b1, w2.reshape(-1))]
        out = torch.empty(len(x))
        run_striped(_forward, *arrays, np.float32(b2.item()), out.numpy())
        ctx.arrays = arrays
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, ...]:
        x, w1, b1, w2 = ctx.arrays
        width, depth = w1.shape
        parts = np.zeros((_NUM_PARTS, width * depth + 2 * width + 1), np.float32)
        grad_x = torch.empty(x.shape)
        run_striped(_backward, x, w1, b1, w2, grad_outputs[0].contiguous().numpy(), parts, grad_x.numpy())
        sums = torch.from_numpy(parts.sum(axis=0))
        to_w1, to_b1, to_w2, to_b2 = sums.split([width * depth, width, width, 1])
        return grad_x, to_w1.view(width, depth), to_b1, to_w2.view(1, width), to_b2


def small_mlp(
    x: Float[Tensor, "N C"],
    w1: Float[Tensor, "H C"],
    b1: Float[Tensor, " H"],
    w2: Float[Tensor, "1 H"],
    b2: Float[Tensor, " 1"],
) -> Float[Tensor, " N"]:
    """w2 relu(w1 x + b1) + b2, with gradients to everything: a kernel on the CPU, torch elsewhere."""
    if x.device.type == "cpu" and x.dtype == torch.float32:
        return _SmallMlp.apply(x, w1, b1, w2, b2)  # type: ignore[return-value]
    return (torch.relu(x @ w1.T + b1) @ w2.T + b2).squeeze(-1)
