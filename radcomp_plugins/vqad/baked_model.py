"""A `.vqad` file as a nerfstudio model, so that every stock tool shows what the file holds."""

from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.models.base_model import Model
from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.viewer.viewer_elements import ViewerSlider, ViewerText
from torch import Tensor
from torchmetrics.functional import structural_similarity_index_measure

from radcomp_plugins import compat
from radcomp_plugins.core.metrics import psnr
from radcomp_plugins.errors import InputError
from radcomp_plugins.vqad.baked_config import BakedVqadModelConfig
from radcomp_plugins.vqad.bitstream import Decoded, read_scene, scene_file
from radcomp_plugins.vqad.field import VqadField, field_from_scene
from radcomp_plugins.vqad.losses import on_background, photo_on_background
from radcomp_plugins.vqad.render import draw


def drawable(decoded: Decoded, opaque: float) -> VqadField:
    """The field of a decoded file."""
    field = field_from_scene(decoded.scene)
    field.opaque = opaque
    return field.eval()


@torch.no_grad()
def draw_scene(
    field: VqadField, background: Tensor, origins: Tensor, directions: Tensor, level: int | None = None
) -> dict[str, Tensor]:
    """Colour, accumulation and depth of scene-frame rays [R, 3], in front of the background [3]."""
    drawn = draw(field, origins, directions, level=level)
    return {
        "rgb": on_background(drawn.rgb, drawn.accumulation, background).clamp(0.0, 1.0),
        "accumulation": drawn.accumulation[:, None],
        "depth": drawn.depth[:, None],
    }


class BakedVqadModel(Model):
    """Has nothing to train: its state is the file beside the run.

    Attributes:
        decoded: what the file holds.
        field: the same, ready to be drawn.
    """

    config: BakedVqadModelConfig

    def populate_modules(self) -> None:
        """Read the file; a cut one is drawn as far as it goes, and a line says so.

        Raises:
            InputError: there is none, it is damaged, or it has not the level asked for.
        """
        super().populate_modules()
        self.decoded = read_scene(scene_file(self.config.asset))
        if self.decoded.note is not None:
            CONSOLE.print(f"[yellow]{self.config.asset}:[/yellow] {self.decoded.note}")
        levels = [level.level for level in self.decoded.scene.levels]
        if self.config.level is not None and self.config.level not in levels:
            raise InputError(
                f"{self.config.asset}: level {self.config.level} asked for, the file holds {levels[0]} to {levels[-1]}"
            )
        # Not among the parameters: nothing may train it, and no checkpoint holds it.
        self._fields = [drawable(self.decoded, self.config.opaque)]
        self.register_buffer("background", torch.from_numpy(self.decoded.scene.background.copy()), persistent=False)
        self.background: Tensor
        shown = levels[-1] if self.config.level is None else self.config.level
        self.level = ViewerSlider(
            "Level", shown, levels[0], levels[-1], 1, hint="Draw with the levels up to this, as a cut file would",
            cb_hook=lambda _: self._describe(), disabled=len(levels) == 1,
        )  # fmt: skip
        self.status = ViewerText("File", "", disabled=True, hint="Bytes up to the level, and codes in effective use")
        self.lpips = compat.LazyLpips(normalize=True)
        self._describe()

    @property
    def field(self) -> VqadField:
        """The file's field, on the device the model is on now."""
        if self._fields[0].box.device != self.device:
            self._fields[0].to(self.device)
        return self._fields[0]

    def _describe(self) -> None:
        """Show what the levels up to the chosen one cost to send."""
        place = int(self.level.value) - self.decoded.scene.levels[0].level
        used = self._fields[0].encoding.perplexity()[place]
        codes = 2 ** self.decoded.scene.levels[place].bits
        self.status.value = f"{self.decoded.chunks[1 + place].end:,} bytes; {float(used):.0f} of {codes} codes"

    def load_state_dict(self, state_dict: Any, **kwargs: Any) -> Any:
        """Nothing to load: the file was read when the model was built."""
        return torch.nn.modules.module._IncompatibleKeys([], [])

    def get_param_groups(self) -> dict[str, list[torch.nn.Parameter]]:
        """None: a file cannot be trained."""
        return {}

    def get_outputs(self, ray_bundle: RayBundle | Cameras) -> dict[str, Any]:
        """Draw rays of the scene frame."""
        if isinstance(ray_bundle, Cameras):
            return self.get_outputs_for_camera(ray_bundle)
        shape = ray_bundle.origins.shape[:-1]
        rays = ray_bundle.origins.reshape(-1, 3), ray_bundle.directions.reshape(-1, 3)
        drawn = draw_scene(self.field, self.background, *rays, int(self.level.value))
        return {name: value.reshape(*shape, value.shape[-1]) for name, value in drawn.items()}

    def get_metrics_dict(self, outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
        """PSNR of a batch of rays."""
        image = batch["image"].to(outputs["rgb"])
        target = photo_on_background(image.view(-1, image.shape[-1]), self.background)
        return {"psnr": psnr(target, outputs["rgb"].view(-1, 3))}

    def get_loss_dict(self, outputs: Any, batch: Any, metrics_dict: Any = None) -> dict[str, Tensor]:
        """Refuse to train.

        Raises:
            InputError: always.
        """
        raise InputError(f"{self.config.asset}: a file cannot be trained; train the run it was exported from")

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """PSNR, SSIM and LPIPS of a whole picture, and the picture beside the photo."""
        rgb = outputs["rgb"]
        image = batch["image"].to(rgb)
        image = photo_on_background(image.view(-1, image.shape[-1]), self.background).view(rgb.shape)
        first, second = (tensor.movedim(-1, 0)[None] for tensor in (image, rgb))
        ssim: Any = structural_similarity_index_measure(second, first, data_range=1.0)
        metrics = {"psnr": float(psnr(image, rgb)), "ssim": float(ssim), "lpips": float(self.lpips(first, second))}
        return metrics, {"img": torch.cat([image, rgb], dim=1), "error": (rgb - image).abs()}
