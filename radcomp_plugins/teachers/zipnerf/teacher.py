"""Our Zip-NeRF as a teacher of rays."""

import torch
from jaxtyping import Float
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from radcomp_plugins.teachers.ray_chunks import in_chunks
from radcomp_plugins.teachers.rays import TaughtRays
from radcomp_plugins.teachers.zipnerf.model import ZipNerfModel

CPU_CHUNK = 2048
"""Rays asked at once on the CPU: so few that intermediate results stay in the caches."""
GPU_CHUNK = 16_384
"""Rays asked at once elsewhere."""


class ZipNerfTeacher:
    """Answers for arbitrary rays with a trained model: final-level intervals, neutral appearance, no gradients.

    Attributes:
        model: in evaluation mode, its parameters frozen.
    """

    def __init__(self, model: ZipNerfModel) -> None:
        self.model = model.eval().requires_grad_(False)

    @property
    def background(self) -> Float[Tensor, " 3"]:
        """What lies behind the scene, in [0, 1]: the dataset's colour, white where it names none."""
        return self.model.background

    def to(self, device: torch.device | str) -> "ZipNerfTeacher":
        """The same teacher, moved to another device."""
        self.model.to(device)
        return self

    def query_rays(self, ray_bundle: RayBundle, *, jitter: bool = False) -> TaughtRays:
        """The final level's intervals, weights and premultiplied colours.

        Args:
            ray_bundle: [*batch], at least one; unit directions in the scene frame, with the pixel areas that set the
                cones' width. Near and far are set from the model's scene.
            jitter: place intervals at random within what the proposals allow, from torch's global generator.
        """
        device = self.model.device
        size = CPU_CHUNK if device.type == "cpu" else GPU_CHUNK
        return in_chunks(ray_bundle, device, size, lambda rays: self._answer(rays, jitter))

    @torch.no_grad()
    def _answer(self, rays: RayBundle, jitter: bool) -> TaughtRays:
        cones = self.model.cones(rays)
        final = self.model.march(cones, jitter)[-1]
        edges = final.distances
        if final.rays is not None:
            # Rays into the void have no weights: any edges will do.
            evenly = torch.linspace(0, 1, edges.shape[1], device=edges.device)
            edges = torch.lerp(cones.near, cones.far, evenly).index_copy(0, final.rays, edges)
        rgb = self.model.premultiplied_rgb(final, cones).clamp(0, 1)
        return TaughtRays(edges=edges, weights=final.spread(final.weights, len(edges)), rgb=rgb)
