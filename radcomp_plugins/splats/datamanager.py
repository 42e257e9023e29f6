"""Full-image datamanager whose order of images is a function of the step."""

import random
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanager

from radcomp_plugins.splats.config import SplatDatamanagerConfig
from radcomp_plugins.splats.views import common_view_points

NUM_SEED_POINTS = 20_000
"""Random seed points where a scene brings none; densification adds what is missing."""


class SplatDatamanager(FullImageDatamanager):
    """Shuffles each pass over the images by (seed, number of the pass), and seeds scenes that have no points.

    Images with an alpha channel keep it, also where the dataset parser would composite them on a colour: training on
    random backgrounds then leaves no room for Gaussians that hang in the air in the colour of the background.

    Attributes:
        data_background: [3] colour the dataset parser names for what is transparent; None where it names none.
        keeps_alpha: whether the cached images have four channels.
    """

    config: SplatDatamanagerConfig
    data_background: torch.Tensor | None
    keeps_alpha: bool

    def __init__(self, config: SplatDatamanagerConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.data_background = self.train_dataparser_outputs.alpha_color
        # Exports open a run without reading any image.
        self.keeps_alpha = self.test_mode != "inference" and self.train_dataset.get_numpy_image(0).shape[-1] == 4
        metadata = self.train_dataparser_outputs.metadata
        if "points3D_xyz" not in metadata and self.test_mode == "val":
            metadata["points3D_xyz"], metadata["points3D_rgb"] = self._random_points()

    def _random_points(self) -> tuple[torch.Tensor, torch.Tensor]:
        cameras = self.train_dataparser_outputs.cameras
        generator = torch.Generator().manual_seed(self.config.train_cameras_sampling_seed)
        tan_x = 0.5 * cameras.width.float() / cameras.fx
        tan_y = 0.5 * cameras.height.float() / cameras.fy
        tangent = torch.minimum(tan_x, tan_y).reshape(-1)
        points = common_view_points(cameras.camera_to_worlds, tangent, NUM_SEED_POINTS, generator)
        return points, torch.randint(0, 256, (NUM_SEED_POINTS, 3), generator=generator, dtype=torch.uint8)

    def _load_images(self, split: Any, cache_images_device: Any) -> list[dict[str, Any]]:
        """Upstream's cache, of images that have not been composited yet."""
        outputs = (self.train_dataset if split == "train" else self.eval_dataset)._dataparser_outputs
        color, outputs.alpha_color = outputs.alpha_color, None
        try:
            return super()._load_images(split, cache_images_device)
        finally:
            # The viewer's thumbnails read the dataset itself, and cannot show alpha.
            outputs.alpha_color = color

    def image_index(self, step: int) -> int:
        """Index of the training image of a step: every image once in each pass."""
        num_images = len(self.train_dataset)
        order = list(range(num_images))
        random.Random(f"{self.config.train_cameras_sampling_seed}-{step // num_images}").shuffle(order)
        return order[step % num_images]

    def next_train(self, step: int) -> tuple[Cameras, dict]:
        """The camera and image of a step, the same however often the run was stopped before."""
        self.train_unseen_cameras = [self.image_index(step)]
        return super().next_train(step)
