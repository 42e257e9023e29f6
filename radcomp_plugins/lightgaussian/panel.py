"""Viewer panel: what the scene would look like, and weigh, with fewer Gaussians or a lower SH degree."""

from typing import TYPE_CHECKING

import torch
from nerfstudio.viewer.viewer_elements import ViewerCheckbox, ViewerSlider, ViewerText
from torch import Tensor

from radcomp_plugins.splats.gaussians import num_sh_rest
from radcomp_plugins.splats.significance import most_significant

if TYPE_CHECKING:
    from radcomp_plugins.lightgaussian.model import LightGaussianModel


class CompressionPanel(torch.nn.Module):
    """Preview controls; they change what is drawn in the viewer, never the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.preview = ViewerCheckbox("Preview", default_value=False, hint="Draw as the two sliders say")
        self.prune_ratio = ViewerSlider("Prune ratio", 0.0, 0.0, 0.99, 0.01, hint="Least significant first")
        self.sh_degree = ViewerSlider("SH degree", 3, 0, 3, 1, hint="Cut without distillation")
        self.size = ViewerText("Size", "", disabled=True, hint="Gaussians, and estimated bytes of a .sog")

    def describe(self, count: int, num_bytes: int) -> None:
        """Show a number of Gaussians and their bytes."""
        text = f"{count:,} Gaussians, about {num_bytes / 1e6:.2f} MB"
        if self.size.value != text:
            self.size.value = text

    def select(self, model: "LightGaussianModel", tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The activated tensors to draw: all, or those that survive the preview's pruning, with their SH cut."""
        if not self.preview.value:
            self.describe(model.num_points, model.estimated_bytes())
            return tensors
        bases = 1 + num_sh_rest(min(int(self.sh_degree.value), model.current_sh_degree()))
        significance = model.significance
        if not bool(significance.any()):
            # Before the first measurement opacity stands in: a preview must not stop the trainer for all its views.
            significance = tensors["opacities"].detach()
        kept = {name: t for name, t in tensors.items()}
        if len(significance) == len(tensors["means"]):
            mask = most_significant(significance, 1 - float(self.prune_ratio.value))
            kept = {name: t[mask] for name, t in tensors.items()}
        colors = kept["colors"].clone()
        colors[:, bases:] = 0
        kept["colors"] = colors
        share = len(kept["means"]) / max(model.num_points, 1)
        self.describe(len(kept["means"]), int(share * model.estimated_bytes()))
        return kept
