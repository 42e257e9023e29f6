"""Rays of any shape, asked for in chunks of a bounded number."""

from collections.abc import Callable

import torch
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from radcomp_plugins.teachers.rays import TaughtRays

DIRECTIONS_NORM = "directions_norm"
"""Key of a ray bundle's metadata: length of the ray's direction before nerfstudio normalised it, [*batch, 1]."""


def bare_rays(ray_bundle: RayBundle, device: torch.device) -> RayBundle:
    """The same rays, flat and on a device, with nothing that a teacher must not see or change.

    Camera indices are 0, because a teacher has appearances of its own cameras only; near and far are unset.
    """
    count = len(ray_bundle)

    def flat(tensor: Tensor) -> Tensor:
        return tensor.detach().reshape(count, tensor.shape[-1]).to(device)

    origins = flat(ray_bundle.origins)
    norm = (ray_bundle.metadata or {}).get(DIRECTIONS_NORM)
    return RayBundle(
        origins=origins,
        directions=flat(ray_bundle.directions),
        pixel_area=flat(ray_bundle.pixel_area),
        camera_indices=torch.zeros(count, 1, dtype=torch.long, device=device),
        metadata={DIRECTIONS_NORM: torch.ones_like(origins[:, :1]) if norm is None else flat(norm)},
    )


def in_chunks(
    ray_bundle: RayBundle, device: torch.device, size: int, answer: Callable[[RayBundle], TaughtRays]
) -> TaughtRays:
    """What `answer` says of rays [*batch], asked for at most `size` flat rays at a time.

    Args:
        ray_bundle: rays [*batch], at least one; left as it is.
        device: where `answer` wants its rays.
        size: rays of a chunk, at least 1.
        answer: may change the bundle it gets.

    Returns:
        Tensors on the device of `ray_bundle`.
    """
    rays, batch, home = bare_rays(ray_bundle, device), ray_bundle.origins.shape[:-1], ray_bundle.origins.device
    parts = [answer(rays[begin : begin + size]) for begin in range(0, len(rays), size)]

    def joined(name: str) -> Tensor:
        whole = torch.cat([getattr(part, name) for part in parts])
        return whole.reshape(*batch, whole.shape[-1]).to(home)

    return TaughtRays(edges=joined("edges"), weights=joined("weights"), rgb=joined("rgb"))
