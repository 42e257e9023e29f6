"""The order of images, their alpha, and the seeds of scenes without points."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import FOCAL, SIZE, VIEWS, blender_parser

from radcomp_plugins.splats import datamanager as module
from radcomp_plugins.splats.config import SplatDatamanagerConfig

TRAIN = VIEWS - 2


def manager(data, test_mode="val", with_points=True, **fields):
    config = SplatDatamanagerConfig(dataparser=blender_parser(data, with_points), cache_images_type="uint8", **fields)
    return config.setup(device="cpu", test_mode=test_mode, world_size=1, local_rank=0)


def indices(manager, steps) -> list[int]:
    return [manager.next_train(step)[0].metadata["cam_idx"] for step in steps]


def test_each_pass_shows_every_image_once_in_an_order_of_its_own(blender_data):
    order = indices(manager(blender_data), range(5 * TRAIN))
    passes = [order[start : start + TRAIN] for start in range(0, len(order), TRAIN)]
    assert all(sorted(one) == list(range(TRAIN)) for one in passes)
    assert len({tuple(one) for one in passes}) > 1


def test_order_depends_on_the_step_alone(blender_data):
    whole = indices(manager(blender_data), range(20))
    resumed = manager(blender_data)
    np.random.seed(5)  # noqa: NPY002 - it must not matter
    assert indices(resumed, range(9, 20)) == whole[9:]
    assert indices(resumed, [3, 3, 12]) == [whole[3], whole[3], whole[12]]


def test_another_seed_is_another_order(blender_data):
    first = indices(manager(blender_data), range(3 * TRAIN))
    assert first != indices(manager(blender_data, train_cameras_sampling_seed=7), range(3 * TRAIN))


def test_image_and_camera_of_a_step_belong_together(blender_data):
    made = manager(blender_data)
    for step in range(3):
        camera, batch = made.next_train(step)
        index = camera.metadata["cam_idx"]
        assert torch.equal(camera.camera_to_worlds[0], made.train_dataset.cameras.camera_to_worlds[index])
        photo = np.asarray(Image.open(blender_data / f"images/{index:02d}.png"))
        assert np.array_equal(batch["image"].numpy(), photo)


def test_images_keep_their_alpha_and_the_dataset_its_colour(blender_data):
    made = manager(blender_data)
    assert made.keeps_alpha and made.data_background.tolist() == [1.0, 1.0, 1.0]
    assert made.cached_train[0]["image"].shape == made.cached_eval[0]["image"].shape == (SIZE, SIZE, 4)
    # What the viewer shows as thumbnail is composited.
    assert made.train_dataset.get_image_float32(0).shape[-1] == 3


def test_images_without_alpha_are_told(tiny_dataset):
    from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

    config = SplatDatamanagerConfig(dataparser=NerfstudioDataParserConfig(data=tiny_dataset, load_3D_points=True))
    made = config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)
    assert not made.keeps_alpha
    assert made.train_dataparser_outputs.metadata["points3D_xyz"].shape == (50, 3)


def test_a_scene_without_points_gets_seeds_where_all_cameras_look(blender_data, monkeypatch):
    monkeypatch.setattr(module, "NUM_SEED_POINTS", 500)
    metadata = manager(blender_data, with_points=False).train_dataparser_outputs.metadata
    points, colors = metadata["points3D_xyz"], metadata["points3D_rgb"]
    half_side = 3.0 * (SIZE / 2) / FOCAL
    assert points.shape == colors.shape == (500, 3) and colors.dtype == torch.uint8
    assert float(points.abs().max()) < half_side * 1.1
    assert points.abs().amax(dim=0).tolist() == pytest.approx([half_side] * 3, rel=0.1)
    again = manager(blender_data, with_points=False).train_dataparser_outputs.metadata
    assert torch.equal(again["points3D_xyz"], points) and torch.equal(again["points3D_rgb"], colors)


def test_a_scenes_own_points_are_used(blender_data, scene):
    metadata = manager(blender_data).train_dataparser_outputs.metadata
    torch.testing.assert_close(metadata["points3D_xyz"], scene.means)


def test_no_seeds_and_no_image_is_read_for_an_export(blender_data, monkeypatch):
    made = manager(blender_data, test_mode="inference", with_points=False)
    assert "points3D_xyz" not in made.train_dataparser_outputs.metadata and not made.keeps_alpha
