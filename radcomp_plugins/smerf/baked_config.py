"""Config of a baked SMERF asset as a nerfstudio model; nothing heavy is imported here."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from nerfstudio.models.base_model import ModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig


def build_baked_model(config: "BakedSmerfModelConfig", **kwargs: Any) -> Any:
    """Import the model class only when a model is built."""
    from radcomp_plugins.smerf.baked_model import BakedSmerfModel

    return BakedSmerfModel(config, **kwargs)


@dataclass
class BakedSmerfModelConfig(ModelConfig):
    """A baked scene as a model: what ns-viewer, ns-eval and ns-render show is the decoded asset."""

    _target: type = field(default_factory=lambda: cast(type, build_baked_model))
    asset: Path = Path("..")
    """The asset's folder. A relative path is relative to the run folder, so that both can be moved together."""
    enable_collider: bool = False
    """Rays begin at `near_plane` and end with the contracted cube; nerfstudio's collider is not used."""
    eval_num_rays_per_chunk: int = 1 << 18
    """Rays drawn at once where the camera is not a pinhole."""
    near_plane: float = 0.05
    """Distance of the near plane, where marching begins, in the asset's unit frame, in which all cameras are in
    [-1, 1]. Nothing closer is seen."""
    step_mult: int = 1
    """Marching steps per plane texel. The asset was made for 1; raising it costs that many times the time."""

    def __post_init__(self) -> None:
        """Check what cannot work."""
        if self.step_mult < 1 or not self.near_plane > 0.0:
            raise ValueError(f"step_mult {self.step_mult}, near_plane {self.near_plane}: expected at least 1, above 0")


def baked_pipeline(datamanager: Any, model: BakedSmerfModelConfig) -> VanillaPipelineConfig:
    """The plain pipeline around a baked model, with the datamanager of the run that it was baked from."""
    return VanillaPipelineConfig(datamanager=datamanager, model=model)
