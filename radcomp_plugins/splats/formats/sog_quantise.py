"""The numbers of a SOG version 2 file: what its meta.json fixes, the levels of each attribute, and their values."""

import json
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from radcomp_plugins.core.files import parse_json
from radcomp_plugins.core.quantize import (
    assign_nearest,
    dequantize_uniform,
    optimal_codebook,
    quantize_uniform,
    signed_exp,
    signed_log,
)
from radcomp_plugins.errors import InputError

CODEBOOK_SIZE = 256
CODEBOOK_DIGITS = 5
QUAT_TAG = 252

OPACITY_MARGIN = 1e-6
"""Opacity bytes 0 and 255 become logits of +-13.8 rather than infinite ones, as in the format's own tools."""

SH_LEVELS = (16, 24, 32, 48, 64, 96, 128, 192, 256)
SH_LEVEL_ERROR = 0.02
"""Rounding the SH palette may add this share of the error that the palette itself makes."""

SMALLEST_THREE = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
"""The components that are stored when component i is left out."""

Array64 = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SogPlan:
    """What stands in meta.json, and decides with an attribute's value which value the file gives back.

    Attributes:
        low: [3] signed logarithm of a position at level 0.
        high: [3] at level 65,535.
        position_bits: of a coordinate that are used, the others are 0.
        scales: [256] ascending logarithms.
        colours: [256] ascending constant SH coefficients.
        rest: [256] ascending numbers of the SH palette; empty at degree 0.
    """

    low: Array64
    high: Array64
    position_bits: int
    scales: Array64
    colours: Array64
    rest: Array64

    def decoded(self, columns: dict[str, Array64]) -> dict[str, Array64]:
        """What a file gives back for `smallest_columns`, all but the higher SH; float64, in their order."""
        levels = quantise(columns, self)
        return {
            "means": dequantise_means(levels.means, self.low, self.high),
            "quats": dequantise_quats(levels.quats),
            "scales": self.scales[levels.scales],
            "opacities": dequantise_opacity(levels.colours[:, 3]),
            "sh0": self.colours[levels.colours[:, :3]],
        }

    def decoded_rest(self, rest: Array64) -> Array64:
        """What a file gives back for palette vectors [K, R, 3]."""
        return self.rest[assign_nearest(rest, self.rest)] if rest.size else rest

    def pack(self) -> bytes:
        """The plan as JSON."""
        fields = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(self).items()}
        return json.dumps(fields).encode("ascii")


def unpack_plan(data: bytes, where: str) -> SogPlan:
    """Undo `SogPlan.pack`.

    Raises:
        InputError: No such bytes.
    """
    meta = parse_json(data, where)
    sizes = {"low": (3,), "high": (3,), "scales": (256,), "colours": (256,), "rest": (0, 256)}
    try:
        arrays = {name: np.array(meta[name], np.float64) for name in sizes}
        bits = int(meta["position_bits"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: no plan of a SOG file ({error}), expected {', '.join(sizes)}") from error
    if not 8 <= bits <= 16 or any(arrays[n].ndim != 1 or len(arrays[n]) not in size for n, size in sizes.items()):
        raise InputError(f"{where}: a plan of a SOG file with arrays of wrong sizes, expected {sizes}")
    return SogPlan(position_bits=bits, **arrays)


@dataclass(frozen=True)
class SogLevels:
    """Levels of all attributes but the higher SH.

    Attributes:
        means: [N, 3] 16-bit levels.
        scales: [N, 3] entries of the codebook.
        quats: [N, 4] bytes of three components, and the tag that tells which is left out.
        colours: [N, 4] entries of the codebook, and the byte of alpha.
    """

    means: Labels
    scales: Labels
    quats: Labels
    colours: Labels


def plan_sog(columns: dict[str, Array64], weights: Array64, rest: Array64, position_bits: int) -> SogPlan:
    """Range and codebooks for `smallest_columns`.

    Args:
        columns: Of the scene.
        weights: [N] how much the error of each Gaussian matters.
        rest: Codebook of the SH palette's numbers, of up to 256 entries, from `rest_codebook`; empty at degree 0.
        position_bits: 8 to 16.
    """
    y = signed_log(columns["means"])
    low, high = y.min(axis=0), y.max(axis=0)
    return SogPlan(
        low=low,
        high=low + (high - low) * _stretch(position_bits),
        position_bits=position_bits,
        scales=_padded(_codebook(columns["scales"], weights)),
        colours=_padded(_codebook(columns["sh0"], weights)),
        rest=_padded(rest),
    )


def rest_codebook(entries: Array64, used: Array64, levels: int | None, error: float) -> Array64:
    """Codebook for the numbers of a palette.

    Args:
        entries: [K, D] vectors.
        used: [K] weight of each.
        levels: Size of the codebook; None takes as few as add 2 % to `error`.
        error: Mean squared error that the palette makes.
    """
    book = np.empty(0)
    for size in SH_LEVELS if levels is None else (levels,):
        book = _codebook(entries, used, size)
        rounding = book[assign_nearest(entries, book)] - entries
        total = used.sum()
        squares = np.square(rounding).sum(axis=1)
        if (float((used * squares).sum() / total) if total > 0 else float(squares.mean())) <= SH_LEVEL_ERROR * error:
            break
    return book


def quantise(columns: dict[str, Array64], plan: SogPlan) -> SogLevels:
    """Levels of `smallest_columns` in their order; w of a quaternion is left out, for it is the largest."""
    bits = plan.position_bits
    # The last level that is used must still decode to the end of the range.
    high = plan.low + (plan.high - plan.low) / _stretch(bits)
    three = np.rint((columns["quats"][:, 1:] * math.sqrt(2.0) * 0.5 + 0.5) * 255.0).astype(np.int64)
    alpha = np.rint(255.0 * columns["alpha"][:, None]).astype(np.int64)
    return SogLevels(
        means=quantize_uniform(signed_log(columns["means"]), plan.low, high, bits) << (16 - bits),
        scales=assign_nearest(columns["scales"], plan.scales),
        quats=np.concatenate([three, np.full((len(three), 1), QUAT_TAG)], axis=1),
        colours=np.concatenate([assign_nearest(columns["sh0"], plan.colours), alpha], axis=1),
    )


def dequantise_means(levels: Labels, low: Array64, high: Array64) -> Array64:
    """Positions [N, 3]."""
    return signed_exp(dequantize_uniform(levels, low, high, 16))


def dequantise_quats(levels: npt.NDArray) -> Array64:
    """Unit quaternions [N, 4] of bytes and tags [N, 4], the tags 252 to 255."""
    left_out = levels[:, 3].astype(np.int64) - QUAT_TAG
    three = (levels[:, :3] / 255.0 * 2.0 - 1.0) / math.sqrt(2.0)
    quats = np.empty((len(levels), 4))
    np.put_along_axis(quats, SMALLEST_THREE[left_out], three, axis=1)
    rest = np.sqrt(np.maximum(1.0 - np.square(three).sum(axis=1, keepdims=True), 0.0))
    np.put_along_axis(quats, left_out[:, None], rest, axis=1)
    return quats


def dequantise_opacity(levels: npt.NDArray) -> Array64:
    """Logits [N] of bytes."""
    alpha = np.clip(levels / 255.0, OPACITY_MARGIN, 1.0 - OPACITY_MARGIN)
    return np.log(alpha / (1.0 - alpha))


def _stretch(bits: int) -> float:
    """Extent of 16-bit levels over that of the ones of which only the upper bits are used."""
    return 65535 / ((2**bits - 1) << (16 - bits))


def _codebook(values: Array64, weights: Array64, size: int = CODEBOOK_SIZE) -> Array64:
    """The best codebook, rounded to the digits that go into the file."""
    book = optimal_codebook(values, size, np.broadcast_to(weights[:, None], values.shape))
    return np.array([float(f"{v:.{CODEBOOK_DIGITS}g}") for v in book])


def _padded(book: Array64) -> Array64:
    return np.pad(book, (0, CODEBOOK_SIZE - len(book)), mode="edge") if len(book) else book
