"""Viewer panel: which network draws what, where voxels are occupied, where rays end and what they cost."""

from typing import Any

import torch
from jaxtyping import Float, Int
from nerfstudio.viewer.viewer_elements import ViewerDropdown, ViewerSlider, ViewerText
from torch import Tensor

from radcomp_plugins.kilonerf.grid import CellLookup
from radcomp_plugins.kilonerf.render import Renderer
from radcomp_plugins.kilonerf.render_cpu import RenderSettings
from radcomp_plugins.kilonerf.scene import KiloScene

PICTURE, NETWORKS, OCCUPANCY, SAMPLES = "picture", "networks", "occupancy", "samples per ray"
_GOLDEN = 0.618034
"""Hues a golden ratio of the circle apart: neighbouring numbers get colours that differ, however many there are."""
_TINT = 0.6
_MOST_SAMPLES = 48
"""Samples of a ray that the heat map shows as hottest."""


class KiloPanel(torch.nn.Module):
    """Controls that change what the viewer draws, never the parameters; as they are at first, nothing changes."""

    def __init__(self, early_stop: float) -> None:
        """Take the transmittance at which rays end at first."""
        super().__init__()
        self.show = ViewerDropdown(
            "Show", PICTURE, [PICTURE, NETWORKS, OCCUPANCY, SAMPLES], hint="False colours: network id, voxels, samples"
        )
        self.threshold = ViewerSlider(
            "Early stop", early_stop, 0.0, 0.5, 0.005, hint="Light left at which a ray ends; 0 follows it to its end"
        )
        self.status = ViewerText("Scene", "", disabled=True, hint="Networks, occupied voxels and bytes as fp16")
        # In a list, so that it is no part of the model: the scene that was drawn last, and what draws it.
        self._renderer: list[tuple[KiloScene, Renderer]] = []

    def drawn(
        self,
        scene: KiloScene,
        lookup: CellLookup,
        origins: Float[Tensor, "N 3"],
        directions: Float[Tensor, "N 3"],
        nears: Float[Tensor, " N"] | None = None,
        steps: float = 1.0,
    ) -> dict[str, Any]:
        """Outputs of rays as the controls want them, by the fused kernels.

        Args:
            scene: what is drawn; what was prepared for it is kept until another is drawn.
            lookup: its grid.
            origins: scene frame.
            directions: unit length.
            nears: where rays begin, scene units; the scene's near plane by default.
            steps: samples in each of the grid's steps.
        """
        if not self._renderer or self._renderer[0][0] is not scene or self._renderer[0][1].device != origins.device:
            self._renderer[:] = [(scene, Renderer(scene, origins.device))]
        settings = RenderSettings(termination=float(self.threshold.value), steps=steps)
        outputs = self._renderer[0][1].rays(origins, directions, nears, settings=settings)
        shown = self.recoloured(outputs, lookup, origins, directions)
        # The viewer offers every output, and has no colours for whole numbers.
        return {**{name: shown[name] for name in ("rgb", "accumulation", "depth")}, "samples": shown["samples"].float()}

    def recoloured(
        self, outputs: dict[str, Any], lookup: CellLookup, origins: Tensor, directions: Tensor
    ) -> dict[str, Any]:
        """The outputs, in false colours if asked for."""
        show = self.show.value
        if show == PICTURE:
            return outputs
        if show == SAMPLES:
            return {**outputs, "rgb": heat(outputs["samples"].float() / _MOST_SAMPLES)}
        if show == NETWORKS:
            colours = network_colours(outputs["network"][:, 0])
        else:
            colours = voxel_colours(origins + directions * outputs["depth"], lookup)
        tint = _TINT * outputs["accumulation"].clamp(0.0, 1.0)
        return {**outputs, "rgb": torch.lerp(outputs["rgb"], colours.to(outputs["rgb"]), tint)}

    def describe(self, scene: KiloScene) -> None:
        """Say what there is."""
        networks, voxels = scene.grid.num_networks, int(scene.grid.occupancy.sum())
        size = 2 * sum(array.size for array in scene.weights.values()) + networks * scene.grid.voxels_per_cell**3 // 8
        self.status.value = f"{networks:,} networks, {voxels:,} voxels, {size / 1e6:.1f} MB as fp16"


def network_colours(network: Int[Tensor, " N"]) -> Float[Tensor, "N 3"]:
    """Colours in [0, 1] that tell networks apart: as many hues, all equally strong; grey where there is none."""
    hue = network.float() * _GOLDEN % 1.0
    channels = (hue[:, None] * 6 + torch.tensor([0.0, 4.0, 2.0], device=network.device)) % 6
    colours = ((channels - 3).abs() - 1).clamp(0, 1)
    return torch.where(network[:, None] >= 0, colours, 0.5)


def voxel_colours(points: Float[Tensor, "N 3"], lookup: CellLookup) -> Float[Tensor, "N 3"]:
    """A chequerboard of occupied voxels, orange and blue; black where points lie in none."""
    side = lookup.grid.voxels_per_cell
    voxel = ((points - lookup.lower) * (0.5 * side / lookup.half_cell)).floor().long()
    odd = (voxel.sum(dim=-1) % 2 == 1)[:, None]
    orange, blue = (torch.tensor(c, device=points.device) for c in ((1.0, 0.55, 0.1), (0.1, 0.4, 0.9)))
    return torch.where(lookup.occupied(points)[:, None], torch.where(odd, orange, blue), 0.0)


def heat(share: Float[Tensor, "N 1"]) -> Float[Tensor, "N 3"]:
    """Black, red, yellow, white for 0 to 1."""
    return torch.cat([share * 3, share * 3 - 1, share * 3 - 2], dim=-1).clamp(0.0, 1.0)
