"""The datamanager of patches of rays."""

from typing import Any

from nerfstudio.data.datasets.base_dataset import InputDataset

from radcomp_plugins.seeded_rays import SeededDataManager
from radcomp_plugins.smerf.config import SmerfDatamanagerConfig

CAMERA_ORIGINS = "camera_origins"
"""Key of the dataset's metadata under which a model finds where the training cameras are, [cameras, 3] scene frame."""


class SmerfDatamanager(SeededDataManager):
    """Draws patches of rays, and tells the model where its cameras are."""

    config: SmerfDatamanagerConfig

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
