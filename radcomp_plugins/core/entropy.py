"""Entropy coding of small symbols: several contexts predict each bit, a mixer weighs them, an arithmetic coder writes.

The family is that of PAQ: a symbol is coded bit by bit, highest first, along a binary tree. At every node each context
has a counter of its own; their predictions, as log odds, are summed with weights that are learned on the way (Mahoney
2005, "Adaptive Weighing of Context Models for Lossless Data Compression"). Nothing but the coded bits is stored: the
decoder learns the same counters and weights from what it has decoded.

All is integer arithmetic on tables made by integer arithmetic, so that every machine decodes the same.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

MAX_BITS = 8
MAX_SLOTS = 2**24
"""Counters that all contexts may have together."""

_HALF = 2048
"""Log odds are held as 256 ths, clamped to -2047 .. 2047."""
_TREE_BITS = 65536
_COUNT_LIMIT = 250
_WEIGHT_ONE = 65536
_LEARNING = 10
_FAINTEST = 24

Int32s = NDArray[np.int32]
Int16s = NDArray[np.int16]


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
        """Sides [N, S], causal [N, C], folds [C, 2^bits + 1], factor of each single in each joint [J, S + C], and each
        input's first counter."""
        singles = len(self.sides) + len(self.causal)
        sides, causal = _columns(self.count, self.sides), _columns(self.count, self.causal)
        folds = np.stack([fold for _, fold in self.causal]) if self.causal else np.empty((0, 2**self.bits + 1))
        factors = np.zeros((len(self.joint), singles), np.int64)
        for row, group in zip(factors, self.joint, strict=True):
            factor = 1
            for k in reversed(group):
                row[k] = factor
                factor *= self.sizes[1 + k]
        base = np.concatenate([[0], np.cumsum(self.sizes)[:-1]]).astype(np.int64) * 2**self.bits
        return sides, causal, folds.astype(np.int32), factors, base


def _columns(count: int, columns: Sequence[tuple[NDArray[np.integer], Any]]) -> Int32s:
    """The first of each pair as a column of [count, columns]."""
    out = np.empty((count, len(columns)), np.int32)
    for k, (values, _) in enumerate(columns):
        out[:, k] = values
    return out


class Model:
    """What has been learned: counters and weights. Kept from one call to the next, the second begins where the first
    ended; encoder and decoder have to do the same calls.

    Attributes:
        counters: [slots] uint32 of each node of each context's tree: the probability of a 1 in 65536 ths, times 256,
            and how often the node was met, up to a limit: one number, for kernels wait for memory most of all.
        weights: [2^bits x inputs] int32 of each context by node, in 65536 ths.
    """

    def __init__(self, contexts: Contexts) -> None:
        inputs = len(contexts.sizes)
        slots = sum(contexts.sizes) * 2**contexts.bits
        self.sizes = list(contexts.sizes)
        self.counters = np.full(slots, _TREE_BITS // 2 << 8, np.uint32)
        self.weights = np.full(2**contexts.bits * inputs, _WEIGHT_ONE * 2 // (inputs + 1), np.int32)

    def arrays(self, contexts: Contexts) -> tuple[NDArray, ...]:
        """What the kernels take, with the fixed tables.

        Raises:
            ValueError: the model was made for other contexts.
        """
        if self.sizes != contexts.sizes or len(self.weights) != 2**contexts.bits * len(contexts.sizes):
            raise ValueError(f"a model of contexts {self.sizes} for {contexts.sizes}")
        return self.counters, self.weights, *TABLES


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
    learned = *contexts.arrays(), *model.arrays(contexts)
    size, low, high = _code_kernel(False, out, values.copy(), contexts.bits, *learned)  # pyright: ignore
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


def _tables() -> tuple[Int32s, Int16s, Int32s, Int16s]:
    """Squash [4096]: probability in 65536 ths of log odds; stretch [4096], its inverse; rate and trust by count."""
    # exp(1/256) to 128 binary digits by its series: integers, so that no machine's libm decides a table entry.
    one = 1 << 128
    step, term = 0, one
    for k in range(1, 40):
        step += term
        term //= 256 * k
    squash = np.zeros(2 * _HALF, np.int32)
    power = one
    for x in range(_HALF):
        squash[_HALF + x] = (_TREE_BITS * power + (one + power) // 2) // (one + power)
        squash[_HALF - x] = _TREE_BITS - squash[_HALF + x]
        power = power * step >> 128
    squash[0] = squash[1]
    squash = squash.clip(_FAINTEST, _TREE_BITS - _FAINTEST)
    stretch = np.searchsorted(squash, 16 * np.arange(4096) + 8).clip(1, 2 * _HALF - 1).astype(np.int16) - np.int16(
        _HALF
    )
    counts = np.arange(_COUNT_LIMIT + 1)
    rate = (_TREE_BITS * 2 // (2 * counts + 3)).astype(np.int32)
    # A counter that was never seen says nothing; from ten on it is believed nearly as much as ever.
    trust = (256 * counts * 2 // (2 * counts + 3)).astype(np.int16)
    return squash, stretch, rate, trust


TABLES = _tables()


# The kernels' integers are unsigned and 32 bits wide where they can be: an index that may be negative costs a
# comparison each time, and this code is where a file's decoding time goes.
_W = np.uint32
_U = np.uint64


@numba.njit(inline="always")
def _find_contexts(i, symbols, sides, causal, folds, factors, base, bits, single, first) -> None:  # noqa: ANN001
    """first[k] = the counter at the root of input k's tree, for symbol i."""
    first[0] = 0
    count = sides.shape[1]
    for k in range(count):
        single[k] = sides[i, k]
    for k in range(causal.shape[1]):
        place = causal[i, k]
        single[count + k] = folds[k, symbols[place] + 1 if place >= 0 else 0]
    count += causal.shape[1]
    for k in range(count):
        first[1 + k] = base[1 + k] + (single[k] << bits)
    for k in range(factors.shape[0]):
        value = np.int64(0)
        for j in range(count):
            value += single[j] * factors[k, j]
        first[1 + count + k] = base[1 + count + k] + (value << bits)


@numba.njit(nogil=True, cache=True)
def _code_kernel(
    decoding, coded, symbols, bits, sides, causal, folds, factors, base, counters, weights, squash, stretch, rate, trust
):  # noqa: ANN001, ANN202
    """Fill `symbols` from `coded`, or `coded` from `symbols`; bytes used, and the interval in which the code then lies.

    Both directions in one function without helpers in its inner loop: they learn the same because they are the same,
    and what numba adds to each inlined call, or array handed over, cost as much as the arithmetic.
    """
    low, high, code, at, end = _W(0), _W(0xFFFFFFFF), _W(0), _U(0), _U(len(coded))
    inputs = len(base)
    first, said, single = np.empty(inputs, np.uint64), np.empty(inputs, np.int32), np.empty(inputs, np.int64)
    for _ in range(4 if decoding else 0):
        code = _W((code << _W(8)) | (_W(coded[at]) if at < end else _W(0)))
        at += _U(1)
    for i in range(len(symbols)):
        _find_contexts(i, symbols, sides, causal, folds, factors, base, bits, single, first)
        node, symbol = _U(1), _U(symbols[i])
        for place in range(bits):
            row = node * _U(inputs)
            dot = np.int64(0)
            for k in range(inputs):
                counter = counters[first[_U(k)] + node]
                says = np.int32(
                    (np.int32(stretch[_U(counter >> _W(12))]) * np.int32(trust[_U(counter & _W(255))])) >> 8
                )
                said[_U(k)] = says
                dot += np.int64(weights[row + _U(k)]) * says
            p = squash[_U(min(max(dot >> 16, -2047), 2047) + 2048)]
            middle = _W(low + _W((_U(high - low) * _U(p)) >> _U(16)))
            # No branch on the bit: it is just what nobody can predict.
            bit = _U(code <= middle) if decoding else (symbol >> _U(bits - 1 - place)) & _U(1)
            high = middle if bit else high
            low = low if bit else _W(middle + _W(1))
            miss = ((np.int64(bit) << 16) - np.int64(p)) * _LEARNING
            target = np.int64(bit) * 65535
            for k in range(inputs):
                weights[row + _U(k)] += np.int32((said[_U(k)] * miss + 32768) >> 16)
                slot = first[_U(k)] + node
                counter = counters[slot]
                chance, count = np.int64(counter >> _W(8)), _U(counter & _W(255))
                chance += ((target - chance) * rate[count]) >> 16
                counters[slot] = _W((_W(chance) << _W(8)) | _W(count + _U(count < _U(_COUNT_LIMIT))))
            node = _U(2) * node + bit
            while (low ^ high) >> _W(24) == 0:
                if decoding:
                    code = _W((code << _W(8)) | (_W(coded[at]) if at < end else _W(0)))
                else:
                    coded[at] = high >> _W(24)
                low, high = _W(low << _W(8)), _W((high << _W(8)) | _W(255))
                at += _U(1)
        symbols[i] = np.int64(node) - (1 << bits)
    return at, low, high
