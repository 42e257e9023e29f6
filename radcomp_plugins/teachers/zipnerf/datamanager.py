"""nerfstudio's datamanager of rays, which also says what lies behind its images."""

from typing import Any

from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager

from radcomp_plugins.teachers.zipnerf.config import ZipNerfDataManagerConfig

BACKGROUND_KEY = "radcomp_background"
"""Metadata of the training dataset: the colour that its images are composited on, absent where there is none."""
ALPHA_KEY = "radcomp_has_alpha"
"""Metadata of the training dataset: whether training images reach the model with an alpha channel."""


class ZipNerfDataManager(VanillaDataManager):
    """Tells the model what its images end on, and leaves their alpha channel to it.

    Images with alpha keep it in training, also where the dataset parser would composite them on a colour: on random
    backgrounds there is no room for fog in the background's colour. Evaluation sees the parser's images.
    """

    config: ZipNerfDataManagerConfig

    def __init__(self, config: ZipNerfDataManagerConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        metadata = self.train_dataset.metadata
        color = self.train_dataparser_outputs.alpha_color
        if color is not None:
            metadata[BACKGROUND_KEY] = color.float()
        # Exports open a run without reading any image.
        has_alpha = self.test_mode != "inference" and self.train_dataset.get_numpy_image(0).shape[-1] == 4
        metadata[ALPHA_KEY] = has_alpha and (color is None or self._caches_all)

    @property
    def _caches_all(self) -> bool:
        return self.config.train_num_images_to_sample_from == -1

    def setup_train(self) -> None:
        """Upstream's, which reads all training images, of images that have not been composited yet."""
        outputs = self.train_dataset._dataparser_outputs
        color = outputs.alpha_color
        if self._caches_all:
            outputs.alpha_color = None
        try:
            super().setup_train()
        finally:
            # The viewer's thumbnails read the dataset itself, and cannot show alpha.
            outputs.alpha_color = color
