"""nerfstudio's vanilla-nerf as a teacher of points and of rays."""

from typing import Any

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.field_components.field_heads import FieldHeadNames

from radcomp_plugins.teachers.points import FieldPointTeacher
from radcomp_plugins.teachers.ray_chunks import in_chunks
from radcomp_plugins.teachers.rays import TaughtRays

RAYS_AT_ONCE = 512
PARTS = ("field_coarse", "field_fine", "sampler_uniform", "sampler_pdf", "renderer_rgb", "collider")
"""Attributes by which a model is known to sample as vanilla-nerf does."""


def samples_coarse_to_fine(model: Any) -> bool:
    """Whether a model has all parts that `VanillaNerfTeacher` asks, and no moving scene."""
    moves = getattr(model, "temporal_distortion", None) is not None
    return not moves and all(getattr(model, name, None) is not None for name in PARTS)


class VanillaNerfTeacher(FieldPointTeacher):
    """A trained vanilla-nerf: its fine field answers for points, both for rays, as the model draws in evaluation."""

    def __init__(self, model: Any) -> None:
        """Take a model that `samples_coarse_to_fine`."""
        super().__init__(model, model.field_fine)

    def to(self, device: torch.device | str) -> "VanillaNerfTeacher":
        """The same teacher on another device."""
        super().to(device)
        return self

    @torch.no_grad()
    def query_rays(self, ray_bundle: RayBundle, *, jitter: bool = False) -> TaughtRays:
        """Intervals, weights and colours of rays [*batch]; see `RayTeacher`."""
        samplers = (self.model.sampler_uniform, self.model.sampler_pdf)
        for sampler in samplers:
            sampler.train(jitter)
        try:
            return in_chunks(ray_bundle, self.model.device, RAYS_AT_ONCE, self._rays)
        finally:
            for sampler in samplers:
                sampler.eval()

    def _rays(self, rays: RayBundle) -> TaughtRays:
        model = self.model
        rays = model.collider(rays)
        coarse = model.sampler_uniform(rays)
        weights = coarse.get_weights(model.field_coarse(coarse)[FieldHeadNames.DENSITY])
        fine = model.sampler_pdf(rays, coarse, weights)
        said = model.field_fine(fine)
        weights = fine.get_weights(said[FieldHeadNames.DENSITY])
        starts, ends = fine.frustums.starts[..., 0], fine.frustums.ends[..., 0]
        return TaughtRays(
            edges=torch.cat([starts, ends[..., -1:]], dim=-1).cummax(dim=-1).values,
            weights=weights[..., 0],
            rgb=(weights * said[FieldHeadNames.RGB]).sum(dim=-2),
        )
