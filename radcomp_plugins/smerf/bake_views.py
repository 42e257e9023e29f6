"""Rays to bake by: the training views, moved copies of them, and views from between them."""

from collections.abc import Iterator

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from radcomp_plugins.smerf.bake import ViewRays
from radcomp_plugins.smerf.rays import rotate_about
from radcomp_plugins.smerf.submodels import Submodels

COPIES = ("as it is", "moved", "between")
"""What each training view gives: itself, a copy moved and turned at random, and one on the way to another view."""


def view_rays(
    cameras: Cameras, submodels: Submodels, *, sigma: float, max_angle: float, max_rays: int, seed: int
) -> Iterator[ViewRays]:
    """Rays of all views, one view and one copy of it at a time.

    What lies between the rays of a small picture would be a hole in a larger one.

    Args:
        cameras: of the training photos, scene frame.
        submodels: the frames.
        sigma: standard deviation of a moved view's origin, unit frame.
        max_angle: by which it is turned at most, radians.
        max_rays: of one view; larger pictures are thinned out to every second pixel, every third, and so on, and in
            smaller ones a pixel is divided into 2 x 2 rays, 3 x 3, and so on: a viewer's canvas is larger, too.
        seed: of the moves.
    """
    generator = torch.Generator().manual_seed(seed)
    for index in range(len(cameras)):
        for copy in COPIES:
            origins, directions = _rays(cameras, index, max_rays, generator)
            origins = submodels.to_unit(origins)
            if copy == "moved":
                origins = origins + sigma * torch.randn(3, generator=generator)
                directions = _turned(directions, max_angle, generator)
            if copy == "between":
                other = int(torch.randint(len(cameras), (), generator=generator))
                there = submodels.to_unit(cameras.camera_to_worlds[other, :3, 3].cpu())
                origins = origins + torch.rand((), generator=generator) * (there - origins[0])
                directions = _turned(directions, 4.0 * max_angle, generator)
            row = int(submodels.assign(origins[:1].to(submodels.centres.device)))
            yield ViewRays(row, origins.numpy().astype(np.float32), directions.numpy().astype(np.float32))


def _rays(cameras: Cameras, index: int, max_rays: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Origins and directions [N, 3] of a view's pixels, scene frame; which are left out is drawn anew for each copy."""
    camera = cameras[index : index + 1].to("cpu")
    height, width = int(camera.height), int(camera.width)
    finer = int(np.sqrt(max_rays / (height * width)))
    if finer > 1:
        camera.rescale_output_resolution(finer)
    bundle = camera.generate_rays(camera_indices=0, keep_shape=True)
    every = max(1, int(np.ceil(np.sqrt(height * width / max_rays))))
    first = torch.randint(every, (2,), generator=generator).tolist()
    chosen = (slice(first[0], None, every), slice(first[1], None, every))
    return bundle.origins[chosen].reshape(-1, 3), bundle.directions[chosen].reshape(-1, 3)


def _turned(directions: Tensor, max_angle: float, generator: torch.Generator) -> Tensor:
    axis = torch.nn.functional.normalize(torch.randn(3, generator=generator), dim=0)
    angle = torch.rand(1, generator=generator) * max_angle
    return rotate_about(directions, axis.expand_as(directions), angle.expand(len(directions), 1))
