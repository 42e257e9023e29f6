"""A baked SMERF asset as a nerfstudio model, so that every stock tool shows the decoded asset."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.models.base_model import Model
from torch import Tensor
from torchmetrics.functional import structural_similarity_index_measure

from radcomp_plugins import compat
from radcomp_plugins.core.metrics import psnr
from radcomp_plugins.errors import InputError
from radcomp_plugins.smerf.baked_config import BakedSmerfModelConfig
from radcomp_plugins.smerf.formats.merf import is_merf, read_merf
from radcomp_plugins.smerf.formats.smerf import find_start, read_smerf
from radcomp_plugins.smerf.layout import BakedScene
from radcomp_plugins.smerf.render import Renderer


def read_baked(folder: Path) -> BakedScene:
    """Read an asset of either layout.

    Raises:
        InputError: there is none, or it is damaged.
    """
    start = find_start(Path(folder))
    return read_merf(start) if is_merf(start) else read_smerf(folder)


class BakedSmerfModel(Model):
    """Has no parameters: its state is the asset beside the run.

    Attributes:
        scene: the decoded asset.
        scale: unit-frame length of a scene-frame unit.
        shift: [3] so that x_unit = scale * x_scene + shift.
    """

    config: BakedSmerfModelConfig

    def populate_modules(self) -> None:
        """Read the asset.

        Raises:
            InputError: it is not there, damaged, or in a frame that is turned against the scene's.
        """
        super().populate_modules()
        self.scene = read_baked(self.config.asset)
        frame = np.asarray(self.scene.layout.scene_to_unit, np.float64)
        self.scale = float(frame[0, 0])
        if not self.scale > 0.0 or not np.allclose(frame[:, :3], self.scale * np.eye(3), rtol=1e-5, atol=1e-9):
            raise InputError(f"{self.config.asset}: scene_to_unit {frame.tolist()}, expected a scale and a shift only")
        self.shift = torch.from_numpy(frame[:, 3])
        self.lpips = compat.LazyLpips(normalize=True)
        self._renderer: Renderer | None = None

    @property
    def renderer(self) -> Renderer:
        """What draws, on the device the model is on now."""
        if self._renderer is None or self._renderer.device != self.device:
            self._renderer = Renderer(self.scene, self.device, self.config.step_mult)
        return self._renderer

    def load_state_dict(self, state_dict: Any, **kwargs: Any) -> Any:
        """Nothing to load: the asset was read when the model was built."""
        return torch.nn.modules.module._IncompatibleKeys([], [])

    def get_param_groups(self) -> dict[str, list[torch.nn.Parameter]]:
        """None: a baked scene cannot be trained."""
        return {}

    def get_outputs(self, ray_bundle: RayBundle | Cameras) -> dict[str, Any]:
        """Draw rays of the scene frame.

        Marching begins at the near plane where the bundle says how long its directions were in the camera, else at
        that distance; never before the bundle's own nears.
        """
        if isinstance(ray_bundle, Cameras):
            return self.get_outputs_for_camera(ray_bundle)
        shape = ray_bundle.origins.shape[:-1]
        directions = torch.nn.functional.normalize(ray_bundle.directions.reshape(-1, 3), dim=-1)
        origins = ray_bundle.origins.reshape(-1, 3) * self.scale + self.shift.to(ray_bundle.origins)
        lengths = ray_bundle.metadata.get("directions_norm")
        starts = torch.full_like(origins[:, 0], self.config.near_plane)
        if lengths is not None:
            starts = starts * lengths.reshape(-1)
        if ray_bundle.nears is not None:
            starts = torch.maximum(starts, ray_bundle.nears.reshape(-1) * self.scale)
        return self._outputs(self.renderer.rays(origins, directions, starts), shape)

    @torch.no_grad()
    def get_outputs_for_camera(self, camera: Cameras, obb_box: Any = None) -> dict[str, Tensor]:
        """Draw a whole picture at once; lenses that are no pinhole, and crops, go by upstream's rays."""
        distorted = camera.distortion_params is not None and bool((camera.distortion_params != 0).any())
        if obb_box is not None or distorted or int(camera.camera_type.flatten()[0]) != CameraType.PERSPECTIVE.value:
            return self.get_outputs_for_camera_ray_bundle(
                camera.generate_rays(camera_indices=0, keep_shape=True, obb_box=obb_box).to(self.device)
            )
        width, height = int(camera.width.flatten()[0]), int(camera.height.flatten()[0])
        fx, fy, cx, cy = (float(value.flatten()[0]) for value in (camera.fx, camera.fy, camera.cx, camera.cy))
        pose = camera.camera_to_worlds.reshape(-1, 3, 4)[0].cpu().double()
        pose = torch.cat([pose[:, :3], (pose[:, 3] * self.scale + self.shift)[:, None]], dim=1)
        drawn = self.renderer.picture(pose.numpy(), fx, fy, cx, cy, width, height, near=self.config.near_plane)
        return self._outputs(drawn, (height, width))

    def _outputs(self, drawn: dict[str, Tensor], shape: Any) -> dict[str, Any]:
        """What the renderer gives, as stock tools want it: lengths in the scene frame, a channel everywhere."""
        return {
            "rgb": drawn["rgb"].reshape(*shape, 3),
            "diffuse": drawn["diffuse"].reshape(*shape, 3),
            "accumulation": drawn["accumulation"].reshape(*shape, 1),
            "depth": drawn["depth"].reshape(*shape, 1) / self.scale,
        }

    def get_metrics_dict(self, outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
        """PSNR of a batch of rays."""
        return {"psnr": psnr(outputs["rgb"], batch["image"][..., :3].to(outputs["rgb"]))}

    def get_loss_dict(self, outputs: Any, batch: Any, metrics_dict: Any = None) -> dict[str, Tensor]:
        """Refuse to train.

        Raises:
            InputError: always.
        """
        raise InputError(f"{self.config.asset}: a baked scene cannot be trained; train the run it was exported from")

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """PSNR, SSIM and LPIPS of a whole picture, and the picture beside the photo."""
        image, rgb = batch["image"][..., :3].to(outputs["rgb"]), outputs["rgb"]
        first, second = (tensor.movedim(-1, 0)[None] for tensor in (image, rgb))
        ssim: Any = structural_similarity_index_measure(second, first, data_range=1.0)
        metrics = {"psnr": float(psnr(rgb, image)), "ssim": float(ssim), "lpips": float(self.lpips(first, second))}
        return metrics, {"img": torch.cat([image, rgb], dim=1), "error": (rgb - image).abs()}
