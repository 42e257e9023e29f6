"""nerfstudio's datamanager for rays, with rays that depend on the step alone."""

from typing import Any

from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager
from nerfstudio.data.datasets.base_dataset import InputDataset

from radcomp_plugins.core.seeded import seeded
from radcomp_plugins.distributed import process_index


class SeededDataManager(VanillaDataManager[InputDataset]):
    """Draws the same rays at the same step whether a run is resumed or not."""

    seed = 0

    def next_train(self, step: int) -> tuple[RayBundle, dict[str, Any]]:
        """Rays and their pixels; seed, step and process decide which."""
        with seeded(self.seed, step, 0, process_index()):
            return super().next_train(step)
