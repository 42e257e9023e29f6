"""The numbers of an SPZ file: fixed-point and byte arrays of each attribute, the same in all its versions.

Per Gaussian: three 24-bit positions with `fraction_bits` bits after the point; opacity as a byte; the constant SH
coefficient c as round(255 (0.15 c + 0.5)); the logarithm s of a scale as round(16 (s + 10)); a rotation, in version 2
the three bytes of x, y, z with w >= 0, from version 3 on the smallest three of x, y, z, w in 10 bits each (sign and
magnitude) under the index of the largest; an SH coefficient h as round(128 h) + 128, the last bits of which the writer
rounds away so that they compress.

Format: github.com/nianticlabs/spz, README.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from radcomp_plugins.splats.gaussians import Gaussians, num_sh_rest
from radcomp_plugins.splats.order import morton_order, smallest_rotation

Bytes = npt.NDArray[np.uint8]
Array64 = npt.NDArray[np.float64]

COLOR_SCALE = 0.15
MAX_POSITION = 2**23 - 1
OPACITY_MARGIN = 1e-6
"""Opacity bytes 0 and 255 become logits of +-13.8 rather than infinite ones, as in SOG."""

STREAMS = ("positions", "alphas", "colors", "scales", "rotations", "sh")
"""Order of the arrays in a file."""


@dataclass(frozen=True)
class Layout:
    """Sizes that a header states.

    Attributes:
        count: Number of Gaussians.
        degree: SH degree of the file, 0 to 4.
        quat_bytes: 3 in version 2, 4 from version 3 on.
    """

    count: int
    degree: int
    quat_bytes: int

    def bytes_each(self) -> dict[str, int]:
        """Bytes per Gaussian of each stream."""
        rest = 3 * ((self.degree + 1) ** 2 - 1)
        return dict(zip(STREAMS, (9, 1, 3, 3, self.quat_bytes, rest), strict=True))


def pack(g: Gaussians, quat_bytes: int, fraction_bits: int, sh_bits: tuple[int, int]) -> dict[str, Bytes]:
    """The arrays [N, bytes] of a scene, in Morton order, each Gaussian's axes named so that it is turned least.

    Args:
        g: The scene; finite, and within the range that `fraction_bits` leaves.
        quat_bytes: 3 or 4.
        fraction_bits: Bits of a position after the point.
        sh_bits: Bits that are kept of SH coefficients of degree 1, and of higher ones.
    """
    means = _numpy(g.means)
    order = morton_order(means)
    quats, scales = smallest_rotation(_numpy(g.quats)[order], _numpy(g.scales)[order])
    fixed = np.rint(means[order] * 2.0**fraction_bits).astype(np.int32)
    quat_array = _pack_first_three(quats) if quat_bytes == 3 else _pack_smallest_three(quats)
    return {
        "positions": fixed.astype("<i4").view(np.uint8).reshape(-1, 3, 4)[:, :, :3].reshape(-1, 9),
        "alphas": _byte(255.0 / (1.0 + np.exp(-_numpy(g.opacities)[order, None]))),
        "colors": _byte(255.0 * (COLOR_SCALE * _numpy(g.sh0)[order] + 0.5)),
        "scales": _byte(16.0 * (scales + 10.0)),
        "rotations": quat_array,
        "sh": _pack_sh(_numpy(g.shN)[order], sh_bits),
    }


def unpack(streams: dict[str, Bytes], layout: Layout, fraction_bits: int, antialiased: bool) -> Gaussians:
    """The scene in arrays [N, bytes]; SH of degree 4 are left out."""
    degree = min(layout.degree, 3)
    rest = (streams["sh"][:, : 3 * num_sh_rest(degree)].astype(np.float32) - 128.0) / 128.0
    fixed = np.zeros((layout.count, 3, 4), np.uint8)
    fixed[:, :, 1:] = streams["positions"].reshape(-1, 3, 3)
    # The three bytes stand in the upper part of the word, so that the shift back brings their sign along.
    means = (fixed.view("<i4")[:, :, 0] >> 8) * 2.0**-fraction_bits
    alpha = np.clip(streams["alphas"][:, 0] / 255.0, OPACITY_MARGIN, 1.0 - OPACITY_MARGIN)
    rotations = streams["rotations"]
    return Gaussians(
        means=_tensor(means),
        quats=_tensor(_unpack_first_three(rotations) if layout.quat_bytes == 3 else _unpack_smallest_three(rotations)),
        scales=_tensor(streams["scales"] / 16.0 - 10.0),
        opacities=_tensor(np.log(alpha / (1.0 - alpha))),
        sh0=_tensor((streams["colors"] / 255.0 - 0.5) / COLOR_SCALE),
        shN=_tensor(rest.reshape(layout.count, -1, 3)),
        antialiased=antialiased,
    )


def _pack_sh(rest: Array64, bits: tuple[int, int]) -> Bytes:
    """[N, 3 K] bytes; of values beyond the range of -1 to 127 / 128 the nearest end."""
    step: Array64 = np.where(np.arange(rest.shape[1]) < 3, 2.0 ** (8 - bits[0]), 2.0 ** (8 - bits[1]))[:, None]
    return _byte(np.rint((128.0 * rest + 128.0) / step) * step).reshape(len(rest), -1)


def _pack_first_three(quats: Array64) -> Bytes:
    signed = quats[:, 1:] * np.where(quats[:, :1] < 0, -1.0, 1.0)
    return _byte(127.5 * signed + 127.5)


def _unpack_first_three(values: Bytes) -> Array64:
    xyz = values / 127.5 - 1.0
    w = np.sqrt(np.maximum(1.0 - np.square(xyz).sum(axis=1, keepdims=True), 0.0))
    return np.concatenate([w, xyz], axis=1)


def _pack_smallest_three(quats: Array64) -> Bytes:
    xyzw = quats[:, (1, 2, 3, 0)]
    largest = np.abs(xyzw).argmax(axis=1)
    sign = np.where(np.take_along_axis(xyzw, largest[:, None], axis=1) < 0, -1.0, 1.0)
    three = np.take_along_axis(xyzw * sign, _OTHERS[largest], axis=1)
    magnitude = np.minimum(np.rint(511.0 * math.sqrt(2.0) * np.abs(three)), 511.0).astype(np.uint32)
    words = magnitude | (three < 0).astype(np.uint32) << 9
    packed = largest.astype(np.uint32) << 30 | words[:, 0] << 20 | words[:, 1] << 10 | words[:, 2]
    return packed.astype("<u4").view(np.uint8).reshape(-1, 4)


def _unpack_smallest_three(values: Bytes) -> Array64:
    packed = np.ascontiguousarray(values).view("<u4")[:, 0]
    largest = (packed >> 30).astype(np.int64)
    words = np.stack([packed >> 20, packed >> 10, packed], axis=1) & 1023
    three = np.where(words & 512, -1.0, 1.0) * (words & 511) / (511.0 * math.sqrt(2.0))
    xyzw = np.empty((len(packed), 4))
    np.put_along_axis(xyzw, _OTHERS[largest], three, axis=1)
    rest = np.sqrt(np.maximum(1.0 - np.square(three).sum(axis=1, keepdims=True), 0.0))
    np.put_along_axis(xyzw, largest[:, None], rest, axis=1)
    # Damaged words may hold three components beyond length 1.
    xyzw /= np.linalg.norm(xyzw, axis=1, keepdims=True)
    return xyzw[:, (3, 0, 1, 2)]


_OTHERS = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
"""The components that are stored when component i of x, y, z, w is the largest."""


def _byte(values: Array64) -> Bytes:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _numpy(tensor: torch.Tensor) -> Array64:
    return tensor.detach().cpu().numpy().astype(np.float64)


def _tensor(values: npt.NDArray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))
