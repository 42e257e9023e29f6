"""What the datamanager tells the model, and the rays it makes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image

from radcomp_plugins.errors import InputError
from radcomp_plugins.teachers.zipnerf.config import ZipNerfDataManagerConfig
from radcomp_plugins.teachers.zipnerf.datamanager import ALPHA_KEY, BACKGROUND_KEY


@pytest.fixture
def blender(tmp_path: Path) -> Path:
    """Four random RGBA pictures of 16 x 16 in blender's form."""
    rng = np.random.default_rng(0)
    for split in ("train", "test", "val"):
        frames = []
        for k in range(4):
            pose = np.eye(4)
            pose[:3, 3] = [0.1 * k, 0, 4]
            Image.fromarray(rng.integers(0, 256, (16, 16, 4), dtype=np.uint8)).save(tmp_path / f"{split}_{k}.png")
            frames.append({"file_path": f"./{split}_{k}", "transform_matrix": pose.tolist()})
        (tmp_path / f"transforms_{split}.json").write_text(json.dumps({"camera_angle_x": 0.7, "frames": frames}))
    return tmp_path


def manager(parser: Any, **options: Any) -> Any:
    config = ZipNerfDataManagerConfig(dataparser=parser, train_num_rays_per_batch=300, **options)
    return config.setup(device="cpu", test_mode="test", world_size=1, local_rank=0)


def test_images_with_alpha_keep_it_in_training_only(blender: Path) -> None:
    found = manager(BlenderDataParserConfig(data=blender))
    assert found.train_dataset.metadata[ALPHA_KEY] is True
    assert found.train_dataset.metadata[BACKGROUND_KEY].tolist() == [1, 1, 1]
    assert found.next_train(0)[1]["image"].shape == (300, 4)
    assert found.eval_dataset[0]["image"].shape == (16, 16, 3) and found.train_dataset[0]["image"].shape == (16, 16, 3)


def test_images_without_alpha_name_no_background(tiny_dataset: Path) -> None:
    found = manager(NerfstudioDataParserConfig(data=tiny_dataset))
    assert found.train_dataset.metadata[ALPHA_KEY] is False and BACKGROUND_KEY not in found.train_dataset.metadata
    assert found.next_train(0)[1]["image"].shape == (300, 3)


def test_coarse_rays_belong_to_their_colours(blender: Path) -> None:
    found = manager(BlenderDataParserConfig(data=blender), num_scales=3, coarse_share=0.9)
    rays, batch = found.next_train(0)
    images = torch.stack([torch.from_numpy(np.array(Image.open(blender / f"train_{k}.png"))) for k in range(4)]) / 255
    fine = found.train_dataset.cameras.generate_rays(0).pixel_area.mean()
    sides = (rays.pixel_area[:, 0] / fine).sqrt().round().int()
    assert set(sides.tolist()) == {1, 2, 4}
    for ray in range(40):
        camera, row, column = batch["indices"][ray].tolist()
        assert int(rays.camera_indices[ray]) == camera
        side = int(sides[ray])
        top, left = row // side * side, column // side * side
        cell = images[camera, top : top + side, left : left + side]
        expected = (cell[..., :3] * cell[..., 3:]).mean(dim=(0, 1))
        color = batch["image"][ray]
        torch.testing.assert_close(color[:3] * color[3:], expected, atol=1e-5, rtol=1e-4)
        focal = 8 / np.tan(0.35)
        direction = np.array([(left + side / 2 - 8) / focal, -(top + side / 2 - 8) / focal, -1.0])
        np.testing.assert_allclose(rays.directions[ray], direction / np.linalg.norm(direction), atol=1e-5)


def test_more_scales_than_the_images_have_are_refused(blender: Path) -> None:
    found = manager(BlenderDataParserConfig(data=blender), num_scales=6)
    with pytest.raises(InputError, match="num_scales: got 6"):
        found.next_train(0)
