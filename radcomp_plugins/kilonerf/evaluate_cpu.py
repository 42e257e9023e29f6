"""One fused kernel for all networks on the CPU: samples sorted by network, 32 of them through every layer at a time.

A layer's inputs stay in the first-level cache as rows of 32 lanes, a network's weights are read once in the order in
which they lie, and four outputs are summed up in registers. What a lane computes does not depend on its neighbours, so
results do not depend on how samples are batched or spread over threads.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from radcomp_plugins.core import simd
from radcomp_plugins.kilonerf.scene import NetworkShape

BLOCK = 32
"""Samples of a network that are evaluated together; of a last block with 16 or fewer, one vector."""
_L = simd.LANES
_F0, _F1, _F2 = np.float32(0.0), np.float32(1.0), np.float32(2.0)


def pack_weights(weights: dict[str, NDArray[np.float32]], shape: NetworkShape) -> NDArray[np.float32]:
    """A row [N, *] of parameters for each network, in the order in which the kernel reads them.

    For four outputs at a time (color's fourth is 0): their biases, then their weights of each input; density, which has
    one output, is a bias and a column.

    Args:
        weights: see `KiloScene.weights`.
        shape: of the networks.
    """
    parts = []
    for layer in shape.folded_layers():
        stacked = np.concatenate([weights[f"{layer}.bias"][:, None], weights[f"{layer}.weight"]], axis=1)
        networks, rows, outputs = stacked.shape
        if outputs > 1:
            padded = np.pad(stacked, ((0, 0), (0, 0), (0, -outputs % 4)))
            stacked = padded.reshape(networks, rows, -1, 4).transpose(0, 2, 1, 3)
        parts.append(stacked.reshape(networks, -1))
    return np.ascontiguousarray(np.concatenate(parts, axis=1), np.float32)


@njit(nogil=True, cache=True)
def _encode(x, row, octaves, used):
    """Write the sines and cosines of the three rows from `row` on behind them, as `networks.encode` orders them.

    One polynomial each, then double angles: after nine doublings the error is 512 times that of the first, below 3e-5.
    """
    for axis in range(3):
        for at in range((row + axis) * BLOCK, (row + axis) * BLOCK + used, _L):
            v = simd.load(x, at)
            s, c = simd.sine(v), simd.cosine(v)
            to = at + 3 * BLOCK
            for _ in range(octaves):
                simd.store(x, to, s)
                simd.store(x, to + 3 * BLOCK, c)
                s, c = (s * c) * _F2, _F1 - (s * s) * _F2
                to += 6 * BLOCK


@njit(nogil=True, cache=True)
def _dense(p, at, x, inputs, out, row, outputs, relu):
    """A layer for 32 lanes, outputs written from row `row` of `out` on; returns where the next parameters begin."""
    for j in range(row, row + outputs, 4):
        a0 = simd.broadcast_at(p, at)
        b0 = simd.broadcast_at(p, at + 1)
        c0 = simd.broadcast_at(p, at + 2)
        d0 = simd.broadcast_at(p, at + 3)
        a1, b1, c1, d1 = a0, b0, c0, d0
        for k in range(inputs):
            at += 4
            x0, x1 = simd.load(x, k * BLOCK), simd.load(x, k * BLOCK + _L)
            w = simd.broadcast_at(p, at)
            a0, a1 = a0 + x0 * w, a1 + x1 * w
            w = simd.broadcast_at(p, at + 1)
            b0, b1 = b0 + x0 * w, b1 + x1 * w
            w = simd.broadcast_at(p, at + 2)
            c0, c1 = c0 + x0 * w, c1 + x1 * w
            w = simd.broadcast_at(p, at + 3)
            d0, d1 = d0 + x0 * w, d1 + x1 * w
        at += 4
        if relu:
            a0, a1 = simd.maximum(a0, _F0), simd.maximum(a1, _F0)
            b0, b1 = simd.maximum(b0, _F0), simd.maximum(b1, _F0)
            c0, c1 = simd.maximum(c0, _F0), simd.maximum(c1, _F0)
            d0, d1 = simd.maximum(d0, _F0), simd.maximum(d1, _F0)
        to = j * BLOCK
        simd.store(out, to, a0)
        simd.store(out, to + _L, a1)
        simd.store(out, to + BLOCK, b0)
        simd.store(out, to + BLOCK + _L, b1)
        simd.store(out, to + 2 * BLOCK, c0)
        simd.store(out, to + 2 * BLOCK + _L, c1)
        simd.store(out, to + 3 * BLOCK, d0)
        simd.store(out, to + 3 * BLOCK + _L, d1)
    return at


@njit(nogil=True, cache=True)
def _dense_half(p, at, x, inputs, out, row, outputs, relu):
    """`_dense` for the first 16 lanes alone, with the same operations in the same order."""
    for j in range(row, row + outputs, 4):
        a = simd.broadcast_at(p, at)
        b = simd.broadcast_at(p, at + 1)
        c = simd.broadcast_at(p, at + 2)
        d = simd.broadcast_at(p, at + 3)
        for k in range(inputs):
            at += 4
            v = simd.load(x, k * BLOCK)
            a = a + v * simd.broadcast_at(p, at)
            b = b + v * simd.broadcast_at(p, at + 1)
            c = c + v * simd.broadcast_at(p, at + 2)
            d = d + v * simd.broadcast_at(p, at + 3)
        at += 4
        if relu:
            a, b = simd.maximum(a, _F0), simd.maximum(b, _F0)
            c, d = simd.maximum(c, _F0), simd.maximum(d, _F0)
        simd.store(out, j * BLOCK, a)
        simd.store(out, (j + 1) * BLOCK, b)
        simd.store(out, (j + 2) * BLOCK, c)
        simd.store(out, (j + 3) * BLOCK, d)
    return at


@njit(nogil=True, cache=True)
def _density(p, at, x, inputs, out, used):
    """Density's one output, before its ReLU; returns where the next parameters begin."""
    for first in range(0, used, _L):
        total = simd.broadcast_at(p, at)
        for k in range(inputs):
            total = total + simd.load(x, k * BLOCK + first) * simd.broadcast_at(p, at + 1 + k)
        simd.store(out, first, total)
    return at + 1 + inputs


@njit(nogil=True, cache=True)
def evaluate(starts, order, positions, rays, directions, steps, width, octaves, direction_octaves, parameters, out):
    """Colours and alphas of all samples.

    Args:
        starts: [N + 1] int64 first of each network's samples in `order`, then their number M.
        order: [M] int32 samples, sorted by network.
        positions: [*, 3] float32 local position of each sample.
        rays: [*] int32 row of `directions` of each sample.
        directions: [*, 3] float32, unit length.
        steps: length of a sample, in the grid's steps.
        width: of the hidden layers.
        octaves: of positions.
        direction_octaves: of directions.
        parameters: see `pack_weights`.
        out: [*, 4] float32, written: colour, then alpha.

    Returns:
        Number of blocks that were evaluated.
    """
    position_size, seen_size = 3 + 6 * octaves, width + 3 + 6 * direction_octaves
    x = np.zeros(position_size * BLOCK, np.float32)
    h = np.zeros(width * BLOCK, np.float32)
    seen = np.zeros(seen_size * BLOCK, np.float32)
    color = np.zeros(4 * BLOCK, np.float32)
    depth = np.zeros(BLOCK, np.float32)
    blocks = 0
    for network in range(len(starts) - 1):
        p = parameters[network]
        for first in range(starts[network], starts[network + 1], BLOCK):
            count = min(BLOCK, starts[network + 1] - first)
            used = BLOCK if count > _L else _L
            blocks += 1
            for lane in range(count):
                sample = order[first + lane]
                ray = rays[sample]
                for axis in range(3):
                    x[axis * BLOCK + lane] = positions[sample, axis]
                    seen[(width + axis) * BLOCK + lane] = directions[ray, axis]
            _encode(x, 0, octaves, used)
            _encode(seen, width, direction_octaves, used)
            if used == BLOCK:
                at = _dense(p, 0, x, position_size, h, 0, width, True)
                at = _dense(p, at, h, width, seen, 0, width, True)
                at = _density(p, at, seen, width, depth, used)
                at = _dense(p, at, seen, seen_size, h, 0, width, True)
                _dense(p, at, h, width, color, 0, 4, False)
            else:
                at = _dense_half(p, 0, x, position_size, h, 0, width, True)
                at = _dense_half(p, at, h, width, seen, 0, width, True)
                at = _density(p, at, seen, width, depth, used)
                at = _dense_half(p, at, seen, seen_size, h, 0, width, True)
                _dense_half(p, at, h, width, color, 0, 4, False)
            for at in range(0, used, _L):
                nothing = simd.exp((_F0 - simd.maximum(simd.load(depth, at), _F0)) * steps)
                simd.store(depth, at, _F1 - nothing)
                for channel in range(3):
                    simd.store(color, channel * BLOCK + at, simd.sigmoid(simd.load(color, channel * BLOCK + at)))
            for lane in range(count):
                sample = order[first + lane]
                for channel in range(3):
                    out[sample, channel] = color[channel * BLOCK + lane]
                out[sample, 3] = depth[lane]
    return blocks
