"""A Zip-NeRF model small enough for unit tests, and rays to ask it about."""

from typing import Any

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox

from radcomp_plugins.teachers.zipnerf.config import ZipNerfModelConfig
from radcomp_plugins.teachers.zipnerf.datamanager import ALPHA_KEY, BACKGROUND_KEY
from radcomp_plugins.teachers.zipnerf.model import ZipNerfModel

OBJECT = {BACKGROUND_KEY: torch.ones(3), ALPHA_KEY: True}
"""What the datamanager says of an object dataset in front of white."""


def tiny_config(**options: Any) -> ZipNerfModelConfig:
    """A few thousand parameters."""
    small: dict[str, Any] = {
        "num_proposal_samples": (12, 8),
        "num_samples": 8,
        "proposal_num_levels": (2, 3),
        "proposal_log2_size": (10, 10),
        "proposal_hidden_dim": 8,
        "num_levels": 4,
        "log2_size": 11,
        "base_resolution": 8,
        "bottleneck_dim": 7,
        "hidden_dim": 16,
        "color_hidden_dim": 16,
        "density_activation": "exp",
        "rgb_loss": "mse",
    }
    return ZipNerfModelConfig(**{**small, **options})


def tiny_model(metadata: dict[str, Any] | None = None, num_images: int = 3, **options: Any) -> ZipNerfModel:
    """An untrained model of the cube of half side 1.5."""
    box = SceneBox(aabb=torch.tensor([[-1.5] * 3, [1.5] * 3]))
    metadata = OBJECT if metadata is None else metadata
    return ZipNerfModel(tiny_config(**options), scene_box=box, num_train_data=num_images, metadata=metadata)


def rays_at(targets: torch.Tensor, distance: float = 4.0) -> RayBundle:
    """Rays from `distance` along -x, -y or -z, in turn, to target points [N, 3]."""
    sides = torch.eye(3)[torch.arange(len(targets)) % 3] * distance
    origins = sides.clone()
    directions = torch.nn.functional.normalize(targets - origins, dim=-1)
    return RayBundle(
        origins=origins,
        directions=directions,
        pixel_area=torch.full((len(targets), 1), 1e-5),
        camera_indices=torch.arange(len(targets))[:, None] % 3,
    )


def red_ball(rays: RayBundle, radius: float = 0.6) -> torch.Tensor:
    """RGBA [N, 4] of a red ball about the origin."""
    along = -(rays.origins * rays.directions).sum(dim=-1, keepdim=True)
    nearest = (rays.origins + along * rays.directions).norm(dim=-1)
    hit = (nearest < radius).float()
    return torch.stack([0.8 * hit, 0.1 * hit, 0.1 * hit, hit], dim=-1)
