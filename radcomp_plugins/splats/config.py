"""Configs of the device-free splat model; nothing heavy is imported here, because every ns-* command reads them."""

from dataclasses import dataclass, field
from typing import Any, cast

from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanagerConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.models.splatfacto import SplatfactoModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig


def build_model(config: "DeviceFreeSplatfactoModelConfig", **kwargs: Any) -> Any:
    """Import the model class only when a model is built: it brings numba with it."""
    from radcomp_plugins.splats.splatfacto import DeviceFreeSplatfactoModel

    return DeviceFreeSplatfactoModel(config, **kwargs)


def build_datamanager(config: "SplatDatamanagerConfig", **kwargs: Any) -> Any:
    """Import the datamanager class only when one is built."""
    from radcomp_plugins.splats.datamanager import SplatDatamanager

    return SplatDatamanager(config, **kwargs)


def build_pipeline(config: "SplatPipelineConfig", **kwargs: Any) -> Any:
    """Import the pipeline class only when one is built."""
    from radcomp_plugins.splats.pipeline import SplatPipeline

    return SplatPipeline(config, **kwargs)


@dataclass
class FusedAdamOptimizerConfig(AdamOptimizerConfig):
    """Adam in one fused kernel per parameter: on two CPU cores 2 ms instead of 18 ms a step for 70,000 Gaussians."""

    fused: bool = True
    """Use torch's fused kernel, on CPU and CUDA. False falls back to the loop over elementary operations; the results
    agree to rounding."""


@dataclass
class SplatDatamanagerConfig(FullImageDatamanagerConfig):
    """Full images in an order that depends on the step alone, so that a resumed run sees what the first would have."""

    _target: type = field(default_factory=lambda: cast(type, build_datamanager))


@dataclass
class DeviceFreeSplatfactoModelConfig(SplatfactoModelConfig):
    """Splatfacto on any device: gsplat's kernels on CUDA tensors, numba kernels on CPU tensors."""

    _target: type = field(default_factory=lambda: cast(type, build_model))
    max_gaussians: int = 0
    """Densification stops adding Gaussians at this count, and then spends its budget on those with the largest
    screen-space gradient. Raising it buys detail for memory and time, about linearly. 0 means no limit, as in 3DGS."""


@dataclass
class SplatPipelineConfig(VanillaPipelineConfig):
    """Pipeline for splat models on any device."""

    _target: type = field(default_factory=lambda: cast(type, build_pipeline))
