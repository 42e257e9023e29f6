"""nerfstudio's datamanager of rays, with the alpha channel of training images left in place."""

import copy
from typing import Any

from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager
from nerfstudio.data.datasets.base_dataset import InputDataset

from radcomp_plugins.teachers.nerfacto_tiny.config import NerfactoTinyDataManagerConfig

HAS_ALPHA = "radcomp_has_alpha"
"""Key of the training dataset's metadata, which goes to the model: whether training pixels have an alpha channel."""


class NerfactoTinyDataManager(VanillaDataManager[InputDataset]):
    """Trains on images as they are on disk; evaluates on images composited as the dataset parser says."""

    config: NerfactoTinyDataManagerConfig

    def setup_train(self) -> None:
        """Upstream's loader, over a dataset that does not composite; viewer and evaluation keep the one that does."""
        shown = self.train_dataset
        kept: Any = copy.copy(shown)
        kept._dataparser_outputs = copy.copy(shown._dataparser_outputs)
        kept._dataparser_outputs.alpha_color = None
        shown.metadata[HAS_ALPHA] = kept.get_numpy_image(0).shape[-1] == 4
        self.train_dataset = kept
        try:
            super().setup_train()
        finally:
            self.train_dataset = shown
