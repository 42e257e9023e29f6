"""Which voxels of a large grid are occupied, as a sorted list of bricks: never a dense array of the whole grid.

At T = 2048 a dense array takes 8.6 GB (which is what the released exporter needs); the surfaces of a scene touch a few
per cent of its bricks, at 72 bytes each.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Int64, UInt8, UInt64
from numba import njit
from numpy.typing import NDArray

from radcomp_plugins.core.threads import claim, new_counter, run_striped
from radcomp_plugins.errors import InputError

EDGE = 8
"""Voxels along a side of a brick."""
MAX_DENSE = 512
"""Voxels along a side of the largest grid that is ever made dense."""
MAX_RESOLUTION = 1 << 16
_MEDIAN = 14
"""More than half of 27."""
_CHUNK = 1 << 14

_NEIGHBOURS = np.stack(np.meshgrid(*[np.arange(-1, 2)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)


@njit(nogil=True, cache=True)
def _set_bits(keys, starts, bits):  # noqa: ANN001, ANN202
    """Turn on voxel key & 511 of brick i for all keys from starts[i] on."""
    for i in range(len(starts) - 1):
        for j in range(starts[i], starts[i + 1]):
            local = keys[j] & 511
            bits[i, local >> 6] |= np.uint64(1) << np.uint64(local & 63)


@njit(nogil=True, cache=True)
def _count(bits):  # noqa: ANN001, ANN202
    total = 0
    for i in range(bits.shape[0]):
        for layer in range(EDGE):
            word = bits[i, layer]
            while word != 0:
                word &= word - np.uint64(1)
                total += 1
    return total


@njit(nogil=True, cache=True)
def _list(bits, places, out):  # noqa: ANN001, ANN202
    """Write the coordinates of all occupied voxels of bricks at `places` [B, 3], in C order within a brick."""
    n = 0
    for i in range(bits.shape[0]):
        for layer in range(EDGE):
            word = bits[i, layer]
            for bit in range(64):
                if word >> np.uint64(bit) & np.uint64(1):
                    out[n, 0] = places[i, 0] * EDGE + layer
                    out[n, 1] = places[i, 1] * EDGE + (bit >> 3)
                    out[n, 2] = places[i, 2] * EDGE + (bit & 7)
                    n += 1


@njit(nogil=True, cache=True)
def _pool(bits, places, parents, shift, out):  # noqa: ANN001, ANN202
    for i in range(bits.shape[0]):
        for layer in range(EDGE):
            word = bits[i, layer]
            if word == 0:
                continue
            x = (places[i, 0] * EDGE + layer) >> shift & 7
            for bit in range(64):
                if word >> np.uint64(bit) & np.uint64(1):
                    y = (places[i, 1] * EDGE + (bit >> 3)) >> shift & 7
                    z = (places[i, 2] * EDGE + (bit & 7)) >> shift & 7
                    out[parents[i], x] |= np.uint64(1) << np.uint64(y * 8 + z)


@njit(nogil=True, cache=True)
def _mark_bytes(bits, places, out):  # noqa: ANN001, ANN202
    """Turn on bit 4 dx + 2 dy + dz of the byte [x, y, z] that each voxel (2 x + dx, ...) belongs to."""
    for i in range(bits.shape[0]):
        for layer in range(EDGE):
            word = bits[i, layer]
            x = places[i, 0] * EDGE + layer
            for bit in range(64):
                if word >> np.uint64(bit) & np.uint64(1):
                    y = places[i, 1] * EDGE + (bit >> 3)
                    z = places[i, 2] * EDGE + (bit & 7)
                    out[x >> 1, y >> 1, z >> 1] |= np.uint8(1) << np.uint8((x & 1) * 4 + (y & 1) * 2 + (z & 1))


@njit(nogil=True, cache=True)
def _mark_columns(bits, places, axis, out):  # noqa: ANN001, ANN202
    """Turn on `out` at the two coordinates other than `axis` of every voxel."""
    for i in range(bits.shape[0]):
        x, y, z = places[i, 0] * EDGE, places[i, 1] * EDGE, places[i, 2] * EDGE
        for layer in range(EDGE):
            word = bits[i, layer]
            if word == 0:
                continue
            for bit in range(64):
                if word >> np.uint64(bit) & np.uint64(1):
                    if axis == 0:
                        out[y + (bit >> 3), z + (bit & 7)] = True
                    elif axis == 1:
                        out[x + layer, z + (bit & 7)] = True
                    else:
                        out[x + layer, y + (bit >> 3)] = True


@njit(nogil=True, cache=True)
def _mark_blocks(bits, places, low, high, out):  # noqa: ANN001, ANN202
    """Turn on all of `out` from low[g] to high[g], axis by axis, for every voxel g; both tables ascend."""
    end = len(low) - 1
    for i in range(bits.shape[0]):
        x, y, z = places[i, 0] * EDGE, places[i, 1] * EDGE, places[i, 2] * EDGE
        one = high[min(x + 7, end)] == low[x] and high[min(y + 7, end)] == low[y] and high[min(z + 7, end)] == low[z]
        if one:
            out[low[x], low[y], low[z]] = True
            continue
        for layer in range(EDGE):
            word = bits[i, layer]
            for bit in range(64):
                if word >> np.uint64(bit) & np.uint64(1):
                    u, v, w = x + layer, y + (bit >> 3), z + (bit & 7)
                    out[low[u] : high[u] + 1, low[v] : high[v] + 1, low[w] : high[w] + 1] = True


@njit(nogil=True, cache=True)
def _load(codes, bits, bricks, resolution, place, near, local):  # noqa: ANN001, ANN202
    """The brick at `place` and one voxel around it as bytes [10, 10, 10]; outside the grid the outermost repeat."""
    for n in range(27):
        x, y, z = place[0] + n // 9 - 1, place[1] + n // 3 % 3 - 1, place[2] + n % 3 - 1
        near[n] = -1
        if min(x, y, z) >= 0 and max(x, y, z) < bricks:
            code = (x * bricks + y) * bricks + z
            row = np.searchsorted(codes, code)
            if row < len(codes) and codes[row] == code:
                near[n] = row
    for i in range(EDGE + 2):
        gx = min(max(place[0] * EDGE + i - 1, 0), resolution - 1)
        for j in range(EDGE + 2):
            gy = min(max(place[1] * EDGE + j - 1, 0), resolution - 1)
            for k in range(EDGE + 2):
                gz = min(max(place[2] * EDGE + k - 1, 0), resolution - 1)
                n = ((gx >> 3) - place[0] + 1) * 9 + ((gy >> 3) - place[1] + 1) * 3 + (gz >> 3) - place[2] + 1
                row = near[n]
                local[i, j, k] = 0
                if row >= 0:
                    local[i, j, k] = bits[row, gx & 7] >> np.uint64((gy & 7) * 8 + (gz & 7)) & np.uint64(1)


@njit(nogil=True, cache=True)
def _filter(start, step, counter, codes, bits, resolution, places, needed, out):  # noqa: ANN001, ANN202
    """Occupied voxels are those of which at least `needed` of the 27 around them, themselves counted, are."""
    bricks = -(-resolution // EDGE)
    near = np.empty(27, np.int64)
    local = np.empty((EDGE + 2, EDGE + 2, EDGE + 2), np.uint8)
    along_z = np.empty((EDGE + 2, EDGE + 2, EDGE), np.uint8)
    along_y = np.empty((EDGE + 2, EDGE, EDGE), np.uint8)
    while True:
        brick = claim(counter)
        if brick >= len(places):
            return
        place = places[brick]
        _load(codes, bits, bricks, resolution, place, near, local)
        for i in range(EDGE + 2):
            for j in range(EDGE + 2):
                for k in range(EDGE):
                    along_z[i, j, k] = local[i, j, k] + local[i, j, k + 1] + local[i, j, k + 2]
            for j in range(EDGE):
                for k in range(EDGE):
                    along_y[i, j, k] = along_z[i, j, k] + along_z[i, j + 1, k] + along_z[i, j + 2, k]
        for i in range(min(EDGE, resolution - place[0] * EDGE)):
            word = np.uint64(0)
            for j in range(min(EDGE, resolution - place[1] * EDGE)):
                for k in range(min(EDGE, resolution - place[2] * EDGE)):
                    if along_y[i, j, k] + along_y[i + 1, j, k] + along_y[i + 2, j, k] >= needed:
                        word |= np.uint64(1) << np.uint64(j * 8 + k)
            out[brick, i] = word


@dataclass(frozen=True, eq=False)
class SparseVoxels:
    """A set of voxels of a grid with `resolution` voxels a side; bricks of 8^3 that hold none are not stored.

    Attributes:
        resolution: voxels along a side of the grid.
        codes: [B] int64, ascending: (x * n + y) * n + z of each brick, n bricks along a side.
        bits: [B, 8] uint64, never all 0: bit 8 y + z of word x says whether voxel (x, y, z) of the brick is occupied.
    """

    resolution: int
    codes: Int64[np.ndarray, " B"]
    bits: UInt64[np.ndarray, "B 8"]

    @classmethod
    def empty(cls, resolution: int) -> "SparseVoxels":
        """No voxel of a grid with `resolution` voxels a side.

        Raises:
            InputError: a resolution below 1 or above 65536.
        """
        if not 1 <= resolution <= MAX_RESOLUTION:
            raise InputError(f"voxel grid resolution is {resolution}: expected 1 to {MAX_RESOLUTION}")
        return cls(resolution, np.empty(0, np.int64), np.empty((0, EDGE), np.uint64))

    @classmethod
    def from_coords(cls, resolution: int, chunks: Iterable[Int[np.ndarray, "N 3"]]) -> "SparseVoxels":
        """The voxels at coordinates that come in chunks; repeated ones are fine, those outside the grid are left out.

        Args:
            resolution: voxels along a side of the grid.
            chunks: [N, 3] integers each; only one of them is in memory at a time.
        """
        voxels = cls.empty(resolution)
        for chunk in chunks:
            voxels = voxels | cls._from_chunk(resolution, np.asarray(chunk))
        return voxels

    @classmethod
    def from_dense(cls, dense: Bool[np.ndarray, "R R R"]) -> "SparseVoxels":
        """The voxels where an array is True."""
        return cls._from_chunk(dense.shape[0], np.argwhere(dense))

    @classmethod
    def _from_chunk(cls, resolution: int, coords: Int[np.ndarray, "N 3"]) -> "SparseVoxels":
        voxels = cls.empty(resolution)
        inside = ((coords >= 0) & (coords < resolution)).all(axis=-1)
        at = coords[inside].astype(np.int64)
        code = voxels._codes_of(at >> 3)
        local = at & 7
        keys = np.unique(code << 9 | local[:, 0] << 6 | local[:, 1] << 3 | local[:, 2])
        codes, first = np.unique(keys >> 9, return_index=True)
        bits = np.zeros((len(codes), EDGE), np.uint64)
        _set_bits(keys, np.append(first, len(keys)).astype(np.int64), bits)
        return cls(resolution, codes, bits)

    @property
    def bricks_per_axis(self) -> int:
        """Bricks along a side of the grid."""
        return -(-self.resolution // EDGE)

    @property
    def places(self) -> Int64[np.ndarray, "B 3"]:
        """Coordinates of the bricks."""
        n = self.bricks_per_axis
        return np.stack([self.codes // (n * n), self.codes // n % n, self.codes % n], axis=-1)

    def __len__(self) -> int:
        """How many voxels are occupied."""
        return int(_count(self.bits))

    def __or__(self, other: "SparseVoxels") -> "SparseVoxels":
        """Voxels that are in one of two sets of the same grid.

        Raises:
            ValueError: grids of different resolution.
        """
        if self.resolution != other.resolution:
            raise ValueError(f"grids of {self.resolution} and {other.resolution} voxels a side cannot be united")
        if not len(self.codes) or not len(other.codes):
            return self if len(self.codes) else other
        codes = np.union1d(self.codes, other.codes)
        bits = np.zeros((len(codes), EDGE), np.uint64)
        for part in (self, other):
            bits[np.searchsorted(codes, part.codes)] |= part.bits
        return SparseVoxels(self.resolution, codes, bits)

    def contains(self, coords: Int[np.ndarray, "N 3"]) -> Bool[np.ndarray, " N"]:
        """Whether voxels at coordinates [N, 3] are in the set; those outside the grid are not."""
        inside = ((coords >= 0) & (coords < self.resolution)).all(axis=-1)
        if not len(self.codes):
            return np.zeros(len(coords), np.bool_)
        at = np.where(inside[:, None], coords, 0).astype(np.int64)
        code = self._codes_of(at >> 3)
        row = np.searchsorted(self.codes, code).clip(max=len(self.codes) - 1)
        local = at & 7
        bit = self.bits[row, local[:, 0]] >> (local[:, 1] * 8 + local[:, 2]).astype(np.uint64) & np.uint64(1)
        return inside & (self.codes[row] == code) & (bit != 0)

    def coords(self) -> Iterator[Int64[np.ndarray, "N 3"]]:
        """Coordinates of all voxels, in chunks of at most 16384 bricks."""
        places = self.places
        for start in range(0, len(places), _CHUNK):
            bits = self.bits[start : start + _CHUNK]
            out = np.empty((_count(bits), 3), np.int64)
            _list(bits, places[start : start + _CHUNK], out)
            yield out

    def dense(self) -> Bool[np.ndarray, "R R R"]:
        """The grid as an array; for grids of at most 512 voxels a side.

        Raises:
            ValueError: the grid is larger.
        """
        if self.resolution > MAX_DENSE:
            raise ValueError(
                f"a dense grid of {self.resolution}^3 voxels was asked for, at most {MAX_DENSE}^3 are made"
            )
        out = np.zeros((self.resolution,) * 3, np.bool_)
        for at in self.coords():
            out[tuple(at.T)] = True
        return out

    def pool(self, factor: int) -> "SparseVoxels":
        """The grid in which a voxel is occupied if one of its factor^3 voxels is; sides are rounded up.

        Raises:
            ValueError: `factor` is no power of two.
        """
        if factor < 1 or factor & (factor - 1):
            raise ValueError(f"pooling factor is {factor}, expected a power of two")
        shift = factor.bit_length() - 1
        pooled = SparseVoxels.empty(-(-self.resolution // factor))
        places = self.places
        codes, parents = np.unique(pooled._codes_of(places >> shift), return_inverse=True)
        bits = np.zeros((len(codes), EDGE), np.uint64)
        _pool(self.bits, places, parents.reshape(-1).astype(np.int64), shift, bits)
        return SparseVoxels(pooled.resolution, codes, bits)

    def median(self) -> "SparseVoxels":
        """Voxels that 14 of the 27 around agree on: removes floaters, and fills pinholes (Duckworth et al. 2024).

        Beyond the grid's border the outermost voxels repeat.
        """
        return self._filtered(_MEDIAN)

    def dilate(self, radius: int = 1) -> "SparseVoxels":
        """Voxels at most `radius` voxels away from one in the set, largest norm."""
        voxels = self
        for _ in range(radius):
            voxels = voxels._filtered(1)
        return voxels

    def _filtered(self, needed: int) -> "SparseVoxels":
        n = self.bricks_per_axis
        parts = []
        for offset in _NEIGHBOURS:
            at = self.places + offset
            parts.append(self._codes_of(at[((at >= 0) & (at < n)).all(axis=-1)]))
        codes = np.unique(np.concatenate(parts))
        bits = np.zeros((len(codes), EDGE), np.uint64)
        places = SparseVoxels(self.resolution, codes, bits).places
        run_striped(_filter, new_counter(), self.codes, self.bits, self.resolution, places, needed, bits)
        kept = bits.any(axis=-1)
        return SparseVoxels(self.resolution, codes[kept], bits[kept])

    def project(self, axis: int) -> Bool[np.ndarray, "R R"]:
        """Whether any voxel along an axis is occupied, by the other two axes in ascending order."""
        out = np.zeros((self.resolution, self.resolution), np.bool_)
        _mark_columns(self.bits, self.places, axis, out)
        return out

    def occupancy(self, factor: int) -> UInt8[np.ndarray, "X Y Z"]:
        """The official occupancy grid of a factor: one byte for every factor^3 voxels, one bit for an eighth of them.

        Args:
            factor: 2, 4, 8, ...; the result has ceil(resolution / factor)^3 bytes.

        Returns:
            Bytes [x, y, z]; the eighth (dx, dy, dz) has bit 4 dx + 2 dy + dz.

        Raises:
            ValueError: `factor` is no power of two, or 1.
        """
        if factor < 2:
            raise ValueError(f"occupancy factor is {factor}, expected a power of two from 2 up")
        cells = self.pool(factor // 2)
        out = np.zeros((-(-self.resolution // factor),) * 3, np.uint8)
        _mark_bytes(cells.bits, cells.places, out)
        return out

    def blocks(self, sparse_resolution: int, block_size: int = 8) -> Bool[np.ndarray, "X Y Z"]:
        """Blocks of a sparse grid that a viewer reads inside occupied voxels.

        A viewer interpolates between voxel centres, so a block reaches from the centre of its first voxel to that of
        the next block's first voxel.

        Note:
            The released exporter pools the voxels themselves, half a sparse voxel off, and so lacks blocks that are
            read where a surface touches the first half voxel of a block: 569 beside the 6048 of a published export.

        Args:
            sparse_resolution: voxels along a side of the sparse grid.
            block_size: of them along a side of a block.
        """
        blocks = -(-sparse_resolution // block_size)
        out = np.zeros((blocks,) * 3, np.bool_)
        edges = np.arange(self.resolution + 1) * (sparse_resolution / self.resolution) - 0.5
        low = np.floor(edges[:-1] / block_size).astype(np.int64).clip(0, blocks - 1)
        high = (np.ceil(edges[1:] / block_size).astype(np.int64) - 1).clip(0, blocks - 1)
        _mark_blocks(self.bits, self.places, low, high, out)
        return out

    def _codes_of(self, places: NDArray[np.int64]) -> Int64[np.ndarray, " N"]:
        n = self.bricks_per_axis
        return (places[:, 0] * n + places[:, 1]) * n + places[:, 2]
