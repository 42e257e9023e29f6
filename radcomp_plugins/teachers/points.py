"""What a teacher of points is: anything that says how dense a place is, and what colour it has from a direction."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from nerfstudio.cameras.rays import Frustums, RaySamples
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.utils.colors import COLORS_DICT
from torch import Tensor

CPU_CHUNK = 8192
"""Points asked at once on the CPU: so few that a layer's outputs stay in the caches."""
GPU_CHUNK = 1 << 18
"""Points asked at once elsewhere."""


@dataclass(frozen=True)
class TaughtPoints:
    """A teacher's answer for a batch of points.

    Attributes:
        density: at least 0, per scene unit.
        rgb: in [0, 1].
    """

    density: Float[Tensor, " N"]
    rgb: Float[Tensor, "N 3"]


@runtime_checkable
class PointTeacher(Protocol):
    """A trained radiance field that answers for arbitrary points, with neutral appearance and without gradients."""

    @property
    def background(self) -> Float[Tensor, " 3"]:
        """What the teacher was trained to see behind the scene, in [0, 1]."""
        ...

    @property
    def trained_from(self) -> float:
        """Distance from the training cameras at which their rays began, scene units: nearer, density means nothing."""
        ...

    def query_points(self, positions: Float[Tensor, "N 3"], directions: Float[Tensor, "N 3"]) -> TaughtPoints:
        """Density and colour at points of the scene frame.

        Args:
            positions: scene frame.
            directions: of the rays that look at them, away from the camera, unit length.
        """
        ...

    def to(self, device: torch.device | str) -> "PointTeacher":
        """The same teacher on another device."""
        ...


def points_in_chunks(
    positions: Float[Tensor, "N 3"],
    directions: Float[Tensor, "N 3"],
    device: torch.device,
    answer: Callable[[Tensor, Tensor], TaughtPoints],
) -> TaughtPoints:
    """What `answer` says of points, asked for a bounded number at a time on a device; the answer lies beside them."""
    size = CPU_CHUNK if device.type == "cpu" else GPU_CHUNK
    density = positions.new_empty(len(positions))
    rgb = positions.new_empty(len(positions), 3)
    for begin in range(0, len(positions), size):
        chunk = slice(begin, begin + size)
        part = answer(positions[chunk].to(device), directions[chunk].to(device))
        density[chunk], rgb[chunk] = part.density.to(positions), part.rgb.to(positions)
    return TaughtPoints(density, rgb)


class FieldPointTeacher:
    """One of nerfstudio's fields, as its model asks it in evaluation: nerfacto's and its family's, vanilla-nerf's.

    Attributes:
        model: that the field is a part of; in eval mode, its parameters frozen.
        field: answers for `RaySamples` with density and colour.
        background: [3] colour behind the scene; black where the model takes the last sample's, or a random one.
        trained_from: the near plane of the model's rays, scene units.
    """

    background: Float[Tensor, " 3"]

    def __init__(self, model: Any, field: Any) -> None:
        """Take a model and the field of it that is to answer."""
        self.trained_from = float(getattr(getattr(model, "collider", None), "near_plane", 0.0))
        self.model = model.eval().requires_grad_(False)
        self.field = field
        color = model.background() if callable(getattr(model, "background", None)) else None
        color = model.renderer_rgb.background_color if color is None else color
        if isinstance(color, str):
            color = COLORS_DICT.get(color, torch.zeros(3))
        self.background = color.detach().float().reshape(-1)[:3].clone()

    def to(self, device: torch.device | str) -> "FieldPointTeacher":
        """The same teacher on another device."""
        self.model.to(device)
        self.background = self.background.to(device)
        return self

    @torch.no_grad()
    def query_points(self, positions: Float[Tensor, "N 3"], directions: Float[Tensor, "N 3"]) -> TaughtPoints:
        """See `PointTeacher`."""
        return points_in_chunks(positions, directions, self.model.device, self._answer)

    def _answer(self, positions: Tensor, directions: Tensor) -> TaughtPoints:
        # Intervals of no length, whose middle is the point.
        nothing = torch.zeros_like(positions[:, :1])
        frustums = Frustums(positions, directions, nothing, nothing, torch.ones_like(nothing))
        said = self.field(RaySamples(frustums, camera_indices=torch.zeros_like(nothing, dtype=torch.long)))
        density = said[FieldHeadNames.DENSITY][..., 0].float()
        return TaughtPoints(density.clamp(min=0.0), said[FieldHeadNames.RGB].float().clamp(0.0, 1.0))
