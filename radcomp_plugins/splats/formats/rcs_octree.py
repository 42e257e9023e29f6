"""Positions as an octree over Morton codes, for `.rcs`: occupancies range-coded breadth first, lone points cut short.

A cell with more than one point stores which of its eight children hold any, in the context of its own place among its
siblings and of its depth; each child then says whether it holds one point only. A lone point leaves the tree: what its
coordinates still lack is stored as plain bits, as many as its size deserves. Points that share a cell of the last
level store how many they are.
"""

import struct
import zlib
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from radcomp_plugins.core.entropy import Contexts, Model, decode, encode
from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.formats.rcs_header import MAX_DEPTH

Codes = NDArray[np.int64]
Depths = NDArray[np.int64]

_SIZE = struct.Struct("<I")
_POPULATION = np.array([bin(v).count("1") for v in range(256)])


class OctreeModels:
    """What the coder has learned of occupancies and lone points; kept from one level of detail to the next."""

    def __init__(self) -> None:
        none = np.empty(0, np.int64)
        self.occupancy = Model(_occupancy_contexts(none, none))
        self.lone = Model(_lone_contexts(none, none))


@dataclass(frozen=True)
class Cells:
    """Decoded points in Morton order.

    Attributes:
        codes: [N] Morton code of each point's cell at its own depth, shifted up to the octree's depth.
        depths: [N] that depth.
    """

    codes: Codes
    depths: Depths


def encode_octree(codes: Codes, wanted: Depths, depth: int, models: OctreeModels) -> bytes:
    """Code ascending Morton codes.

    Args:
        codes: [N] ascending, below 8^depth, N >= 1.
        wanted: [N] depth that suffices for each point, 0 to `depth`.
        depth: of the octree.
        models: learns on.
    """
    parts: list[bytes] = []
    first, stop = np.zeros(1, np.int64), np.array([len(codes)])
    lone_depth = _lone_depths(codes, depth)
    if len(codes) == 1:
        first, stop = first[:0], stop[:0]
    parent = np.zeros(len(first), np.int64)
    for level in range(1, depth + 1):
        if len(first) == 0:
            break
        cells = codes >> 3 * (depth - level)
        inside = np.zeros(len(codes) + 1, np.int64)
        inside[first] += 1
        inside[stop] -= 1
        member = np.flatnonzero(np.cumsum(inside[:-1]))
        edge = np.r_[True, cells[member[1:]] != cells[member[:-1]]]
        child_first = member[edge]
        child_stop = np.r_[member[np.flatnonzero(edge)[1:] - 1], member[-1]] + 1
        owner = np.searchsorted(first, child_first, side="right") - 1
        bit = cells[child_first] & 7
        occupancy = np.zeros(len(first), np.int64)
        np.bitwise_or.at(occupancy, owner, 1 << bit)
        parts.append(encode(occupancy, _occupancy_contexts(parent, np.full(len(first), level)), models.occupancy))
        lone = lone_depth[child_first] == level
        # An only child holds all that its parent holds, which is more than one point.
        asked = _POPULATION[occupancy][owner] > 1
        contexts = _lone_contexts(_POPULATION[occupancy[owner[asked]]], np.full(int(asked.sum()), level))
        parts.append(encode(lone[asked].astype(np.int64), contexts, models.lone))
        parent = occupancy[owner[~lone]]
        first, stop = child_first[~lone], child_stop[~lone]
    shared = np.asarray(stop - first, "<u4")
    parts.append(zlib.compress(shared.tobytes(), 9) if len(shared) else b"")
    have = np.minimum(lone_depth, depth)
    parts.append(_pack_rest(codes, have, np.maximum(wanted, have), depth))
    return b"".join(_SIZE.pack(len(part)) + part for part in parts)


def kept_cells(codes: Codes, wanted: Depths, depth: int) -> Cells:
    """What `decode_octree` gives back for what `encode_octree` was given."""
    depths = np.maximum(wanted, np.minimum(_lone_depths(codes, depth), depth))
    shift = 3 * (depth - depths)
    return Cells(codes >> shift << shift, depths)


def _lone_depths(codes: Codes, depth: int) -> Depths:
    """Depth [N] at which each of ascending codes has a cell to itself; depth + 1 where it never has."""
    shared = np.zeros(len(codes) - 1, np.int64)
    for level in range(1, depth + 1):
        cells = codes >> 3 * (depth - level)
        shared += cells[1:] == cells[:-1]
    # With more than one point the root is shared by all.
    above = np.r_[-1, shared], np.r_[shared, -1]
    return np.maximum(*above) + 1


def decode_octree(data: bytes, wanted: Depths, depth: int, models: OctreeModels, where: str) -> Cells:
    """Undo `encode_octree`; `wanted` [N] tells how many points there are.

    Raises:
        InputError: the bytes do not describe N points.
    """
    count = len(wanted)
    parts = _Parts(data, where)
    done_codes: list[Codes] = [np.zeros(int(count == 1), np.int64)]
    done_depths: list[Depths] = [np.zeros(int(count == 1), np.int64)]
    done = int(count == 1)
    cells = np.zeros(int(count > 1), np.int64)
    parent = np.zeros(len(cells), np.int64)
    for level in range(1, depth + 1):
        if len(cells) == 0:
            break
        contexts = _occupancy_contexts(parent, np.full(len(cells), level))
        occupancy = decode(parts.next(), contexts, models.occupancy)
        if (occupancy == 0).any():
            raise InputError(f"{where}: an octree cell of depth {level} has no children: the file is damaged")
        children, siblings = _children(cells, occupancy)
        asked = siblings > 1
        lone = np.zeros(len(children), np.bool_)
        contexts = _lone_contexts(siblings[asked], np.full(int(asked.sum()), level))
        lone[asked] = decode(parts.next(), contexts, models.lone) == 1
        done_codes.append(children[lone] << 3 * (depth - level))
        done_depths.append(np.full(int(lone.sum()), level, np.int64))
        done += int(lone.sum())
        parent = np.repeat(occupancy.astype(np.int64), _POPULATION[occupancy])[~lone]
        cells = children[~lone]
        if done + 2 * len(cells) > count:
            raise InputError(f"{where}: the octree holds more than {count} points: the file is damaged")
    shared = _unpack_shared(parts.next(), len(cells), count - done, where)
    done_codes.append(np.repeat(cells, shared))
    done_depths.append(np.full(count - done, depth, np.int64))
    codes, depths = np.concatenate(done_codes), np.concatenate(done_depths)
    order = np.argsort(codes, kind="stable")
    return _unpack_rest(parts.next(), codes[order], depths[order], wanted, depth, where)


@numba.njit(nogil=True, cache=True)
def _children(cells, occupancy):  # noqa: ANN001, ANN202
    """Codes of the occupied children of cells, in order, and how many each one's parent has."""
    children, siblings = np.empty(8 * len(cells), np.int64), np.empty(8 * len(cells), np.int64)
    count = 0
    for i in range(len(cells)):
        begin = count
        for bit in range(8):
            if (occupancy[i] >> bit) & 1:
                children[count] = 8 * cells[i] + bit
                count += 1
        siblings[begin:count] = count - begin
    return children[:count].copy(), siblings[:count].copy()


def _occupancy_contexts(parent: NDArray[np.int64], level: NDArray[np.int64]) -> Contexts:
    return Contexts(8, len(parent), [(parent, 256), (level, MAX_DEPTH + 1)])


def _lone_contexts(population: NDArray[np.int64], level: NDArray[np.int64]) -> Contexts:
    return Contexts(1, len(population), [(population, 9), (level, MAX_DEPTH + 1)], joint=[(0, 1)])


def _pack_rest(codes: Codes, have: Depths, need: Depths, depth: int) -> bytes:
    """The lowest 3 (need - have) of the highest 3 need bits of each code, plain."""
    length = 3 * (need - have)
    values = (codes >> 3 * (depth - need)) & ((1 << length) - 1)
    place = np.arange(3 * MAX_DEPTH)[None]
    bits: list[NDArray[np.uint8]] = []
    for begin in range(0, len(codes), 2**16):
        part = slice(begin, begin + 2**16)
        shift = length[part, None] - 1 - place
        bits.append(((values[part, None] >> np.maximum(shift, 0)) & 1)[shift >= 0].astype(np.uint8))
    return np.packbits(np.concatenate(bits)).tobytes()


def _unpack_rest(data: bytes, codes: Codes, have: Depths, wanted: Depths, depth: int, where: str) -> Cells:
    need = np.maximum(wanted, have)
    length = 3 * (need - have)
    end = np.cumsum(length)
    if len(data) != (int(end[-1]) + 7) // 8:
        raise InputError(f"{where}: {len(data)} bytes of positions, expected {(int(end[-1]) + 7) // 8}: damaged")
    return Cells(_add_rest(np.frombuffer(data, np.uint8), codes, length, depth - need), need)


@numba.njit(nogil=True, cache=True)
def _add_rest(data, codes, length, coarser):  # noqa: ANN001, ANN202
    """Codes with the plain bits below them; `coarser` levels remain 0."""
    out = np.empty_like(codes)
    at = 0
    for i in range(len(codes)):
        rest = np.int64(0)
        left = length[i]
        while left > 0:
            free = 8 - (at & 7)
            taken = min(free, left)
            rest = (rest << taken) | ((np.int64(data[at >> 3]) >> (free - taken)) & ((1 << taken) - 1))
            at += taken
            left -= taken
        out[i] = codes[i] | (rest << (3 * coarser[i]))
    return out


def _unpack_shared(data: bytes, cells: int, points: int, where: str) -> NDArray[np.int64]:
    """Points in each cell of the last level that holds more than one."""
    if cells == 0:
        if data or points:
            raise InputError(f"{where}: the octree lacks {points} points: the file is damaged")
        return np.empty(0, np.int64)
    unpacker = zlib.decompressobj()
    try:
        raw = unpacker.decompress(data, 4 * cells + 1)
    except zlib.error as error:
        raise InputError(f"{where}: counts of shared cells cannot be unpacked ({error}): damaged") from error
    if len(raw) != 4 * cells:
        raise InputError(f"{where}: {len(raw)} bytes of shared cells, expected {4 * cells}: damaged")
    shared = np.frombuffer(raw, "<u4").astype(np.int64)
    if shared.min() < 2 or shared.sum() != points:
        raise InputError(f"{where}: shared cells hold {shared.sum()} points, expected {points}: damaged")
    return shared


class _Parts:
    """Pieces with their lengths before them."""

    def __init__(self, data: bytes, where: str) -> None:
        self.data, self.where, self.at = data, where, 0

    def next(self) -> bytes:
        if self.at + _SIZE.size > len(self.data):
            raise InputError(f"{self.where}: the octree ends too early: the file is damaged")
        size = _SIZE.unpack_from(self.data, self.at)[0]
        begin = self.at + _SIZE.size
        if size > len(self.data) - begin:
            raise InputError(f"{self.where}: a piece of {size} bytes leaves its chunk: the file is damaged")
        self.at = begin + size
        return self.data[begin : self.at]
