"""Pipeline for splat models on any device."""

import math
from typing import Any

from nerfstudio.pipelines.base_pipeline import VanillaPipeline

from radcomp_plugins.splats.config import SplatPipelineConfig
from radcomp_plugins.splats.splatfacto import DeviceFreeSplatfactoModel


class SplatPipeline(VanillaPipeline):
    """Draws on the background the images were composited on, and reports a missing LPIPS as null."""

    config: SplatPipelineConfig
    model: DeviceFreeSplatfactoModel

    def __init__(self, config: SplatPipelineConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        alpha_color = self.datamanager.train_dataparser_outputs.alpha_color
        if alpha_color is not None:
            self.model.data_background = alpha_color.to(self.device)

    def get_average_image_metrics(self, data_loader: Any, image_prefix: str, step: int | None = None, **kwargs: Any):
        """Averages over all images; where LPIPS has no weights its keys are null, with the reason beside them."""
        metrics = super().get_average_image_metrics(data_loader, image_prefix, step, **kwargs)
        missing = [key for key, value in metrics.items() if key.startswith("lpips") and math.isnan(value)]
        for key in missing:
            del metrics[key]
        if missing and step is None:
            metrics.update(dict.fromkeys(missing), lpips_missing=self.model.lpips.reason)
        return metrics
