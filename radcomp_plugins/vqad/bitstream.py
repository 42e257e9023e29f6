"""The `.vqad` file: a head with the decoder, then a chunk per octree level, coarse first, each of use on its own.

Any beginning of a file that ends after a level is the scene of the levels up to it, bit for bit. A level's chunk holds
which children the coarser voxels have, an index per vertex, and the codebook, each entropy-coded with what is known by
then: the coarser level's voxels and indices, and the neighbours that came before in Morton order. See
docs/formats/vqad.md for the bytes.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radcomp_plugins.core import entropy
from radcomp_plugins.core.container import Chunk, CutOffError, read_chunk, read_contents, write_container
from radcomp_plugins.core.entropy import Contexts, Model
from radcomp_plugins.core.files import atomic_write, read_bytes
from radcomp_plugins.core.grid_index import GridIndex
from radcomp_plugins.core.morton import Codes, voxel_vertices
from radcomp_plugins.errors import InputError
from radcomp_plugins.vqad.float_coding import decode_floats, encode_floats
from radcomp_plugins.vqad.head import pack_head, unpack_head
from radcomp_plugins.vqad.scene import MAX_BITS, MAX_GRID_LEVEL, VqadLevel, VqadScene

MAGIC = b"VQAD\r\n\x1a\n"
VERSION = 1
HEAD, LEVEL = "HEAD", "LEVL"
SCENE = "scene.vqad"
"""The file's name in an asset folder."""
MAX_FILE_BYTES = 2**31
MAX_VOXELS = 2**23
"""Voxels that a level may have: thirteen times the paper's finest, so that a lying file cannot take all memory."""

_LEVEL = struct.Struct("<BBHII")


@dataclass
class Decoded:
    """What a file, or the beginning of one, holds.

    Attributes:
        scene: of the levels that are there in full.
        chunks: the file's table of contents.
        missing: levels that the whole file has and this beginning has not.
        bytes_read: of the file, up to the end of the last level in `scene`.
    """

    scene: VqadScene
    chunks: list[Chunk]
    missing: list[int]
    bytes_read: int

    @property
    def note(self) -> str | None:
        """One line on what is missing, None where all is there."""
        if not self.missing:
            return None
        have = f"levels up to {self.scene.levels[-1].level}"
        return f"the file is cut off after {have}; missing: {', '.join(map(str, self.missing))}"


def encode_scene(scene: VqadScene) -> bytes:
    """The whole file of a scene.

    Raises:
        InputError: the scene's parts do not fit each other.
    """
    scene.check()
    coder = LevelCoder(scene.num_features)
    chunks = [(HEAD, 0, pack_head(scene))]
    chunks += [(LEVEL, level.level, coder.encode(level)) for level in scene.levels]
    return write_container(MAGIC, VERSION, chunks)


def decode_scene(data: bytes, where: str = "data") -> Decoded:
    """The scene in a file's bytes, or in as many of them as there are.

    Args:
        data: the file from its beginning.
        where: name for error lines.

    Raises:
        CutOffError: not even the coarsest level is there.
        InputError: the file is damaged, of another kind, or newer than this program.
    """
    chunks = check_order(read_contents(data, MAGIC, VERSION, where), where)
    if chunks[-1].end < len(data):
        raise InputError(
            f"{where}: has {len(data)} bytes, expected {chunks[-1].end}: there is something behind its end"
        )
    scene, missing = unpack_head(read_chunk(data, chunks[0], where), where), []
    coder = LevelCoder(scene.num_features)
    for chunk in chunks[1:]:
        try:
            body = read_chunk(data, chunk, where)
        except CutOffError:
            if not scene.levels:
                raise
            missing.append(chunk.number)
            continue
        scene.levels.append(coder.decode(chunk.number, body, f"{where}: level {chunk.number}"))
    return Decoded(scene, chunks, missing, chunks[len(scene.levels)].end)


def write_scene(path: Path, scene: VqadScene, *, overwrite: bool = False) -> int:
    """Write a scene as a file; returns its size in bytes.

    Raises:
        InputError: the scene's parts do not fit each other, or the file cannot be written.
    """
    data = encode_scene(scene)
    with atomic_write(path, overwrite=overwrite) as file:
        file.write(data)
    return len(data)


def scene_file(path: Path) -> Path:
    """The `.vqad` file of an asset folder, or the file itself.

    Raises:
        InputError: there is none.
    """
    path = Path(path)
    file = path / SCENE if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{path}: no {SCENE} there, expected the folder that `ns-export vqad` wrote, or a .vqad file")
    return file


def read_scene(path: Path) -> Decoded:
    """Read a file; a cut one gives the levels it holds, and `Decoded.note` says so.

    Raises:
        CutOffError: not even the coarsest level is there.
        InputError: the file is missing, damaged, of another kind, or newer than this program.
    """
    return decode_scene(read_bytes(path, MAX_FILE_BYTES), str(path))


def sizes_of(data: bytes, scene: VqadScene) -> list[dict[str, Any]]:
    """What each level of a scene takes in a file: counts, bytes by part, bits per index, and where it ends.

    Args:
        data: what `encode_scene` made of the scene, or a file that was decoded to it.
        scene: see `data`.
    """
    sizes = []
    chunks = read_contents(data, MAGIC, VERSION, "data")
    for level, chunk in zip(scene.levels, chunks[1:], strict=False):
        body = data[chunk.offset : chunk.end]
        count = _LEVEL.unpack_from(body)[1] + 2
        *trees, indices, book = (len(part) for part in split_streams(body[_LEVEL.size :], count, chunk.name))
        sizes.append(
            {
                "level": level.level, "bits": level.bits, "voxels": len(level.voxels), "vertices": len(level.indices),
                "octree_bytes": sum(trees), "index_bytes": indices, "codebook_bytes": book,
                "bits_per_index": 8 * indices / len(level.indices), "end": chunk.end,
            }
        )  # fmt: skip
    return sizes


def check_order(chunks: list[Chunk], where: str) -> list[Chunk]:
    """The chunks, once they are a head and then consecutive levels.

    Raises:
        InputError: they are not.
    """
    kinds = [chunk.kind for chunk in chunks]
    if len(chunks) < 2 or kinds != [HEAD] + [LEVEL] * (len(chunks) - 1):
        raise InputError(f"{where}: chunks {' '.join(kinds)[:80]}, expected {HEAD} and then {LEVEL} once or more")
    numbers = [chunk.number for chunk in chunks[1:]]
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))) or numbers[-1] > MAX_GRID_LEVEL:
        raise InputError(
            f"{where}: levels in the order {' '.join(map(str, numbers))[:80]}, expected consecutive ones, "
            f"coarse first, up to {MAX_GRID_LEVEL}"
        )
    return chunks


class LevelCoder:
    """Codes levels one after the other, coarse first; what it has seen so far is what the next is coded with.

    Attributes:
        num_features: k.
        last: the level before, None at first.
    """

    def __init__(self, num_features: int) -> None:
        self.num_features = num_features
        self.last: VqadLevel | None = None
        self._last_vertices = np.empty(0, np.int64)
        self._tree: Model | None = None

    def encode(self, level: VqadLevel) -> bytes:
        """The chunk of the next level."""
        trees, voxels = [], np.zeros(1, np.int64) if self.last is None else self.last.voxels
        first = 0 if self.last is None else self.last.level
        for target in range(first + 1, level.level + 1):
            fine = np.unique(level.voxels >> (3 * (level.level - target)))
            parents, bits = np.searchsorted(voxels, fine >> 3), 1 << (fine & 7)
            masks = np.bincount(parents, weights=bits, minlength=len(voxels)).astype(np.int32)
            trees.append(entropy.encode(masks, *self._tree_model(voxels, 2 ** (target - 1))))
            voxels = fine
        vertices = voxel_vertices(level.voxels, level.level)
        indices = entropy.encode(level.indices, self._index_contexts(level.voxels, vertices, level.level, level.bits))
        self._remember(level, vertices)
        head = _LEVEL.pack(level.bits, len(trees), self.num_features, len(level.voxels), len(vertices))
        return head + join_streams([*trees, indices, encode_floats([level.codebook])])

    def decode(self, number: int, data: bytes, where: str) -> VqadLevel:
        """The next level, from its chunk.

        Raises:
            InputError: counts that cannot be, or that what follows does not bear out.
        """
        if len(data) < _LEVEL.size:
            raise InputError(f"{where}: chunk of {len(data)} bytes, expected at least {_LEVEL.size}")
        bits, num_trees, num_features, num_voxels, num_vertices = _LEVEL.unpack_from(data)
        if not 1 <= bits <= MAX_BITS or num_features != self.num_features:
            raise InputError(
                f"{where}: {bits} bits, {num_features} features; expected 1 to {MAX_BITS} and {self.num_features}"
            )
        steps = number if self.last is None else 1
        if num_trees != steps or not 1 <= num_voxels <= MAX_VOXELS or not 1 <= num_vertices <= 8 * num_voxels:
            raise InputError(
                f"{where}: {num_trees} tree steps, {num_voxels} voxels, {num_vertices} vertices; "
                f"expected {steps}, 1 to {MAX_VOXELS}, at most 8 for each voxel"
            )
        *trees, coded, codebook = split_streams(data[_LEVEL.size :], num_trees + 2, where)
        voxels = self._decode_tree(number, trees, num_voxels, where)
        vertices = voxel_vertices(voxels, number)
        if len(vertices) != num_vertices:
            raise InputError(f"{where}: says {num_vertices} vertices, but its voxels have {len(vertices)}")
        indices = entropy.decode(coded, self._index_contexts(voxels, vertices, number, bits)).astype(np.uint8)
        (book,) = decode_floats(codebook, [(2**bits, num_features)], f"{where}: codebook")
        level = VqadLevel(number, voxels, indices, book, bits)
        self._remember(level, vertices)
        return level

    def _decode_tree(self, number: int, trees: list[bytes], num_voxels: int, where: str) -> Codes:
        voxels = np.zeros(1, np.int64) if self.last is None else self.last.voxels
        first = number - len(trees)
        for step, coded in enumerate(trees):
            masks = entropy.decode(coded, *self._tree_model(voxels, 2 ** (first + step)))
            bits = np.unpackbits(masks.astype(np.uint8)[:, None], axis=1, bitorder="little")
            count = int(bits.sum(dtype=np.int64))
            if not 1 <= count <= num_voxels:
                raise InputError(f"{where}: has {count} voxels at level {first + step + 1}, says {num_voxels}")
            parent, child = np.nonzero(bits)
            voxels = voxels[parent] * 8 + child
        if len(voxels) != num_voxels:
            raise InputError(f"{where}: says {num_voxels} voxels, but its tree has {len(voxels)}")
        return voxels

    def _tree_model(self, voxels: Codes, side: int) -> tuple[Contexts, Model]:
        """How the children of voxels are coded: by which neighbours there are, and by the children, where they touch,
        of those neighbours that come before. One model learns from all levels."""
        grid = GridIndex.build(voxels, side)
        behind = zip(grid.behind(), _TOUCHING, strict=True)
        contexts = Contexts(
            bits=8,
            count=len(voxels),
            sides=[(grid.faces(), 64), (voxels & 7, 8)],
            causal=list(behind),
            joint=[(0, 1), (2, 3, 4)],
        )
        self._tree = self._tree or Model(contexts)
        return contexts, self._tree

    def _index_contexts(self, voxels: Codes, vertices: Codes, number: int, bits: int) -> Contexts:
        """How a level's indices are coded: by the index of the coarser vertex at half the coordinates, by which of the
        voxels around the vertex there are, and by the three vertices before it along the axes."""
        grid = GridIndex.build(vertices, 2**number + 1)
        sides = [(grid.touching(voxels), 256)]
        if self.last is not None:
            above = np.searchsorted(self._last_vertices, vertices >> 3)
            sides.append((self.last.indices[above], 2**self.last.bits))  # pyright: ignore[reportArgumentType]
        same = np.arange(2**bits + 1)
        causal = [(place, same) for place in grid.behind()]
        first = len(sides)
        joint: list[tuple[int, ...]] = [(first, first + 1), (first + 1, first + 2), (first, first + 2)]
        if self.last is not None:
            joint.append((0, 1))
        # At eight bits a pair of neighbours has 2^24 values: too many to learn anything from.
        return Contexts(bits, len(vertices), sides, causal, joint if bits < MAX_BITS else [])

    def _remember(self, level: VqadLevel, vertices: Codes) -> None:
        self.last, self._last_vertices = level, vertices


def _touching_folds() -> list[NDArray[np.int32]]:
    """For the neighbour behind along each axis: which of its children touch us, of each mask; none for no neighbour."""
    masks = np.arange(256)
    folds = []
    for axis in range(3):
        near = [child for child in range(8) if child >> (2 - axis) & 1]
        number = sum(((masks >> child) & 1) << place for place, child in enumerate(near))
        folds.append(np.concatenate([[0], number]).astype(np.int32))
    return folds


_TOUCHING = _touching_folds()


def join_streams(streams: list[bytes]) -> bytes:
    """Several byte strings as one: all lengths but the last's, in seven-bit groups, then the strings."""
    head = bytearray()
    for stream in streams[:-1]:
        length = len(stream)
        while length > 127:
            head.append(128 | length & 127)
            length >>= 7
        head.append(length)
    return bytes(head) + b"".join(streams)


def split_streams(data: bytes, count: int, where: str) -> list[bytes]:
    """Undo `join_streams`.

    Raises:
        InputError: the lengths do not fit the data.
    """
    lengths, at = [], 0
    for _ in range(count - 1):
        length = 0
        for shift in range(0, 35, 7):
            if at >= len(data):
                raise InputError(f"{where}: ends within its {count} lengths")
            length |= (data[at] & 127) << shift
            at += 1
            if data[at - 1] < 128:
                break
        else:
            raise InputError(f"{where}: a length of more than five bytes")
        lengths.append(length)
    if at + sum(lengths) > len(data):
        raise InputError(f"{where}: streams of {sum(lengths)} bytes, expected at most {len(data) - at}")
    streams = []
    for length in lengths:
        streams.append(data[at : at + length])
        at += length
    return [*streams, data[at:]]
