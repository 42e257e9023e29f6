"""nerfstudio's datamanager for rays, with patches that depend on the step alone."""

from typing import Any

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager
from nerfstudio.data.datasets.base_dataset import InputDataset

from radcomp_plugins.distributed import process_index
from radcomp_plugins.smerf.config import SmerfDatamanagerConfig

CAMERA_ORIGINS = "camera_origins"
"""Key of the dataset's metadata under which a model finds where the training cameras are, [cameras, 3] scene frame."""


class SmerfDatamanager(VanillaDataManager[InputDataset]):
    """Draws the same patches at the same step whether a run is resumed or not, and tells the model of its cameras."""

    config: SmerfDatamanagerConfig
    seed = 0

    def create_train_dataset(self) -> InputDataset:
        """Upstream's dataset, which also says where its cameras are."""
        dataset = super().create_train_dataset()
        dataset.metadata[CAMERA_ORIGINS] = dataset.cameras.camera_to_worlds[:, :3, 3].clone()
        return dataset

    def _get_pixel_sampler(self, dataset: InputDataset, num_rays_per_batch: int) -> Any:
        """Upstream's, which first rounds the number of rays down to whole patches of its default size, 32 x 32.

        Below 1,024 rays it would draw none.
        """
        sampler = super()._get_pixel_sampler(dataset, num_rays_per_batch)
        sampler.set_num_rays_per_batch(num_rays_per_batch)
        return sampler

    def next_train(self, step: int) -> tuple[RayBundle, dict[str, Any]]:
        """Patches of rays and their pixels; rank and step decide which."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((self.seed * 1_000_003 + step) * 4096 + process_index())
            return super().next_train(step)
