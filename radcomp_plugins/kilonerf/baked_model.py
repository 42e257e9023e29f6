"""An exported KiloNeRF as a nerfstudio model, so that every stock tool shows the decoded asset."""

from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.models.base_model import Model
from torch import Tensor
from torchmetrics.functional import structural_similarity_index_measure

from radcomp_plugins import compat
from radcomp_plugins.core.metrics import psnr
from radcomp_plugins.errors import InputError
from radcomp_plugins.kilonerf.asset_file import read_asset
from radcomp_plugins.kilonerf.baked_config import BakedKiloModelConfig
from radcomp_plugins.kilonerf.grid import CellLookup
from radcomp_plugins.kilonerf.panel import KiloPanel


class BakedKiloModel(Model):
    """Has no parameters: its state is the asset beside the run.

    Attributes:
        scene: the decoded asset.
        lookup: its grid.
    """

    config: BakedKiloModelConfig

    def populate_modules(self) -> None:
        """Read the asset.

        Raises:
            InputError: it is not there, or damaged.
        """
        super().populate_modules()
        self.scene = read_asset(self.config.asset)
        self.lookup = CellLookup(self.scene.grid)
        self.panel = KiloPanel(self.config.early_stop)
        self.panel.describe(self.scene)
        self.lpips = compat.LazyLpips(normalize=True)

    def load_state_dict(self, state_dict: Any, **kwargs: Any) -> Any:
        """Nothing to load: the asset was read when the model was built."""
        return torch.nn.modules.module._IncompatibleKeys([], [])

    def get_param_groups(self) -> dict[str, list[torch.nn.Parameter]]:
        """None: an exported scene cannot be trained."""
        return {}

    @torch.no_grad()
    def get_outputs(self, ray_bundle: RayBundle | Cameras) -> dict[str, Any]:
        """Draw rays of the scene frame, from the bundle's nears on where it has any."""
        if isinstance(ray_bundle, Cameras):
            return self.get_outputs_for_camera(ray_bundle)
        shape = ray_bundle.origins.shape[:-1]
        nears = None if ray_bundle.nears is None else ray_bundle.nears.reshape(-1).clamp(min=self.scene.near)
        outputs = self.panel.drawn(
            self.scene, self.lookup, ray_bundle.origins.reshape(-1, 3), ray_bundle.directions.reshape(-1, 3), nears,
            self.config.steps,
        )  # fmt: skip
        return {name: value.reshape(*shape, value.shape[-1]) for name, value in outputs.items()}

    def get_metrics_dict(self, outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
        """PSNR of a batch of rays."""
        return {"psnr": psnr(outputs["rgb"], batch["image"][..., :3].to(outputs["rgb"]))}

    def get_loss_dict(self, outputs: Any, batch: Any, metrics_dict: Any = None) -> dict[str, Tensor]:
        """Refuse to train.

        Raises:
            InputError: always.
        """
        raise InputError(
            f"{self.config.asset}: an exported scene cannot be trained; train the run it was exported from"
        )

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """PSNR, SSIM and LPIPS of a whole picture, and the picture beside the photo."""
        image, rgb = batch["image"][..., :3].to(outputs["rgb"]), outputs["rgb"]
        first, second = (tensor.movedim(-1, 0)[None] for tensor in (image, rgb))
        ssim: Any = structural_similarity_index_measure(second, first, data_range=1.0)
        metrics = {"psnr": float(psnr(rgb, image)), "ssim": float(ssim), "lpips": float(self.lpips(first, second))}
        return metrics, {"img": torch.cat([image, rgb], dim=1), "error": (rgb - image).abs()}
