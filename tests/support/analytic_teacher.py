"""A teacher that needs no training: coloured balls of known density, and cameras that look at them."""

from dataclasses import dataclass, field

import torch
from nerfstudio.cameras.rays import RayBundle

from radcomp_plugins.teachers.rays import TaughtRays

CENTRES = torch.tensor([[0.0, 0.0, 0.0], [0.45, 0.2, 0.1], [-0.3, -0.35, 0.25]])
RADII = torch.tensor([0.3, 0.15, 0.2])
COLOURS = torch.tensor([[0.9, 0.2, 0.1], [0.1, 0.8, 0.3], [0.2, 0.3, 0.9]])


@dataclass
class BallTeacher:
    """Balls of constant density around the scene's origin, on white; a highlight depends on the direction.

    Attributes:
        density: per scene unit, inside of the balls.
        intervals: that rays are parted into.
        near: scene units.
        far: scene units.
    """

    density: float = 60.0
    intervals: int = 96
    near: float = 1.0
    far: float = 5.0
    background: torch.Tensor = field(default_factory=lambda: torch.ones(3))

    def query_rays(self, ray_bundle: RayBundle, *, jitter: bool = False) -> TaughtRays:
        """Quadrature over equal intervals."""
        rays = ray_bundle.origins.shape[0]
        edges = torch.linspace(self.near, self.far, self.intervals + 1).expand(rays, -1).clone()
        if jitter:
            edges += (torch.rand(rays, 1) - 0.5) * (self.far - self.near) / self.intervals
        middle = 0.5 * (edges[:, 1:] + edges[:, :-1])
        points = ray_bundle.origins[:, None] + middle[..., None] * ray_bundle.directions[:, None]
        inside = (points[:, :, None] - CENTRES).norm(dim=-1) < RADII
        depth = inside.any(dim=-1) * self.density * edges.diff(dim=-1)
        through = torch.exp(-(depth.cumsum(dim=-1) - depth))
        weights = through * -torch.expm1(-depth)
        ball = inside.float().argmax(dim=-1)
        stripes = 0.5 + 0.5 * torch.sin(20 * points.sum(dim=-1, keepdim=True))
        glow = 0.2 * ray_bundle.directions[:, None, :1].clamp(min=0)
        colour = (COLOURS[ball] * (0.6 + 0.4 * stripes) + glow).clamp(0, 1)
        return TaughtRays(edges, weights, (weights[..., None] * colour).sum(dim=1))

    def to(self, device: torch.device | str) -> "BallTeacher":
        """There is nothing to move."""
        return self


def orbit_rays(patches: int, generator: torch.Generator | None = None, radius: float = 2.5) -> RayBundle:
    """Patches of 3 x 3 rays from a sphere around the balls, looking at them."""
    origins = torch.nn.functional.normalize(torch.randn(patches, 3, generator=generator), dim=-1) * radius
    aim = (torch.rand(patches, 3, generator=generator) - 0.5) * 1.2
    forward = torch.nn.functional.normalize(aim - origins, dim=-1)
    side = torch.nn.functional.normalize(
        torch.linalg.cross(forward, torch.tensor([0.1, 0.2, 1.0]).expand_as(forward)), dim=-1
    )
    up = torch.linalg.cross(side, forward)
    step = torch.arange(-1, 2) * 0.004
    offset = step[:, None, None] * up[:, None, None] + step[None, :, None] * side[:, None, None]
    directions = torch.nn.functional.normalize(forward[:, None, None] + offset, dim=-1).reshape(-1, 3)
    return RayBundle(
        origins=origins.repeat_interleave(9, dim=0),
        directions=directions,
        pixel_area=torch.full((patches * 9, 1), 0.004**2),
    )
