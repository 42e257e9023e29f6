"""Marching against a slow reference in double precision, ray by ray and step by step, and against closed forms."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from baked_scenes import toy_scene

from radcomp_plugins.core import threads
from radcomp_plugins.core.contraction import contract, uncontract
from radcomp_plugins.smerf.layout import BakedScene, BakedSubmodel, Layout, rotate_to_webgl, unit_to_submodel
from radcomp_plugins.smerf.march import Marched, march
from radcomp_plugins.smerf.ray_pieces import FARTHEST, MAX_PIECES, NEVER, piece_ends, piece_setup


def to_contracted(x: np.ndarray) -> np.ndarray:
    return contract(torch.from_numpy(np.asarray(x, np.float64))).numpy()


def from_contracted(z: np.ndarray) -> np.ndarray:
    return uncontract(torch.from_numpy(np.asarray(z, np.float64))).numpy()


def region_of(x: np.ndarray) -> tuple[int, int]:
    """(axis, sign) of the largest coordinate, (-1, 0) in the cube."""
    if np.abs(x).max() <= 1:
        return -1, 0
    axis = int(np.abs(x).argmax())
    return axis, int(np.sign(x[axis]))


def reference_ends(o: np.ndarray, d: np.ndarray) -> list[float]:
    """Where a ray leaves its regions from t = 1 on: looked for in a fine grid, then halved down."""
    far = min((math.copysign(FARTHEST, d[i]) - o[i]) / d[i] for i in range(3) if d[i] != 0)
    grid = np.geomspace(1.0, far, 20_000)
    regions = [region_of(o + t * d) for t in grid]
    ends = []
    for k in range(len(grid) - 1):
        if regions[k] != regions[k + 1]:
            low, high = grid[k], grid[k + 1]
            for _ in range(60):
                middle = 0.5 * (low + high)
                low, high = (middle, high) if region_of(o + middle * d) == regions[k] else (low, middle)
            ends.append(low)
    return [*ends, far]


def trilinear(texels: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Linear interpolation of texels [..., C] at a place counted in texels, in any number of dimensions."""
    low = np.clip(np.floor(place).astype(int), 0, np.array(texels.shape[:-1]) - 2)
    result = np.zeros(texels.shape[-1])
    for corner in np.ndindex(*([2] * len(place))):
        weight = np.prod([f if up else 1 - f for up, f in zip(corner, place - low, strict=True)])
        result += weight * texels[tuple(low + np.array(corner))]
    return result


RANGES = np.array([7.0] * 7 + [14.0])


def texel_sums(submodel: BakedSubmodel, layout: Layout, z: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Sparse and plane values at a contracted place, None in an empty block."""
    side, texels = layout.block_size, layout.triplane_resolution
    place = (z + 2) / layout.sparse_voxel - 0.5
    block = np.floor(place / side)
    inside = np.clip(place - side * block, 0, side)
    index = submodel.block_indices[tuple(np.clip(block, 0, submodel.block_indices.shape[0] - 1).astype(int))]
    if index < 0:
        return None
    sparse = trilinear(submodel.blocks[index], inside) / 255 * 2 * RANGES - RANGES
    on_plane = np.clip((z + 2) / layout.triplane_voxel - 0.5, 0, texels - 1)
    planes = sum(trilinear(submodel.planes[i], np.delete(on_plane, i)) for i in range(3))
    return sparse, planes / 255 * 2 * RANGES - 3 * RANGES


def reference_march(
    submodel: BakedSubmodel,
    layout: Layout,
    origin: np.ndarray,
    direction: np.ndarray,
    start: float,
    use_distance: bool = True,
) -> tuple[np.ndarray, float, float]:
    """Features [14], accumulation and depth of one ray, by the shader's rules."""
    texels, texel = layout.triplane_resolution, layout.triplane_voxel
    o = unit_to_submodel(origin[None], layout, submodel.index)[0]
    d = rotate_to_webgl(direction) * start * layout.submodel_scale
    ends = reference_ends(o, d)
    features, light, weighed, seen = np.zeros(14), 1.0, 0.0, 0.0

    def piece(t_p: float, t_q: float) -> tuple[np.ndarray, np.ndarray, float, float]:
        z0 = to_contracted(o + t_p * d)
        dz = to_contracted(o + t_q * d) - z0
        dz /= np.linalg.norm(dz)
        low, high = -np.ones(3), np.ones(3)
        axis, sign = region_of(o + t_p * d)
        if sign:
            low[axis], high[axis] = (1, 2) if sign > 0 else (-2, -1)
        sides = np.sort(np.stack([(low - z0) / dz, (high - z0) / dz]), axis=0)
        return z0, dz, sides[0].max(), sides[1].min()

    z0, dz, _, leave = piece(1.0, 0.5 * (1 + ends[0]))
    t, number, box_end = 0.0, 1, -np.inf
    for _ in range(math.ceil(math.sqrt(2) * texels)):
        if light <= 1 / 255:
            break
        if t > leave:
            if np.abs(z0 + leave * dz).max() >= 2 - 1e-3:
                break
            if ends[number - 1] >= ends[number] - 16 * texel:
                number += 1
            low, high = ends[number - 1], ends[number]
            z0, dz, enter, leave = piece(0.9 * low + 0.1 * high, 0.1 * low + 0.9 * high)
            number, t, box_end = number + 1, enter + 0.5 * texel, -np.inf
        z = z0 + t * dz
        at = np.clip(np.floor((z + 2) / (8 * texel)), 0, texels // 8 - 1).astype(int)
        away = float(submodel.distance[tuple(at)])
        if use_distance and away:
            t += 8 * texel * away
            continue
        if t > box_end:
            byte, size = int(submodel.occupancy[tuple(at)]), 8 * texel
            corner = np.floor((z + 2) / size) * size - 2
            if byte:
                half = ((z - corner) / size > 0.5).astype(int)
                byte, size = (byte >> (4 * half[0] + 2 * half[1] + half[2])) & 1, 4 * texel
                corner = corner + half * size
            box_end = np.maximum((corner - z0) / dz, (corner + size - z0) / dz).min()
            if not byte:
                t = max(t, box_end) + 0.5 * texel
                continue
        sums = texel_sums(submodel, layout, z)
        if sums is None:
            t += texel
            continue
        sparse, planes = sums
        gate = sparse[6] if layout.feature_gating else 1.0
        x, x_next = from_contracted(z), from_contracted(z0 + min(t + texel, leave) * dz)
        length = np.linalg.norm(x_next - x) / layout.submodel_scale
        alpha = 1 - math.exp(-math.exp(min(sparse[7] + gate * planes[7] - 1, 88)) * length)
        if alpha > 0.25 / 255:
            both = np.concatenate([sparse[:7] + gate * planes[:7], sparse[:7]])
            features += light * alpha / (1 + np.exp(-both))
            weighed += light * alpha * np.dot(x - o, d) / (start * layout.submodel_scale**2)
            seen += light * alpha
        light *= 1 - alpha
        t += texel
    return features, 1 - light, weighed / seen if seen else 0.0


def random_submodel(layout: Layout, seed: int = 0, density: float = 0.0, share: float = 1.0) -> BakedSubmodel:
    """Noise in every texel, smooth enough to be looked through, in a share of the cells of 4^3 texels."""
    rng = np.random.default_rng(seed)
    texels, side = layout.triplane_resolution, layout.block_size + 1
    grid_blocks, cells = layout.sparse_resolution // layout.block_size, texels // 8
    planes = rng.integers(90, 166, (3, texels, texels, 8), dtype=np.uint8)
    blocks = rng.integers(60, 196, (grid_blocks**3, side, side, side, 8), dtype=np.uint8)
    blocks[..., 6] = rng.integers(120, 170, blocks.shape[:-1], dtype=np.uint8)
    blocks[..., 7] = np.clip(blocks[..., 7].astype(int) // 4 + 85 + density, 0, 255)
    alive = rng.random((2 * cells,) * 3) < share
    fine = alive.reshape(cells, 2, cells, 2, cells, 2).transpose(0, 2, 4, 1, 3, 5).reshape(cells, cells, cells, 8)
    occupancy = (fine * (1 << np.arange(8))).sum(-1).astype(np.uint8)
    spots = np.argwhere(occupancy > 0)
    all_cells = np.stack(np.meshgrid(*[np.arange(cells)] * 3, indexing="ij"), -1)
    nearest = np.abs(all_cells[:, :, :, None] - spots).max(-1).min(-1) if len(spots) else np.full((cells,) * 3, 255)
    return BakedSubmodel(
        index=layout.alive[0],
        planes=planes,
        block_indices=np.arange(grid_blocks**3, dtype=np.int32).reshape((grid_blocks,) * 3),
        blocks=blocks,
        occupancy=occupancy,
        distance=np.clip(nearest - 1, 0, 255).astype(np.uint8),
    )


def random_rays(count: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    origins = rng.uniform(-0.8, 0.8, (count, 3)).astype(np.float32)
    return origins, directions.astype(np.float32), rng.uniform(0.05, 0.3, count).astype(np.float32)


def check_against_reference(submodel: BakedSubmodel, layout: Layout, count: int = 12) -> Marched:
    origins, directions, starts = random_rays(count)
    marched = march(submodel, layout, origins, directions, starts)
    for n in range(count):
        features, accumulation, depth = reference_march(
            submodel, layout, origins[n].astype(np.float64), directions[n].astype(np.float64), float(starts[n])
        )
        np.testing.assert_allclose(marched.features[n], features[: marched.features.shape[1]], atol=1e-4)
        assert marched.accumulation[n] == pytest.approx(accumulation, abs=1e-4)
        assert marched.depth[n] == pytest.approx(depth, rel=1e-3, abs=1e-4)
    return marched


@pytest.mark.parametrize("texels, sparse, scale", [(32, 16, 2.5), (48, 24, 0.9)])
def test_dense_scene_is_the_references(texels, sparse, scale):
    layout = Layout(texels, sparse, submodel_scale_factor=scale)
    marched = check_against_reference(random_submodel(layout), layout)
    assert marched.depth.max() > 1.5, "the test looks at a wall, not through several regions"
    assert marched.features.shape == (12, 14)


def test_sparse_scene_is_the_references():
    layout = Layout(64, 32)
    submodel = random_submodel(layout, share=0.01, density=40)
    marched = check_against_reference(submodel, layout, 20)
    assert (submodel.distance > 0).any() and (marched.accumulation > 0.05).any()


def test_missing_blocks_are_stepped_over():
    layout = Layout(32, 32)
    submodel = random_submodel(layout)
    submodel.block_indices[::2] = -1
    check_against_reference(submodel, layout)


def test_other_kinds_of_layout():
    layout = Layout(32, 16, submodels_per_axis=2, alive=(5,), feature_gating=False, feature_concat=False)
    marched = check_against_reference(random_submodel(layout), layout)
    assert marched.features.shape == (12, 7)


def test_blocks_of_another_size():
    layout = Layout(32, 16, block_size=4)
    check_against_reference(random_submodel(layout), layout, 4)


def frame_rays(scene: BakedScene, number: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rays of a test frame, from a near plane at 0.05."""
    frame = scene.test_frames[number]
    u, v = np.meshgrid(np.arange(frame.width) + 0.5, np.arange(frame.height) + 0.5)
    in_camera = np.stack([(u - frame.width / 2) / frame.fx, (frame.height / 2 - v) / frame.fy, -np.ones_like(u)], -1)
    in_camera = in_camera.reshape(-1, 3)
    lengths = np.linalg.norm(in_camera, axis=-1)
    directions = in_camera / lengths[:, None] @ frame.c2w[:, :3].T
    origins = np.tile(frame.c2w[:, 3], (len(directions), 1))
    return origins.astype(np.float32), directions.astype(np.float32), (0.05 * lengths).astype(np.float32)


@pytest.fixture(scope="module")
def toy() -> BakedScene:
    return toy_scene()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return -10 * math.log10(np.square(a - b).mean() + 1e-20)


def test_same_picture_without_the_distance_grid():
    layout = Layout(128, 32)
    submodel = random_submodel(layout, share=0.002)
    submodel.planes[:], submodel.blocks[:] = 128, np.array([40, 120, 200, 90, 10, 250, 128, 150])
    rays = random_rays(2000)
    with_grid = march(submodel, layout, *rays)
    without = march(dataclasses.replace(submodel, distance=np.zeros_like(submodel.distance)), layout, *rays)
    assert with_grid.accumulation.mean() > 0.01 and (submodel.distance > 0).mean() > 0.2
    # Cells that touch occupied ones are left at their border in both, which is where the next samples count from.
    assert psnr(with_grid.features, without.features) > 80
    # A grid that says too much would have been noticed.
    lying = dataclasses.replace(submodel, distance=np.minimum(submodel.distance.astype(int) + 2, 255).astype(np.uint8))
    assert psnr(march(lying, layout, *rays).features, without.features) < 40


def test_more_steps_per_texel_come_to_nearly_the_same(toy):
    rays = frame_rays(toy, 1)
    coarse, fine = (march(toy.submodels[0], toy.layout, *rays, step_mult=mult) for mult in (1, 4))
    assert 25 < psnr(coarse.features, fine.features) < 80


def test_a_scenes_balls_are_where_they_should_be(toy):
    marched = march(toy.submodels[0], toy.layout, *frame_rays(toy))
    frame = toy.test_frames[0]
    middle = (frame.height // 2) * frame.width + frame.width // 2
    assert marched.accumulation[middle] > 0.9
    # The frame looks at the cell's centre, where a red ball of radius 0.18 lies.
    assert marched.depth[middle] == pytest.approx(np.linalg.norm(frame.c2w[:, 3]) - 0.18, abs=0.1)
    red, green, _ = marched.features[middle, :3]
    assert red > 0.5 > green


def test_any_number_of_threads_gives_the_same_bits():
    layout = Layout(64, 32)
    submodel, rays = random_submodel(layout, share=0.05, density=40), random_rays(5000)
    before = threads.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            threads.set_num_threads(count)
            results.append(march(submodel, layout, *rays))
    finally:
        threads.set_num_threads(before)
    for name in ("features", "accumulation", "depth"):
        np.testing.assert_array_equal(getattr(results[0], name), getattr(results[1], name))


def lone_cell(layout: Layout, cell: tuple[int, int, int]) -> BakedSubmodel:
    """Opaque in one cell of 4^3 texels, empty elsewhere."""
    submodel = random_submodel(layout, share=0.0)
    corner = tuple(c // 2 for c in cell)
    submodel.occupancy[corner] = 1 << (4 * (cell[0] % 2) + 2 * (cell[1] % 2) + cell[2] % 2)
    cells = np.stack(np.meshgrid(*[np.arange(len(submodel.occupancy))] * 3, indexing="ij"), -1)
    submodel.distance[:] = np.clip(np.abs(cells - np.array(corner)).max(-1) - 1, 0, 255)
    submodel.blocks[..., 7] = 255
    return submodel


def test_marks_are_the_cells_that_were_seen():
    layout = Layout(64, 32)
    submodel = lone_cell(layout, (9, 6, 8))
    marks = np.zeros((16, 16, 16), np.bool_)
    # The cell's centre is (9.5, 6.5, 8.5) / 4 - 2 in WebGL's axes: x mirrored, y and z swapped.
    target = np.array([-(9.5 / 4 - 2), 8.5 / 4 - 2, 6.5 / 4 - 2]) / layout.submodel_scale
    origin = np.array([0.01, -0.35, 0.02])
    direction = (target - origin) / np.linalg.norm(target - origin)
    rays = [np.asarray(array, np.float32) for array in (origin[None], direction[None], [0.05])]
    marched = march(submodel, layout, *rays, marks=marks, mark_threshold=0.5)
    assert np.argwhere(marks).tolist() == [[9, 6, 8]]
    assert marched.accumulation[0] == pytest.approx(1.0, abs=1e-3)
    assert marched.depth[0] == pytest.approx(np.linalg.norm(target - origin), abs=2.5 * 0.0625 / layout.submodel_scale)
    # A ray that begins behind the cell does not see it.
    rays[2] = np.array([np.linalg.norm(target - origin) + 0.1], np.float32)
    assert march(submodel, layout, *rays).accumulation[0] == 0
    marks[:] = False
    march(submodel, layout, rays[0], rays[1], np.array([0.05], np.float32), marks=marks, mark_threshold=1.5)
    assert not marks.any()


def test_rays_along_the_borders_of_regions_end_well():
    layout = Layout(32, 16)
    submodel = random_submodel(layout)
    directions = np.array([[i, j, k] for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1) if i or j or k])
    unit = (directions / np.linalg.norm(directions, axis=-1, keepdims=True)).astype(np.float32)
    for origin in ((0, 0, 0), (0.4, 0.4, 0.4), (0.4, 0, 0), (0.9, 0.9, 0.9)):
        origins = np.tile(np.array(origin, np.float32), (26, 1))
        for start in (0.0, 0.2, 1e5):
            marched = march(submodel, layout, origins, unit, np.full(26, start, np.float32))
            for array in (marched.features, marched.accumulation, marched.depth):
                assert np.isfinite(array).all() and (array >= 0).all()
            assert (marched.features <= 1 + 1e-5).all() and (marched.accumulation <= 1).all()
            assert start == 1e5 or (marched.accumulation > 0.5).all()


def test_rays_that_are_no_numbers_see_nothing():
    layout = Layout(32, 16)
    rays = random_rays(4)
    rays[0][0], rays[1][1], rays[2][2], rays[0][3] = np.nan, np.inf, np.nan, np.inf
    marched = march(random_submodel(layout), layout, *rays)
    assert marched.accumulation.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("name, value, message", [
    ("planes", np.zeros((3, 32, 32, 7), np.uint8), "planes"),
    ("blocks", np.zeros((8, 9, 9, 9, 8), np.float32), "blocks"),
    ("distance", np.zeros((4, 4, 2), np.uint8), "distance"),
    ("occupancy", np.zeros((4, 4, 4), np.uint8, order="F"), "occupancy"),
    ("block_indices", np.full((2, 2, 2), 8, np.int32), "block index 8"),
])  # fmt: skip
def test_arrays_that_do_not_fit_are_refused(name, value, message):
    layout = Layout(32, 16)
    broken = random_submodel(layout)
    setattr(broken, name, value)
    with pytest.raises(ValueError, match=message):
        march(broken, layout, *random_rays(2))


def test_rays_that_do_not_fit_are_refused():
    layout = Layout(32, 16)
    submodel, (origins, directions, starts) = random_submodel(layout), random_rays(3)
    with pytest.raises(ValueError, match="rays of shapes"):
        march(submodel, layout, origins, directions[:2], starts)
    with pytest.raises(ValueError, match="marks"):
        march(submodel, layout, origins, directions, starts, marks=np.zeros((4, 4, 4), np.bool_))


def test_pieces_of_a_ray_by_hand():
    crossings, ends = np.empty(12), np.empty(MAX_PIECES)
    # From the origin along (2, 1, 0): out of the cube at x = 1, then to x = 10^4.
    piece_ends((0.0, 0.0, 0.0), (2.0, 1.0, 0.0), 0.1, crossings, ends)
    assert ends[:3].tolist() == [0.5, 5000.0, NEVER]
    # Along y past the cube at x = 3: beyond the face -y while y < -3, then +x, then +y.
    piece_ends((3.0, -10.0, 0.5), (0.0, 1.0, 0.0), 1.0, crossings, ends)
    assert ends[:4].tolist() == [7.0, 13.0, 10010.0, NEVER]
    # A piece begins where the first point is, and ends at the region's side: (3, y) is (2 - 1/3, y/3) there.
    z0, dz, enter, leave = piece_setup((3.0, -10.0, 0.5), (0.0, 1.0, 0.0), 10.0, 11.0)
    np.testing.assert_allclose([*z0, *dz], [5 / 3, 0, 0.5 / 3, 0, 1, 0], atol=1e-12)
    assert (enter, leave) == (pytest.approx(-1), pytest.approx(1))
