"""Half-precision numbers, entropy-coded without loss: the upper byte holds what is predictable, sign and exponent.

Numbers whose last binary digits were rounded away cost as little as they then hold: the coder learns that the digits
are zero.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from radcomp_plugins.core import entropy
from radcomp_plugins.core.entropy import Contexts
from radcomp_plugins.errors import InputError

MANTISSA_BITS = 10
"""Of a float16, the leading one not counted."""

Floats = NDArray[np.float16]


def encode_floats(arrays: Sequence[Floats]) -> bytes:
    """Code float16 arrays of known shapes; those of two dimensions column by column, for a column is one feature."""
    values = np.concatenate([np.ascontiguousarray(array.T).reshape(-1) for array in arrays])
    words = values.astype("<f2").view(np.uint16).astype(np.int32)
    both = np.stack([words >> 8, words & 255], axis=1).reshape(-1)
    return entropy.encode(both, _contexts(both.size))


def decode_floats(data: bytes, shapes: Sequence[tuple[int, ...]], where: str) -> list[Floats]:
    """Arrays of the given shapes from what `encode_floats` wrote.

    Raises:
        InputError: one of the numbers is not finite.
    """
    sizes = [int(np.prod(shape)) for shape in shapes]
    both = entropy.decode(data, _contexts(2 * sum(sizes))).reshape(-1, 2)
    values = (both[:, 0] << 8 | both[:, 1]).astype("<u2").view("<f2").astype(np.float16)
    if not np.isfinite(values).all():
        raise InputError(f"{where}: a number is not finite: the file is damaged")
    parts = np.split(values, np.cumsum(sizes)[:-1])
    return [part.reshape(shape[::-1]).T.copy() for part, shape in zip(parts, shapes, strict=True)]


def round_mantissa(values: NDArray[np.floating], bits: int) -> Floats:
    """The nearest float16 with only `bits` binary digits behind the leading one, 0 to 10; numbers stay finite."""
    halves = np.asarray(values, np.float32).clip(-65504, 65504).astype(np.float16)
    drop = MANTISSA_BITS - bits
    words = halves.view(np.uint16).astype(np.uint32)
    size = words & 0x7FFF
    rounded = (size + ((1 << drop) >> 1)) >> drop << drop
    # Rounding up may reach infinity's code; the largest number with so few digits is one step below.
    rounded = np.minimum(rounded, (0x7C00 - 1) >> drop << drop)
    return (words & 0x8000 | rounded).astype(np.uint16).view(np.float16)


def _contexts(count: int) -> Contexts:
    """Which of the two bytes it is; and the upper byte before: the last number's, or the one a lower byte goes with."""
    which = np.arange(count) & 1
    before = np.maximum(np.arange(count) - 2 + which, -1)
    return Contexts(8, count, [(which, 2)], [(before, np.arange(257))], [(0, 1)])
