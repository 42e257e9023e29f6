"""Pictures of a scene that need no run: a camera on a circle around it."""

import math

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from numpy.typing import NDArray
from torch import Tensor

from radcomp_plugins.vqad.field import field_from_scene
from radcomp_plugins.vqad.losses import on_background
from radcomp_plugins.vqad.render import draw
from radcomp_plugins.vqad.scene import VqadScene

CHUNK = 1 << 15
"""Rays drawn at once."""


def orbit_camera(box: NDArray[np.floating], azimuth: float, elevation: float, distance: float, size: int) -> Cameras:
    """A square camera that looks at the middle of a box, with a field of view of 50 degrees.

    Args:
        box: [2, 3] low and high corner, scene frame, whose z points up.
        azimuth: degrees around z, from x towards y.
        elevation: degrees above the xy plane.
        distance: from the middle, in longest sides of the box.
        size: width and height in pixels.
    """
    box = np.asarray(box, np.float64)
    a, e = math.radians(azimuth), math.radians(elevation)
    backward = np.array([math.cos(a) * math.cos(e), math.sin(a) * math.cos(e), math.sin(e)])
    # Straight up or down, the picture's top is where the camera would look at elevation 0.
    right = np.array([-math.sin(a), math.cos(a), 0.0])
    centre = box.mean(axis=0) + backward * distance * (box[1] - box[0]).max()
    pose = np.stack([right, np.cross(backward, right), backward, centre], axis=1)
    focal = 0.5 * size / math.tan(math.radians(25.0))
    matrix = torch.tensor(pose, dtype=torch.float32)[None]
    return Cameras(matrix, focal, focal, size / 2, size / 2, width=size, height=size)


@torch.no_grad()
def picture(scene: VqadScene, camera: Cameras, device: torch.device | str = "cpu") -> Float[Tensor, "H W 3"]:
    """What one camera sees of all the levels that a scene has, on the scene's background, in [0, 1]; on the CPU."""
    field = field_from_scene(scene).to(device).eval()
    background = torch.from_numpy(scene.background.copy()).to(device)
    bundle = camera.generate_rays(camera_indices=0, keep_shape=True).to(device)
    rays = bundle.origins.reshape(-1, 3), bundle.directions.reshape(-1, 3)
    parts = []
    for origins, directions in zip(*(part.split(CHUNK) for part in rays), strict=True):
        drawn = draw(field, origins, directions)
        parts.append(on_background(drawn.rgb, drawn.accumulation, background).clamp(0.0, 1.0))
    return torch.cat(parts).reshape(bundle.origins.shape).cpu()
