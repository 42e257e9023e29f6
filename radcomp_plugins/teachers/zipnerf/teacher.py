"""Our Zip-NeRF as a teacher of rays."""

import torch
from jaxtyping import Float
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from radcomp_plugins.teachers.rays import TaughtRays
from radcomp_plugins.teachers.zipnerf.model import ZipNerfModel

_RAYS_PER_CHUNK = {"cpu": 2048}
"""Rays asked at once: on the CPU so few that intermediate results stay in the caches."""
_RAYS_PER_CHUNK_ELSEWHERE = 16_384


class ZipNerfTeacher:
    """Answers for arbitrary rays with a trained model: final-level intervals, neutral appearance, no gradients.

    Attributes:
        model: in evaluation mode, its parameters frozen.
    """

    def __init__(self, model: ZipNerfModel) -> None:
        self.model = model.eval().requires_grad_(False)

    @property
    def background(self) -> Float[Tensor, " 3"]:
        """What the model was trained to see behind the scene, in [0, 1]; grey where that was random."""
        return self.model.background

    def to(self, device: torch.device | str) -> "ZipNerfTeacher":
        """The same teacher, moved to another device."""
        self.model.to(device)
        return self

    @torch.no_grad()
    def query_rays(self, ray_bundle: RayBundle, *, jitter: bool = False) -> TaughtRays:
        """The final level's intervals, weights and premultiplied colours.

        Args:
            ray_bundle: [*batch] unit directions in the scene frame, with the pixel areas that set the cones' width;
                near and far are set from the model's scene.
            jitter: place intervals at random within what the proposals allow, from torch's global generator.
        """
        shape, device = ray_bundle.shape, ray_bundle.origins.device
        flat = ray_bundle.flatten()
        chunk = _RAYS_PER_CHUNK.get(device.type, _RAYS_PER_CHUNK_ELSEWHERE)
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for begin in range(0, len(flat), chunk):
            cones = self.model.cones(flat[begin : begin + chunk])
            final = self.model.march(cones, jitter)[-1]
            rays = len(cones.origins)
            evenly = torch.linspace(0, 1, final.distances.shape[1], device=device)
            edges = cones.near + (cones.far - cones.near) * evenly
            if final.rays is not None:
                edges = edges.index_copy(0, final.rays, final.distances)
            else:
                edges = final.distances
            parts.append((edges, final.spread(final.weights, rays), self.model.premultiplied_rgb(final, cones)))
        count = self.model.config.num_samples
        if not parts:
            empty = torch.empty(0, device=device)
            parts = [(empty.view(0, 1).expand(0, count + 1), empty.view(0, 1).expand(0, count), empty.view(0, 1).expand(0, 3))]
        edges, weights, rgb = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return TaughtRays(
            edges=edges.view(*shape, count + 1),
            weights=weights.view(*shape, count),
            rgb=rgb.clamp(0, 1).view(*shape, 3),
        )
