"""A baked scene made by hand: coloured balls and boxes, no training, the same geometry in every submodel."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from radcomp_plugins.core.contraction import uncontract
from radcomp_plugins.smerf.empty_space import distance_grid, pack_cells
from radcomp_plugins.smerf.layout import (
    DENSITY,
    GATE,
    NUM_CHANNELS,
    RANGE_DENSITY,
    RANGE_FEATURES,
    BakedScene,
    BakedSubmodel,
    DeferredMlp,
    Layout,
    TestFrame,
    rotate_to_webgl,
)

INPUTS = 14 + 27
WIDTH = 16
STRIPES = 0.6
"""Amplitude of what the planes alone hold, in raw units before the gate."""


@dataclass(frozen=True)
class Body:
    """A ball (one radius) or a box (three half sides), unit frame."""

    centre: NDArray[np.float64]
    size: tuple[float, ...]
    colour: tuple[float, float, float]

    def distance(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Signed distance [N] of points [N, 3] from the surface, below 0 inside."""
        away = x - self.centre
        if len(self.size) == 1:
            return np.linalg.norm(away, axis=-1) - self.size[0]
        q = np.abs(away) - np.asarray(self.size)
        return np.linalg.norm(np.maximum(q, 0.0), axis=-1) + np.minimum(q.max(axis=-1), 0.0)


def toy_scene(T: int = 64, S: int = 16, K: int = 1, P: int = 2, seed: int = 0) -> BakedScene:  # noqa: N803
    """A baked scene of a few coloured bodies, near ones in the linear region and far ones in the contracted one.

    Args:
        T: texels along a side of the planes, a multiple of 8.
        S: voxels along a side of the sparse grid, a multiple of 8 that divides T.
        K: submodels along a side; those along one line of cells are live, so K of them.
        P: parameter sets of the deferred network along a side of a cell.
        seed: of the network.

    Returns:
        The scene with three test frames: one from outside the linear region, one closer, one from the last submodel.
    """
    alive = tuple(sorted((ix * K + K // 2) * K + K // 2 for ix in range(K)))
    to_unit = np.array([[0.5, 0.0, 0.0, 0.1], [0.0, 0.5, 0.0, -0.2], [0.0, 0.0, 0.5, 0.05]], np.float64)
    layout = Layout(T, S, K, 2.5 if K == 1 else 0.8, alive, to_unit)
    bodies = _bodies(layout)
    return BakedScene(
        layout,
        _network(len(alive), P, seed),
        {index: _bake(layout, index, bodies) for index in alive},
        _frames(layout),
    )


def _bodies(layout: Layout) -> list[Body]:
    cell = 2.0 / layout.submodels_per_axis
    middle = np.mean([layout.centre(index) for index in layout.alive], axis=0)
    bodies = []
    for number, index in enumerate(layout.alive):
        centre = layout.centre(index)
        tint = 0.25 * (number % 2)
        bodies += [
            Body(centre + cell * np.array([0.0, 0.03, 0.02]), (0.09 * cell,), (0.85 - tint, 0.2 + tint, 0.15)),
            Body(centre + cell * np.array([-0.13, -0.1, 0.05]), (0.05 * cell,) * 3, (0.15, 0.7 - tint, 0.25 + tint)),
            Body(centre + cell * np.array([0.1, -0.09, -0.08]), (0.05 * cell,), (0.2, 0.3, 0.9 - tint)),
        ]
    return [
        *bodies,
        Body(middle + np.array([0.3, 1.9, 0.4]), (0.6,), (0.9, 0.8, 0.1)),
        Body(middle + np.array([-1.9, 0.2, 0.3]), (0.5, 0.6, 0.7), (0.6, 0.2, 0.7)),
        Body(middle + np.array([1.8, -1.0, 0.5]), (0.6,), (0.1, 0.7, 0.7)),
        Body(middle + np.array([0.0, 0.0, -1.3]), (3.0, 3.0, 0.35), (0.55, 0.5, 0.45)),
    ]


def _grid_points(resolution: int, counts: tuple[int, int, int]) -> NDArray[np.float64]:
    """Contracted coordinates [*counts, 3] of the first voxels of a grid."""
    axes = [-2.0 + (np.arange(n) + 0.5) * 4.0 / resolution for n in counts]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def _to_unit(contracted: NDArray[np.float64], layout: Layout, index: int) -> NDArray[np.float64]:
    local = uncontract(torch.from_numpy(contracted)).numpy()
    return np.asarray(rotate_to_webgl(local) / layout.submodel_scale + layout.centre(index), np.float64)


def _nearness(
    contracted: NDArray[np.float64], layout: Layout, index: int, bodies: list[Body]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Distance to the nearest body in sparse voxels, its colour, and the points in the unit frame."""
    points = _to_unit(contracted, layout, index)
    distances = np.stack([body.distance(points) for body in bodies])
    nearest = distances.argmin(axis=0)
    size = layout.sparse_voxel / (2.0 - np.maximum(np.abs(contracted).max(axis=-1), 1.0)).clip(1e-3)
    voxel = np.minimum(size / layout.submodel_scale, 0.3)
    colours = np.asarray([body.colour for body in bodies])[nearest]
    return distances.min(axis=0) / voxel, colours, points


def _smooth(axis: int, u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    """What is the same in a plane and, taken away again, in the sparse grid: [..., 8], contracted coordinates."""
    phase = np.arange(NUM_CHANNELS, dtype=np.float64) + 2.0 * axis
    wave = np.empty((*u.shape, NUM_CHANNELS))
    wave[:] = np.sin(u[..., None] * 1.3 + phase) * np.cos(v[..., None] * 1.1 - phase)
    wave[..., DENSITY] *= 2.0
    return wave


def _planes(layout: Layout, index: int) -> NDArray[np.uint8]:
    resolution = layout.triplane_resolution
    planes = np.empty((3, resolution, resolution, NUM_CHANNELS), np.uint8)
    for axis in range(3):
        at = np.insert(_grid_points(resolution, (resolution, resolution, 1))[:, :, 0, :2], axis, 0.0, axis=-1)
        u, v = np.delete(at, axis, axis=-1).transpose(2, 0, 1)
        raw = _smooth(axis, u, v)
        # Stripes lie still in the world, so that neighbouring submodels agree where space is not contracted.
        world = np.delete(rotate_to_webgl(_to_unit(at, layout, index)), axis, axis=-1) * layout.submodels_per_axis
        inner = (np.maximum(np.abs(u), np.abs(v)) <= 1.0)[..., None]
        stripes = np.sin(world[..., :1] * 18.0 + axis) * np.sin(world[..., 1:] * 14.0)
        raw[..., :3] += STRIPES * inner * stripes
        planes[axis] = _to_bytes(raw)
    return planes


def _to_bytes(value: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Values [..., 8] in their ranges as bytes."""
    limit = np.full(NUM_CHANNELS, RANGE_FEATURES)
    limit[DENSITY] = RANGE_DENSITY
    raw = np.log((value + limit).clip(1e-6) / (limit - value).clip(1e-6))
    return np.round(255.0 / (1.0 + np.exp(-raw))).astype(np.uint8)


def _voxels(layout: Layout, index: int, bodies: list[Body], at: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Sparse voxels [..., 8] at contracted coordinates [..., 3]."""
    near, colours, points = _nearness(at.reshape(-1, 3), layout, index, bodies)
    gate = 0.8 + 0.3 * np.sin(points @ np.array([2.0, 1.0, -1.5]))
    value = np.empty((len(near), NUM_CHANNELS))
    value[:, :3] = np.log(colours / (1.0 - colours))
    value[:, 3:GATE] = np.sin(points * 1.5) * 2.0
    value[:, DENSITY] = (2.0 - 9.0 * near).clip(-12.0, 6.0)
    coordinates = at.reshape(-1, 3)
    for axis in range(3):
        u, v = np.delete(coordinates, axis, axis=-1).T
        value -= gate[:, None] * _smooth(axis, u, v)
    value[:, GATE] = gate
    return _to_bytes(value).reshape(*at.shape[:-1], NUM_CHANNELS)


def _bake(layout: Layout, index: int, bodies: list[Body]) -> BakedSubmodel:
    half = layout.triplane_resolution // 2
    texels = _grid_points(half, (half, half, half)).reshape(-1, 3)
    near = np.concatenate([_nearness(part, layout, index, bodies)[0] for part in np.array_split(texels, 64)])
    cells = (near < 1.4).reshape(half // 2, 2, half // 2, 2, half // 2, 2).any(axis=(1, 3, 5))
    packed = pack_cells(cells)
    indices = _block_indices(layout, cells)
    edge = layout.block_size + 1
    places = np.argwhere(indices >= 0)
    offsets = np.stack(np.meshgrid(*[np.arange(edge)] * 3, indexing="ij"), axis=-1)
    # The apron of the outermost blocks would lie outside of all space: it repeats the last voxel.
    at = (places[:, None, None, None] * layout.block_size + offsets).clip(max=layout.sparse_resolution - 1)
    blocks = _voxels(layout, index, bodies, -2.0 + (at + 0.5) * layout.sparse_voxel)
    return BakedSubmodel(index, _planes(layout, index), indices, blocks, packed, distance_grid(packed != 0))


def _block_indices(layout: Layout, cells: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Rows of the blocks that a ray can read in occupied cells: a block reaches from voxel centre to voxel centre."""
    blocks = layout.sparse_resolution // layout.block_size
    alive = np.zeros((blocks,) * 3, np.bool_)
    cell = layout.sparse_resolution / len(cells)
    for corner in np.ndindex(2, 2, 2):
        position = (np.argwhere(cells) + corner) * cell
        row = np.floor((position - 0.5) / layout.block_size).clip(0, blocks - 1).astype(int)
        alive[tuple(row.T)] = True
    indices = np.full(alive.shape, -1, np.int32)
    indices[alive] = np.arange(alive.sum())
    return indices


def _network(submodels: int, grid: int, seed: int) -> DeferredMlp:
    rng = np.random.default_rng(seed)
    kernels, biases = [], []
    for inputs, outputs, scale in ((INPUTS, WIDTH, 0.25), (WIDTH, WIDTH, 0.4), (WIDTH, 3, 0.6)):
        common = rng.normal(size=(inputs, outputs)) * scale
        varied = rng.normal(size=(submodels, grid, grid, grid, inputs, outputs)) * scale * 0.2
        kernels.append((common + varied).astype(np.float32))
        offset = -1.8 if outputs == 3 else 0.0
        biases.append((offset + rng.normal(size=(submodels, grid, grid, grid, outputs)) * 0.1).astype(np.float32))
    return DeferredMlp(kernels, biases)


def look_at(eye: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Camera-to-unit [3, 4] of a camera at `eye`, z up, OpenGL convention."""
    back = (eye - target) / np.linalg.norm(eye - target)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(back, right), back, eye], axis=-1)


def _frames(layout: Layout) -> list[TestFrame]:
    cell = 2.0 / layout.submodels_per_axis
    first, last = layout.centre(layout.alive[0]), layout.centre(layout.alive[-1])
    eyes = [
        (first + cell * np.array([0.36, -0.3, 0.2]), first),
        (first + cell * np.array([-0.02, -0.24, 0.1]), first + cell * np.array([0.05, 0.5, 0.02])),
        (last + cell * np.array([-0.35, 0.25, 0.15]), last + cell * np.array([0.1, -0.05, -0.1])),
    ]
    return [TestFrame(look_at(eye, target), 45.0, 45.0, 60, 40) for eye, target in eyes]


def counted_scene(layout: Layout, grid: int = 1, width: int = 4) -> BakedScene:
    """A scene of whole numbers that count up, with no geometry: the same bytes on every machine.

    Args:
        layout: of the scene.
        grid: P of the deferred network.
        width: of its hidden layers.
    """
    n = len(layout.alive)
    cells = layout.triplane_resolution // 8
    side = layout.sparse_resolution // layout.block_size
    submodels = {}
    for index in layout.alive:
        places = np.arange(side**3).reshape((side,) * 3)
        stored = (places + index) % 3 != 0
        rows = np.full(stored.shape, -1, np.int32)
        rows[stored] = np.arange(stored.sum())
        packed = ((np.arange(cells**3) * (index + 3)) % 5 == 0).astype(np.uint8).reshape((cells,) * 3) * 17
        submodels[index] = BakedSubmodel(
            index,
            _count_bytes((3, layout.triplane_resolution, layout.triplane_resolution, 8), 7 + index),
            rows,
            _count_bytes((int(stored.sum()), *(layout.block_size + 1,) * 3, 8), 11 + index),
            packed,
            distance_grid(packed != 0),
        )
    inputs = (14 if layout.feature_concat else 7) + 27
    sizes = ((inputs, width), (width, width), (width, 3))
    kernels = [_count_floats((n, grid, grid, grid, *size)) for size in sizes]
    biases = [_count_floats((n, grid, grid, grid, size[1])) for size in sizes]
    pose = np.array([[0.0, 0.0, 1.0, 0.25], [1.0, 0.0, 0.0, -0.5], [0.0, 1.0, 0.0, 0.125]])
    return BakedScene(layout, DeferredMlp(kernels, biases), submodels, [TestFrame(pose, 30.0, 32.0, 40, 24)])


def _count_bytes(shape: tuple[int, ...], factor: int) -> NDArray[np.uint8]:
    return (np.arange(np.prod(shape)) * factor % 251).astype(np.uint8).reshape(shape)


def _count_floats(shape: tuple[int, ...]) -> NDArray[np.float32]:
    return ((np.arange(np.prod(shape)) % 33 - 16) / 8).astype(np.float32).reshape(shape)


def assert_same_scene(got: BakedScene, want: BakedScene) -> None:
    """Every array of two scenes is the same, to the bit."""
    for name in ("kernels", "biases"):
        for one, two in zip(getattr(got.deferred, name), getattr(want.deferred, name), strict=True):
            np.testing.assert_array_equal(one, two, strict=True)
    assert list(got.submodels) == list(want.submodels)
    for index, submodel in want.submodels.items():
        for name in ("planes", "block_indices", "blocks", "occupancy", "distance"):
            np.testing.assert_array_equal(getattr(got.submodels[index], name), getattr(submodel, name), strict=True)
    for name in Layout.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(got.layout, name), getattr(want.layout, name))
    assert len(got.test_frames) == len(want.test_frames)
    for one, two in zip(got.test_frames, want.test_frames, strict=True):
        np.testing.assert_array_equal(one.c2w, two.c2w)
        assert (one.fx, one.fy, one.width, one.height) == (two.fx, two.fy, two.width, two.height)
