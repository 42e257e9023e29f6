"""Splatfacto on any device: nerfstudio's model with its two CUDA-only lines and its LPIPS download taken out."""

from dataclasses import dataclass
from typing import Any

import torch
from gsplat.strategy import DefaultStrategy
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.models.splatfacto import RGB2SH, SplatfactoModel
from torch import Tensor

from radcomp_plugins import compat
from radcomp_plugins.core.ssim import SSIM
from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.config import DeviceFreeSplatfactoModelConfig
from radcomp_plugins.splats.gaussians import Gaussians, num_sh_rest
from radcomp_plugins.splats.rasterize import rasterize
from radcomp_plugins.splats.views import viewmats_from_c2w


@dataclass
class CappedStrategy(DefaultStrategy):
    """gsplat's densification under a limit on the number of Gaussians, which rises to its final value step by step.

    A linear rise trains the early steps on few Gaussians, and leaves budget for what only shows late to be missing.
    """

    max_gaussians: int = 0

    def limit(self, step: int) -> int:
        """Most Gaussians at a step: a tenth of the final limit at the start, all of it at 80 % of the growing phase."""
        progress = step / max(0.8 * self.refine_stop_iter, 1)
        return round(self.max_gaussians * min(0.1 + 0.9 * progress, 1.0))

    @torch.no_grad()
    def _grow_gs(self, params: Any, optimizers: Any, state: dict[str, Any], step: int) -> tuple[int, int]:
        """Grow, but at most up to the limit: only the largest gradients get a child, each adds one Gaussian."""
        count = len(params["means"])
        budget = self.limit(step) - count
        if self.max_gaussians > 0:
            if budget <= 0:
                return 0, 0
            grads = state["grad2d"] / state["count"].clamp_min(1)
            wants = grads > self.grow_grad2d
            if step < self.refine_scale2d_stop_iter:
                wants |= state["radii"] > self.grow_scale2d
            if int(wants.sum()) > budget:
                ranked = torch.where(wants, grads, -1.0).argsort(descending=True, stable=True)
                for key in ("grad2d", "radii"):
                    if key in state:
                        state[key][ranked[budget:]] = 0
        return super()._grow_gs(params, optimizers, state, step)


class DeviceFreeSplatfactoModel(SplatfactoModel):
    """A `SplatfactoModel` for every stock tool, drawn by `rasterize`: gsplat on CUDA, numba on the CPU."""

    config: DeviceFreeSplatfactoModelConfig

    def populate_modules(self) -> None:
        """Build the parameters on whatever device there is, and the metrics without downloading anything."""
        self.data_background: Tensor | None = None
        self.images_have_alpha = False
        if self.config.use_bilateral_grid:
            raise InputError("use_bilateral_grid: got True, expected False: only nerfstudio's own splatfacto has it")
        seeds = self.seed_points
        if seeds is not None and not self.config.random_init:
            # Upstream moves the colours to CUDA unless there are none; they are set below instead.
            self.seed_points = (seeds[0], seeds[1][:0])
        with compat.lazy_lpips():
            super().populate_modules()
        if seeds is not None and not self.config.random_init:
            self.seed_points = seeds
            self._color_seeds(seeds[1].float() / 255)
        self.ssim = SSIM()
        self.strategy = self._capped(self.strategy)

    def _color_seeds(self, rgb: Tensor) -> None:
        if len(rgb) == len(self.means):
            dc = RGB2SH(rgb) if self.config.sh_degree > 0 else torch.logit(rgb, eps=1e-10)
            self.gauss_params["features_dc"] = torch.nn.Parameter(dc)

    def _capped(self, strategy: DefaultStrategy) -> CappedStrategy:
        options = {**vars(strategy), "verbose": False}
        return CappedStrategy(**options, max_gaussians=self.config.max_gaussians)

    def _get_background_color(self) -> Tensor:
        """The colour the dataset asks for behind its images, unless the config says white or black.

        Training images with alpha, or of a dataset without such a colour, get a random one at every step. It depends on
        the step alone, so that resumed runs repeat it.
        """
        if self.config.background_color != "random":
            return super()._get_background_color()
        if self.data_background is not None and not (self.training and self.images_have_alpha):
            return self.data_background
        if not self.training:
            return super()._get_background_color()
        return torch.rand(3, generator=torch.Generator().manual_seed(self.step)).to(self.device)

    def load_state_dict(self, dict: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Take on the checkpoint's number of Gaussians and SH degree.

        The parameters keep their identity, unlike upstream's, because the trainer has given them to the optimizers
        before it loads a checkpoint to resume from (nerfstudio issue #3554).
        """
        state = compat.without_lpips(dict)
        for name, param in self.gauss_params.items():
            key = f"gauss_params.{name}"
            if key in state and param.shape != state[key].shape:
                param.data = torch.zeros_like(state[key], device=self.device)
        self.step = 30_000
        return torch.nn.Module.load_state_dict(self, state, **kwargs)

    def gaussians(self) -> Gaussians:
        """The scene as it stands: detached, before activation, world frame of the dataset parser."""
        return Gaussians(
            means=self.means.detach(),
            quats=self.quats.detach(),
            scales=self.scales.detach(),
            opacities=self.opacities.detach().squeeze(-1),
            sh0=self.shs_0.detach(),
            shN=self.shs_rest.detach(),
            antialiased=self.config.rasterize_mode == "antialiased",
        )

    def current_sh_degree(self) -> int | None:
        """SH degree to draw with at this step; None where colours are plain RGB."""
        if self.config.sh_degree == 0:
            return None
        return min(self.step // self.config.sh_degree_interval, self.config.sh_degree)

    def activated(self) -> dict[str, Tensor]:
        """What the rasterizer takes of the Gaussians: means, quats, scales, opacities [N] and colors."""
        tensors = {
            "means": self.means,
            "quats": self.quats,
            "scales": torch.exp(self.scales),
            "opacities": torch.sigmoid(self.opacities).squeeze(-1),
            "colors": torch.cat([self.features_dc[:, None, :], self.features_rest], dim=1),
        }
        if self.current_sh_degree() is None:
            tensors["colors"] = torch.sigmoid(self.features_dc)
        return tensors

    def _selected(self) -> dict[str, Tensor] | None:
        """Activated tensors of the Gaussians to draw: all, or those in the crop box; None where it is empty."""
        tensors = self.activated()
        if self.crop_box is None or self.training:
            return tensors
        inside = self.crop_box.within(self.means).reshape(-1)
        return {name: tensor[inside] for name, tensor in tensors.items()} if bool(inside.any()) else None

    def get_outputs(self, camera: Cameras) -> dict[str, Any]:
        """Draw one camera.

        Returns:
            rgb [H, W, 3], accumulation [H, W, 1], background, and depth [H, W, 1] outside training.
        """
        c2w = self.camera_optimizer.apply_to_camera(camera) if self.training else camera.camera_to_worlds
        factor = self._get_downscale_factor()
        width, height = int(camera.width.item()) // factor, int(camera.height.item()) // factor
        tensors = self._selected()
        background = self._get_background_color().to(self.device)
        if tensors is None:
            return self.get_empty_outputs(width, height, background)
        intrinsics = camera.get_intrinsics_matrices().to(self.device)
        intrinsics = intrinsics * intrinsics.new_tensor([1 / factor, 1 / factor, 1.0])[:, None]
        with_depth = self.config.output_depth_during_training or not self.training
        render, alpha, self.info = rasterize(
            tensors["means"],
            tensors["quats"],
            tensors["scales"],
            tensors["opacities"],
            tensors["colors"],
            viewmats=viewmats_from_c2w(c2w.to(self.device)),
            Ks=intrinsics,
            width=width,
            height=height,
            sh_degree=self.current_sh_degree(),
            render_mode="RGB+ED" if with_depth else "RGB",
            rasterize_mode=self.config.rasterize_mode,
            absgrad=self.strategy.absgrad and self.training,
        )
        if self.training:
            self.last_size = (height, width)
            self.strategy.step_pre_backward(
                self.gauss_params, self.optimizers, self.strategy_state, self.step, self.info
            )
        return self._composite(render[0], alpha[0], background)

    def _composite(self, render: Tensor, alpha: Tensor, background: Tensor) -> dict[str, Any]:
        rgb = (render[..., :3] + (1 - alpha) * background).clamp(0.0, 1.0)
        depth = None
        if render.shape[-1] == 4:
            depth = render[..., 3:]
            # Pixels that see nothing get the far end of the scene, so that colour maps keep their range.
            depth = torch.where(alpha > 0, depth, depth.detach().max())
        if not self.training:
            background = background.expand(*rgb.shape[:2], 3)
        return {"rgb": rgb, "depth": depth, "accumulation": alpha, "background": background}

    def get_image_metrics_and_images(self, outputs: Any, batch: Any) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Upstream's metrics, the size of the scene, and the absolute error as an image."""
        metrics, images = super().get_image_metrics_and_images(outputs, batch)
        metrics["num_gaussians"] = float(self.num_points)
        truth, drawn = images["img"].chunk(2, dim=1)
        images["error"] = (truth - drawn).abs()
        return metrics, images

    def ply_bytes(self) -> int:
        """Size in bytes of this scene as a .ply of float32, without its header."""
        return self.num_points * 4 * (17 + 3 * num_sh_rest(self.gaussians().sh_degree))
