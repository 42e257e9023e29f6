"""Viewer panel: which submodel draws, where their borders are, and what quantising and baking do to the picture."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from nerfstudio.viewer.viewer_elements import ViewerCheckbox, ViewerDropdown, ViewerText
from torch import Tensor

from radcomp_plugins.smerf.layout import BakedScene, Layout
from radcomp_plugins.smerf.render import Renderer

if TYPE_CHECKING:
    from radcomp_plugins.smerf.model import SmerfModel

AUTOMATIC = "nearest"
_TINT = 0.45
_GOLDEN = 0.618034
"""Hues a golden ratio of the circle apart: neighbouring numbers get colours that differ, however many there are."""


class SmerfPanel(torch.nn.Module):
    """Controls that change what the viewer draws, never the parameters; as they are at first, nothing changes."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.names = [f"{index:03d}" for index in layout.alive]
        self.submodel = ViewerDropdown(
            "Submodel", AUTOMATIC, [AUTOMATIC, *self.names], hint="Draw all rays with one, or each with the nearest"
        )
        self.boundaries = ViewerCheckbox("Submodel boundaries", False, hint="Tint what lies in each submodel's cell")
        self.quantised = ViewerCheckbox("Quantised", True, hint="As bytes, like the asset; off: before the rounding")
        self.baked = ViewerCheckbox(
            "Baked", False, hint="Draw with the viewers' marching what baking now would give; switch off to refresh"
        )
        self.status = ViewerText("Student", "", disabled=True, hint="Occupied voxels, and bytes before compression")
        self._renderer: list[Renderer] = []  # in a list: no part of the model
        self._described = -1

    def forced_row(self) -> int | None:
        """Row of the submodel that is to draw everything; None for the nearest."""
        return None if self.submodel.value == AUTOMATIC else self.names.index(self.submodel.value)

    def rows(self, nearest: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """Rows that rays are drawn by, given those of the nearest submodels."""
        forced = self.forced_row()
        return nearest if forced is None else torch.full_like(nearest, forced)

    @contextlib.contextmanager
    def precision(self, field: Any) -> Iterator[None]:
        """Within the block the field rounds its texels, or does not, as the panel says."""
        before = field.quantised
        field.quantised = before and self.quantised.value
        try:
            yield
        finally:
            field.quantised = before

    def baked_outputs(
        self, model: "SmerfModel", origins: Float[Tensor, "N 3"], directions: Float[Tensor, "N 3"]
    ) -> dict[str, Tensor] | None:
        """Colours, accumulation and scene-frame depths of rays of the unit frame as baked; None if not asked for.

        The student is baked when the box is ticked, wherever its voxels are occupied, and stays so until it is not.
        """
        if not self.baked.value:
            self._renderer.clear()
            return None
        if not self._renderer:
            self._renderer.append(Renderer(bake_preview(model), model.device))
        forced = self.forced_row()
        starts = torch.full_like(origins[:, 0], model.config.near_plane)
        drawn = self._renderer[0].rays(
            origins, directions, starts, submodel=None if forced is None else self.layout.alive[forced]
        )
        return {
            "rgb": drawn["rgb"],
            "accumulation": drawn["accumulation"][:, None],
            "depth": drawn["depth"][:, None] / model.submodels.unit_scale,
        }

    def finish(
        self, model: "SmerfModel", origins: Float[Tensor, "N 3"], directions: Float[Tensor, "N 3"], outputs: Any
    ) -> Any:
        """The outputs of rays of the unit frame, tinted if asked for; also says what the student has come to."""
        self.describe(model)
        if not self.boundaries.value:
            return outputs
        points = origins + directions * outputs["depth"] * model.submodels.unit_scale
        colours = submodel_colours(len(self.names)).to(origins)[model.submodels.assign(points)]
        return {**outputs, "rgb": torch.lerp(outputs["rgb"], colours, _TINT * outputs["accumulation"].clamp(0, 1))}

    def describe(self, model: "SmerfModel") -> None:
        """Show occupied voxels and predicted bytes, counted once for each step."""
        if model.step == self._described:
            return
        self._described = model.step
        occupied = int(model.occupancy.cells.sum())
        many, size = len(self.names), model.predicted_bytes() / 1e6
        self.status.value = f"{many} submodel{'s' if many > 1 else ''}, {occupied:,} voxels, about {size:.1f} MB"


def submodel_colours(count: int) -> Float[Tensor, "count 3"]:
    """Colours in [0, 1] that tell submodels apart: as many hues, all equally bright and strong."""
    hue = torch.arange(count) * _GOLDEN % 1.0
    channels = (hue[:, None] * 6 + torch.tensor([0.0, 4.0, 2.0])) % 6
    return ((channels - 3).abs() - 1).clamp(0, 1)


def bake_preview(model: "SmerfModel") -> BakedScene:
    """The student baked as it stands, all that is occupied, without looking through any camera."""
    from radcomp_plugins.smerf.bake import bake_submodel, cells_of_voxels

    occupied = model.occupancy.cells.cpu().numpy()
    cells = [cells_of_voxels(one, model.layout) for one in occupied]
    submodels = [bake_submodel(model.field, row, one) for row, one in enumerate(cells)]
    return BakedScene(model.layout, model.deferred.baked(), {one.index: one for one in submodels})
