"""Signed distances of a procedural mesh through the codebook encoding: Figure 5 of Takikawa et al. 2022.

    python benchmarks/vqad_sdf.py --output-dir benchmarks/results/vqad_sdf

A bumpy torus of triangles is made, and its signed distance learned at full precision, by clustering that afterwards,
and with codebooks from the first step. For each: mean distance error and normal error on the surface, and the bytes of
the grid. The mesh's own bytes, raw and quantised to 11 bits, stand beside them. Writes sdf.json.
"""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from scipy.spatial import KDTree

from radcomp_plugins.core.files import write_json
from radcomp_plugins.core.octree import Octree, dilate, voxels_of_points
from radcomp_plugins.vqad.encoding import VQADEncoding

_CANDIDATES = 12
"""Triangles with the nearest middles whose exact distance is computed; the nearest is among them on an even mesh."""


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Triangles in [0, 1]^3.

    Attributes:
        corners: [T, 3, 3] float64.
        normals: [T, 3] outward, unit length.
    """

    corners: np.ndarray
    normals: np.ndarray

    @property
    def vertices(self) -> int:
        """Of a closed surface of genus 1: half as many as triangles."""
        return len(self.corners) // 2


def bumpy_torus(around: int = 320, across: int = 128) -> Mesh:
    """A torus with bumps on it, of 2 * around * across triangles."""
    u, v = np.meshgrid(np.arange(around + 1) / around, np.arange(across + 1) / across, indexing="ij")
    a, b = 2 * np.pi * u, 2 * np.pi * v
    tube = 0.12 + 0.015 * np.sin(9 * a) * np.cos(5 * b) + 0.008 * np.sin(23 * a + 3 * b)
    ring = 0.3 + tube * np.cos(b)
    at = np.stack([ring * np.cos(a), ring * np.sin(a), tube * np.sin(b)], axis=-1) + 0.5
    p, q, r, s = at[:-1, :-1], at[1:, :-1], at[1:, 1:], at[:-1, 1:]
    corners = np.concatenate([np.stack([p, q, r], axis=2), np.stack([p, r, s], axis=2)]).reshape(-1, 3, 3)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return Mesh(corners, normals / np.linalg.norm(normals, axis=1, keepdims=True))


def surface_points(mesh: Mesh, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points evenly on the surface, and its normals there."""
    sides = mesh.corners[:, 1:] - mesh.corners[:, :1]
    area = np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1)
    pick = rng.choice(len(area), count, p=area / area.sum())
    a, b = rng.random((2, count, 1))
    fold = a + b > 1
    a, b = np.where(fold, 1 - a, a), np.where(fold, 1 - b, b)
    return mesh.corners[pick, 0] + a * sides[pick, 0] + b * sides[pick, 1], mesh.normals[pick]


def signed_distance(mesh: Mesh, tree: KDTree, points: np.ndarray) -> np.ndarray:
    """Distance to the nearest triangle, negative inside."""
    _, near = tree.query(points, k=_CANDIDATES)
    offset = points[:, None] - _closest_points(mesh.corners[near], points[:, None])
    distance = np.linalg.norm(offset, axis=-1)
    best = distance.argmin(axis=1)
    row = np.arange(len(points))
    # On an edge two triangles are equally near; their mean normal decides, as a mesh's pseudonormal does.
    tied = distance <= distance[row, best][:, None] + 1e-9
    normal = (mesh.normals[near] * tied[..., None]).sum(axis=1)
    side = (offset[row, best] * normal).sum(axis=1)
    return distance[row, best] * np.where(side < 0, -1.0, 1.0)


def _closest_points(corners: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The point of each triangle [..., 3, 3] that is closest to a point [..., 3]."""
    a, b, c = corners[..., 0, :], corners[..., 1, :], corners[..., 2, :]
    ab, ac, ap = b - a, c - a, points - a
    d11, d12, d22 = (ab * ab).sum(-1), (ab * ac).sum(-1), (ac * ac).sum(-1)
    p1, p2 = (ap * ab).sum(-1), (ap * ac).sum(-1)
    scale = d11 * d22 - d12 * d12
    v, w = (d22 * p1 - d12 * p2) / scale, (d11 * p2 - d12 * p1) / scale
    inside = (v >= 0) & (w >= 0) & (v + w <= 1)
    candidates = [a + v[..., None] * ab + w[..., None] * ac]
    for first, second in ((a, b), (b, c), (c, a)):
        edge = second - first
        t = np.clip(((points - first) * edge).sum(-1) / (edge * edge).sum(-1), 0, 1)
        candidates.append(first + t[..., None] * edge)
    away = np.stack([np.linalg.norm(points - one, axis=-1) for one in candidates])
    away[0] = np.where(inside, away[0], np.inf)
    return np.take_along_axis(np.stack(candidates), away.argmin(axis=0)[None, ..., None], axis=0)[0]


class SdfField(torch.nn.Module):
    """Features to a signed distance by one hidden layer."""

    def __init__(self, octree: Octree, bits: int, mode: Any, hidden: int = 64) -> None:
        super().__init__()
        self.encoding = VQADEncoding(octree, bits=bits, mode=mode)
        self.network = torch.nn.Sequential(
            torch.nn.Linear(self.encoding.get_out_dim(), hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 1)
        )

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """Signed distances [N] of positions [N, 3] in [0, 1]^3."""
        return self.network(self.encoding(points)).squeeze(1)


def fit(field: SdfField, points: torch.Tensor, target: torch.Tensor, steps: int, batch: int, seed: int) -> float:
    """Train a field on points with known distances; returns the seconds it took."""
    g, begun = torch.Generator().manual_seed(seed), time.perf_counter()
    groups = [
        {"params": list(field.network.parameters()), "lr": 1e-3},
        {"params": list(field.encoding.parameters()), "lr": 0.03},
    ]
    optimizer = torch.optim.Adam(groups, eps=1e-15)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.05 ** (step / steps))
    for _ in range(steps):
        pick = torch.randint(len(points), (batch,), generator=g)
        # Relative to a voxel of the finest level, so that the loss has the size that rates are made for.
        error = (field(points[pick]) - target[pick]) * 2**field.encoding.octree.finest
        optimizer.zero_grad()
        error.square().mean().backward()
        optimizer.step()
        schedule.step()
    return time.perf_counter() - begun


def measure(
    field: SdfField, at: torch.Tensor, normals: torch.Tensor, near: torch.Tensor, distance: torch.Tensor
) -> dict:
    """Mean distance error near the surface, and mean angle between normals on it."""
    points = at.clone().requires_grad_()
    (slope,) = torch.autograd.grad(field(points).sum(), points)
    cosine = torch.nn.functional.cosine_similarity(slope, normals, dim=1).clamp(-1, 1)
    with torch.no_grad():
        error = (field(near) - distance).abs().mean()
    return {"distance_error": float(error), "normal_degrees": float(torch.rad2deg(cosine.acos()).mean())}


def grid_bytes(field: SdfField) -> int:
    """Bytes of features in half precision, or of packed indices and half-precision codebooks."""
    encoding = field.encoding
    if encoding.mode == "full":
        return 2 * encoding.values.numel()
    return math.ceil(encoding.octree.num_vertices * encoding.bits / 8) + 2 * encoding.codebook.numel()


@dataclasses.dataclass
class VqadSdf:
    """Fit, compress and measure."""

    output_dir: Path
    """Folder for sdf.json."""
    coarsest_level: int = 3
    """Coarsest level of the octree."""
    finest_level: int = 6
    """Finest level. The paper: 8."""
    bits: tuple[int, ...] = (4, 6)
    """Bits per index."""
    steps: int = 1500
    """Training steps of each fit."""
    batch: int = 4096
    """Points of a step."""
    points: int = 200_000
    """Points that are trained on; half near the surface, half anywhere in its voxels."""
    seed: int = 0
    """Of points and fits."""

    def main(self) -> dict[str, Any]:
        """Measure all, write sdf.json, and return what it holds."""
        rng = np.random.default_rng(self.seed)
        mesh = bumpy_torus()
        tree = KDTree(mesh.corners.mean(axis=1))
        surface, _ = surface_points(mesh, 400_000, rng)
        side = 2**self.finest_level
        voxels = dilate(voxels_of_points(torch.from_numpy(surface), self.finest_level), self.finest_level, 1)
        octree = Octree.from_finest(voxels, self.finest_level, self.coarsest_level)
        on, _ = surface_points(mesh, self.points, rng)
        spread = np.where(np.arange(self.points) % 2 == 0, 0.2, 1.0)[:, None] / side
        near = on + rng.uniform(-1, 1, on.shape) * spread
        points, target = self._tensors(near, signed_distance(mesh, tree, near))
        at, normals = self._tensors(*surface_points(mesh, 20_000, rng))
        test = surface_points(mesh, 20_000, rng)[0] + rng.uniform(-0.5, 0.5, (20_000, 3)) / side
        held, distance = self._tensors(test, signed_distance(mesh, tree, test))
        rows: dict[str, Any] = {}

        def add(name: str, field: SdfField, seconds: float) -> None:
            rows[name] = {"bytes": grid_bytes(field), "seconds": seconds, **measure(field, at, normals, held, distance)}
            print(name, rows[name], flush=True)

        torch.manual_seed(self.seed)
        full = SdfField(octree, 8, "full")
        seconds = fit(full, points, target, self.steps, self.batch, self.seed)
        add("full precision", full, seconds)
        for bits in self.bits:
            clustered = SdfField(octree, bits, "full")
            clustered.load_state_dict(full.state_dict())
            clustered.encoding.quantise("fixed")
            add(f"kmVQ, {bits} bits", clustered, seconds)
            torch.manual_seed(self.seed)
            learned = SdfField(octree, bits, "logits")
            add(f"VQ-AD, {bits} bits", learned, fit(learned, points, target, self.steps, self.batch, self.seed))
        corners = mesh.vertices * 3
        result = {
            "schema_version": 1,
            "settings": {"levels": octree.levels, "vertices": octree.num_vertices, "steps": self.steps},
            "mesh": {
                "triangles": len(mesh.corners),
                "raw_bytes": 4 * corners + 12 * len(mesh.corners),
                "quantised_bytes": math.ceil(11 * corners / 8) + 12 * len(mesh.corners),
            },
            "rows": rows,
        }
        self.output_dir.mkdir(parents=True, exist_ok=True)
        write_json(self.output_dir / "sdf.json", result)
        return result

    @staticmethod
    def _tensors(*arrays: np.ndarray) -> tuple[torch.Tensor, ...]:
        return tuple(torch.from_numpy(array).float() for array in arrays)


if __name__ == "__main__":
    tyro.cli(VqadSdf).main()
