"""A VQ-AD field around a sphere, and a dataset of coloured balls with depth, for the tests of VQ-AD in training."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from radcomp_plugins.core.octree import Octree, voxels_of_points

SIZE, FOCAL, VIEWS = 32, 40.0, 9
RADIUS = 0.8


def sphere_octree(coarsest: int = 2, finest: int = 4) -> Octree:
    """Voxels that the surface of a sphere, four fifths as wide as the box, passes through."""
    points = torch.nn.functional.normalize(torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    return Octree.from_finest(voxels_of_points(points * 0.4 + 0.5, finest), finest, coarsest)


def sphere_field(mode: Any = "full", bits: int = 4, **changes: Any) -> Any:
    """An untrained field of that octree over [-1, 1]^3 that is neither empty nor opaque."""
    from radcomp_plugins.vqad.encoding import VQADEncoding
    from radcomp_plugins.vqad.field import DirectionalDecoder, VqadField

    torch.manual_seed(0)
    activation = changes.pop("activation", "exp")
    hidden = changes.pop("hidden", 32)
    encoding = VQADEncoding(sphere_octree(), 16, bits, mode, init_std=1.0)
    decoder = DirectionalDecoder(16, hidden, 4, activation, density_bias=0.5, density_scale=20.0)
    box = torch.tensor([[-1.0] * 3, [1.0] * 3])
    return VqadField(encoding, decoder, box, **{"samples_per_voxel": 2, "samples_at": "finest", **changes})


def rays_at_sphere(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Origins around the sphere and unit directions, most of which meet it."""
    g = torch.Generator().manual_seed(seed)
    origins = 3.0 * torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=1)
    return origins, torch.nn.functional.normalize(torch.randn(count, 3, generator=g) * 0.4 - origins, dim=1)


def write_ball(folder: Path, depth_scale: float = 1.0, with_depth: bool = True) -> Path:
    """A ball at the origin, coloured by its normals, as a nerfstudio dataset with alpha and depth; two views held out.

    Args:
        folder: made.
        depth_scale: what the depth maps are off by.
        with_depth: whether they are named at all.
    """
    (folder / "images").mkdir(parents=True)
    frames: list[dict[str, Any]] = []
    for k in range(VIEWS):
        angle = 2 * math.pi * k / VIEWS
        back = np.array([math.cos(angle), math.sin(angle), 0.4 * math.sin(3 * angle)])
        back /= np.linalg.norm(back)
        right = np.cross([0.0, 0.0, 1.0], back)
        right /= np.linalg.norm(right)
        pose = np.stack([right, np.cross(back, right), back, 3.0 * back], axis=1)
        image, depth = _draw_ball(pose)
        name = f"images/{k:02d}.png"
        Image.fromarray(image).save(folder / name)
        Image.fromarray(np.rint(depth * depth_scale * 1000).astype(np.uint16)).save(folder / f"images/{k:02d}_z.png")
        matrix = [*pose.tolist(), [0.0, 0.0, 0.0, 1.0]]
        frames.append({"file_path": name, "transform_matrix": matrix})
        if with_depth:
            frames[-1]["depth_file_path"] = f"images/{k:02d}_z.png"
    names = [frame["file_path"] for frame in frames]
    camera = {"w": SIZE, "h": SIZE, "fl_x": FOCAL, "fl_y": FOCAL, "cx": SIZE / 2, "cy": SIZE / 2}
    splits = {"train_filenames": names[:-2], "val_filenames": names[-2:], "test_filenames": names[-2:]}
    meta = {**camera, **splits, "camera_model": "OPENCV", "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(meta))
    return folder


def _draw_ball(pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """RGBA bytes and depth along the axis of the ball seen from a camera."""
    columns, rows = np.meshgrid(np.arange(SIZE) + 0.5, np.arange(SIZE) + 0.5)
    local = np.stack([(columns - SIZE / 2) / FOCAL, -(rows - SIZE / 2) / FOCAL, -np.ones_like(rows)], axis=-1)
    ray, origin = local @ pose[:, :3].T, pose[:, 3]
    a, b, c = (ray**2).sum(-1), ray @ origin, origin @ origin - RADIUS**2
    under = b**2 - a * c
    z = np.where(under > 0, (-b - np.sqrt(np.maximum(under, 0))) / a, 0.0)
    normal = (origin + z[..., None] * ray) / RADIUS
    rgba = np.concatenate([0.5 + 0.5 * normal, (under > 0)[..., None]], axis=-1)
    return (np.clip(rgba, 0, 1) * 255).round().astype(np.uint8) * (under > 0)[..., None], z


def vqad_config(data: Path, output_dir: Path, steps: int = 40, **model: Any) -> Any:
    """vqad-tiny on a nerfstudio dataset, small and quiet, with a checkpoint at the end.

    Args:
        data: as `write_ball` makes it.
        output_dir: folder for the run.
        steps: of training.
        model: field of the model's config -> value.
    """
    import copy

    from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

    from method_configs.vqad import vqad_tiny

    config: Any = copy.deepcopy(vqad_tiny.config)
    config.output_dir, config.experiment_name, config.timestamp = output_dir, "tiny", "t"
    config.vis, config.logging.profiler, config.logging.local_writer.enable = "tensorboard", "none", False
    config.logging.steps_per_log = config.steps_per_eval_image = config.steps_per_eval_all_images = 10**9
    config.max_num_iterations, config.steps_per_save = steps, steps
    config.viewer.quit_on_train_completion = True
    manager = config.pipeline.datamanager
    manager.dataparser = NerfstudioDataParserConfig(
        data=data, auto_scale_poses=False, center_method="none", orientation_method="none", load_3D_points=True
    )
    manager.train_num_rays_per_batch = 512
    small = {"coarsest_level": 2, "finest_level": 4, "start_level": 3, "hidden_dim": 32, "bits": 4}
    for name, value in {**small, **model}.items():
        setattr(config.pipeline.model, name, value)
    return config


@pytest.fixture(scope="session")
def ball_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`write_ball` with depth."""
    return write_ball(tmp_path_factory.mktemp("ball") / "data")
