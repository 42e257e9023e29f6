"""The streams of an `.rcs` file: quantised attributes to range-coded bytes and back, each with contexts of its own.

Every component of an attribute is coded on its own, in the context of the components before it and of the same
component of the Gaussian before it in Morton order, which lies near it in space.
"""

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from radcomp_plugins.core.entropy import Contexts, Model, decode, encode
from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.formats.rcs_header import ROTATION_CLASSES, Header

Ints = NDArray[np.int64]
_SIZE = struct.Struct("<I")

STREAMS = ("SCAL", "ROTN", "OPAC", "COLR", "LABL")
"""Chunk kinds of the attributes; LABL only above SH degree 0."""


def components(kind: str, header: Header) -> tuple[int, ...]:
    """Bits of each component of a stream."""
    scale, rotation, opacity, *colour = header.bits
    return {
        "SCAL": (scale,) * 3,
        "ROTN": (rotation,) * 3,
        "OPAC": (opacity,),
        "COLR": tuple(colour),
        "LABL": (8, 8) if header.palette > 256 else (8,),
    }[kind]


class StreamModel:
    """Codes one attribute, level of detail after level, learning on from each to the next.

    Args:
        kind: one of `STREAMS`.
        header: of the file.
    """

    def __init__(self, kind: str, header: Header) -> None:
        self.kind = kind
        self.bits = components(kind, header)
        self._models: list[Model | None] = [None] * len(self.bits)

    def encode(self, values: Ints, side: Ints | None = None) -> bytes:
        """Bytes of values [N, C].

        Args:
            values: below 2^bits of each component.
            side: [N] rotation class, for ROTN alone.
        """
        pieces: list[bytes] = []
        for c in range(len(self.bits)):
            contexts = self._contexts(c, values[:, :c], len(values), side)
            pieces.append(encode(values[:, c], contexts, self._model(c, contexts)))
        return b"".join(_SIZE.pack(len(piece)) for piece in pieces[:-1]) + b"".join(pieces)

    def decode(self, data: bytes, count: int, where: str, side: Ints | None = None) -> Ints:
        """Values [count, C] of what `encode` wrote; other bytes give other values.

        Raises:
            InputError: the sizes of the components' pieces are not those of the chunk.
        """
        values = np.empty((count, len(self.bits)), np.int64)
        head = _SIZE.size * (len(self.bits) - 1)
        sizes = [_SIZE.unpack_from(data, at)[0] for at in range(0, head, _SIZE.size)] if len(data) >= head else [-1]
        if min(sizes, default=0) < 0 or sum(sizes) > len(data) - head:
            raise InputError(f"{where}: pieces of {sizes} bytes in a chunk of {len(data)}: the file is damaged")
        begin = head
        for c, size in enumerate([*sizes, len(data) - head - sum(sizes)]):
            contexts = self._contexts(c, values[:, :c], count, side)
            values[:, c] = decode(data[begin : begin + size], contexts, self._model(c, contexts))
            begin += size
        return values

    def _model(self, c: int, contexts: Contexts) -> Model:
        model = self._models[c]
        if model is None:
            model = self._models[c] = Model(contexts)
        return model

    def _contexts(self, c: int, before: Ints, count: int, side: Ints | None) -> Contexts:
        bits = self.bits[c]
        sides: list[tuple[Ints, int]] = []
        joint: Sequence[tuple[int, ...]] = ()
        if self.kind == "ROTN":
            # The steps of a class are as wide as its rotations are unsure: each has its own spread.
            sides.append((side if side is not None else np.zeros(count, np.int64), ROTATION_CLASSES))
            if c > 0:
                sides.append((before[:, c - 1] >> max(bits - 4, 0), 16))
                joint = ((0, 1),)
            return Contexts(bits, count, sides, (), joint)
        if c > 0 and self.kind == "LABL":
            return Contexts(bits, count, [(before[:, 0], 256)])
        if c > 0:
            sides.append((before[:, c - 1], 2 ** self.bits[c - 1]))
        if c > 1:
            drop = [max(self.bits[k] - 5, 0) for k in (0, 1)]
            sides.append((32 * (before[:, 0] >> drop[0]) + (before[:, 1] >> drop[1]), 1024))
        return Contexts(bits, count, sides, _neighbours(count, bits, 1 if c else 2), joint)


def encode_palette(levels: Ints) -> bytes:
    """Bytes of the SH palette's numbers [K, D], each -127 to 127."""
    return encode((levels + 128).reshape(-1), _palette_contexts(*levels.shape))


def decode_palette(data: bytes, entries: int, width: int) -> Ints:
    """Numbers [entries, width], -128 to 127."""
    return decode(data, _palette_contexts(entries, width)).reshape(entries, width).astype(np.int64) - 128


def _palette_contexts(entries: int, width: int) -> Contexts:
    """Each number in the context of its coefficient and channel, and of how large the two before it are."""
    count = entries * width
    place = np.arange(count)
    size = np.abs(np.arange(-1, 256) - 128)
    fold = np.where(size == 129, 0, 1 + np.minimum(size, 8))
    causal = [(np.where(place % width >= back, place - back, -1), fold) for back in (1, 3)]
    return Contexts(8, count, [(place % width, width)], causal, [(0, 1)])


def _neighbours(count: int, bits: int, number: int) -> list[tuple[Ints, Ints]]:
    """The same component of the Gaussians before, as they are."""
    return [(np.maximum(np.arange(count) - back, -1), np.arange(2**bits + 1)) for back in range(1, number + 1)]
