"""nerfstudio's datamanager of rays: alpha left in place."""

import copy
from typing import Any

from nerfstudio.data.datasets.base_dataset import InputDataset

from radcomp_plugins.seeded_rays import SeededDataManager
from radcomp_plugins.vqad.config import VqadDatamanagerConfig

BACKGROUND = "vqad_background"
"""Key of the training dataset's metadata: [3] colour that the parser names for transparent pixels, if it names one."""


class VqadDatamanager(SeededDataManager):
    """Trains on images as they are on disk; evaluates on images composited as the dataset parser says."""

    config: VqadDatamanagerConfig

    def create_train_dataset(self) -> InputDataset:
        """Upstream's dataset, which also names its background."""
        dataset = super().create_train_dataset()
        color = dataset._dataparser_outputs.alpha_color
        if color is not None:
            dataset.metadata[BACKGROUND] = color.clone()
        return dataset

    def setup_train(self) -> None:
        """Upstream's loader, over a dataset that does not composite; viewer and evaluation keep the one that does."""
        shown = self.train_dataset
        kept: Any = copy.copy(shown)
        kept._dataparser_outputs = copy.copy(shown._dataparser_outputs)
        kept._dataparser_outputs.alpha_color = None
        self.train_dataset = kept
        try:
            super().setup_train()
        finally:
            self.train_dataset = shown
