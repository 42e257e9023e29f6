"""Pipeline of the teachers that train here."""

from typing import Any

import torch
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig

from radcomp_plugins import compat


class TeacherPipeline(VanillaPipeline):
    """nerfstudio's pipeline, except that a resumed run ends where it would have ended."""

    def __init__(self, config: VanillaPipelineConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        if torch.device(self.device).type == "cpu":
            # The cores belong to the kernels' pool. Torch's own threads spin between its small operations and take
            # them away: nerfacto-tiny 116 ms a step instead of 318 on two busy cores.
            torch.set_num_threads(1)

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Upstream's callbacks; and a resumed run ends at --max-num-iterations, not as many steps later again."""
        trainer = training_callback_attributes.trainer
        if trainer is not None:
            compat.end_training_at(trainer, trainer.config.max_num_iterations)
        return super().get_training_callbacks(training_callback_attributes)
