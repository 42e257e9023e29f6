"""The frames of the student as torch operations, and which submodel a ray belongs to."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from radcomp_plugins.errors import InputError
from radcomp_plugins.smerf.layout import Layout

CAMERA_ROOM = 1.0 + 1e-4
"""How far outside of [-1, 1] a camera may be: rounding."""


class Submodels(nn.Module):
    """Live submodels of a layout; moves with the model from device to device and has no parameters."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        centres = np.stack([layout.centre(index) for index in layout.alive])
        self.register_buffer("centres", torch.tensor(centres, dtype=torch.float32), persistent=False)
        self.register_buffer("shift", torch.tensor(layout.scene_to_unit[:, 3], dtype=torch.float32), persistent=False)
        self.centres: Float[Tensor, "rows 3"]
        self.shift: Float[Tensor, " 3"]
        self.unit_scale = float(layout.scene_to_unit[0, 0])
        away = np.abs(centres[:, None] - centres[None]).max(axis=-1)
        is_neighbour = (away < 1.5 * 2.0 / layout.submodels_per_axis) & (away > 0)
        # A submodel without neighbours is its own, as in the authors' code.
        is_neighbour |= np.diag(~is_neighbour.any(axis=1))
        self.register_buffer("is_neighbour", torch.tensor(is_neighbour), persistent=False)
        self.is_neighbour: Bool[Tensor, "rows rows"]

    def __len__(self) -> int:
        return len(self.layout.alive)

    def to_unit(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
        """Points of the scene frame in the unit frame; directions stay as they are, distances scale by `unit_scale`."""
        return points * self.unit_scale + self.shift

    def assign(self, origins: Float[Tensor, "N 3"]) -> Int[Tensor, " N"]:
        """Row of the live submodel whose centre is nearest in the largest norm; origins in the unit frame."""
        return (origins[:, None] - self.centres).abs().amax(dim=-1).argmin(dim=-1)

    def random_neighbour(self, row: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """A random live neighbour of each row, from torch's global generator; the row itself where it has none."""
        return torch.multinomial(self.is_neighbour[row].float(), 1)[:, 0]

    def to_submodel(self, points: Float[Tensor, "N 3"], row: Int[Tensor, " N"]) -> Float[Tensor, "N 3"]:
        """Points of the unit frame in their submodels' frames (WebGL axes)."""
        return rotate(points - self.centres[row]) * self.layout.submodel_scale


def rotate(vectors: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """Unit axes to those of the submodel frame: (x, y, z) become (-x, z, y)."""
    x, y, z = vectors.unbind(dim=-1)
    return torch.stack([-x, z, y], dim=-1)


def unit_frame(origins: Float[Tensor, "cameras 3"], camera_room: float = 1.0, per_axis: int = 1) -> NDArray[np.float64]:
    """The scale and shift that bring every camera into [-1, 1]^3, and into as few cells of it as there can be.

    With one submodel the scene frame's own origin stays the centre: dataset parsers put it where the cameras look, or
    among them. With more, the cameras' bounding box is centred in the fewest cells that hold it, along each axis by
    itself: cameras at eye height lie in one layer of cells, not half above and half below a border.

    Args:
        origins: camera positions, scene frame.
        camera_room: largest coordinate that a camera gets, in (0, 1].
        per_axis: K, cells along each axis.

    Returns:
        [3, 4] scene-to-unit matrix; the identity where all cameras are at the origin.

    Raises:
        InputError: no camera, or one that is not finite.

    Note:
        The paper's grid lies around the origin. Ours makes two submodels of two rooms at K = 2 instead of eight.
    """
    if len(origins) == 0 or not bool(torch.isfinite(origins).all()):
        raise InputError(f"{len(origins)} training cameras, not all finite: expected at least one, with finite poses")
    low, high = origins.double().amin(dim=0).numpy(), origins.double().amax(dim=0).numpy()
    reach = float(origins.abs().max()) if per_axis == 1 else float((high - low).max()) / 2
    scale = camera_room / reach if reach > 0 else 1.0
    shift = np.zeros(3)
    if per_axis > 1:
        # A hair more than the extent: a camera on a border would be one cell further.
        needed = np.clip(np.ceil((high - low) * scale * per_axis / 2 + 1e-6), 1, per_axis)
        first = (per_axis - needed) // 2
        shift = -1.0 + (2 * first + needed) / per_axis - scale * (low + high) / 2
    return np.concatenate([np.eye(3) * scale, shift[:, None]], axis=1)


def live_submodels(origins: Float[Tensor, "cameras 3"], per_axis: int) -> tuple[int, ...]:
    """Linear indices of the cells with a camera in them, ascending.

    Args:
        origins: camera positions, unit frame.
        per_axis: K.

    Raises:
        InputError: a camera is outside of the unit cube.
    """
    worst = int(origins.abs().amax(dim=-1).argmax())
    if float(origins[worst].abs().max()) > CAMERA_ROOM:
        at = ", ".join(f"{value:.3g}" for value in origins[worst].tolist())
        raise InputError(
            f"camera {worst} is at ({at}) of the unit frame: expected all cameras within [-1, 1]^3; "
            "lower --pipeline.model.camera-room"
        )
    cell = ((origins + 1.0) * 0.5 * per_axis).long().clamp(0, per_axis - 1)
    linear = (cell[:, 0] * per_axis + cell[:, 1]) * per_axis + cell[:, 2]
    return tuple(sorted(set(linear.tolist())))
