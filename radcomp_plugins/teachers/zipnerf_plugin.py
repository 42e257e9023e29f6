"""Teachers trained by the external `zipnerf` plugin (SuLvXiangXin/zipnerf-pytorch, package zipnerf_ns).

The plugin needs CUDA extensions; nothing of it is imported here, the model is asked for what it has.
"""

import sys
from typing import Any

import torch
from jaxtyping import Float
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from radcomp_plugins.teachers.ray_chunks import DIRECTIONS_NORM, in_chunks
from radcomp_plugins.teachers.rays import TaughtRays


def is_plugin_model(model: Any) -> bool:
    """Whether this is the plugin's model, told by its names."""
    kind = type(model)
    return (kind.__name__, kind.__module__.partition(".")[0]) == ("ZipNerfModel", "zipnerf_ns")


class ZipNerfPluginTeacher:
    """A trained `zipnerf` run as it draws in evaluation, with a zero appearance vector: see `RayTeacher`.

    The plugin scales directions by their norm before normalisation twice, hands the once-scaled ones to its networks as
    viewing directions, and counts distances in units of the twice-scaled ones. Its checkpoints are trained that way, so
    this is repeated, and only undone in the distances that are given back.

    Attributes:
        model: in eval mode; not a submodule of anything.
        background: [3] grey behind the scene; of no effect with the plugin's own settings, whose last interval takes
            all light.
    """

    background: Float[Tensor, " 3"]

    def __init__(self, model: Any) -> None:
        """Take the plugin's model."""
        self.model = model.eval().requires_grad_(False)
        low, high = model.zipnerf.bg_intensity_range
        self.background = torch.full((3,), (low + high) / 2)

    def to(self, device: torch.device | str) -> "ZipNerfPluginTeacher":
        """The same teacher on another device."""
        self.model.to(device)
        self.background = self.background.to(device)
        return self

    @torch.no_grad()
    def query_rays(self, ray_bundle: RayBundle, *, jitter: bool = False) -> TaughtRays:
        """Intervals, weights and colours of rays [*batch]; see `RayTeacher`.

        Rays without metadata `directions_norm` count as those of a picture's centre, of norm 1.
        """
        device, size = self.model.device, self.model.config.eval_num_rays_per_chunk
        if jitter:
            return in_chunks(ray_bundle, device, size, lambda rays: self._answer(rays, jitter))
        # The plugin turns its cones at random in evaluation too; a seed of our own makes the answer repeatable.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            return in_chunks(ray_bundle, device, size, lambda rays: self._answer(rays, jitter))

    def _answer(self, rays: RayBundle, jitter: bool) -> TaughtRays:
        """The same for flat rays [R] of unit directions, which are scaled in place."""
        network = self.model.zipnerf
        rays = self.model.collider(rays)
        rays.directions = rays.directions * rays.metadata[DIRECTIONS_NORM]
        batch = self.model.construct_batch_from_raybundle(rays)
        _, history = network(rand=jitter, batch=batch, train_frac=1.0, compute_extras=False, zero_glo=True)
        final = history[-1]
        warps = sys.modules[type(network).__module__].coord.construct_ray_warps
        _, to_metric = warps(network.raydist_fn, batch["near"], batch["far"], network.power_lambda)
        length = batch["directions"].norm(dim=-1, keepdim=True)
        return TaughtRays(
            edges=(to_metric(final["sdist"]) * length).cummax(dim=-1).values,
            weights=final["weights"],
            # Not the rendered colour, which has the background in it.
            rgb=(final["weights"][..., None] * final["rgb"]).sum(dim=-2),
        )
