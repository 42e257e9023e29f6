"""nerfstudio's datamanager of rays, which also says what lies behind its images."""

from typing import Any

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager

from radcomp_plugins.errors import InputError
from radcomp_plugins.teachers.zipnerf.config import ZipNerfDataManagerConfig
from radcomp_plugins.teachers.zipnerf.scales import coarse_pixels, draw_exponents

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

    def next_train(self, step: int) -> tuple[RayBundle, dict]:
        """A batch of rays, some of them through coarser pixels where the config has several scales."""
        if self.config.num_scales <= 1:
            return super().next_train(step)
        self.train_count += 1
        images: Any = next(self.iter_train_image_dataloader)
        assert self.train_pixel_sampler is not None
        batch = self.train_pixel_sampler.sample(images)
        cameras, rows, columns = batch["indices"].to(self.device).T.contiguous().unbind()
        pixels = images["image"]
        side = 1 << (self.config.num_scales - 1)
        if not torch.is_tensor(pixels) or min(pixels.shape[1:3]) < side:
            raise InputError(
                f"num_scales: got {self.config.num_scales}, expected 1 for images of different sizes or of less than "
                f"{side} pixels a side"
            )
        exponents = draw_exponents(len(rows), self.config.num_scales, self.config.coarse_share, self.device)
        order = torch.argsort(images["image_idx"].to(self.device))
        where = order[torch.searchsorted(images["image_idx"].to(self.device)[order], cameras)]
        batch["image"], centers = coarse_pixels(pixels.to(self.device), where, rows, columns, exponents)
        rays = self.train_dataset.cameras.to(self.device).generate_rays(cameras[:, None], coords=centers)
        rays.pixel_area = rays.pixel_area * 4.0 ** exponents[:, None]
        return rays, batch
