"""Baking: what is stored, what is kept, and that the baked scene looks like the student."""

from pathlib import Path

import numpy as np
import pytest
import torch
from analytic_teacher import orbit_rays
from baked_scenes import toy_scene
from nerfstudio.cameras.cameras import Cameras
from tiny_students import small_model

from radcomp_plugins.core.metrics import psnr
from radcomp_plugins.errors import InputError
from radcomp_plugins.smerf.bake import (
    BakeSettings,
    ViewRays,
    bake,
    bake_submodel,
    restrict,
    seen_cells,
    without_floaters,
)
from radcomp_plugins.smerf.bake_views import view_rays
from radcomp_plugins.smerf.empty_space import unpack_cells
from radcomp_plugins.smerf.field import denormalise, quantise
from radcomp_plugins.smerf.formats.smerf import read_smerf, write_smerf
from radcomp_plugins.smerf.layout import BakedScene, Layout, TestFrame
from radcomp_plugins.smerf.model import SmerfModel
from radcomp_plugins.smerf.reach import cells_of_voxels, needed_blocks, needed_texels, needed_voxels
from radcomp_plugins.smerf.render import Renderer
from radcomp_plugins.smerf.submodels import Submodels


def views_of(model: SmerfModel, patches: int = 3000) -> list[ViewRays]:
    bundle = orbit_rays(patches, torch.Generator().manual_seed(5))
    origins = model.submodels.to_unit(bundle.origins)
    return [ViewRays(0, origins.numpy(), bundle.directions.numpy())]


@pytest.fixture(scope="module")
def baked(trained_student: SmerfModel) -> BakedScene:
    model = trained_student
    cells = model.occupancy.cells.numpy()
    submodels = bake(model.field, cells, views_of(model), 0.05, BakeSettings())
    return BakedScene(model.layout, model.deferred.baked(), {0: submodels[0]})


def test_cells_of_voxels_when_they_are_the_same() -> None:
    occupied = np.random.default_rng(0).random((32, 32, 32)) > 0.9
    np.testing.assert_array_equal(cells_of_voxels(occupied, Layout(128, 32)), occupied)


@pytest.mark.parametrize(("triplane", "sparse"), [(128, 16), (64, 32), (96, 32), (128, 24)])
def test_cells_cover_every_occupied_voxel(triplane: int, sparse: int) -> None:
    occupied = np.random.default_rng(1).random((sparse,) * 3) > 0.97
    cells = cells_of_voxels(occupied, Layout(triplane, sparse))
    points = (np.argwhere(occupied)[:, None] + np.random.default_rng(2).random((50, 3))).reshape(-1, 3) / sparse
    assert bool(cells[tuple((points * cells.shape[0]).astype(int).T)].all())


def test_needed_blocks_and_texels_cover_every_sample() -> None:
    layout = Layout(128, 32)
    cells = np.zeros((32, 32, 32), bool)
    places = np.random.default_rng(3).integers(0, 32, (12, 3))
    cells[tuple(places.T)] = True
    blocks = needed_blocks(cells, layout)
    points = (places[:, None] + np.random.default_rng(4).random((200, 3))).reshape(-1, 3) / 32 * 4 - 2
    position = (points + 2) / layout.sparse_voxel - 0.5
    block = np.clip(np.floor(position), 0, 31).astype(int) // 8
    assert bool(blocks[tuple(block.T)].all())
    assert blocks.sum() < blocks.size
    for axis in range(3):
        texels = needed_texels(cells, axis, layout)
        low = np.floor((np.delete(points, axis, 1) + 2) / layout.triplane_voxel - 0.5).astype(int)
        for step in (0, 1):
            at = np.clip(low + step, 0, 127)
            assert bool(texels[tuple(at.T)].all())


def test_bytes_are_what_training_saw(trained_student: SmerfModel) -> None:
    model = trained_student
    cells = model.occupancy.cells[0].numpy()
    submodel = bake_submodel(model.field, 0, cells)
    # An occupied voxel in the middle of its block.
    voxel = next(v for v in np.argwhere(cells) if 0 < min(v % 8))
    block = submodel.blocks[submodel.block_indices[tuple(voxel // 8)]]
    code = (voxel[0] * 32 + voxel[1]) * 32 + voxel[2]
    with torch.no_grad():
        trained = denormalise(quantise(model.field.texels(torch.tensor([code]))))[0]
    stored = denormalise(torch.from_numpy(block[tuple(voxel % 8)].astype(np.float32)) / 255)
    torch.testing.assert_close(stored, trained, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("triplane", "sparse"), [(128, 32), (64, 32), (128, 16), (96, 32)])
def test_needed_voxels_cover_every_sample(triplane: int, sparse: int) -> None:
    layout = Layout(triplane, sparse)
    count = triplane // 4
    cells = np.random.default_rng(5).random((count,) * 3) > 0.995
    voxels = needed_voxels(cells, layout)
    places = np.argwhere(cells)
    points = (places[:, None] + np.random.default_rng(6).random((300, 3))).reshape(-1, 3) / count * sparse - 0.5
    for corner in np.ndindex(2, 2, 2):
        at = np.clip(np.floor(points).astype(int) + corner, 0, sparse - 1)
        assert bool(voxels[tuple(at.T)].all())
    assert voxels.sum() < 0.5 * voxels.size


def test_restricting_is_baking_less(trained_student: SmerfModel) -> None:
    cells = trained_student.occupancy.cells[0].numpy()
    fewer = cells & (np.random.default_rng(7).random(cells.shape) > 0.5)
    whole = bake_submodel(trained_student.field, 0, cells)
    ours, again = restrict(whole, fewer, trained_student.layout), bake_submodel(trained_student.field, 0, fewer)
    for name in ("planes", "block_indices", "blocks", "occupancy", "distance"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(again, name), err_msg=name)


def test_apron_repeats_the_neighbour(baked: BakedScene) -> None:
    indices, blocks = baked.submodels[0].block_indices, baked.submodels[0].blocks
    pairs = [
        (p, p + [1, 0, 0]) for p in np.argwhere(indices >= 0) if p[0] + 1 < 4 and indices[tuple(p + [1, 0, 0])] >= 0
    ]
    assert pairs
    for here, there in pairs:
        np.testing.assert_array_equal(blocks[indices[tuple(here)]][8], blocks[indices[tuple(there)]][0])


def test_baked_looks_like_the_student(trained_student: SmerfModel, baked: BakedScene, tmp_path: Path) -> None:
    write_smerf(tmp_path, baked)
    decoded = read_smerf(tmp_path)
    bundle = orbit_rays(700, torch.Generator().manual_seed(9))
    with torch.no_grad():
        student = trained_student.get_outputs(bundle)["rgb"]
    origins = trained_student.submodels.to_unit(bundle.origins)
    drawn = Renderer(decoded).rays(origins, bundle.directions, torch.full((len(origins),), 0.05))["rgb"]
    assert float(psnr(drawn, student)) > 36.0


def test_fewer_cells_than_training_had(trained_student: SmerfModel, baked: BakedScene) -> None:
    # Training occupies what touches a surface; baking keeps what is seen.
    kept = int(unpack_cells(baked.submodels[0].occupancy).sum())
    assert 0 < kept < int(trained_student.occupancy.cells.sum())


def test_same_student_same_bytes(trained_student: SmerfModel, baked: BakedScene) -> None:
    again = bake(
        trained_student.field, trained_student.occupancy.cells.numpy(), views_of(trained_student), 0.05, BakeSettings()
    )[0]
    np.testing.assert_array_equal(again.blocks, baked.submodels[0].blocks)
    np.testing.assert_array_equal(again.planes, baked.submodels[0].planes)
    np.testing.assert_array_equal(again.occupancy, baked.submodels[0].occupancy)


def test_floaters_go_and_thin_things_stay() -> None:
    cells = np.zeros((12, 12, 12), bool)
    cells[2, 2, 2] = True  # alone
    cells[6, 6, :] = True  # a wire: two neighbours, one at its ends
    left = without_floaters(cells, 2)
    assert not left[2, 2, 2] and int(left.sum()) == 10
    assert bool((without_floaters(cells, 0) == cells).all())


def view_of(frame: TestFrame, row: int) -> ViewRays:
    x, y = np.meshgrid(np.linspace(-0.6, 0.6, 30), np.linspace(-0.4, 0.4, 20))
    along = np.stack([x, y, -np.ones_like(x)], axis=-1).reshape(-1, 3) @ frame.c2w[:, :3].T
    directions = along / np.linalg.norm(along, axis=1, keepdims=True)
    return ViewRays(row, np.broadcast_to(frame.c2w[:, 3], directions.shape), directions)


def test_what_is_seen_is_marked_in_the_submodel_of_the_view() -> None:
    scene = toy_scene(T=64, S=16, K=2)
    submodels = [scene.submodels[index] for index in scene.layout.alive]

    def seen(near: float, threshold: float) -> list[np.ndarray]:
        return seen_cells(submodels, scene.layout, [view_of(scene.test_frames[2], 1)], near, threshold)

    first, second = seen(0.05, 0.005)
    assert not first.any() and second.any()
    # But for a step that ends on a border, only what is occupied is seen.
    assert (second & unpack_cells(submodels[1].occupancy)).sum() > 0.95 * second.sum()
    # No weight is above 1, and nothing lies beyond a million.
    assert not seen(0.05, 1.0)[1].any() and not seen(1e6, 0.005)[1].any()


def test_what_training_did_not_work_in_is_not_kept_if_it_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that ends on the border of an occupied cell may mark the next one."""
    occupied = np.zeros((1, 32, 32, 32), np.bool_)
    occupied[0, 10:14, 10:14, 10:14] = True
    monkeypatch.setattr("radcomp_plugins.smerf.bake.seen_cells", lambda *_: [np.ones((32, 32, 32), np.bool_)])
    (submodel,) = bake(small_model().field, occupied, [], 0.05, BakeSettings())
    assert int(unpack_cells(submodel.occupancy).sum()) == 4**3


UNIT = np.array([[-0.5] * 3, [0.5] * 3])


def two_cameras() -> tuple[Cameras, Submodels]:
    """Pictures of 10 x 8 pixels from two cameras, at `UNIT` of the unit frame."""
    submodels = Submodels(Layout(64, 16, 2, 0.8, (0, 7), np.array([[0.5, 0, 0, 0.1], [0, 0.5, 0, 0], [0, 0, 0.5, 0]])))
    poses = torch.eye(4)[:3].repeat(2, 1, 1)
    poses[:, :, 3] = torch.tensor([[-1.2, -1.0, -1.0], [0.8, 1.0, 1.0]])
    return Cameras(poses, 10.0, 10.0, 5.0, 4.0, 10, 8), submodels


def views_to_bake_by(seed: int = 0, max_rays: int = 80) -> list[ViewRays]:
    return list(view_rays(*two_cameras(), sigma=0.01, max_angle=0.1, max_rays=max_rays, seed=seed))


def angle_between(a: np.ndarray, b: np.ndarray) -> float:
    """The angle of the rotation that turns directions `a` [N, 3] to `b`."""
    rotation = np.linalg.lstsq(a.astype(np.float64), b, rcond=None)[0]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-4)
    return float(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1)))


def test_views_to_bake_by_are_photos_moved_ones_and_ones_between() -> None:
    cameras, submodels = two_cameras()
    moved_by, turned, along, turned_between = [], [], [], []
    for seed in range(20):
        views = views_to_bake_by(seed)
        assert len(views) == 6
        for view in views:
            assert np.ptp(view.origins, axis=0).max() < 1e-6
            assert view.row == int(submodels.assign(torch.from_numpy(view.origins[:1])))
        for index in (0, 1):
            plain = cameras.generate_rays(camera_indices=index, keep_shape=True).directions.reshape(-1, 3).numpy()
            photo, moved, between = views[3 * index : 3 * index + 3]
            np.testing.assert_allclose(photo.origins[0], UNIT[index], atol=1e-6)
            np.testing.assert_allclose(photo.directions, plain, atol=1e-6)
            moved_by.append(moved.origins[0] - UNIT[index])
            turned.append(angle_between(plain, moved.directions))
            share = (between.origins[0] - UNIT[index]) / (UNIT[1 - index] - UNIT[index])
            assert np.ptp(share) < 1e-5
            along.append(float(share[0]))
            turned_between.append(angle_between(plain, between.directions))
    assert 0.008 < np.std(moved_by) < 0.012 and 0.08 < max(turned) <= 0.1
    assert 0 <= min(along) and 0.7 < max(along) < 1 and 0.32 < max(turned_between) <= 0.4


@pytest.mark.parametrize("max_rays, most", [(80, 80), (20, 20), (19, 12)])
def test_large_views_are_thinned_out(max_rays: int, most: int) -> None:
    """To every second of 10 x 8 pixels, or to every third."""
    counts = {len(view.origins) for view in views_to_bake_by(max_rays=max_rays)}
    assert max(counts) <= most and min(counts) >= 6


@pytest.mark.parametrize("max_rays, count", [(319, 80), (320, 320), (719, 320), (720, 720)])
def test_pixels_of_small_views_are_divided(max_rays: int, count: int) -> None:
    views = views_to_bake_by(max_rays=max_rays)
    assert {len(view.origins) for view in views} == {count}
    # The picture is as wide as before: rays through the middles of its outermost parts.
    across = views[0].directions[:, 0] / -views[0].directions[:, 2]
    finer = round((count / 80) ** 0.5)
    np.testing.assert_allclose([across.min(), across.max()], [-0.5 + 0.05 / finer, 0.5 - 0.05 / finer], atol=1e-6)


def test_nothing_seen_is_an_error(trained_student: SmerfModel) -> None:
    away = ViewRays(0, np.full((10, 3), 0.9, np.float32), np.full((10, 3), 3**-0.5, np.float32))
    with pytest.raises(InputError, match="no view sees anything"):
        bake(trained_student.field, trained_student.occupancy.cells.numpy(), [away], 0.05, BakeSettings())
