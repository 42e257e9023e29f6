"""The scene that LightGaussian compresses: a splatfacto model whose number of Gaussians and SH shrink as it trains."""

from typing import Any

import torch
from gsplat.strategy.ops import remove
from nerfstudio.models.splatfacto import SH2RGB
from torch import Tensor
from torch.nn import Parameter

from radcomp_plugins.lightgaussian.config import LightGaussianModelConfig
from radcomp_plugins.lightgaussian.panel import CompressionPanel
from radcomp_plugins.lightgaussian.quantise import Quantised
from radcomp_plugins.splats.fake_quantise import FakeQuantiser, Palette, unpack_quantiser
from radcomp_plugins.splats.formats.sog_writer import MAX_PALETTE
from radcomp_plugins.splats.gaussians import Gaussians, num_sh_rest, sh_degree_of
from radcomp_plugins.splats.merge import Merged
from radcomp_plugins.splats.splatfacto import DeviceFreeSplatfactoModel

STUDENT_OF = {
    "means": "means",
    "quats": "quats",
    "scales": "scales",
    "opacities": "opacities",
    "features_dc": "sh0",
    "features_rest": "shN",
}
"""Parameter of the model -> tensor of `Gaussians`."""


def sh_palette(model: "LightGaussianModel") -> tuple[Tensor, Tensor] | None:
    """The codebook [K, D] and labels [N] that a .sog can take as they are: Gaussians with SH of their own get entries
    of their own. None where there is no codebook, or too many entries: the writer then makes a palette itself."""
    labels = model.sh_labels.long()
    own = torch.where(labels < 0)[0]
    if model.codebook.shape[0] == 0 or model.codebook.shape[0] + len(own) > MAX_PALETTE:
        return None
    labels = labels.clone()
    labels[own] = model.codebook.shape[0] + torch.arange(len(own), device=labels.device)
    return torch.cat([model.codebook, model.gauss_params["features_rest"][own].flatten(1)]), labels


class LightGaussianModel(DeviceFreeSplatfactoModel):
    """A `SplatfactoModel` for every stock tool, with a codebook in place of some Gaussians' SH.

    Colours are always spherical harmonics, also at degree 0, where upstream switches to plain RGB.
    """

    config: LightGaussianModelConfig

    def populate_modules(self) -> None:
        """Add the codebook, its mapping and the significance to splatfacto's parameters."""
        super().populate_modules()
        self.codebook = Parameter(torch.zeros(0, 3 * num_sh_rest(self.config.sh_degree)))
        self.register_buffer("sh_labels", torch.full((self.num_points,), -1, dtype=torch.int32))
        self.register_buffer("significance", torch.zeros(self.num_points))
        self.sh_labels: Tensor
        self.register_buffer("encoding_plan", torch.zeros(0, dtype=torch.uint8))
        self.significance: Tensor
        self.encoding_plan: Tensor
        self._quantiser: FakeQuantiser | None = None
        self.panel = CompressionPanel()

    @property
    def features_rest(self) -> Tensor:
        """SH above degree 0 [N, K, 3]: entries of the codebook where a Gaussian is mapped to one."""
        own = self.gauss_params["features_rest"]
        if self.codebook.shape[0] == 0:
            return own
        return Quantised(self.codebook, self.sh_labels).decode(own.flatten(1)).view_as(own)

    @property
    def shs_0(self) -> Tensor:
        """Constant SH coefficient [N, 3]."""
        return self.features_dc

    @property
    def colors(self) -> Tensor:
        """Colour of the constant coefficient [N, 3], about 0 to 1."""
        return SH2RGB(self.features_dc)

    @property
    def quantiser(self) -> FakeQuantiser | None:
        """Of the format that the last stage trains through; None before it."""
        if self._quantiser is None and len(self.encoding_plan):
            data = self.encoding_plan.cpu().numpy().tobytes()
            self._quantiser = unpack_quantiser(data, self.gaussians(), self.weights())
        return self._quantiser

    def weights(self) -> Tensor | None:
        """Significance [N] for the formats' writers; None where it was not measured."""
        return self.significance if bool(self.significance.any()) else None

    def palette(self) -> Palette | None:
        """What `sh_palette` gives, for `fake_quantise`."""
        shared = sh_palette(self)
        return None if shared is None else Palette(shared[0].view(len(shared[0]), -1, 3), shared[1])

    def encoded(self) -> Gaussians:
        """The scene as the file of the last stage's format gives it back, with gradients; before that stage, itself."""
        scene = Gaussians(
            means=self.means,
            quats=self.quats,
            scales=self.scales,
            opacities=self.opacities.squeeze(-1),
            sh0=self.shs_0,
            shN=self.features_rest,
            antialiased=self.config.rasterize_mode == "antialiased",
        )
        return scene if self.quantiser is None else self.quantiser(scene, self.palette())

    def activated(self) -> dict[str, Tensor]:
        """Upstream's tensors, of the decoded file where the last stage trains through a format."""
        if self.quantiser is None:
            return super().activated()
        g = self.encoded()
        return {
            "means": g.means,
            "quats": g.quats,
            "scales": g.scales.exp(),
            "opacities": g.opacities.sigmoid(),
            "colors": torch.cat([g.sh0[:, None], g.shN], dim=1),
        }

    def current_sh_degree(self) -> int:
        """Degree of what is stored: the teacher is trained, so no coefficient waits for its turn."""
        return sh_degree_of(self.gauss_params["features_rest"].shape[1])

    def get_gaussian_param_groups(self) -> dict[str, list[Parameter]]:
        """Splatfacto's groups and the codebook."""
        return {**super().get_gaussian_param_groups(), "codebook": [self.codebook]}

    def step_post_backward(self, step: int) -> None:
        """No densification: what was pruned stays pruned."""
        assert step == self.step

    def load_state_dict(self, dict: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Take on the sizes of the checkpoint, whatever stage it is from."""
        self._quantiser = None
        # Checkpoints of earlier versions have no plan.
        dict = {"encoding_plan": self.encoding_plan[:0], **dict}
        for name in ("codebook", "sh_labels", "significance", "encoding_plan"):
            if name in dict:
                tensor = getattr(self, name)
                tensor.data = torch.zeros_like(dict[name], device=self.device)
        result = super().load_state_dict(dict, **kwargs)
        self._follow_sh_degree()
        return result

    def _follow_sh_degree(self) -> None:
        # ns-export reads the degree from the config.
        self.config.sh_degree = self.current_sh_degree()

    @torch.no_grad()
    def start_from(self, teacher: Gaussians) -> None:
        """Take on the teacher's Gaussians, before the optimizers are made."""
        for name, source in STUDENT_OF.items():
            tensor = getattr(teacher, source).to(self.device).clone()
            self.gauss_params[name].data = tensor[:, None] if name == "opacities" else tensor
        self.sh_labels.data = torch.full((len(teacher),), -1, dtype=torch.int32, device=self.device)
        self.significance.data = torch.zeros(len(teacher), device=self.device)
        self.codebook.data = torch.zeros(0, 3 * teacher.shN.shape[1], device=self.device)
        self.encoding_plan, self._quantiser = self.encoding_plan[:0], None
        self.config.rasterize_mode = "antialiased" if teacher.antialiased else "classic"
        self._follow_sh_degree()

    @torch.no_grad()
    def prune(self, keep: Tensor) -> None:
        """Drop all Gaussians but those of the mask [N], from the parameters and from the optimizers' state."""
        state = {"sh_labels": self.sh_labels, "significance": self.significance}
        remove(self.gauss_params, self.optimizers, state, ~keep)
        self.sh_labels, self.significance = state["sh_labels"], state["significance"]

    @torch.no_grad()
    def merge(self, merged: Merged) -> None:
        """Take on merged Gaussians; each goes on with the optimizers' state of the one whose place it took."""
        keep = torch.zeros(self.num_points, dtype=torch.bool, device=self.device)
        keep[merged.place] = True
        self.prune(keep)
        for name, source in STUDENT_OF.items():
            self.gauss_params[name].data.copy_(getattr(merged.scene, source).view_as(self.gauss_params[name]))
        self.significance = merged.weights.to(self.significance)

    @torch.no_grad()
    def cut_sh(self, degree: int) -> None:
        """Keep the SH up to a degree, and their optimizer state."""
        count = num_sh_rest(degree)
        self._replace("features_rest", self.gauss_params["features_rest"][:, :count], lambda state: state[:, :count])
        self.codebook.data = torch.zeros(0, 3 * count, device=self.device)
        self._follow_sh_degree()

    @torch.no_grad()
    def adopt_codebook(self, quantised: Quantised) -> None:
        """Map Gaussians to the entries of a codebook, which becomes a parameter of its own."""
        self.sh_labels = quantised.labels.to(self.device)
        self.codebook.data = quantised.codebook.to(self.device).clone()

    @torch.no_grad()
    def adopt_quantiser(self, quantiser: FakeQuantiser) -> None:
        """Draw from now on what the quantiser's format gives back."""
        data = torch.frombuffer(bytearray(quantiser.pack()), dtype=torch.uint8)
        self.encoding_plan, self._quantiser = data.to(self.device), quantiser

    def _replace(self, name: str, tensor: Tensor, change_state: Any) -> None:
        """Swap a parameter for one of another shape, in the model and in its optimizer."""
        old, new = self.gauss_params[name], Parameter(tensor.clone())
        self.gauss_params[name] = new
        if not hasattr(self, "optimizers"):
            return
        optimizer = self.optimizers[name]
        state = optimizer.state.pop(old, {})
        optimizer.param_groups[0]["params"] = [new]
        optimizer.state[new] = {
            key: change_state(value).clone() if torch.is_tensor(value) and value.ndim > 0 else value
            for key, value in state.items()
        }

    def _selected(self) -> dict[str, Tensor] | None:
        """Upstream's choice; in the viewer also what the panel's preview says."""
        tensors = super()._selected()
        return tensors if self.training or tensors is None else self.panel.select(self, tensors)

    def get_metrics_dict(self, outputs: Any, batch: Any) -> dict[str, Any]:
        """Upstream's metrics, and the size of the scene as it stands."""
        metrics: dict[str, Any] = super().get_metrics_dict(outputs, batch)
        metrics["codebook_entries"] = self.codebook.shape[0]
        metrics["sh_degree"] = self.current_sh_degree()
        metrics["estimated_bytes"] = self.estimated_bytes()
        return metrics

    def estimated_bytes(self) -> int:
        """Bytes of a .sog of this scene, estimated from its parts: the exact figure needs the export.

        13 bytes a Gaussian for means, rotation, scale, opacity and constant colour, 2 for the SH label, one byte for
        each coefficient of the palette.
        """
        palette = self.codebook.numel() + int((self.sh_labels < 0).sum()) * self.codebook.shape[1]
        label = 2 if self.current_sh_degree() > 0 else 0
        return self.num_points * (13 + label) + palette
