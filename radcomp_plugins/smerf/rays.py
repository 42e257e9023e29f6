"""The rays that the student learns from: patches of the training photos, jittered, and what the teacher says of them.

Jittered copies of the input rays reach the places between the cameras, where a viewer will stand (Duckworth et al.
2024). A teacher is slow, so it is asked for a pool of rays at a time, which several steps draw from.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from radcomp_plugins.core.contraction import contracted_speed
from radcomp_plugins.smerf.submodels import Submodels, rotate
from radcomp_plugins.teachers.rays import RayTeacher

OPAQUE = 0.995
"""A ray that the teacher gives this much weight to is seen to its end; the student need not look further."""


NOTHING = 0.01
"""A ray that the teacher gives no more weight than this to meets nothing."""


@dataclass(frozen=True)
class TaughtPool:
    """Rays with the teacher's answers, patch by patch; everything in the unit frame.

    Attributes:
        origins: [P, 9, 3].
        directions: [P, 9, 3] unit length, unit axes.
        edges: [P, 9, n + 1] distances.
        weights: [P, 9, n] of the teacher's intervals.
        target: [P, 9, 3] the colour to learn.
    """

    origins: Float[Tensor, "P 9 3"]
    directions: Float[Tensor, "P 9 3"]
    edges: Float[Tensor, "P 9 edges"]
    weights: Float[Tensor, "P 9 n"]
    target: Float[Tensor, "P 9 3"]

    def __len__(self) -> int:
        return len(self.origins)

    def select(self, patches: Tensor) -> "TaughtPool":
        """Some of the patches."""
        return TaughtPool(
            self.origins[patches], self.directions[patches], self.edges[patches], self.weights[patches],
            self.target[patches],
        )  # fmt: skip


def jitter(
    bundle: RayBundle, moved: Bool[Tensor, " P"], origin_sigma: float, max_angle: float, patch_rays: int
) -> RayBundle:
    """Move and turn rays at random, from torch's global generator.

    Origins move by Gaussian noise, each ray's on its own; directions turn by one rotation per patch, about a random
    axis by up to an angle.

    Args:
        bundle: rays, patch by patch.
        moved: which patches to change.
        origin_sigma: scene units.
        max_angle: radians.
        patch_rays: rays in a patch.
    """
    patches = len(moved)
    rays = moved.repeat_interleave(patch_rays)[:, None]
    noise = torch.randn_like(bundle.origins) * origin_sigma
    axis = torch.nn.functional.normalize(torch.randn(patches, 3, device=bundle.origins.device), dim=-1)
    angle = torch.rand(patches, 1, device=bundle.origins.device) * max_angle
    axis, angle = (t.repeat_interleave(patch_rays, dim=0) for t in (axis, angle))
    turned = rotate_about(bundle.directions, axis, angle)
    changed = bundle[...]
    changed.origins = torch.where(rays, bundle.origins + noise, bundle.origins)
    changed.directions = torch.where(rays, turned, bundle.directions)
    return changed


def rotate_about(vectors: Tensor, axis: Tensor, angle: Tensor) -> Tensor:
    """Vectors [N, 3] turned about unit axes [N, 3] by angles [N, 1] in radians (Rodrigues)."""
    along = (vectors * axis).sum(dim=-1, keepdim=True) * axis
    across = torch.linalg.cross(axis, vectors)
    return along + (vectors - along) * angle.cos() + across * angle.sin()


@dataclass(frozen=True)
class JitterSettings:
    """How rays are drawn: see the fields of the same names in the pipeline's config."""

    jitter_origin: float
    jitter_rotation: float
    photo_share: float
    query_chunk: int


def taught_pool(
    bundle: RayBundle, photo: Float[Tensor, "N 3"], teacher: RayTeacher, submodels: Submodels, settings: JitterSettings
) -> TaughtPool:
    """Jitter rays and ask the teacher about them.

    Args:
        bundle: rays of training photos in patches of 3 x 3, scene frame.
        photo: their pixels, in [0, 1].
        teacher: whom to ask.
        submodels: the frames.
        settings: how to draw.
    """
    patches = len(photo) // 9
    moved = torch.rand(patches, device=photo.device) >= settings.photo_share
    sigma = settings.jitter_origin / submodels.unit_scale
    bundle = jitter(bundle, moved, sigma, settings.jitter_rotation * math.pi, 9)
    taught = [
        teacher.query_rays(bundle[begin : begin + settings.query_chunk], jitter=True)
        for begin in range(0, len(photo), settings.query_chunk)
    ]
    edges, weights = torch.cat([part.edges for part in taught]), torch.cat([part.weights for part in taught])
    behind = (1.0 - weights.sum(dim=-1, keepdim=True)).clamp(min=0.0) * teacher.background.to(photo)
    said = torch.cat([part.rgb for part in taught]) + behind
    target = torch.where(moved.repeat_interleave(9)[:, None], said, photo)
    return TaughtPool(
        origins=submodels.to_unit(bundle.origins).view(patches, 9, 3),
        directions=bundle.directions.view(patches, 9, 3),
        edges=(edges * submodels.unit_scale).view(patches, 9, -1),
        weights=weights.view(patches, 9, -1),
        target=target.view(patches, 9, 3),
    )


def without_most_empty(pool: TaughtPool, empty_share: float) -> TaughtPool:
    """All patches in which the teacher sees something, and at random a share of the others."""
    if empty_share >= 1.0:
        return pool
    something = (pool.weights.sum(dim=-1) > NOTHING).any(dim=-1)
    chosen = something | (torch.rand(len(pool)) < empty_share).to(something.device)
    return pool.select(torch.where(chosen)[0]) if bool(chosen.any()) else pool


def end_of_sight(edges: Float[Tensor, "R edges"], weights: Float[Tensor, "R n"], far: float) -> Float[Tensor, " R"]:
    """Distance beyond which the teacher sees nothing on each ray; `far` where light comes through the whole scene."""
    reached = weights.cumsum(dim=-1) >= OPAQUE
    first = reached.float().argmax(dim=-1, keepdim=True)
    end = edges[:, 1:].gather(1, first)[:, 0]
    return torch.where(reached.any(dim=-1), end.clamp(max=far), far)


def weighty_points(
    pool: TaughtPool, threshold: float, submodels: Submodels, voxel: float, per_interval: int = 4
) -> tuple[Float[Tensor, "M 3"], Float[Tensor, "M 3"]]:
    """Points where a voxel has more weight than a threshold on the teacher's rays.

    An interval's weight is shared out over its length: a teacher that spreads a wall over a tenth of the room gives
    weight to most of the room, but little of it to any voxel. An interval shorter than a voxel counts whole.

    Args:
        pool: rays with the teacher's intervals.
        threshold: weight, in [0, 1].
        submodels: the frames; a ray's own submodel says how long a voxel is.
        voxel: side of a voxel, contracted frame.
        per_interval: points in an interval.

    Returns:
        Points and the origins of their rays, unit frame.
    """
    edges, weights = pool.edges.flatten(0, 1), pool.weights.flatten(0, 1)
    ray, interval = torch.where(weights > threshold)
    share = (torch.arange(per_interval, device=edges.device) + 0.5) / per_interval
    starts, ends = edges[ray, interval], edges[ray, interval + 1]
    distance = starts[:, None] + share * (ends - starts)[:, None]
    origins, directions = pool.origins.flatten(0, 1)[ray], pool.directions.flatten(0, 1)[ray]
    points = (origins[:, None] + distance[..., None] * directions[:, None]).flatten(0, 1)
    origins, directions, weight, length = (
        t.repeat_interleave(per_interval, dim=0) for t in (origins, directions, weights[ray, interval], ends - starts)
    )
    along = rotate(directions) * submodels.layout.submodel_scale
    own = submodels.to_submodel(points, submodels.assign(origins))
    reach = voxel / contracted_speed(own, along).clamp(min=1e-12)
    chosen = weight * (reach / length.clamp(min=1e-12)).clamp(max=1.0) > threshold
    return points[chosen], origins[chosen]
