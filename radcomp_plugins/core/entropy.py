"""Entropy coding of small symbols: several contexts foretell each bit, an arithmetic coder writes what they did not.

A symbol is coded bit by bit, highest first, along a binary tree. At every node each context has a number of its own;
their sum is the log odds of a 1, and each bit moves all of them against the error of that sum: logistic regression,
learned on the way. Nothing but the coded bits is stored: the decoder learns the same numbers from what it has decoded.

This took the place of PAQ's mixing of counters (Mahoney 2005, "Adaptive Weighing of Context Models for Lossless Data
Compression"), with a counter and a weight per context and three tables: it took nearly twice the time, and most files
were larger.

All is integer arithmetic on tables made by integer arithmetic, so that every machine decodes the same.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numba
import numpy as np
from numpy.typing import NDArray

MAX_BITS = 8
MAX_SLOTS = 2**24
"""Numbers that all contexts may have together."""

_HALF = 2048
"""Log odds are looked up in 256 ths, clamped to -2047 .. 2047."""
_ONE = 65536
"""The probability 1."""
_FAINTEST = 24
_STEP, _STEP_DELAY, _STEP_SHARE, _COUNT_LIMIT = 20, 10, 2, 40
"""A number met n times so far, up to 40, moves by 20 / ((n + 10) (inputs + 2)) of the error. Found by trials on trained
splats: what never shrinks further follows a scene from place to place, and costs noise 1 or 2 %."""

Int32s = NDArray[np.int32]


@dataclass
class Contexts:
    """What is known of each of N symbols before it is coded.

    Attributes:
        bits: of a symbol, 1 to 8.
        count: N.
        sides: context numbers [N] int32 known beforehand, each with the count of its values.
        causal: [N] int32, the place of an earlier symbol that resembles this one, or -1; and [2^bits + 1] int32, the
            context number that goes with each value it may have, 0 being "none" and 1 + v the value v.
        joint: two or three of the above, counted through sides and then causal, whose values together are a context.
    """

    bits: int
    count: int
    sides: Sequence[tuple[NDArray[np.integer], int]] = ()
    causal: Sequence[tuple[NDArray[np.integer], NDArray[np.integer]]] = ()
    joint: Sequence[tuple[int, ...]] = ()
    sizes: list[int] = field(init=False)

    def __post_init__(self) -> None:
        """Check that a kernel may trust the numbers.

        Raises:
            ValueError: a context is out of its range, or there are too many counters.
        """
        if not 1 <= self.bits <= MAX_BITS:
            raise ValueError(f"{self.bits} bits, expected 1 to {MAX_BITS}")
        singles = [size for _, size in self.sides] + [int(fold.max()) + 1 for _, fold in self.causal]
        self.sizes = [1, *singles, *(math.prod(singles[k] for k in group) for group in self.joint)]
        if sum(self.sizes) * 2**self.bits > MAX_SLOTS:
            raise ValueError(f"{sum(self.sizes)} contexts of {self.bits} bits, expected {MAX_SLOTS} counters at most")
        for values, size in self.sides:
            if values.shape != (self.count,) or (self.count and not 0 <= values.min() <= values.max() < size):
                raise ValueError(f"contexts of shape {values.shape}, expected {self.count} below {size}")
        for place, fold in self.causal:
            if fold.shape != (2**self.bits + 1,) or fold.min() < 0:
                raise ValueError(f"context numbers of shape {fold.shape}, expected {2**self.bits + 1} from 0")
            if (
                place.shape != (self.count,)
                or (place >= np.arange(self.count, dtype=place.dtype)).any()
                or (place < -1).any()
            ):
                raise ValueError("a causal context looks ahead")

    def arrays(self) -> tuple[NDArray, ...]:
        """Where among a model's numbers each context's tree begins: of sides [N, S]; of causal ones by place [N, C] and
        symbol [C, 2^bits + 1]; of joint ones a constant [J] and a factor [J, S + C] for the beginning of each other.
        """
        begin = np.concatenate([[0], np.cumsum(self.sizes)[:-1]]) << self.bits
        sides = np.empty((self.count, len(self.sides)), np.uint32)
        causal = np.empty((self.count, len(self.causal)), np.int32)
        folds = np.empty((len(self.causal), 2**self.bits + 1), np.uint32)
        for k, (values, _) in enumerate(self.sides):
            sides[:, k] = (values.astype(np.uint32) << self.bits) + np.uint32(begin[1 + k])
        for k, (place, fold) in enumerate(self.causal):
            causal[:, k] = place
            folds[k] = (fold.astype(np.uint32) << self.bits) + np.uint32(begin[1 + len(self.sides) + k])
        singles = begin[1 : 1 + len(self.sides) + len(self.causal)]
        factors = np.zeros((len(self.joint), len(singles)), np.int64)
        for row, group in zip(factors, self.joint, strict=True):
            factor = 1
            for k in reversed(group):
                row[k] = factor
                factor *= self.sizes[1 + k]
        return sides, causal, folds, begin[1 + len(singles) :] - factors @ singles, factors


class Model:
    """What has been learned. Kept from one call to the next, the second begins where the first ended; encoder and
    decoder have to do the same calls.

    Attributes:
        odds: [slots] int32 of each node of each context's tree: its part of the log odds in 4096 ths of a 256 th, times
            256, and how often the node was met, up to a limit: one number, for kernels wait for memory most of all.
    """

    def __init__(self, contexts: Contexts) -> None:
        self.bits, self.sizes = contexts.bits, list(contexts.sizes)
        self.odds = np.zeros(sum(self.sizes) << self.bits, np.int32)

    def arrays(self, contexts: Contexts) -> tuple[NDArray, ...]:
        """What the kernels take, with the fixed tables.

        Raises:
            ValueError: the model was made for other contexts.
        """
        if (self.bits, self.sizes) != (contexts.bits, contexts.sizes):
            raise ValueError(f"a model of contexts {self.sizes} for {contexts.sizes}")
        return self.odds, SQUASH, step_sizes(len(self.sizes))


def encode(symbols: NDArray[np.integer], contexts: Contexts, model: Model | None = None) -> bytes:
    """Code symbols [N], each below 2^bits.

    Args:
        symbols: integers.
        contexts: what is known of them.
        model: what earlier calls have learned, and this one adds to; None begins with nothing.

    Raises:
        ValueError: a symbol is out of range.
    """
    values = np.ascontiguousarray(symbols, np.int32)
    if values.shape != (contexts.count,) or (len(values) and not 0 <= values.min() <= values.max() < 2**contexts.bits):
        raise ValueError(f"symbols of shape {values.shape}, expected {contexts.count} below {2**contexts.bits}")
    # The faintest probability a bit can have costs 11.4 bits; a symbol's bits are hardly ever all so unlikely.
    model = model or Model(contexts)
    out = np.empty(16 + 2 * contexts.bits * contexts.count, np.uint8)
    arrays = *contexts.arrays(), *model.arrays(contexts)
    size, low, high = _code_kernel(False, out, values.copy(), contexts.bits, *arrays)  # pyright: ignore
    # As few last bytes as name a number in [low, high], for the decoder reads zeros after the end.
    steps = [1 << (32 - 8 * kept) for kept in range(5)]
    last = [(int(low) + step - 1) // step * step for step in steps]
    kept = next(k for k in range(5) if last[k] <= high)
    return (out[: int(size)].tobytes() + last[kept].to_bytes(4, "big")[:kept]).rstrip(b"\0")


def decode(data: bytes, contexts: Contexts, model: Model | None = None) -> NDArray[np.int32]:
    """Symbols [N] of what `encode` wrote with the same contexts. Other bytes give other symbols, never an error."""
    model = model or Model(contexts)
    out = np.empty(contexts.count, np.int32)
    # A copy, for the kernel's type says that it may write.
    coded = np.frombuffer(data, np.uint8).copy()
    _code_kernel(True, coded, out, contexts.bits, *contexts.arrays(), *model.arrays(contexts))  # pyright: ignore
    return out


def _squash() -> Int32s:
    """[4096]: probability in 65536 ths of log odds."""
    # exp(1/256) to 128 binary digits by its series: integers, so that no machine's libm decides a table entry.
    one = 1 << 128
    step, term = 0, one
    for k in range(1, 40):
        step += term
        term //= 256 * k
    squash = np.zeros(2 * _HALF, np.int32)
    power = one
    for x in range(_HALF):
        squash[_HALF + x] = (_ONE * power + (one + power) // 2) // (one + power)
        squash[_HALF - x] = _ONE - squash[_HALF + x]
        power = power * step >> 128
    squash[0] = squash[1]
    return squash.clip(_FAINTEST, _ONE - _FAINTEST)


SQUASH = _squash()


def step_sizes(inputs: int) -> Int32s:
    """How far an error of 1 moves a number that was met so often, in 4096 ths."""
    counts = np.arange(_COUNT_LIMIT + 1)
    return (4096 * _STEP // ((counts + _STEP_DELAY) * (inputs + _STEP_SHARE))).astype(np.int32)


# The kernels' integers are unsigned and 32 bits wide where they can be: an index that may be negative costs a
# comparison each time, and this code is where a file's decoding time goes.
_W = np.uint32
_U = np.uint64


@numba.njit(inline="always")
def _find_contexts(i, symbols, sides, causal, folds, constant, factors, first) -> None:  # noqa: ANN001
    """first[k] = the root of input k's tree, for symbol i."""
    first[0] = 0
    count = _U(1)
    for k in range(sides.shape[1]):
        first[count] = sides[i, _U(k)]
        count += _U(1)
    for k in range(causal.shape[1]):
        place = causal[i, _U(k)]
        first[count] = folds[_U(k), _U(symbols[_U(place)] + 1 if place >= 0 else 0)]
        count += _U(1)
    for j in range(factors.shape[0]):
        root = constant[_U(j)]
        for k in range(factors.shape[1]):
            root += np.int64(first[_U(k + 1)]) * factors[_U(j), _U(k)]
        first[count] = root
        count += _U(1)


@numba.njit(nogil=True, cache=True)
def _code_kernel(decoding, coded, symbols, bits, sides, causal, folds, constant, factors, odds, squash, steps):  # noqa: ANN001, ANN202
    """Fill `symbols` from `coded`, or `coded` from `symbols`; bytes used, and the interval in which the code then lies.

    Both directions in one function without helpers in its inner loop: they learn the same because they are the same,
    and what numba adds to each inlined call, or array handed over, cost as much as the arithmetic.
    """
    low, high, code, at, end = _W(0), _W(0xFFFFFFFF), _W(0), _U(0), _U(len(coded))
    inputs = 1 + sides.shape[1] + causal.shape[1] + factors.shape[0]
    first = np.empty(inputs, np.uint64)
    for _ in range(4 if decoding else 0):
        code = _W((code << _W(8)) | (_W(coded[at]) if at < end else _W(0)))
        at += _U(1)
    for i in range(len(symbols)):
        _find_contexts(_U(i), symbols, sides, causal, folds, constant, factors, first)
        node, symbol = _U(1), _U(symbols[_U(i)])
        for place in range(bits):
            total = np.int64(0)
            for k in range(inputs):
                total += odds[first[_U(k)] + node]
            p = squash[_U(min(max(total >> 12, -2047), 2047) + 2048)]
            middle = _W(low + _W((_U(high - low) * _U(p)) >> _U(16)))
            # No branch on the bit: it is just what nobody can predict.
            bit = _U(code <= middle) if decoding else (symbol >> _U(bits - 1 - place)) & _U(1)
            high = middle if bit else high
            low = low if bit else _W(middle + _W(1))
            miss = (np.int64(bit) << 16) - p
            for k in range(inputs):
                slot = first[_U(k)] + node
                value = odds[slot]
                count = _U(value & 255)
                # Rounded, so that what is all but certain moves nothing: else numbers would grow without end.
                step = (miss * steps[count] + 32768) >> 16
                odds[slot] = value + (step << 8) + (count < _U(_COUNT_LIMIT))
            node = _U(2) * node + bit
            while (low ^ high) >> _W(24) == 0:
                if decoding:
                    code = _W((code << _W(8)) | (_W(coded[at]) if at < end else _W(0)))
                else:
                    coded[at] = high >> _W(24)
                low, high = _W(low << _W(8)), _W((high << _W(8)) | _W(255))
                at += _U(1)
        symbols[_U(i)] = np.int64(node) - (1 << bits)
    return at, low, high
