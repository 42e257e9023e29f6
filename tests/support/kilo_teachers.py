"""Teachers of points that need no training, a dataset that shows one, and KiloNeRF runs of a few steps."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import blender_parser, orbit, run_config, train

from radcomp_plugins.teachers.points import TaughtPoints

CENTRES = torch.tensor([[0.0, 0.0, 0.0], [0.45, 0.2, 0.1], [-0.3, -0.35, 0.25]])
RADII = torch.tensor([0.3, 0.15, 0.2])
COLOURS = torch.tensor([[0.9, 0.2, 0.1], [0.1, 0.8, 0.3], [0.2, 0.3, 0.9]])


@dataclass
class BallPoints:
    """Three balls of constant density in front of white; colours depend a little on the direction.

    Attributes:
        density: per scene unit, inside of the balls.
        far_wall: density everywhere farther than 4 from the origin: an unbounded scene.
        asked: how many points have been asked for.
    """

    density: float = 60.0
    far_wall: float = 0.0
    background: torch.Tensor = field(default_factory=lambda: torch.ones(3))
    trained_from: float = 0.1
    asked: int = 0

    def query_points(self, positions: torch.Tensor, directions: torch.Tensor) -> TaughtPoints:
        """Whatever ball the point is in."""
        self.asked += len(positions)
        inside = (positions[:, None] - CENTRES).norm(dim=-1) < RADII
        density = inside.any(dim=-1) * self.density
        density = density + (positions.norm(dim=-1) > 4.0) * self.far_wall
        glow = 0.1 * directions[:, :1].clamp(min=0.0)
        return TaughtPoints(density, (COLOURS[inside.float().argmax(dim=-1)] * 0.9 + glow).clamp(0.0, 1.0))

    def to(self, device: torch.device | str) -> "BallPoints":
        """There is nothing to move."""
        return self


def ball_picture(teacher: BallPoints, pose: torch.Tensor, size: int, focal: float, samples: int = 128) -> np.ndarray:
    """What a camera [3, 4] sees: straight-alpha bytes [size, size, 4]."""
    at = torch.arange(size) + 0.5 - size / 2
    v, u = torch.meshgrid(at, at, indexing="ij")
    rays = torch.stack([u / focal, -v / focal, -torch.ones_like(u)], dim=-1).reshape(-1, 3) @ pose[:, :3].T
    directions = torch.nn.functional.normalize(rays, dim=-1)
    edges = torch.linspace(1.5, 4.5, samples + 1)
    middle, length = 0.5 * (edges[1:] + edges[:-1]), float(edges[1] - edges[0])
    points = pose[:, 3] + middle[:, None, None] * directions
    said = teacher.query_points(points.reshape(-1, 3), directions.expand_as(points).reshape(-1, 3))
    depth = said.density.view(samples, -1) * length
    weights = torch.exp(-(depth.cumsum(0) - depth)) * -torch.expm1(-depth)
    alpha = weights.sum(0)
    rgb = (weights[..., None] * said.rgb.view(samples, -1, 3)).sum(0) / alpha.clamp(min=1e-6)[:, None]
    picture = torch.cat([rgb, alpha[:, None]], dim=-1).clamp(0.0, 1.0)
    return (picture * 255).round().byte().view(size, size, 4).numpy()


def write_balls(folder: Path, views: int = 9, size: int = 32, focal: float = 40.0) -> Path:
    """The balls as a blender dataset with transparent pictures; the last two views are held out."""
    teacher, frames = BallPoints(), []
    (folder / "images").mkdir(parents=True)
    for index, pose in enumerate(orbit(views)):
        Image.fromarray(ball_picture(teacher, pose, size, focal)).save(folder / f"images/{index:02d}.png")
        matrix = torch.cat([pose, torch.tensor([[0.0, 0.0, 0.0, 1.0]])]).tolist()
        frames.append({"file_path": f"./images/{index:02d}", "transform_matrix": matrix})
    angle = 2 * math.atan(size / 2 / focal)
    for split, chosen in {"train": frames[:-2], "val": frames[-2:], "test": frames[-2:]}.items():
        (folder / f"transforms_{split}.json").write_text(json.dumps({"camera_angle_x": angle, "frames": chosen}))
    return folder


def yenchen_tensors(width: int = 32, depth: int = 8, skip: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tensors of yenchenlin/nerf-pytorch's network, with a density that varies."""
    g = torch.Generator().manual_seed(seed)

    def layer(name: str, inputs: int, outputs: int) -> dict[str, torch.Tensor]:
        weight = torch.randn(outputs, inputs, generator=g) * (2.0 / inputs) ** 0.5
        return {f"{name}.weight": weight, f"{name}.bias": 0.1 * torch.randn(outputs, generator=g)}

    tensors = {}
    for index in range(depth):
        inputs = 63 if index == 0 else width + 63 if index == skip + 1 else width
        tensors |= layer(f"pts_linears.{index}", inputs, width)
    tensors |= layer("feature_linear", width, width) | layer("alpha_linear", width, 1)
    return tensors | layer("views_linears.0", width + 27, width // 2) | layer("rgb_linear", width // 2, 3)


@pytest.fixture(scope="session")
def kilo_ball_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`write_balls`."""
    return write_balls(tmp_path_factory.mktemp("balls") / "data")


@pytest.fixture(scope="session")
def plain_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained plain NeRF as its code base would have saved it."""
    path = tmp_path_factory.mktemp("plain") / "000003.tar"
    networks = {"network_fn_state_dict": yenchen_tensors(seed=1), "network_fine_state_dict": yenchen_tensors(seed=2)}
    torch.save({"global_step": 3, **networks}, path)
    return path


SMALL: dict[str, Any] = {
    "distill_points": 16, "pool_points": 64, "pool_reuse": 2, "search_rays": 512, "opacity_every": 3,
    "distill_share": 0.6,
}  # fmt: skip
SMALL_MODEL: dict[str, Any] = {"grid_longest": 4, "voxels_per_cell": 8, "hidden_width": 16, "position_octaves": 4}


def kilo_config(output_dir: Path, teacher: Path, data: Path, steps: int = 8, **pipeline: Any) -> Any:
    """kilonerf-tiny at `SMALL` on a blender dataset, a checkpoint after every step."""
    config = run_config("kilonerf-tiny", output_dir, max_num_iterations=steps, timestamp="t")
    config.pipeline.teacher = teacher
    config.pipeline.datamanager.dataparser = blender_parser(data)
    config.pipeline.datamanager.train_num_rays_per_batch = 256
    for name, value in {**SMALL, **pipeline}.items():
        setattr(config.pipeline, name, value)
    for name, value in SMALL_MODEL.items():
        setattr(config.pipeline.model, name, value)
    return config


def give_teacher(patch: pytest.MonkeyPatch, teacher: Any) -> None:
    """Pipelines that load a teacher get this one, wherever they are told it lies."""
    from radcomp_plugins.kilonerf import pipeline

    patch.setattr(pipeline, "load_point_teacher", lambda path, device="cpu": teacher)


@pytest.fixture(scope="session")
def kilo_trainer(tmp_path_factory: pytest.TempPathFactory, plain_checkpoint: Path, kilo_ball_data: Path) -> Any:
    """The trainer of a finished KiloNeRF run of the balls, of eight steps, five of distillation.

    Its teacher's path is that of a plain NeRF, which is not what taught it.
    """
    with pytest.MonkeyPatch.context() as patch:
        give_teacher(patch, BallPoints())
        return train(kilo_config(tmp_path_factory.mktemp("kilo"), plain_checkpoint, kilo_ball_data))


@pytest.fixture
def with_teacher(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """`with_teacher(t)`: pipelines that load a teacher get this one."""
    return lambda teacher: give_teacher(monkeypatch, teacher)
