"""The head of a `.vqad` file: all of a scene but its levels.

Little-endian: box (6 f64), dataset_to_scene (12 f64), near, density bias and scale (f64 each), background (3 f32),
samples per voxel (u8), level they are taken at (u8: 0 coarsest, 1 finest), density activation (u8: 0 relu, 1 softplus,
2 exp), frequencies of the direction (u8), number of features (u16), number of layers (u8), each layer's outputs (u16);
then all weights and biases, layer by layer, by `vqad.float_coding`.
"""

import struct
from dataclasses import replace
from typing import get_args

import numpy as np

from radcomp_plugins.errors import InputError
from radcomp_plugins.vqad.float_coding import decode_floats, encode_floats
from radcomp_plugins.vqad.scene import (
    DECODER_LAYERS,
    DENSITY_ACTIVATIONS,
    MAX_DECODER_WIDTH,
    MAX_FEATURES,
    SampledLevel,
    VqadDecoder,
    VqadScene,
    check_decoder,
    check_frame,
)

_FIXED = struct.Struct("<21d3f4BHB")
_SAMPLED: tuple[SampledLevel, ...] = get_args(SampledLevel)


def pack_head(scene: VqadScene) -> bytes:
    """The head's bytes."""
    decoder = scene.decoder
    fixed = _FIXED.pack(
        *np.ravel(scene.box), *np.ravel(scene.dataset_to_scene), scene.near,
        decoder.density_bias, decoder.density_scale, *scene.background,
        scene.samples_per_voxel, _SAMPLED.index(scene.samples_at),
        DENSITY_ACTIVATIONS.index(decoder.density_activation), decoder.direction_frequencies,
        scene.num_features, len(decoder.weights),
    )  # fmt: skip
    widths = struct.pack(f"<{len(decoder.weights)}H", *(len(weight) for weight in decoder.weights))
    return fixed + widths + encode_floats([*decoder.weights, *decoder.biases])


def unpack_head(data: bytes, where: str) -> VqadScene:
    """A scene without levels.

    Raises:
        InputError: a number is out of its range.
    """
    where = f"{where}: head"
    if len(data) < _FIXED.size:
        raise InputError(f"{where}: {len(data)} bytes, expected at least {_FIXED.size}")
    *numbers, samples, at, activation, frequencies, features, layers = _FIXED.unpack_from(data)
    if at >= len(_SAMPLED) or activation >= len(DENSITY_ACTIVATIONS):
        raise InputError(f"{where}: sampled level {at}, density activation {activation}: not known")
    if layers != DECODER_LAYERS or not 1 <= features <= MAX_FEATURES or frequencies > 8:
        raise InputError(
            f"{where}: {layers} layers, {features} features, {frequencies} frequencies; "
            f"expected {DECODER_LAYERS}, 1 to {MAX_FEATURES}, up to 8"
        )
    start = _FIXED.size + 2 * layers
    if len(data) < start:
        raise InputError(f"{where}: {len(data)} bytes, expected at least {start}")
    widths = struct.unpack_from(f"<{layers}H", data, _FIXED.size)
    if not all(1 <= width <= MAX_DECODER_WIDTH for width in widths):
        raise InputError(f"{where}: layers of {widths} outputs, expected 1 to {MAX_DECODER_WIDTH}")
    inputs = features + (6 * frequencies + 3 if frequencies else 0)
    shapes = [*zip(widths, (inputs, *widths[:-1]), strict=True), *((width,) for width in widths)]
    arrays = decode_floats(data[start:], shapes, f"{where}: decoder")
    decoder = VqadDecoder(
        arrays[:layers], arrays[layers:], frequencies, DENSITY_ACTIVATIONS[activation], *numbers[19:21]
    )
    scene = VqadScene(
        box=np.array(numbers[:6]).reshape(2, 3),
        levels=[],
        decoder=decoder,
        background=np.array(numbers[21:24], np.float32),
        samples_per_voxel=samples,
        samples_at=_SAMPLED[at],
        near=numbers[18],
        dataset_to_scene=np.array(numbers[6:18]).reshape(3, 4),
    )
    check_frame(scene, where)
    check_decoder(decoder, where)
    return replace(scene, levels=[])
