"""Sparse multi-resolution octree: which voxels of each level exist, and the vertices that features live on.

Levels are nested: a voxel of a finer level has its parent at the coarser one. Frames: *box* is [0, 1]^3; *grid* of
level l is box times 2^l. Nodes (voxels) and vertices of all levels are numbered one after the other, coarse first,
within a level in Morton order (`core.morton`), so that a prefix of either is a coarser octree.

Source: Takikawa et al. 2021 (NGLOD) and 2022 (VQ-AD), for the data structure.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from radcomp_plugins.core import morton
from radcomp_plugins.core.morton import Codes

MAX_LEVEL = 10
"""Finest level, 1,024 voxels a side."""


class Octree:
    """Voxels of consecutive levels, and tables to walk down them and to find a voxel's vertices.

    Attributes:
        levels: consecutive levels, coarsest first.
        voxels: for each level the ascending Morton codes of its voxels.
        vertices: for each level the ascending Morton codes of the vertices its voxels touch.
        node_starts: first node of each level, then the number of nodes.
        vertex_starts: first vertex of each level, then the number of vertices.
        top: [8^coarsest] int32 node of each possible voxel of the coarsest level, -1 where there is none.
        children: [nodes, 8] int32 node of child 4 dx + 2 dy + dz, -1 where there is none.
        corners: [nodes, 8] int32 vertex of corner 4 dx + 2 dy + dz.
    """

    top: Int[Tensor, " T"]
    children: Int[Tensor, "V 8"]
    corners: Int[Tensor, "V 8"]

    def __init__(self, coarsest: int, voxels: Sequence[Codes]) -> None:
        """Make the tables.

        Args:
            coarsest: level of the first codes.
            voxels: for each level ascending Morton codes, each one's parent among those of the level before.

        Raises:
            ValueError: a level is empty, out of range, not ascending, or has a voxel without a parent.
        """
        self.levels = list(range(coarsest, coarsest + len(voxels)))
        self.voxels = [np.ascontiguousarray(codes, np.int64) for codes in voxels]
        _check(self.levels, self.voxels)
        self.vertices = [
            morton.voxel_vertices(codes, level) for level, codes in zip(self.levels, self.voxels, strict=True)
        ]
        self.node_starts = np.cumsum([0, *map(len, self.voxels)]).tolist()
        self.vertex_starts = np.cumsum([0, *map(len, self.vertices)]).tolist()
        self.top = torch.from_numpy(_top(self.voxels[0], coarsest))
        self.children = torch.from_numpy(_children(self.voxels, self.node_starts))
        self.corners = torch.from_numpy(_corners(self.voxels, self.vertices, self.vertex_starts))

    @classmethod
    def from_finest(cls, voxels: Codes, finest: int, coarsest: int) -> "Octree":
        """The octree of all voxels above the given ones.

        Args:
            voxels: Morton codes at level `finest`, in any order, also repeated; at least one.
            finest: finest level.
            coarsest: coarsest level.
        """
        chain = [np.unique(voxels)]
        for _ in range(finest - coarsest):
            chain.append(np.unique(chain[-1] >> 3))
        return cls(coarsest, chain[::-1])

    @classmethod
    def dense(cls, coarsest: int, finest: int) -> "Octree":
        """All voxels of all levels from `coarsest` to `finest`."""
        return cls(coarsest, [np.arange(8**level, dtype=np.int64) for level in range(coarsest, finest + 1)])

    @property
    def coarsest(self) -> int:
        """Coarsest level."""
        return self.levels[0]

    @property
    def finest(self) -> int:
        """Finest level."""
        return self.levels[-1]

    @property
    def num_vertices(self) -> int:
        """Vertices of all levels together."""
        return self.vertex_starts[-1]

    @property
    def device(self) -> torch.device:
        """Where the tables are."""
        return self.top.device

    def to(self, device: torch.device | str) -> "Octree":
        """Move the tables, in place; returns the octree itself."""
        self.top, self.children, self.corners = (t.to(device) for t in (self.top, self.children, self.corners))
        return self

    def codes_of(self, level: int) -> Codes:
        """Ascending codes of a level's voxels."""
        return self.voxels[level - self.coarsest]

    def truncated(self, level: int) -> "Octree":
        """The octree of the levels up to `level`."""
        return Octree(self.coarsest, self.voxels[: level - self.coarsest + 1]).to(self.device)

    def level_of_vertices(self) -> Int[Tensor, " M"]:
        """Number of each vertex's level, counted from 0 for the coarsest."""
        counts = torch.tensor(self.vertex_starts).diff()
        return torch.arange(len(self.levels)).repeat_interleave(counts).to(self.device)


def _check(levels: list[int], voxels: list[Codes]) -> None:
    if not levels or not 0 <= levels[0] <= levels[-1] <= MAX_LEVEL:
        raise ValueError(f"octree of levels {levels}, expected one or more, from 0 to {MAX_LEVEL}")
    parents = None
    for level, codes in zip(levels, voxels, strict=True):
        if len(codes) == 0:
            raise ValueError(f"octree level {level}: no voxels, expected at least one")
        if codes[0] < 0 or codes[-1] >= 8**level or (np.diff(codes) <= 0).any():
            raise ValueError(f"octree level {level}: codes are not ascending from 0 to {8**level - 1}")
        if parents is not None and not _contains(parents, codes >> 3):
            raise ValueError(f"octree level {level}: a voxel's parent is missing")
        parents = codes


def _contains(sorted_codes: Codes, wanted: Codes) -> bool:
    place = np.searchsorted(sorted_codes, wanted)
    return bool(
        (place < len(sorted_codes)).all() and (sorted_codes[np.minimum(place, len(sorted_codes) - 1)] == wanted).all()
    )


def _top(voxels: Codes, level: int) -> np.ndarray:
    top = np.full(8**level, -1, np.int32)
    top[voxels] = np.arange(len(voxels), dtype=np.int32)
    return top


def _children(voxels: list[Codes], starts: list[int]) -> np.ndarray:
    children = np.full((starts[-1], 8), -1, np.int32)
    for number in range(1, len(voxels)):
        codes = voxels[number]
        parent = starts[number - 1] + np.searchsorted(voxels[number - 1], codes >> 3)
        children[parent, codes & 7] = np.arange(starts[number], starts[number + 1], dtype=np.int32)
    return children


def _corners(voxels: list[Codes], vertices: list[Codes], starts: list[int]) -> np.ndarray:
    parts = []
    for number, (codes, known) in enumerate(zip(voxels, vertices, strict=True)):
        xyz = morton.decode(codes)
        columns = []
        for corner in range(8):
            offset = np.array([corner >> 2, corner >> 1 & 1, corner & 1])
            columns.append(starts[number] + np.searchsorted(known, morton.encode(xyz + offset)))
        parts.append(np.stack(columns, axis=1).astype(np.int32))
    return np.concatenate(parts)


def voxels_of_points(points: Float[Tensor, "N 3"], level: int) -> Codes:
    """Ascending codes of the voxels that points lie in.

    Args:
        points: box frame; those outside [0, 1)^3 are left out.
        level: the grid's level.
    """
    inside = ((points >= 0) & (points < 1)).all(dim=-1)
    xyz = (points[inside].double() * 2**level).long().cpu().numpy()
    return np.unique(morton.encode(xyz)) if len(xyz) else np.zeros(0, np.int64)


def dilate(voxels: Codes, level: int, radius: int) -> Codes:
    """The voxels and all within `radius` voxels of them along each axis, as far as the box goes."""
    for _ in range(radius):
        xyz = morton.decode(voxels)
        for axis in range(3):
            step = np.eye(3, dtype=np.int64)[axis]
            xyz = np.concatenate([xyz - step, xyz, xyz + step])
            xyz = xyz[((xyz >= 0) & (xyz < 2**level)).all(axis=1)]
            xyz = morton.decode(np.unique(morton.encode(xyz)))
        voxels = morton.encode(xyz)
    return np.sort(voxels)


def children_of(voxels: Codes) -> Codes:
    """The eight children of each voxel; ascending if the voxels are."""
    return (voxels[:, None] * 8 + np.arange(8)).reshape(-1)


def matching_rows(old: Octree, new: Octree) -> Int[Tensor, " M"]:
    """For each vertex of `new` the vertex of `old` with the same level and place, -1 where there is none."""
    rows = np.full(new.num_vertices, -1, np.int64)
    for number, level in enumerate(new.levels):
        if level not in old.levels:
            continue
        theirs = old.levels.index(level)
        known, wanted = old.vertices[theirs], new.vertices[number]
        place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        found = np.where(known[place] == wanted, old.vertex_starts[theirs] + place, -1)
        rows[new.vertex_starts[number] : new.vertex_starts[number + 1]] = found
    return torch.from_numpy(rows).to(new.device)
