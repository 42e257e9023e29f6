"""The deferred network for a whole picture on the CPU: parameters interpolated once, sixteen rays to a vector.

The same values as `deferred.DeferredNetwork.apply_layers`, without its arrays of encoded directions.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from radcomp_plugins.core import simd
from radcomp_plugins.core.threads import claim_block, new_counter, run_striped

_F1 = np.float32(1.0)
_BANDS = 4


@njit(nogil=True, cache=True, inline="always")
def _encode(x, at):
    """From three vectors of unit directions in `x` at `at`: sines and cosines of 1, 2, 4 and 8 times them, behind."""
    for axis in range(3):
        d = simd.load(x, at + axis * simd.LANES)
        s, c = simd.sine(d), simd.cosine(d)
        for band in range(_BANDS):
            simd.store(x, at + (3 + 3 * band + axis) * simd.LANES, s)
            simd.store(x, at + (3 + 3 * _BANDS + 3 * band + axis) * simd.LANES, c)
            s, c = (s * c) * np.float32(2.0), _F1 - (s * s) * np.float32(2.0)


@njit(nogil=True, cache=True, inline="always")
def _dense(parameters, at, x, inputs, out, outputs, kind):
    """One layer; returns where the next one's parameters begin. kind: 0 sigmoid, 1 relu, 2 elu."""
    for o in range(outputs):
        total = simd.broadcast(parameters[at + inputs * outputs + o])
        for i in range(inputs):
            total = total + simd.load(x, i * simd.LANES) * parameters[at + i * outputs + o]
        if kind == 0:
            total = simd.sigmoid(total)
        elif kind == 1:
            total = simd.maximum(total, np.float32(0.0))
        else:
            low = simd.exp(simd.minimum(total, np.float32(0.0))) - _F1
            total = simd.select(total < np.float32(0.0), low, total)
        simd.store(out, o * simd.LANES, total)
    return at + (inputs + 1) * outputs


@njit(nogil=True, cache=True)
def shade_rays(
    start, step, counter, parameters, width, is_elu, background, features, accumulation, directions, specular
):  # fmt: skip
    """Evaluate blocks of rays until none is left to claim.

    Args:
        start: not used, as `step`: threads share the rays by `counter`.
        step: not used.
        counter: see `core.threads.claim`.
        parameters: per layer the kernel [inputs, outputs], then the bias, all in one [*] float32.
        width: of the hidden layers.
        is_elu: the hidden layers' activation is ELU, else ReLU.
        background: behind the scene, grey, 0..1.
        features: [N, C] float32 as gathered, without the background.
        accumulation: [N] float32.
        directions: [N, 3] float32, unit length.
        specular: [N, 3] float32, written.
    """
    count, channels = features.shape
    lanes = simd.LANES
    inputs = channels + 3 + 6 * _BANDS
    x, a, b = (
        np.zeros(inputs * lanes, np.float32),
        np.zeros(width * lanes, np.float32),
        np.zeros(width * lanes, np.float32),
    )
    kind = 2 if is_elu else 1
    while True:
        begin, end = claim_block(counter, count)
        if begin == end:
            break
        for first in range(begin, end, lanes):
            number = min(lanes, end - first)
            for k in range(number):
                behind = max(_F1 - accumulation[first + k], np.float32(0.0)) * background
                for c in range(channels):
                    x[c * lanes + k] = features[first + k, c] + (behind if c < 3 else np.float32(0.0))
                for c in range(3):
                    x[(channels + c) * lanes + k] = directions[first + k, c]
            _encode(x, channels * lanes)
            at = _dense(parameters, 0, x, inputs, a, width, kind)
            at = _dense(parameters, at, a, width, b, width, kind)
            _dense(parameters, at, b, width, a, 3, 0)
            for k in range(number):
                for c in range(3):
                    specular[first + k, c] = a[c * lanes + k]


def evaluate_shared(
    layers: list[tuple[NDArray[np.float32], NDArray[np.float32]]],
    activation: str,
    features: NDArray[np.float32],
    accumulation: NDArray[np.float32],
    background: float,
    directions: NDArray[np.float32],
) -> NDArray[np.float32]:
    """View-dependent colour [N, 3] in [0, 1] of rays that share the network's parameters.

    Args:
        layers: kernel [inputs, outputs] and bias [outputs] of the three layers, float32.
        activation: "elu" or "relu".
        features: [N, C] float32, gathered along the rays, without the background.
        accumulation: [N] float32.
        background: what is behind the scene, 0..1.
        directions: [N, 3] float32, unit length.

    Raises:
        ValueError: shapes that do not fit one another.
    """
    count, channels = features.shape
    width = layers[0][0].shape[1]
    expected = [(channels + 3 + 6 * _BANDS, width), (width, width), (width, 3)]
    shapes = [kernel.shape for kernel, _ in layers]
    biases = [bias.shape for _, bias in layers]
    if shapes != expected or biases != [(outputs,) for _, outputs in expected] or width < 3:
        raise ValueError(f"network of {shapes} with biases {biases}: expected {expected} for {channels} features")
    if accumulation.shape != (count,) or directions.shape != (count, 3):
        raise ValueError(f"{count} rays with shapes {accumulation.shape} and {directions.shape}")
    parameters = np.concatenate([np.concatenate([kernel.ravel(), bias]) for kernel, bias in layers])
    specular = np.empty((count, 3), np.float32)
    run_striped(
        shade_rays,
        new_counter(),
        np.ascontiguousarray(parameters, np.float32),
        width,
        activation == "elu",
        np.float32(background),
        np.ascontiguousarray(features, np.float32),
        np.ascontiguousarray(accumulation, np.float32),
        np.ascontiguousarray(directions, np.float32),
        specular,
    )
    return specular
