"""Nerfacto on the CPU: nerfstudio's model with numba hash encodings, and nothing computed that training drops."""

from typing import Any

from nerfstudio.cameras.rays import RayBundle
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.model_components.ray_samplers import UniformSampler
from nerfstudio.model_components.scene_colliders import AABBBoxCollider
from nerfstudio.models.nerfacto import NerfactoModel
from torch import Tensor

from radcomp_plugins import compat
from radcomp_plugins.teachers.hash_encoding import use_cpu_twin
from radcomp_plugins.teachers.nerfacto_tiny.config import NerfactoTinyModelConfig
from radcomp_plugins.teachers.nerfacto_tiny.datamanager import HAS_ALPHA


class NerfactoTinyModel(NerfactoModel):
    """A `NerfactoModel` for every stock tool, with the same parameters under the same names."""

    config: NerfactoTinyModelConfig

    def populate_modules(self) -> None:
        """Build nerfacto, for an object inside the scene box or for all of space, without downloading anything."""
        self.has_alpha = bool((self.kwargs.get("metadata") or {}).get(HAS_ALPHA, False))
        self.is_object = self.config.scene == "object"
        stock = self.config.disable_scene_contraction
        self.config.disable_scene_contraction = stock or self.is_object
        try:
            with compat.lazy_lpips():
                super().populate_modules()
        finally:
            self.config.disable_scene_contraction = stock
        if self.is_object:
            self.collider = AABBBoxCollider(self.scene_box, near_plane=self.config.near_plane)
            self.proposal_sampler.initial_sampler = UniformSampler(single_jitter=self.config.use_single_jitter)
        if self.config.cpu_twin:
            moving = self.config.predict_normals or self.config.camera_optimizer.mode != "off"
            use_cpu_twin(self, position_gradients=moving)

    def background(self) -> Any:
        """What the renderer puts behind the scene: as configured, but nothing yet while training on alpha."""
        if self.training and self.has_alpha:
            return "random"
        return "last_sample" if self.config.background_color == "auto" else self.config.background_color

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Any]:
        """Upstream's outputs; in training only those that losses read.

        Three median depths of every ray, which training computes and drops, cost a tenth of its time.
        """
        self.renderer_rgb.background_color = self.background()
        if not self.training or self.config.predict_normals or self.config.use_gradient_scaling:
            return super().get_outputs(ray_bundle)
        self.camera_optimizer.apply_to_raybundle(ray_bundle)
        samples, weights, proposals = self.proposal_sampler(ray_bundle, density_fns=self.density_fns)
        field = self.field.forward(samples)
        weights.append(samples.get_weights(field[FieldHeadNames.DENSITY]))
        proposals.append(samples)
        return {
            "rgb": self.renderer_rgb(rgb=field[FieldHeadNames.RGB], weights=weights[-1]),
            "accumulation": self.renderer_accumulation(weights=weights[-1]),
            "weights_list": weights,
            "ray_samples_list": proposals,
        }

    def get_image_metrics_and_images(self, outputs: Any, batch: Any) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Upstream's metrics, and the absolute error as an image."""
        metrics, images = super().get_image_metrics_and_images(outputs, batch)
        truth, drawn = images["img"].chunk(2, dim=1)
        images["error"] = (truth - drawn).abs()
        return metrics, images
