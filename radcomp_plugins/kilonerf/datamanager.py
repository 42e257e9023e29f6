"""The datamanager of rays, which also says what else the dataset knows of the scene."""

import torch
from jaxtyping import Float
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from radcomp_plugins.kilonerf.config import KiloDatamanagerConfig
from radcomp_plugins.seeded_rays import SeededDataManager


class KiloDatamanager(SeededDataManager):
    """Knows its dataset's background, points and frame."""

    config: KiloDatamanagerConfig

    @property
    def background(self) -> Float[Tensor, " 3"] | None:
        """Colour that the dataset's transparent images are composited on; None where it names none."""
        color = self.train_dataparser_outputs.alpha_color
        return None if color is None else color.float().reshape(-1)[:3].cpu()

    @property
    def points(self) -> Float[Tensor, "P 3"] | None:
        """SfM points, scene frame; None where the dataset has none."""
        return self.train_dataparser_outputs.metadata.get("points3D_xyz")

    @property
    def frame(self) -> tuple[Float[Tensor, "3 4"], float]:
        """Transform and scale: x_scene = scale * (transform @ [x_dataset, 1])."""
        outputs = self.train_dataparser_outputs
        return outputs.dataparser_transform[:3].float(), float(outputs.dataparser_scale)

    def random_rays(self, count: int, seed: int) -> RayBundle:
        """Rays of random pixels of the training cameras; no image is looked at."""
        cameras = self.train_dataset.cameras.to(self.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            index = torch.randint(len(cameras), (count,))
            share = torch.rand(count, 2)
        sizes = torch.cat([cameras.height, cameras.width], dim=-1).cpu()[index]
        coords = share * sizes
        return cameras.generate_rays(index[:, None].to(self.device), coords=coords.to(self.device))
