"""Config of a `.vqad` file as a nerfstudio model; nothing heavy is imported here."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from nerfstudio.models.base_model import ModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig


def build_baked_model(config: "BakedVqadModelConfig", **kwargs: Any) -> Any:
    """Import the model class only when a model is built."""
    from radcomp_plugins.vqad.baked_model import BakedVqadModel

    return BakedVqadModel(config, **kwargs)


@dataclass
class BakedVqadModelConfig(ModelConfig):
    """A file as a model: what ns-viewer, ns-eval and ns-render show is what the decoder made of its bytes."""

    _target: type = field(default_factory=lambda: cast(type, build_baked_model))
    asset: Path = Path("..")
    """The asset's folder, or a `.vqad` file, which may be cut off after a level. A relative path is relative to the run
    folder, so that both can be moved together."""
    level: int | None = None
    """Finest octree level that is drawn. None is all that the file holds; lower ones are what its beginning holds."""
    enable_collider: bool = False
    """Rays begin at the file's near plane and end with its box; nerfstudio's collider is not used."""
    eval_num_rays_per_chunk: int = 1 << 14
    """Rays drawn at once. Raising it costs memory."""
    opaque: float = 1e-3
    """Share of a ray's light below which it ends, in [0, 1). 0 follows every ray to its end. The paper: 0."""

    def __post_init__(self) -> None:
        """Check what cannot work."""
        if not 0.0 <= self.opaque < 1.0:
            raise ValueError(f"opaque is {self.opaque}, expected from 0 to below 1")


def baked_pipeline(datamanager: Any, model: BakedVqadModelConfig) -> VanillaPipelineConfig:
    """The plain pipeline around a file, with the datamanager of the run that it was exported from."""
    return VanillaPipelineConfig(datamanager=datamanager, model=model)
