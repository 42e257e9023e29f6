"""Teachers of the nerfacto family, and of any model that samples by proposals as nerfacto does."""

from typing import Any

import torch
from jaxtyping import Float
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.utils.colors import COLORS_DICT
from torch import Tensor

from radcomp_plugins.teachers.ray_chunks import in_chunks
from radcomp_plugins.teachers.rays import TaughtRays

PARTS = ("proposal_sampler", "density_fns", "field", "renderer_rgb", "collider")
"""Attributes by which a model is known to sample as nerfacto does."""


def samples_by_proposals(model: Any) -> bool:
    """Whether a model has all parts that `NerfactoTeacher` asks."""
    return all(getattr(model, name, None) is not None for name in PARTS)


class NerfactoTeacher:
    """A trained nerfacto, nerfacto-tiny, depth-nerfacto, ... as it draws in evaluation: see `RayTeacher`.

    Appearance is what the model shows of unseen cameras, the average embedding by default. Where its background is the
    colour of the last sample, the last interval gets the light that is left over.

    Attributes:
        model: in eval mode; not a submodule of anything.
        background: [3] colour behind the scene; black for last_sample, where it has no effect, and for random, as
            nerfstudio draws it.
    """

    background: Float[Tensor, " 3"]

    def __init__(self, model: Any) -> None:
        """Take a model that `samples_by_proposals`."""
        self.model = model.eval().requires_grad_(False)
        color = model.background() if callable(getattr(model, "background", None)) else None
        color = model.renderer_rgb.background_color if color is None else color
        self._opaque = isinstance(color, str) and color == "last_sample"
        if isinstance(color, str):
            color = COLORS_DICT.get(color, torch.zeros(3))
        self.background = color.detach().float().reshape(-1)[:3].clone()

    def to(self, device: torch.device | str) -> "NerfactoTeacher":
        """The same teacher on another device."""
        self.model.to(device)
        self.background = self.background.to(device)
        return self

    @torch.no_grad()
    def query_rays(self, ray_bundle: RayBundle, *, jitter: bool = False) -> TaughtRays:
        """Intervals, weights and colours of rays [*batch]; see `RayTeacher`."""
        sampler = self.model.proposal_sampler
        # Samplers draw at random in training mode, and only they may be in it: the field would ask for an appearance.
        sampler.train(jitter)
        try:
            size = self.model.config.eval_num_rays_per_chunk
            return in_chunks(ray_bundle, self.model.device, size, self._answer)
        finally:
            sampler.eval()

    def _answer(self, rays: RayBundle) -> TaughtRays:
        """The same for flat rays [R]."""
        model = self.model
        samples = model.proposal_sampler(model.collider(rays), density_fns=model.density_fns)[0]
        field = model.field(samples)
        weights = samples.get_weights(field[FieldHeadNames.DENSITY])[..., 0]
        if self._opaque:
            rest = (1 - weights.sum(dim=-1)).clamp(min=0)
            weights = torch.cat([weights[..., :-1], (weights[..., -1] + rest)[..., None]], dim=-1)
        starts, ends = samples.frustums.starts[..., 0], samples.frustums.ends[..., 0]
        return TaughtRays(
            # Interpolated sample positions are ascending up to rounding only.
            edges=torch.cat([starts, ends[..., -1:]], dim=-1).cummax(dim=-1).values,
            weights=weights,
            rgb=(weights[..., None] * field[FieldHeadNames.RGB]).sum(dim=-2),
        )
