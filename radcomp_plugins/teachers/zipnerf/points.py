"""Our Zip-NeRF as a teacher of points."""

import torch
from jaxtyping import Float
from torch import Tensor

from radcomp_plugins.core.cones import to_grid
from radcomp_plugins.teachers.points import TaughtPoints, points_in_chunks
from radcomp_plugins.teachers.zipnerf.model import ZipNerfModel

_SHARPEST = 1e-6
"""Deviation of a point without a size, scene units: of no effect on the finest level, but no division by 0."""


class ZipNerfPointTeacher:
    """The final field of a trained model, asked about small balls instead of pieces of cones.

    Attributes:
        model: in evaluation mode, its parameters frozen.
        footprint: deviation of the Gaussian that a point stands for, scene units. What is much smaller than the cones
            that the model was trained with asks the finest levels for detail that they were never held to.
    """

    def __init__(self, model: ZipNerfModel, footprint: float = 0.0) -> None:
        self.model = model.eval().requires_grad_(False)
        self.footprint = footprint

    @property
    def trained_from(self) -> float:
        """Where rays begin, scene units: at the near plane, or anywhere in a box."""
        return 0.0 if bool(self.model.is_box) else float(self.model.config.near_plane)

    @property
    def background(self) -> Float[Tensor, " 3"]:
        """What lies behind the scene, in [0, 1]: the dataset's colour, white where it names none."""
        return self.model.background

    def to(self, device: torch.device | str) -> "ZipNerfPointTeacher":
        """The same teacher, moved to another device."""
        self.model.to(device)
        return self

    @torch.no_grad()
    def query_points(self, positions: Float[Tensor, "N 3"], directions: Float[Tensor, "N 3"]) -> TaughtPoints:
        """See `PointTeacher`; outside of the box of a bounded scene there is nothing."""
        return points_in_chunks(positions, directions, self.model.device, self._answer)

    def _answer(self, positions: Tensor, directions: Tensor) -> TaughtPoints:
        model = self.model
        box = model.box if bool(model.is_box) else None
        deviation = torch.full_like(positions[:, :1], max(self.footprint, _SHARPEST))
        inside = positions if box is None else positions.clamp(box[0], box[1])
        points = to_grid(torch.cat([inside, deviation], dim=-1).T, box)
        density, bottleneck = model.field(points[..., None].contiguous())
        parts = [bottleneck, model.color_network.encode(directions)]
        if model.config.appearance_dim:
            parts.append(positions.new_zeros(len(positions), model.config.appearance_dim))
        if box is not None:
            density = density * (inside == positions).all(dim=-1)
        return TaughtPoints(density, model.color_network(*parts).clamp(0.0, 1.0))
