"""Rays through octree and decoder on the CPU, in one kernel forward and two backward.

A ray's samples go one after the other through the look-up, the decoder and the compositing, and the ray ends where it
is opaque, so that what lies behind costs nothing. Backward computes the hidden layer again, which is cheaper than to
keep it. `vqad.render` has the same in plain torch, for all that does not fit here and for other devices.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numba import njit
from torch import Tensor

from radcomp_plugins.core.octree import Octree
from radcomp_plugins.core.octree_lookup import fractions, scatter_levels, walk
from radcomp_plugins.core.simd import LANES, broadcast, exp, load, maximum, store, total
from radcomp_plugins.core.threads import claim, new_counter, run_striped
from radcomp_plugins.vqad.activations import ACTIVATION_CODES, MAX_EXPONENT
from radcomp_plugins.vqad.encoding import VQADEncoding

WIDTH = LANES
"""Features of a vertex that the kernels are made for."""

_RAYS = 64
"""Rays that a thread takes at a time in the forward pass."""
_NUM_PARTS = 16
"""Parts that the rays are cut into in the backward pass: sums over them do not depend on the number of threads."""

_F0, _F1 = np.float32(0.0), np.float32(1.0)
_RELU, _SOFTPLUS, _EXP = (np.int64(ACTIVATION_CODES[name]) for name in ("relu", "softplus", "exp"))
_MAX_EXPONENT = np.float32(MAX_EXPONENT)


@njit(nogil=True, cache=True, error_model="numpy")
def _gather(values, corners, coarsest, nodes, place, depth, x, y, z, features, at):  # noqa: ANN001, ANN202
    """Write the 16 features of a point to features[at : at + 16]."""
    summed = broadcast(_F0)
    for level in range(depth):
        node = nodes[place + level]
        if node < 0:
            break
        fx, fy, fz = fractions(coarsest + level, x, y, z)
        for corner in range(8):
            weight = fx if corner & 4 else _F1 - fx
            weight *= fy if corner & 2 else _F1 - fy
            weight *= fz if corner & 1 else _F1 - fz
            summed = summed + load(values, np.int64(corners[node, corner]) * WIDTH) * weight
    store(features, at, summed)


@njit(nogil=True, cache=True, error_model="numpy")
def _hidden(features, at, base, ray, w1, width, hidden):  # noqa: ANN001, ANN202
    """The hidden layer after its ReLU; w1 is [16 * width], one row per feature."""
    for j in range(0, width, LANES):
        even, odd = load(base, ray * width + j), broadcast(_F0)
        for c in range(0, WIDTH, 2):
            even = even + load(w1, c * width + j) * features[at + c]
            odd = odd + load(w1, (c + 1) * width + j) * features[at + c + 1]
        store(hidden, j, maximum(even + odd, _F0))


@njit(nogil=True, cache=True, error_model="numpy")
def _outputs(hidden, w2, b2, width, raw):  # noqa: ANN001, ANN202
    """The four outputs before their activations; w2 is [4 * width]."""
    for output in range(4):
        summed = broadcast(_F0)
        for j in range(0, width, LANES):
            summed = summed + load(hidden, j) * load(w2, output * width + j)
        raw[output] = total(summed) + b2[output]


@njit(nogil=True, cache=True, error_model="numpy")
def _activate(raw, kind, bias, scale, lanes):  # noqa: ANN001, ANN202
    """Density, its slope by the raw output, and the three colours."""
    x = raw[0] + bias
    bounded = min(x, _MAX_EXPONENT)
    lanes[0] = bounded if kind == _EXP else -abs(x)
    lanes[1], lanes[2], lanes[3] = -raw[1], -raw[2], -raw[3]
    store(lanes, 0, exp(load(lanes, 0)))
    red, green, blue = _F1 / (_F1 + lanes[1]), _F1 / (_F1 + lanes[2]), _F1 / (_F1 + lanes[3])
    if kind == _EXP:
        density, slope = lanes[0], lanes[0] if x < _MAX_EXPONENT else _F0
    elif kind == _RELU:
        density, slope = max(x, _F0), _F1 if x > _F0 else _F0
    else:
        density = max(x, _F0) + np.float32(np.log1p(lanes[0]))
        slope = (_F1 if x > _F0 else lanes[0]) / (_F1 + lanes[0])
    return density * scale, slope * scale, red, green, blue


@njit(nogil=True, cache=True, error_model="numpy")
def _forward(
    start, step, counter, origins, directions, at, lengths, offsets, top, children, corners, coarsest, values,
    base, w1, w2, b2, kind, bias, scale, opaque, points, nodes, features, outputs, weights, used, drawn
):  # fmt: skip  # noqa: ANN001, ANN202
    """Draw blocks of rays; see `_DrawRays`. drawn is [R, 5]: red, green, blue, accumulation, summed distance."""
    width, depth = len(b2_rows(w2)), nodes.shape[1]
    flat_nodes = nodes.reshape(-1)
    hidden, raw, lanes = np.empty(width, np.float32), np.empty(4, np.float32), np.zeros(LANES, np.float32)
    while True:
        first = claim(counter) * _RAYS
        if first >= len(origins):
            return
        for r in range(first, min(first + _RAYS, len(origins))):
            light = _F1
            for i in range(offsets[r], offsets[r + 1]):
                x = origins[r, 0] + at[i] * directions[r, 0]
                y = origins[r, 1] + at[i] * directions[r, 1]
                z = origins[r, 2] + at[i] * directions[r, 2]
                points[i, 0], points[i, 1], points[i, 2] = x, y, z
                walk(top, children, coarsest, depth, x, y, z, flat_nodes, i * depth)
                _gather(values, corners, coarsest, flat_nodes, i * depth, depth, x, y, z, features, i * WIDTH)
                _hidden(features, i * WIDTH, base, r, w1, width, hidden)
                _outputs(hidden, w2, b2, width, raw)
                density, slope, red, green, blue = _activate(raw, kind, bias, scale, lanes)
                outputs[i, 0], outputs[i, 1], outputs[i, 2], outputs[i, 3] = slope, red, green, blue
                lanes[0] = -density * lengths[i]
                store(lanes, 0, exp(load(lanes, 0)))
                weight = light * (_F1 - lanes[0])
                weights[i], used[i] = weight, True
                drawn[r, 0] += weight * red
                drawn[r, 1] += weight * green
                drawn[r, 2] += weight * blue
                drawn[r, 3] += weight
                drawn[r, 4] += weight * at[i]
                light -= weight
                if light < opaque:
                    break


@njit(inline="always")
def b2_rows(w2):  # noqa: ANN001, ANN202
    """A quarter of w2: as long as the hidden layer is wide."""
    return w2[: len(w2) // 4]


@njit(nogil=True, cache=True, error_model="numpy")
def _through_decoder(grad, features, at, hidden, w1_rows, w2, width, sums, base_grad, ray, back):  # noqa: ANN001, ANN202
    """Pull the gradient of one sample's four outputs back: to the decoder (`sums`), the ray's base and the features.

    sums holds, one after the other, w1's [16 * width], w2's [4 * width] and b2's [4] gradients. w1_rows is w1 with a
    row of 16 per hidden unit.
    """
    second = WIDTH * width
    for output in range(4):
        sums[second + 4 * width + output] += grad[output]
    for j in range(0, width, LANES):
        active = load(hidden, j)
        pulled = broadcast(_F0)
        for output in range(4):
            place = second + output * width + j
            store(sums, place, load(sums, place) + active * grad[output])
            pulled = pulled + load(w2, output * width + j) * grad[output]
        store(back, j, pulled)
    for j in range(width):
        if hidden[j] <= _F0:
            back[j] = _F0
    for j in range(0, width, LANES):
        pulled = load(back, j)
        store(base_grad, ray * width + j, load(base_grad, ray * width + j) + pulled)
        for c in range(WIDTH):
            place = c * width + j
            store(sums, place, load(sums, place) + pulled * features[at + c])
    even, odd = broadcast(_F0), broadcast(_F0)
    for j in range(0, width, 2):
        even = even + load(w1_rows, j * WIDTH) * back[j]
        odd = odd + load(w1_rows, (j + 1) * WIDTH) * back[j + 1]
    # The features have done their duty: their gradient takes their place.
    store(features, at, even + odd)


@njit(nogil=True, cache=True, error_model="numpy")
def _backward(
    start, step, counter, offsets, lengths, base, w1, w1_rows, w2, features, outputs, weights, used, grads,
    sums, base_grad
):  # fmt: skip  # noqa: ANN001, ANN202
    """Pull [R, 4] gradients of colours and accumulation back; `features` becomes their gradient."""
    width = len(w2) // 4
    hidden, back, grad = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(4, np.float32)
    rays = len(offsets) - 1
    per_part = (rays + _NUM_PARTS - 1) // _NUM_PARTS
    while True:
        part = claim(counter)
        if part >= _NUM_PARTS:
            return
        for r in range(part * per_part, min((part + 1) * per_part, rays)):
            g0, g1, g2, g3 = grads[r, 0], grads[r, 1], grads[r, 2], grads[r, 3]
            behind, light = _F0, _F1
            for i in range(offsets[r], offsets[r + 1]):
                if not used[i]:
                    break
                behind += weights[i] * (g0 * outputs[i, 1] + g1 * outputs[i, 2] + g2 * outputs[i, 3] + g3)
            for i in range(offsets[r], offsets[r + 1]):
                if not used[i]:
                    break
                weight = weights[i]
                value = g0 * outputs[i, 1] + g1 * outputs[i, 2] + g2 * outputs[i, 3] + g3
                light -= weight
                behind -= weight * value
                # More density here shows more of this sample and less of all behind it.
                grad[0] = (light * value - behind) * lengths[i] * outputs[i, 0]
                grad[1] = weight * g0 * outputs[i, 1] * (_F1 - outputs[i, 1])
                grad[2] = weight * g1 * outputs[i, 2] * (_F1 - outputs[i, 2])
                grad[3] = weight * g2 * outputs[i, 3] * (_F1 - outputs[i, 3])
                _hidden(features, i * WIDTH, base, r, w1, width, hidden)
                _through_decoder(grad, features, i * WIDTH, hidden, w1_rows, w2, width, sums[part], base_grad, r, back)


class _DrawRays(torch.autograd.Function):
    """Colours and accumulation of rays, with gradients to features, the decoder and the rays' part of its layer."""

    @staticmethod
    def forward(ctx: Any, values, base, w1, w2, b2, octree, rays, decoder, depth):  # type: ignore[override]  # noqa: ANN001, ANN205
        origins, directions, at, lengths, offsets = (t.detach().contiguous().numpy() for t in rays)
        count, width = len(at), w1.shape[0]
        table = values.detach().contiguous().view(-1).numpy()
        layers = [base.detach().contiguous().view(-1).numpy(), np.ascontiguousarray(w1.detach().numpy().T).reshape(-1)]
        layers += [w2.detach().contiguous().view(-1).numpy(), b2.detach().contiguous().numpy()]
        points, nodes = np.empty((count, 3), np.float32), np.full((count, depth), -1, np.int32)
        features, outputs = np.empty(count * WIDTH, np.float32), np.empty((count, 4), np.float32)
        weights, used = np.zeros(count, np.float32), np.zeros(count, np.bool_)
        drawn = np.zeros((len(origins), 5), np.float32)
        tables = octree.top.numpy(), octree.children.numpy(), octree.corners.numpy(), octree.coarsest
        saved = points, nodes, features, outputs, weights, used
        run_striped(
            _forward, new_counter(), origins, directions, at, lengths, offsets, *tables, table, *layers, *decoder,
            *saved, drawn,
        )  # fmt: skip
        ctx.saved, ctx.layers, ctx.offsets, ctx.lengths = saved, layers, offsets, lengths
        ctx.w1_rows = w1.detach().contiguous().view(-1).numpy()
        ctx.octree, ctx.shape, ctx.width = octree, values.shape, width
        result = torch.from_numpy(drawn), torch.from_numpy(weights), torch.from_numpy(used), torch.from_numpy(nodes)
        ctx.mark_non_differentiable(*result[1:])
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *others: Any):  # type: ignore[override]  # noqa: ANN205
        points, nodes, features, outputs, weights, used = ctx.saved
        base, w1, w2, _ = ctx.layers
        width = ctx.width
        sums = np.zeros((_NUM_PARTS, WIDTH * width + 4 * width + 4), np.float32)
        base_grad = np.zeros(len(base), np.float32)
        grads = grad.contiguous().numpy()
        run_striped(
            _backward, new_counter(), ctx.offsets, ctx.lengths, base, w1, ctx.w1_rows, w2, features, outputs,
            weights, used, grads, sums, base_grad,
        )  # fmt: skip
        to_values = torch.zeros(ctx.shape)
        octree: Octree = ctx.octree
        args = points, nodes, octree.corners.numpy(), octree.coarsest, WIDTH, features, used
        run_striped(scatter_levels, new_counter(), *args, to_values.view(-1).numpy())
        # The saved features are gradients now; a second backward pass would read them as features.
        ctx.saved = None
        to_w1, to_w2, to_b2 = np.split(sums.sum(axis=0), [WIDTH * width, WIDTH * width + 4 * width])
        return (
            to_values,
            torch.from_numpy(base_grad).view(-1, width),
            torch.from_numpy(to_w1).view(WIDTH, width).T,
            torch.from_numpy(to_w2).view(4, width),
            torch.from_numpy(to_b2),
            None, None, None, None,
        )  # fmt: skip


def fits(encoding: VQADEncoding, hidden: Float[Tensor, "H K"]) -> bool:
    """Whether the kernels can draw with this encoding and these weights of a hidden layer."""
    on_cpu = hidden.device.type == "cpu" and hidden.dtype == torch.float32
    return on_cpu and encoding.features == WIDTH and hidden.shape[0] % LANES == 0


def draw_rays(
    values: Float[Tensor, "M 16"],
    base: Float[Tensor, "R H"],
    w1: Float[Tensor, "H 16"],
    w2: Float[Tensor, "4 H"],
    b2: Float[Tensor, " 4"],
    octree: Octree,
    rays: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    decoder: tuple[str, float, float],
    depth: int,
    opaque: float,
) -> tuple[Float[Tensor, "R 5"], Float[Tensor, " N"], Bool[Tensor, " N"], Int[Tensor, "N L"]]:
    """Colours of rays; `vqad.render` says what everything is.

    Args:
        values: features of all vertices.
        base: what a ray's direction adds to the hidden layer, its bias included.
        w1: the hidden layer's weights of the features.
        w2: the last layer's weights.
        b2: its biases.
        octree: of the vertices.
        rays: box-frame origins and directions [R, 3], distances and lengths of samples [N] (the lengths in sides of
            the box), ray offsets [R + 1].
        decoder: density activation, what is added before it, and its factor.
        depth: levels that are looked up.
        opaque: share of the light below which a ray ends.

    Returns:
        drawn: red, green, blue, accumulation and weighted distances of each ray; the first four have gradients.
        weights: of the samples, without gradients.
        used: samples that were evaluated.
        nodes: of those samples at each level.
    """
    kind, bias, scale = decoder
    numbers = np.int64(ACTIVATION_CODES[kind]), np.float32(bias), np.float32(scale), np.float32(opaque)
    return _DrawRays.apply(values, base, w1, w2, b2, octree, rays, numbers, depth)  # type: ignore[no-any-return]
