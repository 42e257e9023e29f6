"""Pipeline for splat models on any device."""

from typing import Any

import torch
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from nerfstudio.pipelines.base_pipeline import VanillaPipeline

from radcomp_plugins import compat
from radcomp_plugins.splats.config import SplatPipelineConfig
from radcomp_plugins.splats.datamanager import SplatDatamanager
from radcomp_plugins.splats.splatfacto import DeviceFreeSplatfactoModel


class SplatPipeline(VanillaPipeline):
    """Draws on the background the images were composited on, and ends resumed runs where they would have ended."""

    config: SplatPipelineConfig
    model: DeviceFreeSplatfactoModel  # type: ignore[assignment]  # upstream has a read-only property
    datamanager: SplatDatamanager

    def __init__(self, config: SplatPipelineConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        if torch.device(self.device).type == "cpu":
            # The cores belong to the rasterizer's pool. Torch's own threads spin between its small operations and take
            # them away: 160 ms a step instead of 250 on two busy cores, about the same on two quiet ones.
            torch.set_num_threads(1)
        self.model.images_have_alpha = self.datamanager.keeps_alpha
        if self.datamanager.data_background is not None:
            self.model.data_background = self.datamanager.data_background.to(self.device)

    def num_training_steps(self, configured: int) -> int:
        """The step at which a run ends, resumed or not; `configured` is --max-num-iterations."""
        return configured

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Upstream's callbacks; and a resumed run ends where it would have ended, not as many steps later again."""
        trainer = training_callback_attributes.trainer
        if trainer is not None:
            compat.end_training_at(trainer, self.num_training_steps(trainer.config.max_num_iterations))
        return super().get_training_callbacks(training_callback_attributes)
