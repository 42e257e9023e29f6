"""Config of an exported KiloNeRF as a nerfstudio model; nothing heavy is imported here."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from nerfstudio.models.base_model import ModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig


def build_baked_model(config: "BakedKiloModelConfig", **kwargs: Any) -> Any:
    """Import the model class only when a model is built."""
    from radcomp_plugins.kilonerf.baked_model import BakedKiloModel

    return BakedKiloModel(config, **kwargs)


@dataclass
class BakedKiloModelConfig(ModelConfig):
    """An exported scene as a model: what ns-viewer, ns-eval and ns-render show is the decoded asset."""

    _target: type = field(default_factory=lambda: cast(type, build_baked_model))
    asset: Path = Path("..")
    """The asset's folder. A relative path is relative to the run folder, so that both can be moved together."""
    enable_collider: bool = False
    """Rays begin at the asset's near plane and end with its box; nerfstudio's collider is not used."""
    eval_num_rays_per_chunk: int = 1 << 20
    """Rays drawn at once."""
    early_stop: float = 0.01
    """Transmittance below which a ray ends, in [0, 1). 0 follows every ray to its end. The paper: 0.01."""
    steps: float = 1.0
    """Samples in each of the steps that the asset was trained for. Raising it costs that many times the time."""

    def __post_init__(self) -> None:
        """Check what cannot work."""
        if not 0.0 <= self.early_stop < 1.0 or not self.steps > 0.0:
            raise ValueError(f"early_stop {self.early_stop}, steps {self.steps}: expected 0 to below 1, above 0")


def baked_pipeline(datamanager: Any, model: BakedKiloModelConfig) -> VanillaPipelineConfig:
    """The plain pipeline around an exported scene, with the datamanager of the run that it was exported from."""
    return VanillaPipelineConfig(datamanager=datamanager, model=model)
