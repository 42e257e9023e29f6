"""Viewer panel: which network draws what, where voxels are occupied, where rays end and what they cost."""

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from nerfstudio.viewer.viewer_elements import ViewerDropdown, ViewerSlider, ViewerText
from torch import Tensor

if TYPE_CHECKING:
    from radcomp_plugins.kilonerf.model import KiloModel

PICTURE, NETWORKS, OCCUPANCY, SAMPLES = "picture", "networks", "occupancy", "samples per ray"
_GOLDEN = 0.618034
"""Hues a golden ratio of the circle apart: neighbouring numbers get colours that differ, however many there are."""
_TINT = 0.6
_MOST_SAMPLES = 64
"""Samples of a ray that the heat map shows as hottest."""


class KiloPanel(torch.nn.Module):
    """Controls that change what the viewer draws, never the parameters; as they are at first, nothing changes."""

    def __init__(self) -> None:
        super().__init__()
        self.show = ViewerDropdown(
            "Show", PICTURE, [PICTURE, NETWORKS, OCCUPANCY, SAMPLES], hint="False colours: network id, voxels, samples"
        )
        self.threshold = ViewerSlider(
            "Early stop", 0.01, 0.0, 0.5, 0.005, hint="Transmittance below which a ray ends; 0 follows it to the end"
        )
        self.status = ViewerText("Networks", "", disabled=True, hint="Networks, occupied voxels and bytes as fp16")
        self._described = (-1, -1)

    def drawn(
        self, model: "KiloModel", origins: Float[Tensor, "N 3"], directions: Float[Tensor, "N 3"]
    ) -> dict[str, Any]:
        """Outputs of rays as the controls want them."""
        self.describe(model)
        outputs = model.draw(origins, directions)
        return self.recoloured(outputs, model.lookup, origins, directions, len_of(model))

    def recoloured(
        self, outputs: dict[str, Any], lookup: Any, origins: Tensor, directions: Tensor, networks: int
    ) -> dict[str, Any]:
        """The outputs, in false colours if asked for."""
        show = self.show.value
        if show == PICTURE:
            return outputs
        accumulation = outputs["accumulation"].clamp(0.0, 1.0)
        if show == SAMPLES:
            return {**outputs, "rgb": heat(outputs["num_samples"].float() / _MOST_SAMPLES)}
        points = origins + directions * outputs["depth"]
        network, _ = lookup.locate(points)
        colours = network_colours(network)
        if show == OCCUPANCY:
            colours = voxel_colours(points, lookup)
        return {**outputs, "rgb": torch.lerp(outputs["rgb"], colours.to(outputs["rgb"]), _TINT * accumulation)}

    def describe(self, model: "KiloModel") -> None:
        """Say what there is, once for each state of it."""
        count, voxels = len_of(model), len(model.voxel_depth)
        if (count, voxels) == self._described:
            return
        self._described = (count, voxels)
        size = 2 * sum(parameter.numel() for parameter in model.networks.parameters()) / 1e6
        self.status.value = f"{count:,} networks, {voxels:,} voxels, {size:.1f} MB as fp16"


def len_of(model: "KiloModel") -> int:
    """Number of networks."""
    return model.networks.count


def network_colours(network: Int[Tensor, " N"]) -> Float[Tensor, "N 3"]:
    """Colours in [0, 1] that tell networks apart: as many hues, all equally strong; grey where there is none."""
    hue = network.float() * _GOLDEN % 1.0
    channels = (hue[:, None] * 6 + torch.tensor([0.0, 4.0, 2.0], device=network.device)) % 6
    colours = ((channels - 3).abs() - 1).clamp(0, 1)
    return torch.where(network[:, None] >= 0, colours, 0.5)


def voxel_colours(points: Float[Tensor, "N 3"], lookup: Any) -> Float[Tensor, "N 3"]:
    """A chequerboard of occupied voxels, orange and blue; black where points lie in none."""
    side = lookup.grid.voxels_per_cell
    voxel = ((points - lookup.lower) * (0.5 * side / lookup.half_cell)).floor().long()
    odd = (voxel.sum(dim=-1) % 2 == 1)[:, None]
    orange, blue = (torch.tensor(c, device=points.device) for c in ((1.0, 0.55, 0.1), (0.1, 0.4, 0.9)))
    return torch.where(lookup.occupied(points)[:, None], torch.where(odd, orange, blue), 0.0)


def heat(share: Float[Tensor, "N 1"]) -> Float[Tensor, "N 3"]:
    """Black, red, yellow, white for 0 to 1."""
    return torch.cat([share * 3, share * 3 - 1, share * 3 - 2], dim=-1).clamp(0.0, 1.0)
