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
from radcomp_plugins.splats.order import morton_order, smallest_columns

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
    columns = smallest_columns(g)
    order = morton_order(columns["means"])
    columns = {name: values[order] for name, values in columns.items()}
    return {**_pack_plain(columns, quat_bytes, fraction_bits), "sh": _pack_sh(columns["shN"], sh_bits)}


def _pack_plain(columns: dict[str, Array64], quat_bytes: int, fraction_bits: int) -> dict[str, Bytes]:
    """The arrays of `smallest_columns` in their order, all but the higher SH."""
    fixed = np.rint(columns["means"] * 2.0**fraction_bits)
    fixed = np.clip(fixed, -MAX_POSITION, MAX_POSITION).astype("<i4")
    quats = columns["quats"]
    return {
        "positions": fixed.view(np.uint8).reshape(-1, 3, 4)[:, :, :3].reshape(-1, 9),
        "alphas": _byte(255.0 * columns["alpha"][:, None]),
        "colors": _byte(255.0 * (COLOR_SCALE * columns["sh0"] + 0.5)),
        "scales": _byte(16.0 * (columns["scales"] + 10.0)),
        "rotations": _pack_first_three(quats) if quat_bytes == 3 else _pack_smallest_three(quats),
    }


def unpack(streams: dict[str, Bytes], layout: Layout, fraction_bits: int, antialiased: bool) -> Gaussians:
    """The scene in arrays [N, bytes]; SH of degree 4 are left out."""
    columns = _unpack_plain(streams, fraction_bits)
    rest = _unpack_sh(streams["sh"][:, : 3 * num_sh_rest(min(layout.degree, 3))])
    return Gaussians(**{k: _tensor(v) for k, v in columns.items()}, shN=_tensor(rest), antialiased=antialiased)


def _unpack_plain(streams: dict[str, Bytes], fraction_bits: int) -> dict[str, Array64]:
    """The fields of `Gaussians` in the arrays of `_pack_plain`, in their order."""
    fixed = np.zeros((len(streams["positions"]), 3, 4), np.uint8)
    fixed[:, :, 1:] = streams["positions"].reshape(-1, 3, 3)
    # The three bytes stand in the upper part of the word, so that the shift back brings their sign along.
    means = (fixed.view("<i4")[:, :, 0] >> 8) * 2.0**-fraction_bits
    alpha = np.clip(streams["alphas"][:, 0] / 255.0, OPACITY_MARGIN, 1.0 - OPACITY_MARGIN)
    rotations = streams["rotations"]
    return {
        "means": means,
        "quats": _unpack_first_three(rotations) if rotations.shape[1] == 3 else _unpack_smallest_three(rotations),
        "scales": streams["scales"] / 16.0 - 10.0,
        "opacities": np.log(alpha / (1.0 - alpha)),
        "sh0": (streams["colors"] / 255.0 - 0.5) / COLOR_SCALE,
    }


@dataclass(frozen=True)
class SpzPlan:
    """What decides, with an attribute's value, which value the file gives back.

    Attributes:
        fraction_bits: of a position after the point.
        quat_bytes: 3 in version 2, 4 from version 3 on.
        sh_bits: that are kept of SH coefficients of degree 1, and of higher ones.
    """

    fraction_bits: int
    quat_bytes: int = 4
    sh_bits: tuple[int, int] = (5, 4)

    def decoded(self, columns: dict[str, Array64]) -> dict[str, Array64]:
        """What a file gives back for `smallest_columns`, all but the higher SH; float64, in their order."""
        return _unpack_plain(_pack_plain(columns, self.quat_bytes, self.fraction_bits), self.fraction_bits)

    def decoded_rest(self, rest: Array64) -> Array64:
        """What a file gives back for SH coefficients [N, R, 3]."""
        return _unpack_sh(_pack_sh(rest, self.sh_bits)).astype(np.float64)

    def pack(self) -> bytes:
        """The plan as four bytes."""
        return bytes([self.fraction_bits, self.quat_bytes, *self.sh_bits])


def _pack_sh(rest: Array64, bits: tuple[int, int]) -> Bytes:
    """[N, 3 K] bytes; of values beyond the range of -1 to 127 / 128 the nearest end."""
    step: Array64 = np.where(np.arange(rest.shape[1]) < 3, 2.0 ** (8 - bits[0]), 2.0 ** (8 - bits[1]))[:, None]
    return _byte(np.rint((128.0 * rest + 128.0) / step) * step).reshape(len(rest), -1)


def _unpack_sh(values: Bytes) -> npt.NDArray[np.float32]:
    return ((values.astype(np.float32) - 128.0) / 128.0).reshape(len(values), values.shape[1] // 3, 3)


def _pack_first_three(quats: Array64) -> Bytes:
    signed = quats[:, 1:] * np.where(quats[:, :1] < 0, -1.0, 1.0)
    return _byte(127.5 * signed + 127.5)


def _unpack_first_three(values: Bytes) -> Array64:
    xyz = values / 127.5 - 1.0
    w = np.sqrt(np.maximum(1.0 - np.square(xyz).sum(axis=1, keepdims=True), 0.0))
    # Bytes may round, or be damaged, to three components beyond length 1.
    quats = np.concatenate([w, xyz], axis=1)
    return quats / np.linalg.norm(quats, axis=1, keepdims=True)


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


def _tensor(values: npt.NDArray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))
