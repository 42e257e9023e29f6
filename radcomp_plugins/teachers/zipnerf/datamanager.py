"""nerfstudio's datamanager of rays, which also says what lies behind its images."""

from typing import Any

from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager

from radcomp_plugins.teachers.zipnerf.config import ZipNerfDataManagerConfig

BACKGROUND_KEY = "radcomp_background"
"""Metadata of the training dataset: the colour that its images were composited on, absent where there is none."""
ALPHA_KEY = "radcomp_has_alpha"
"""Metadata of the training dataset: whether its images come with an alpha channel."""


class ZipNerfDataManager(VanillaDataManager):
    """Puts into the training dataset's metadata, which the pipeline gives to the model, what the images end on."""

    config: ZipNerfDataManagerConfig

    def __init__(self, config: ZipNerfDataManagerConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        metadata = self.train_dataset.metadata
        color = self.train_dataparser_outputs.alpha_color
        if color is not None:
            metadata[BACKGROUND_KEY] = color.float()
        # Exports open a run without reading any image.
        elif self.test_mode != "inference":
            metadata[ALPHA_KEY] = self.train_dataset.get_numpy_image(0).shape[-1] == 4
