"""Zip-NeRF in plain torch (Barron et al. 2023) as a nerfstudio model, on any device."""

import math
from typing import Any, cast

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.models.base_model import Model
from nerfstudio.utils import colormaps
from torch import Tensor, nn
from torchmetrics.image import PeakSignalNoiseRatio

from radcomp_plugins import compat
from radcomp_plugins.core.ssim import SSIM
from radcomp_plugins.errors import InputError
from radcomp_plugins.teachers.zipnerf import losses, sampling
from radcomp_plugins.teachers.zipnerf.config import ZipNerfModelConfig
from radcomp_plugins.teachers.zipnerf.datamanager import ALPHA_KEY, BACKGROUND_KEY
from radcomp_plugins.teachers.zipnerf.field import ColorNetwork, ConeGrid, DensityField
from radcomp_plugins.teachers.zipnerf.render import Cones, Level, Space, colors, march

BACKGROUNDS = ("white", "black", "random", "last_sample", "dataset")
"""What may lie behind the scene; a checkpoint keeps the number."""


class ZipNerfModel(Model):
    """Two proposal fields and a final one, all over grids of cone features.

    What the dataset decides (the box, what lies behind the scene) is kept in buffers, so that a checkpoint opens
    without it.
    """

    config: ZipNerfModelConfig
    box: Tensor
    is_box: Tensor
    background: Tensor
    background_kind: Tensor

    def populate_modules(self) -> None:
        """Fields, networks, metrics, and what the dataset says about the scene."""
        super().populate_modules()
        config = self.config
        _check(config)
        self.proposals = nn.ModuleList(
            DensityField(
                ConeGrid(levels, config.base_resolution, log2_size, config.proposal_features),
                config.proposal_hidden_dim,
                0,
                config.density_activation,
                config.density_bias,
            )
            for levels, log2_size in zip(config.proposal_num_levels, config.proposal_log2_size, strict=True)
        )
        self.field = DensityField(
            ConeGrid(config.num_levels, config.base_resolution, config.log2_size, config.features),
            config.hidden_dim,
            config.bottleneck_dim,
            config.density_activation,
            config.density_bias,
        )
        self.color_network = ColorNetwork(
            config.bottleneck_dim,
            config.color_hidden_dim,
            config.color_num_layers,
            config.direction_degree,
            config.appearance_dim,
        )
        if config.appearance_dim:
            self.appearance = nn.Embedding(self.num_train_data, config.appearance_dim)
            nn.init.normal_(self.appearance.weight, std=0.1)
        self._set_scene(self.kwargs.get("metadata") or {})
        self.anneal, self.skips = 1.0, True
        self.psnr = PeakSignalNoiseRatio(data_range=1.0)
        self.ssim = SSIM()
        with compat.lazy_lpips():
            from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

            self.lpips = LearnedPerceptualImagePatchSimilarity(normalize=True)

    def _set_scene(self, metadata: dict[str, Any]) -> None:
        color = metadata.get(BACKGROUND_KEY)
        bounds = self.config.scene_bounds
        is_box = bounds == "box" or (bounds == "auto" and color is not None)
        kind = self.config.background_color
        if kind == "auto":
            kind = "random" if metadata.get(ALPHA_KEY) else "dataset" if color is not None else "last_sample"
        fixed = {"white": torch.ones(3), "black": torch.zeros(3)}.get(kind, torch.ones(3) if color is None else color)
        self.register_buffer("box", self.scene_box.aabb.detach().float().clone())
        self.register_buffer("is_box", torch.tensor(is_box))
        self.register_buffer("background", fixed.detach().float().clone())
        self.register_buffer("background_kind", torch.tensor(BACKGROUNDS.index(kind)))
        self._read_scene()

    def _read_scene(self) -> None:
        """Take over what the buffers say, as plain values: no step should wait for a device to tell."""
        self._bounded = bool(self.is_box)
        self._kind = BACKGROUNDS[int(self.background_kind)]
        factor = 1 if self._bounded else self.config.contracted_resolution_factor
        for module in self.modules():
            if isinstance(module, ConeGrid):
                module.set_base_resolution(self.config.base_resolution * factor)

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Take on a checkpoint's parameters, box and background."""
        result = super().load_state_dict(compat.without_lpips(state_dict), *args, **kwargs)
        self._read_scene()
        return result

    @property
    def opaque_end(self) -> bool:
        """Whether the last interval takes all the light that is left."""
        return self._kind == "last_sample"

    def get_param_groups(self) -> dict[str, list[nn.Parameter]]:
        """`grids`: the tables. `networks`: everything else."""
        grids = [module.table for module in self.modules() if isinstance(module, ConeGrid)]
        known = {id(parameter) for parameter in grids} | {id(self.device_indicator_param)}
        return {"grids": grids, "networks": [p for p in self.parameters() if id(p) not in known]}

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """What depends on the step."""
        return [
            TrainingCallback(
                where_to_run=[TrainingCallbackLocation.BEFORE_TRAIN_ITERATION],
                update_every_num_iters=1,
                func=self.set_step,
            )
        ]

    def set_step(self, step: int) -> None:
        """Anneal the resampled weights (mip-NeRF 360, Eq. 18), and begin to leave out rays."""
        progress = min(step / max(self.config.anneal_steps, 1), 1.0)
        slope = self.config.anneal_slope
        self.anneal = slope * progress / ((slope - 1) * progress + 1)
        self.skips = step >= self.config.skip_after

    def cones(self, ray_bundle: RayBundle) -> Cones:
        """Rays [R] as cones between the near and far distance of this scene."""
        origins, directions = ray_bundle.origins, ray_bundle.directions
        # Of a pixel's square, the disc of the same variance: its side times 2 / sqrt(12) (mip-NeRF, Sec. 3.1).
        radii = ray_bundle.pixel_area.sqrt() * (2 / math.sqrt(12))
        if self._bounded:
            near, far = sampling.box_bounds(origins, directions, self.box)
        else:
            near = torch.full_like(radii, self.config.near_plane)
            far = torch.full_like(radii, self.config.far_plane)
        return Cones(origins, directions, radii, near, far)

    def march(self, cones: Cones, jitter: bool, anneal: float = 1.0) -> list[Level]:
        """Levels of a batch of rays, the final one last."""
        config = self.config
        space = Space(
            self.box if self._bounded else None,
            None if self._bounded else config.power_lambda,
            (*[config.num_proposal_multisamples] * len(self.proposals), config.num_multisamples),
        )
        return march(
            [cast(DensityField, field) for field in self.proposals],
            self.field,
            cones,
            space,
            (*config.num_proposal_samples, config.num_samples),
            opaque_end=self.opaque_end,
            jitter=jitter,
            anneal=anneal,
            skip_below=config.skip_weight_threshold if self.skips else 0.0,
            keep=config.skip_keep if self.training else 0.0,
        )

    def premultiplied_rgb(self, level: Level, cones: Cones, appearance: Tensor | None = None) -> Tensor:
        """Colours [R, 3] of the final level with nothing behind them; neutral appearance unless one is given."""
        count = len(cones.origins)
        if appearance is None and self.config.appearance_dim:
            appearance = cones.origins.new_zeros(count, self.config.appearance_dim)
        directions = level.among(cones.directions)
        appearance = None if appearance is None else level.among(appearance)
        rgb = colors(self.color_network, level, directions, appearance, self.config.color_weight_threshold)
        return level.spread(rgb, count)

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Any]:  # type: ignore[override]
        """Draw rays [R]: rgb, accumulation, depth (of half the light), expected_depth; in training also the levels."""
        cones = self.cones(ray_bundle)
        levels = self.march(cones, jitter=self.training, anneal=self.anneal if self.training else 1.0)
        appearance = None
        if self.training and self.config.appearance_dim and ray_bundle.camera_indices is not None:
            appearance = self.appearance(ray_bundle.camera_indices.squeeze(-1))
        final = levels[-1]
        rgb = self.premultiplied_rgb(final, cones, appearance)
        accumulation = final.spread(final.weights.sum(dim=-1, keepdim=True), len(rgb))
        background = self._background(len(rgb))
        outputs: dict[str, Any] = {
            "rgb": rgb + (1 - accumulation) * background,
            "accumulation": accumulation,
            **_depths(final, cones.far),
        }
        if self.training:
            outputs["levels"], outputs["background"] = levels, background
        else:
            outputs["rgb"] = outputs["rgb"].clamp(0, 1)
        return outputs

    def _background(self, rays: int) -> Tensor:
        if self._kind == "random" and self.training:
            return torch.rand(rays, 3, device=self.device)
        return self.background.expand(rays, 3)

    def _truth(self, image: Tensor, background: Tensor) -> Tensor:
        """The photo's pixels, on the background where they have alpha."""
        image = image.to(self.device)
        if image.shape[-1] == 4:
            return image[..., :3] * image[..., 3:] + (1 - image[..., 3:]) * background
        return image

    def get_metrics_dict(self, outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
        """PSNR of a batch of rays."""
        background = outputs.get("background", self.background)
        with torch.no_grad():
            error = (outputs["rgb"] - self._truth(batch["image"], background)).square().mean()
            return {"psnr": -10 * torch.log10(error.clamp_min(1e-10))}

    def get_loss_dict(self, outputs: dict[str, Any], batch: dict[str, Any], metrics_dict: Any = None) -> dict[str, Any]:
        """Colour; and in training what keeps the levels consistent, the weights compact and the features small."""
        config = self.config
        background = outputs.get("background", self.background)
        error = (outputs["rgb"] - self._truth(batch["image"], background)).square()
        if config.rgb_loss == "charbonnier":
            error = (error + 0.001**2).sqrt()
        result = {"rgb_loss": error.mean()}
        if not self.training:
            return result
        *proposals, final = cast(list[Level], outputs["levels"])
        interlevel = [
            losses.interlevel_loss(*_match(level, final), final.edges, final.weights, width)
            for level, width in zip(proposals, config.pulse_widths, strict=True)
        ]
        # Means over all rays: those that were left out lose nothing.
        share = len(final.edges) / len(outputs["rgb"])
        if config.empty_loss_mult:
            total = final.weights.detach().sum(dim=-1)
            excess = torch.stack([_empty_loss(level, final, total, len(outputs["rgb"])) for level in proposals]).sum()
            result["empty_loss"] = config.empty_loss_mult * excess
        result["interlevel_loss"] = share * config.interlevel_loss_mult * torch.stack(interlevel).sum()
        if config.distortion_loss_mult:
            distortion = losses.distortion_loss(final.edges, final.weights)
            result["distortion_loss"] = share * config.distortion_loss_mult * distortion
        if config.hash_decay_mult:
            grids = [module for module in self.modules() if isinstance(module, ConeGrid)]
            decay = torch.stack([losses.hash_decay(grid.table, grid.num_levels) for grid in grids]).sum()
            result["hash_decay"] = config.hash_decay_mult * decay
        return result

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """PSNR, SSIM and LPIPS of an image; photo beside picture, accumulation, depth and error."""
        truth = self._truth(batch["image"], self.background)
        rgb = outputs["rgb"]
        a, b = truth.movedim(-1, 0)[None], rgb.movedim(-1, 0)[None]
        metrics = {"psnr": float(self.psnr(b, a)), "ssim": float(self.ssim(b, a)), "lpips": float(self.lpips(a, b))}
        images = {
            "img": torch.cat([truth, rgb], dim=1),
            "accumulation": colormaps.apply_colormap(outputs["accumulation"]),
            "depth": colormaps.apply_depth_colormap(outputs["depth"], accumulation=outputs["accumulation"]),
            "error": (truth - rgb).abs(),
        }
        return metrics, images

    def get_outputs_for_camera(self, camera: Any, obb_box: OrientedBox | None = None) -> dict[str, Tensor]:
        """Draw one camera."""
        return super().get_outputs_for_camera(camera, obb_box)


def _check(config: ZipNerfModelConfig) -> None:
    """The lists of the proposal levels belong together."""
    count = len(config.num_proposal_samples)
    for name in ("proposal_num_levels", "proposal_log2_size", "pulse_widths"):
        if len(getattr(config, name)) != count:
            raise InputError(
                f"{name}: got {len(getattr(config, name))} numbers, expected {count}, one per proposal level"
            )
    for name in ("num_multisamples", "num_proposal_multisamples"):
        if getattr(config, name) not in (1, 2, 3, 6):
            raise InputError(f"{name}: got {getattr(config, name)}, expected 1, 2, 3 or 6")


def _match(level: Level, final: Level) -> tuple[Tensor, Tensor]:
    """Edges and weights of a level for the rays of the final one only; the rest have nothing to be compared with."""
    if final.rays is None:
        return level.edges, level.weights
    rows = final.rays if level.rays is None else torch.searchsorted(level.rays, final.rays)
    return level.edges[rows], level.weights[rows]


def _empty_loss(level: Level, final: Level, total: Tensor, count: int) -> Tensor:
    """Squared light that a proposal level sees beyond what the final level does, the mean over all rays."""
    seen = level.among(final.spread(total, count))
    return (level.weights.sum(dim=-1) - seen).clamp_min(0).square().sum() / count


@torch.no_grad()
def _depths(level: Level, all_far: Tensor) -> dict[str, Tensor]:
    """Distances [R, 1]: where half the light has been gathered, and the mean; far for what is transparent."""
    far = level.among(all_far)
    middle = 0.5 * (level.distances[:, 1:] + level.distances[:, :-1])
    gathered = level.weights.cumsum(dim=-1)
    index = (gathered < 0.5).sum(dim=-1, keepdim=True)
    half = torch.cat([middle, far], dim=-1).gather(1, index)
    total = gathered[:, -1:]
    mean = (level.weights * middle).sum(dim=-1, keepdim=True) / total.clamp_min(1e-6)
    mean = torch.where(total > 1e-6, mean, far)
    if level.rays is not None:
        half, mean = (all_far.index_copy(0, level.rays, depth) for depth in (half, mean))
    return {"depth": half, "expected_depth": mean}
