"""What a plain NeRF checkpoint is worth on held-out photos, and how much of its error is half a pixel.

    python benchmarks/plain_teacher.py --teacher weights.npz --data CHAIR --output plain_teacher.json

The nerf-pytorch families send rays through the corners of pixels, nerfstudio and the cameras that took the photos
through their centres. So the same network is drawn twice, through centres (`offset` 0.5) and through corners (0): the
difference is the share of the convention, the rest is the network's own. Of each photo a share of the pixels, drawn at
random, is asked about, because such a network takes a minute for a picture; the PSNR of each photo is estimated from
them, and the mean over photos is reported.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.utils.rich_utils import CONSOLE, get_progress

from radcomp_plugins.cli.measure import device_name
from radcomp_plugins.core.files import write_json
from radcomp_plugins.core.metrics import psnr
from radcomp_plugins.teachers.load_points import load_point_teacher
from radcomp_plugins.teachers.picture import teacher_picture


@dataclass
class PlainTeacher:
    """Measure a plain NeRF checkpoint with rays through pixels' centres and corners."""

    teacher: Path
    """Checkpoint of the nerf-pytorch families, in the frame of the dataset's own poses."""
    data: Path
    """A dataset in Blender's form."""
    output: Path
    """Report to write, JSON."""
    share: float = 0.1
    """Share of each photo's pixels that are asked about."""
    offsets: tuple[float, ...] = (0.5, 0.0)
    """Where in a pixel rays go through, pixels from its corner."""
    seed: int = 0
    """Which pixels."""

    @torch.no_grad()
    def main(self) -> None:
        """Measure, print and write."""
        dataset = InputDataset(BlenderDataParserConfig(data=self.data).setup().get_dataparser_outputs("test"))
        teacher: Any = load_point_teacher(self.teacher)
        views: list[dict[str, Any]] = []
        begun = time.perf_counter()
        with get_progress("Asking the teacher", suffix="photos/s") as progress:
            for index in progress.track(range(len(dataset))):
                views.append(self.view(dataset, teacher, index))
        means = {name: sum(view[name] for view in views) / len(views) for name in views[0]}
        report = {
            "schema_version": 1, "device": device_name("cpu"), "share_of_pixels": self.share, "photos": len(views),
            "seconds": time.perf_counter() - begun, "psnr": means, "views": views,
        }  # fmt: skip
        write_json(self.output, report)
        CONSOLE.print(json.dumps({**report, "views": "in the file"}, indent=2))

    def view(self, dataset: InputDataset, teacher: Any, index: int) -> dict[str, float]:
        """PSNR of one photo by each offset, over the same pixels."""
        image = dataset.get_image_float32(index)
        height, width = image.shape[:2]
        generator = torch.Generator().manual_seed(self.seed * 100_003 + index)
        chosen = torch.randperm(height * width, generator=generator)[: max(int(self.share * height * width), 1)]
        pixels = torch.stack([chosen // width, chosen % width], dim=-1)
        photo = image[pixels[:, 0], pixels[:, 1]]
        found = {}
        for offset in self.offsets:
            rays = dataset.cameras.generate_rays(torch.full((len(pixels), 1), index), coords=pixels + offset)
            found[f"offset {offset:g}"] = float(psnr(teacher_picture(teacher, rays), photo))
        return found


if __name__ == "__main__":
    tyro.cli(PlainTeacher).main()
