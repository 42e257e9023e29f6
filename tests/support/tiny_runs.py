"""A scene of few Gaussians, datasets drawn from it, and trainings of a few steps, for the tests of splat methods."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

SIZE = 32
"""LPIPS needs as much."""
FOCAL = 40.0
VIEWS = 9

LIGHTGAUSSIAN_STEPS = {
    "prune_ratio": 0.5,
    "prune_rounds": 2,
    "co_adaptation_steps": 3,
    "sh_degree": 2,
    "distillation_steps": 4,
    "vq_ratio": 0.75,
    "vq_codebook_size": 8,
    "vq_iterations": 3,
    "vq_batch_size": 16,
    "vq_finetune_steps": 3,
}
"""Stages of a run of 13 steps: 3 + 3 after prunings, 4 of distillation, 3 of codebook."""


def make_scene(count: int = 48, degree: int = 3, seed: int = 0, antialiased: bool = False) -> Any:
    """Random Gaussians in a ball of radius 1, half of them opaque."""
    from radcomp_plugins.splats.gaussians import Gaussians, num_sh_rest

    g = torch.Generator().manual_seed(seed)
    means = torch.randn(count, 3, generator=g)
    return Gaussians(
        means=0.8 * means / means.norm(dim=1, keepdim=True) * torch.rand(count, 1, generator=g) ** (1 / 3),
        quats=torch.randn(count, 4, generator=g),
        scales=torch.log(0.06 + 0.14 * torch.rand(count, 3, generator=g)),
        opacities=torch.logit(0.2 + 0.75 * torch.rand(count, generator=g)),
        sh0=torch.randn(count, 3, generator=g),
        shN=0.15 * torch.randn(count, num_sh_rest(degree), 3, generator=g),
        antialiased=antialiased,
    )


def orbit(views: int = VIEWS, radius: float = 3.0) -> torch.Tensor:
    """Cameras [views, 3, 4] on a wavy circle that look at the origin: x right, y up, looking along -z."""
    poses = []
    for k in range(views):
        angle = 2 * math.pi * k / views
        eye = np.array([math.cos(angle), math.sin(angle), 0.5 * math.sin(3 * angle)])
        back = eye / np.linalg.norm(eye)
        right = np.cross([0.0, 0.0, 1.0], back)
        right /= np.linalg.norm(right)
        poses.append(np.stack([right, np.cross(back, right), back, radius * back], axis=1))
    return torch.tensor(np.array(poses), dtype=torch.float32)


def views_of(c2w: torch.Tensor, size: int = SIZE, focal: float = FOCAL) -> list[Any]:
    """The rasterizer's view of each camera."""
    from radcomp_plugins.splats.views import PinholeView, viewmats_from_c2w

    intrinsics = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    return [PinholeView(viewmat, intrinsics, size, size) for viewmat in viewmats_from_c2w(c2w)]


def draw_rgba(scene: Any, view: Any) -> np.ndarray:
    """Straight-alpha bytes [H, W, 4] of the scene in one view."""
    from radcomp_plugins.splats.draw import draw

    rgb, alpha, _ = draw(scene, view)
    straight = (rgb / alpha.clamp(min=1e-6)).clamp(0, 1)
    return (torch.cat([straight, alpha.clamp(0, 1)], dim=-1) * 255).round().byte().numpy()


def write_blender(folder: Path, scene: Any, views: int = VIEWS) -> Path:
    """The scene as a blender dataset with transparent pictures; the last two views are held out."""
    c2w = orbit(views)
    (folder / "images").mkdir(parents=True)
    frames = []
    for index, (pose, view) in enumerate(zip(c2w, views_of(c2w), strict=True)):
        Image.fromarray(draw_rgba(scene, view)).save(folder / f"images/{index:02d}.png")
        matrix = torch.cat([pose, torch.tensor([[0.0, 0.0, 0.0, 1.0]])]).tolist()
        frames.append({"file_path": f"./images/{index:02d}", "transform_matrix": matrix})
    angle = 2 * math.atan(SIZE / 2 / FOCAL)
    for split, chosen in {"train": frames[:-2], "val": frames[-2:], "test": frames[-2:]}.items():
        meta = {"camera_angle_x": angle, "frames": chosen}
        (folder / f"transforms_{split}.json").write_text(json.dumps(meta))
    write_points(folder / "points3D.ply", scene)
    return folder


def write_points(path: Path, scene: Any) -> None:
    """The centres and base colours of the scene as a point cloud."""
    colors = (0.5 + 0.28209479 * scene.sh0).clamp(0, 1) * 255
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(scene)}"]
    header += [f"property float {name}" for name in "xyz"]
    header += [f"property uchar {name}" for name in ("red", "green", "blue")]
    points = np.zeros(len(scene), dtype=[("xyz", "<f4", 3), ("rgb", "u1", 3)])
    points["xyz"], points["rgb"] = scene.means.numpy(), colors.byte().numpy()
    path.write_bytes("\n".join([*header, "end_header\n"]).encode() + points.tobytes())


def run_config(method: str, output_dir: Path, **changes: Any) -> Any:
    """A method's config as ns-train has it, quiet, with a checkpoint after every step.

    Args:
        method: name in ns-train's menu.
        output_dir: folder for the run.
        changes: field of the trainer -> value.
    """
    import copy

    from nerfstudio.configs.method_configs import all_methods

    config = copy.deepcopy(all_methods[method])
    config.output_dir, config.experiment_name = output_dir, "tiny"
    config.vis = "tensorboard"
    config.logging.profiler = "none"
    config.logging.local_writer.enable = False
    config.logging.steps_per_log = config.steps_per_eval_image = config.steps_per_eval_all_images = 10**9
    config.steps_per_save, config.save_only_latest_checkpoint = 1, False
    config.viewer.quit_on_train_completion = True
    config.pipeline.model.num_random = 100
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def blender_parser(data: Path, with_points: bool = False) -> Any:
    """The config of nerfstudio's parser for `write_blender`."""
    from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig

    return BlenderDataParserConfig(data=data, ply_path=Path("points3D.ply") if with_points else None)


def train(config: Any) -> Any:
    """Run a config as ns-train does once the command line is read; returns the trainer."""
    from nerfstudio.scripts.train import _set_random_seed

    from radcomp_plugins import compat

    compat.forget_writers()
    config.set_timestamp()
    config.save_config()
    _set_random_seed(config.machine.seed)
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    trainer.train()
    compat.forget_writers()
    return trainer


@pytest.fixture(scope="session")
def scene() -> Any:
    """The Gaussians that the tiny datasets show."""
    return make_scene()


@pytest.fixture(scope="session")
def blender_data(tmp_path_factory: pytest.TempPathFactory, scene: Any) -> Path:
    """`write_blender` of `scene`."""
    return write_blender(tmp_path_factory.mktemp("blender") / "data", scene)


@pytest.fixture(scope="session")
def few_seeds() -> Any:
    """Scenes without points get 100 random ones instead of 20,000."""
    from radcomp_plugins.splats import datamanager

    patch = pytest.MonkeyPatch()
    patch.setattr(datamanager, "NUM_SEED_POINTS", 100)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def teacher_run(tmp_path_factory: pytest.TempPathFactory, blender_data: Path) -> Path:
    """Folder of a splatfacto-tiny run of six steps on `blender_data`."""
    config = run_config("splatfacto-tiny", tmp_path_factory.mktemp("teacher"), max_num_iterations=6, timestamp="t")
    config.pipeline.datamanager.dataparser = blender_parser(blender_data, with_points=True)
    config.pipeline.model.num_downscales = 0
    return train(config).base_dir


def lightgaussian_config(output_dir: Path, teacher: Path | None, data: Path | None, **changes: Any) -> Any:
    """lightgaussian-tiny with `LIGHTGAUSSIAN_STEPS`.

    Args:
        output_dir: folder for the run.
        teacher: what to compress.
        data: a blender dataset; None leaves it to the teacher's run.
        changes: field of the pipeline -> value.
    """
    config = run_config("lightgaussian-tiny", output_dir)
    for name, value in {**LIGHTGAUSSIAN_STEPS, "teacher": teacher, **changes}.items():
        setattr(config.pipeline, name, value)
    if data is not None:
        config.pipeline.datamanager.dataparser = blender_parser(data)
    return config


@pytest.fixture(scope="session")
def teacher_ply(tmp_path_factory: pytest.TempPathFactory, scene: Any) -> Path:
    """A worse copy of `scene` as a .ply, so that training has something to mend."""
    import dataclasses

    from radcomp_plugins.splats.formats.ply import write_ply

    noise = torch.Generator().manual_seed(1)
    worse = dataclasses.replace(scene, shN=scene.shN + 0.2 * torch.randn(scene.shN.shape, generator=noise))
    path = tmp_path_factory.mktemp("ply") / "teacher.ply"
    write_ply(path, worse)
    return path


@pytest.fixture(scope="session")
def lightgaussian_run(
    tmp_path_factory: pytest.TempPathFactory, teacher_ply: Path, blender_data: Path, few_seeds: None
) -> Callable[..., Any]:
    """The trainer of a finished run of 13 steps, with a checkpoint after each but the first."""
    config = lightgaussian_config(tmp_path_factory.mktemp("lightgaussian"), teacher_ply, blender_data)
    config.timestamp = "whole"
    return train(config)
