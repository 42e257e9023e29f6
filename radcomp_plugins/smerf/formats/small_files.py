"""The small JSON files of an asset: the deferred network, the test cameras, and what takes how much room."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from radcomp_plugins.smerf.layout import DeferredMlp, TestFrame, rotate_to_webgl

NETWORK = "deferred_mlp.json"
FRAMES = "test_frames.json"
NEAR = 0.05
"""Distance of the near plane in front of a test camera, unit frame: the viewers begin to march there."""
FAR = 1000.0
_NUMBERS = 4096


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
