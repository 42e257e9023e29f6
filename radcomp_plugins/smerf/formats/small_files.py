"""The small JSON files of an asset: the deferred network, the test cameras, and what takes how much room."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radcomp_plugins.core.files import MAX_JSON_BYTES
from radcomp_plugins.smerf.formats.arrays import find_file, read_object
from radcomp_plugins.smerf.formats.problem import Fields, fail
from radcomp_plugins.smerf.layout import NUM_FEATURES, DeferredMlp, Layout, TestFrame, rotate_to_webgl

NETWORK = "deferred_mlp.json"
FRAMES = "test_frames.json"
NEAR = 0.05
"""Distance of the near plane in front of a test camera, unit frame: the viewers begin to march there."""
FAR = 1000.0
_NUMBERS = 4096
_LAYERS = 3
_DIRECTION_INPUTS = 27
"""Encoded view direction: the viewers have it built in."""
_MAX_WIDTH = 256
_MAX_GRID = 32
_BYTES_PER_SUBMODEL = 32 * 2**20
_MAX_NETWORK_BYTES = 2 * 2**30
_MAX_FRAMES = 100_000
_DEFAULT_HEIGHT = 400
"""Pixels of a test frame from a file that tells only its aspect ratio."""


def to_json(value: Any) -> str:
    """JSON as the official exporter lays it out."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False)


def network_text(deferred: DeferredMlp) -> Iterator[bytes]:
    """`deferred_mlp.json` in pieces, exactly as `to_json` would write it in one.

    A network of one parameter set per submodel (P = 1) is written the same way: the viewers interpolate between equal
    sets.
    """
    arrays: dict[str, np.ndarray] = {}
    for layer, (kernel, bias) in enumerate(zip(deferred.kernels, deferred.biases, strict=True)):
        arrays[f"ResampleDense_{layer}/bias"] = bias
        arrays[f"ResampleDense_{layer}/kernel"] = kernel
    opening = "{\n"
    for name in sorted(arrays):
        yield f'{opening}  {json.dumps(name)}: {{\n    "data": ['.encode()
        opening = ",\n"
        flat = arrays[name].astype(np.float32).reshape(-1)
        for start in range(0, len(flat), _NUMBERS):
            numbers = flat[start : start + _NUMBERS].tolist()
            text = ",".join(f"\n      {number!r}" for number in numbers)
            yield (("," if start else "") + text).encode()
        shape = ",".join(f"\n      {n}" for n in arrays[name].shape)
        yield f'\n    ],\n    "shape": [{shape}\n    ]\n  }}'.encode()
    yield b"\n}"


def frames_text(frames: Sequence[TestFrame]) -> str:
    """`test_frames.json`: cameras in the axes of WebGL, matrices column by column."""
    return to_json({"test_frames": [_frame(frame) for frame in frames]})


def _frame(frame: TestFrame) -> dict[str, Any]:
    rotation = np.eye(4)
    rotation[:3, :3] = rotate_to_webgl(frame.c2w[:, :3].T).T
    projection = np.zeros((4, 4))
    projection[0, 0] = 2.0 * frame.fx / frame.width
    projection[1, 1] = 2.0 * frame.fy / frame.height
    projection[2, 2] = -(FAR + NEAR) / (FAR - NEAR)
    projection[2, 3] = -2.0 * FAR * NEAR / (FAR - NEAR)
    projection[3, 2] = -1.0
    return {
        "position": rotate_to_webgl(frame.c2w[:, 3]).tolist(),
        "projection": (projection.T.reshape(-1) + 0.0).tolist(),
        "radcomp": {"fx": frame.fx, "fy": frame.fy, "height": frame.height, "width": frame.width},
        "rotation": (rotation.T.reshape(-1) + 0.0).tolist(),
    }


def read_network(folder: Path, layout: Layout, order: Sequence[int], inline: Mapping[str, Any] | None) -> DeferredMlp:
    """The deferred network of a scene, whose parameter sets are put in the order of `layout.alive`.

    Args:
        folder: of the submodel that the viewer starts from.
        layout: what the submodels share.
        order: live submodels in the order of the file.
        inline: the network where it is part of scene_params.json.

    Raises:
        AssetError: no network, or one of another shape than three layers from 7 or 14 features to a colour.
    """
    file = find_file(folder, NETWORK, (".gz", "")) if inline is None else folder / "scene_params.json"
    most = min(_BYTES_PER_SUBMODEL * (len(order) + 1), _MAX_NETWORK_BYTES)
    arrays = read_object(file, most) if inline is None else inline
    inputs = NUM_FEATURES * (2 if layout.feature_concat else 1) + _DIRECTION_INPUTS
    kind = "Dense" if "Dense_0/kernel" in arrays else "ResampleDense"
    rows = np.argsort(np.asarray(order, np.int64))
    kernels, biases, grid = [], [], 0
    for layer in range(_LAYERS):
        kernel = _read_array(arrays, f"{kind}_{layer}/kernel", file)
        bias = _read_array(arrays, f"{kind}_{layer}/bias", file)
        if kind == "Dense":
            kernel = np.broadcast_to(kernel, (len(order), 1, 1, 1, *kernel.shape))
            bias = np.broadcast_to(bias, (len(order), 1, 1, 1, *bias.shape))
        if kernel.ndim != 6:
            fail(file, f"{kind}_{layer}/kernel shape", list(kernel.shape), "6 numbers")
        grid = grid or kernel.shape[1]
        outputs = 3 if layer == _LAYERS - 1 else min(kernel.shape[-1], _MAX_WIDTH)
        expected = (len(order), grid, grid, grid, inputs, outputs)
        if grid > _MAX_GRID or kernel.shape != expected:
            fail(file, f"{kind}_{layer}/kernel shape", list(kernel.shape), str(list(expected)))
        if bias.shape != (*expected[:4], outputs):
            fail(file, f"{kind}_{layer}/bias shape", list(bias.shape), str([*expected[:4], outputs]))
        kernels.append(np.ascontiguousarray(kernel[rows]))
        biases.append(np.ascontiguousarray(bias[rows]))
        inputs = outputs
    return DeferredMlp(kernels, biases)


def _read_array(arrays: Mapping[str, Any], name: str, file: Path) -> NDArray[np.float32]:
    entry = arrays.get(name)
    if not isinstance(entry, dict):
        fail(file, name, "missing" if entry is None else entry, "an object with data and shape")
    shape = Fields(entry, file).integers("shape", 1, 1 << 20, 6)
    data = entry.get("data")
    count = int(np.prod(shape, dtype=np.float64))
    if not isinstance(data, list) or len(data) != count:
        got = f"{len(data)} numbers" if isinstance(data, list) else data
        fail(file, f"{name} data", got, f"{count} numbers for shape {shape}")
    if not {type(number) for number in data} <= {int, float}:
        fail(file, f"{name} data", "something else than numbers", f"{count} numbers")
    values = np.asarray(data, np.float64)
    if np.abs(values).max(initial=0.0) > np.finfo(np.float32).max:
        fail(file, f"{name} data", f"{np.abs(values).max():g}", "numbers that 32 bits hold")
    return values.astype(np.float32).reshape(shape)


def read_frames(folder: Path) -> list[TestFrame]:
    """The test cameras of an asset; none where it has no such file.

    Raises:
        AssetError: a file that is no list of cameras.
    """
    file = folder / FRAMES
    if not file.is_file():
        return []
    entries = read_object(file, MAX_JSON_BYTES).get("test_frames")
    if not isinstance(entries, list) or len(entries) > _MAX_FRAMES or any(not isinstance(e, dict) for e in entries):
        fail(file, '"test_frames"', entries, f"a list of at most {_MAX_FRAMES} cameras")
    return [_read_frame(Fields(entry, file)) for entry in entries]


def _read_frame(fields: Fields) -> TestFrame:
    rotation = np.asarray(fields.numbers("rotation", 16)).reshape(4, 4).T[:3, :3]
    if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) or np.linalg.det(rotation) < 0:
        fail(fields.file, '"rotation"', "no rotation", "a rotation, column by column")
    position = np.asarray(fields.numbers("position", 3))
    projection = fields.numbers("projection", 16)
    if min(projection[0], projection[5]) < 1e-6:
        fail(fields.file, '"projection"', projection[0], "focal lengths above 0 in places 0 and 5")
    c2w = np.concatenate([rotate_to_webgl(rotation.T).T, rotate_to_webgl(position)[:, None]], axis=1)
    ours = fields.mapping("radcomp")
    if ours is None:
        height = _DEFAULT_HEIGHT
        width = max(1, round(height * min(projection[5] / projection[0], 100.0)))
        return TestFrame(c2w, projection[0] * width / 2, projection[5] * height / 2, width, height)
    width, height = ours.integer("width", 1, 1 << 16), ours.integer("height", 1, 1 << 16)
    fx, fy = ours.number("fx", 1e-6, 1e9), ours.number("fy", 1e-6, 1e9)
    if not np.allclose([2 * fx / width, 2 * fy / height], [projection[0], projection[5]], rtol=1e-6):
        fail(fields.file, '"projection"', projection[0], "the one of the focal lengths beside it")
    return TestFrame(c2w, fx, fy, width, height)
