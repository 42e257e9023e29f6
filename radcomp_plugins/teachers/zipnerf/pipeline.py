"""Pipeline of Zip-NeRF."""

from typing import Any

import torch
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from nerfstudio.pipelines.base_pipeline import VanillaPipeline

from radcomp_plugins import compat
from radcomp_plugins.teachers.zipnerf.config import ZipNerfPipelineConfig


class ZipNerfPipeline(VanillaPipeline):
    """nerfstudio's pipeline, except that a resumed run ends where it would have ended."""

    config: ZipNerfPipelineConfig

    def __init__(self, config: ZipNerfPipelineConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        if torch.device(self.device).type == "cpu":
            # The cores belong to the kernels' pool: torch's own threads spin between its small operations.
            torch.set_num_threads(1)

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Upstream's callbacks; and a resumed run ends at --max-num-iterations, not as many steps later again."""
        trainer = training_callback_attributes.trainer
        if trainer is not None:
            compat.end_training_at(trainer, trainer.config.max_num_iterations)
        return super().get_training_callbacks(training_callback_attributes)
