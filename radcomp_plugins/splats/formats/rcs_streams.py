"""The streams of an `.rcs` file: quantised attributes to range-coded bytes and back, each with contexts of its own.

Every component of an attribute is coded on its own, in the context of the components before it and of the same
component of the Gaussian before it in Morton order, which lies near it in space. Its lowest bits are noise to every
context: where coding them would save less than 1 part in 128 they are stored as they are, which is read many times
faster.
"""

import struct
from collections.abc import Sequence

import numba
import numpy as np
from numpy.typing import NDArray

from radcomp_plugins.core.entropy import Contexts, Model, decode, encode
from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.formats.rcs_header import COMPONENTS, ROTATION_CLASSES, Header

Ints = NDArray[np.int64]
_SIZE = struct.Struct("<I")

STREAMS = ("SCAL", "ROTN", "OPAC", "COLR", "LABL")
"""Chunk kinds of the attributes; LABL only above SH degree 0."""


PLAIN_COST = 1 + 1 / 128
"""How many times as many bytes a component may take for the sake of speed."""

PLAIN_SAMPLE = 2**16

PALETTE_SMALL = 7
"""Numbers of the SH palette up to this magnitude have symbols of 4 bits, the few beyond it 8 bits more."""


def components(kind: str, header: Header) -> slice:
    """Where a stream's components lie among the 12."""
    at, count = {"SCAL": (0, 3), "ROTN": (3, 3), "OPAC": (6, 1), "COLR": (7, 3), "LABL": (10, 1)}[kind]
    return slice(at, at + count + (kind == "LABL" and header.palette > 256))


def plan_plain(header: Header, values: dict[str, Ints], side: Ints) -> tuple[int, ...]:
    """Lowest bits of each component that are stored plain: as many as cost next to nothing (`PLAIN_COST`).

    Args:
        header: its `plain` is not looked at.
        values: of each stream, [N, C]; tried on the last 65,536 Gaussians.
        side: [N] rotation class.
    """
    plain = [0] * COMPONENTS
    part = slice(-PLAIN_SAMPLE, None)
    for kind, stream in values.items():
        at = components(kind, header).start
        for c in range(stream.shape[1]):
            costs: list[float] = []
            for tried in range(header.component_bits[at + c]):
                plain[at + c] = tried
                model = StreamModel(kind, header, plain)
                high = stream[part, : c + 1] >> model.plain[: c + 1]
                coded = encode(high[:, c], model.contexts(c, high, len(high), side[part]))
                costs.append(len(coded) + tried * len(high) / 8)
                if costs[-1] > PLAIN_COST * costs[0]:
                    break
            plain[at + c] = max(p for p, cost in enumerate(costs) if cost <= PLAIN_COST * costs[0])
    return tuple(plain)


class StreamModel:
    """Codes one attribute, level of detail after level, learning on from each to the next.

    Args:
        kind: one of `STREAMS`.
        header: of the file.
        plain: lowest bits stored plain, of all 12 components; None takes the header's.
    """

    def __init__(self, kind: str, header: Header, plain: Sequence[int] | None = None) -> None:
        self.kind = kind
        part = components(kind, header)
        self.plain = np.array((plain or header.plain)[part])
        self.bits = (np.array(header.component_bits[part]) - self.plain).tolist()
        self._models: list[Model | None] = [None] * len(self.bits)

    def encode(self, values: Ints, side: Ints | None = None) -> bytes:
        """Bytes of values [N, C].

        Args:
            values: below 2^bits of each component.
            side: [N] rotation class, for ROTN alone.
        """
        pieces: list[bytes] = []
        high = values >> self.plain
        for c in range(len(self.bits)):
            contexts = self.contexts(c, high, len(values), side)
            pieces.append(encode(high[:, c], contexts, self._model(c, contexts)))
        return b"".join([*(_SIZE.pack(len(piece)) for piece in pieces[:-1]), *pieces, pack_plain(values, self.plain)])

    def decode(self, data: bytes, count: int, where: str, side: Ints | None = None) -> Ints:
        """Values [count, C] of what `encode` wrote; other bytes give other values.

        Raises:
            InputError: the sizes of the components' pieces are not those of the chunk.
        """
        values = np.empty((count, len(self.bits)), np.int64)
        head = _SIZE.size * (len(self.bits) - 1)
        sizes = [_SIZE.unpack_from(data, at)[0] for at in range(0, head, _SIZE.size)] if len(data) >= head else [-1]
        coded = len(data) - (count * int(self.plain.sum()) + 7) // 8
        if min(sizes, default=0) < 0 or sum(sizes) > coded - head:
            raise InputError(f"{where}: pieces of {sizes} bytes in a chunk of {len(data)}: the file is damaged")
        begin = head
        for c, size in enumerate([*sizes, coded - head - sum(sizes)]):
            contexts = self.contexts(c, values, count, side)
            values[:, c] = decode(data[begin : begin + size], contexts, self._model(c, contexts))
            begin += size
        if self.plain.any():
            _add_plain(np.frombuffer(data[coded:] + bytes(1), np.uint8), self.plain, values)
        return values

    def _model(self, c: int, contexts: Contexts) -> Model:
        model = self._models[c]
        if model is None:
            model = self._models[c] = Model(contexts)
        return model

    def contexts(self, c: int, high: Ints, count: int, side: Ints | None) -> Contexts:
        """What is known of component c: columns before c of `high` [count, C], the values without their plain bits."""
        bits = self.bits[c]
        sides: list[tuple[Ints, int]] = []
        if self.kind == "ROTN":
            # The steps of a class are as wide as its rotations are unsure: each has its own spread.
            classes = side if side is not None else np.zeros(count, np.int64)
            if c == 0:
                return Contexts(bits, count, [(classes, ROTATION_CLASSES)])
            rough = high[:, c - 1] >> max(self.bits[c - 1] - 4, 0)
            return Contexts(bits, count, [(16 * classes + rough, 16 * ROTATION_CLASSES)])
        if c > 0:
            sides.append((high[:, c - 1], 2 ** self.bits[c - 1]))
        if c > 0 and self.kind == "LABL":
            return Contexts(bits, count, sides)
        if c > 1:
            drop = [max(self.bits[k] - 5, 0) for k in (0, 1)]
            sides.append((32 * (high[:, 0] >> drop[0]) + (high[:, 1] >> drop[1]), 1024))
        return Contexts(bits, count, sides, _neighbours(count, bits, 1 if c else 2))


def pack_plain(values: Ints, plain: NDArray[np.int64]) -> bytes:
    """The lowest `plain` bits of each component of each Gaussian, one after the other, high to low."""
    place = np.concatenate([np.arange(p - 1, -1, -1) for p in plain])
    component = np.repeat(np.arange(len(plain)), plain)
    return np.packbits(((values[:, component] >> place) & 1).astype(np.uint8)).tobytes()


@numba.njit(nogil=True, cache=True)
def _add_plain(data, plain, values) -> None:  # noqa: ANN001
    """Put plain bits below values [N, C]; `data` has a byte more than they need."""
    at = 0
    for i in range(len(values)):
        for c in range(len(plain)):
            word = np.int64(data[at >> 3]) << 8
            # At the end of a byte the next may be needed, or not be there.
            if (at & 7) + plain[c] > 8:
                word |= data[(at >> 3) + 1]
            values[i, c] = (values[i, c] << plain[c]) | ((word >> (16 - (at & 7) - plain[c])) & ((1 << plain[c]) - 1))
            at += plain[c]


def encode_palette(levels: Ints) -> bytes:
    """Bytes of the SH palette's numbers [K, D], each -127 to 127."""
    values = levels.reshape(-1)
    large = np.abs(values) > PALETTE_SMALL
    small = encode(np.where(large, 0, values + PALETTE_SMALL + 1), _small_contexts(*levels.shape))
    return _SIZE.pack(len(small)) + small + encode(values[large] + 128, _large_contexts(large, levels.shape[1]))


def decode_palette(data: bytes, entries: int, width: int, where: str) -> Ints:
    """Numbers [entries, width], -128 to 127.

    Raises:
        InputError: the chunk is shorter than it says.
    """
    size = _SIZE.unpack_from(data)[0] if len(data) >= _SIZE.size else -1
    if not 0 <= size <= len(data) - _SIZE.size:
        raise InputError(f"{where}: a piece of {size} bytes in a palette of {len(data)}: the file is damaged")
    end = _SIZE.size + size
    symbols = decode(data[_SIZE.size : end], _small_contexts(entries, width))
    values, large = symbols.astype(np.int64) - PALETTE_SMALL - 1, symbols == 0
    values[large] = decode(data[end:], _large_contexts(large, width)) - 128
    return values.reshape(entries, width)


def _small_contexts(entries: int, width: int) -> Contexts:
    """Each number in the context of its coefficient and channel, and of how large the two before it are."""
    count = entries * width
    place = np.arange(count, dtype=np.int32)
    # Symbol 0 stands for a large number, and is as far as that from the symbol of the number 0.
    fold = np.r_[0, 1 + np.abs(np.arange(2 * PALETTE_SMALL + 2) - PALETTE_SMALL - 1)]
    causal = [(np.where(place % width >= back, place - back, -1), fold) for back in (1, 3)]
    return Contexts(4, count, [(place % width, width)], causal, [(0, 1)])


def _large_contexts(large: NDArray[np.bool_], width: int) -> Contexts:
    place = np.flatnonzero(large) % width
    return Contexts(8, len(place), [(place, width)])


def _neighbours(count: int, bits: int, number: int) -> list[tuple[NDArray[np.int32], Ints]]:
    """The same component of the Gaussians before, as they are."""
    fold = np.arange(2**bits + 1)
    return [(np.maximum(np.arange(-back, count - back, dtype=np.int32), -1), fold) for back in range(1, number + 1)]
