"""Viewer panel: level of detail, what it would cost to send, codebook use, and indices in false colours."""

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from nerfstudio.viewer.viewer_elements import ViewerCheckbox, ViewerSlider, ViewerText
from torch import Tensor

from radcomp_plugins.core.octree_lookup import corner_weights, locate

if TYPE_CHECKING:
    from radcomp_plugins.vqad.model import VqadModel


class VqadPanel(torch.nn.Module):
    """Controls that change what the viewer draws, never the parameters; as they are at first, nothing changes."""

    def __init__(self, coarsest: int, finest: int) -> None:
        super().__init__()
        self.level = ViewerSlider(
            "Level", finest, coarsest, finest, 1, hint="Draw with the levels up to this, as a cut file would"
        )
        self.false_colour = ViewerCheckbox(
            "Indices", False, hint="Show each surface in the colour of its finest vertex's index"
        )
        self.status = ViewerText(
            "Codebook", "", disabled=True, hint="Bytes up to the level, and codes in effective use"
        )
        self._described: tuple[int, int] | None = None

    def finish(
        self, model: "VqadModel", origins: Float[Tensor, "N 3"], directions: Float[Tensor, "N 3"], outputs: Any
    ) -> Any:
        """The outputs of scene-frame rays, in false colours if asked for; also says what the scene has come to."""
        self.describe(model)
        if not self.false_colour.value or model.field.encoding.mode == "full":
            return outputs
        points = model.field.to_box(origins + directions * outputs["depth"])
        colours = index_colours(model, points, int(self.level.value))
        return {**outputs, "rgb": colours * outputs["accumulation"].clamp(0, 1)}

    def describe(self, model: "VqadModel") -> None:
        """Show bytes and codebook use, counted once for each step and level."""
        level = int(self.level.value)
        if self._described == (model.step, level):
            return
        self._described = (model.step, level)
        kilobytes = model.predicted_bytes(level) / 1000
        encoding = model.field.encoding
        use = "no codebook yet"
        if encoding.mode != "full":
            use = " ".join(f"{float(p):.0f}" for p in encoding.perplexity()) + f" of {2**encoding.bits} codes"
        self.status.value = f"about {kilobytes:.0f} kB; {use}"


def index_colours(model: "VqadModel", points: Float[Tensor, "N 3"], level: int) -> Float[Tensor, "N 3"]:
    """A colour for the index of the vertex nearest to each box-frame point, at the finest level that is there."""
    field, octree = model.field, model.field.octree
    palette = torch.rand(2**field.encoding.bits, 3, generator=torch.Generator().manual_seed(0)).to(points)
    indices = field.encoding.current_indices().long()
    nodes = locate(octree, points, field.finest(level))
    colours = torch.zeros_like(points)
    for number in range(nodes.shape[1]):
        vertices, weights = corner_weights(octree, points, nodes[:, number], octree.coarsest + number)
        nearest = vertices.gather(1, weights.argmax(dim=1, keepdim=True)).squeeze(1)
        colours = torch.where((nearest >= 0)[:, None], palette[indices[nearest.clamp(min=0)]], colours)
    return colours
