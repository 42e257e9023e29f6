"""What a teacher of rays is: anything that says where along a ray the scene is, and what colour the ray has."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor


@dataclass(frozen=True)
class TaughtRays:
    """A teacher's answer for a batch of rays.

    Attributes:
        edges: distances along the unit direction that part the ray into intervals, scene units, ascending.
        weights: share of the ray's light that each interval sends, in [0, 1]; the sum is at most 1.
        rgb: colour of the ray with nothing behind it: the sum of weight times colour, in [0, 1].
    """

    edges: Float[Tensor, "*batch edges"]
    weights: Float[Tensor, "*batch intervals"]
    rgb: Float[Tensor, "*batch 3"]


@runtime_checkable
class RayTeacher(Protocol):
    """A trained radiance field that answers for arbitrary rays, with neutral appearance and without gradients."""

    background: Float[Tensor, " 3"]
    """What the teacher was trained to see behind the scene, in [0, 1]; of no effect where weights sum to 1."""

    def query_rays(self, ray_bundle: RayBundle, *, jitter: bool = False) -> TaughtRays:
        """The teacher's intervals, weights and colours for rays [*batch] of the scene frame.

        Args:
            ray_bundle: unit directions; near and far are set by the teacher.
            jitter: place the intervals at random within what the proposals allow, from torch's global generator;
                otherwise the answer is deterministic.
        """
        ...

    def to(self, device: torch.device | str) -> "RayTeacher":
        """The same teacher on another device."""
        ...
