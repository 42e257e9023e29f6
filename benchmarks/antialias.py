"""How a radiance field holds up from afar: PSNR of trained runs at 1, 1/2, 1/4 and 1/8 of their photos' resolution.

    python benchmarks/antialias.py --runs RUN_FOLDER RUN_FOLDER --output-dir benchmarks/results/antialias

The held-out photos are box-filtered to each size and the cameras rescaled with them, so that a pixel of a small picture
stands for a wide cone. A field that asks about points instead of cones aliases there. Train the runs for equal wall
time; the seconds between a run's config.yml and its checkpoint are written beside its numbers. Writes antialias.csv and
antialias.png.
"""

import csv
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
import tyro
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from radcomp_plugins import compat
from radcomp_plugins.core.metrics import psnr
from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.evaluate import composite

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402 - the backend has to be chosen first

FIELDS: tuple[str, ...] = ("run", "method", "training_seconds", "scale", "width", "height", "views", "psnr")


def shrink(image: Float[Tensor, "H W 3"], factor: int) -> Float[Tensor, "h w 3"]:
    """Mean over squares of `factor` pixels; what is left over at the right and bottom is cut off."""
    height, width = (size // factor * factor for size in image.shape[:2])
    cut = image[:height, :width].movedim(-1, 0)[None]
    return torch.nn.functional.avg_pool2d(cut, factor)[0].movedim(0, -1)


def shrink_camera(camera: Cameras, factor: int) -> Cameras:
    """The camera [1] of the shrunken photo: every length in pixels is divided."""
    return Cameras(
        camera_to_worlds=camera.camera_to_worlds,
        fx=camera.fx / factor,
        fy=camera.fy / factor,
        cx=camera.cx / factor,
        cy=camera.cy / factor,
        width=camera.width // factor,
        height=camera.height // factor,
        distortion_params=camera.distortion_params,
        camera_type=camera.camera_type,
    )


@dataclass
class Antialias:
    """Measure PSNR at several resolutions."""

    runs: tuple[Path, ...]
    """Run folders of radiance fields that were trained on the same dataset."""
    output_dir: Path
    """Folder for antialias.csv and antialias.png."""
    factors: tuple[int, ...] = (1, 2, 4, 8)
    """Photos are divided by these."""
    num_views: int = 0
    """Held-out views to measure, evenly chosen; 0 takes all."""

    def main(self) -> None:
        """Measure all runs and write the table and the plot."""
        rows = [row for run in self.runs for row in self.measure(run)]
        self.output_dir.mkdir(parents=True, exist_ok=True)
        path = self.output_dir / "antialias.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)
        plot(rows, self.output_dir / "antialias.png")
        CONSOLE.print(f"{path} and antialias.png beside it")

    def measure(self, run: Path) -> list[dict[str, Any]]:
        """One row for each resolution of a run."""
        config, pipeline, checkpoint, _ = compat.load_run(run)
        folder = run if run.is_dir() else run.parent
        seconds = checkpoint.stat().st_mtime - (folder / "config.yml").stat().st_mtime
        model, dataset = pipeline.model, pipeline.datamanager.eval_dataset
        if dataset is None or len(dataset) == 0:
            raise InputError(f"{run}: its dataset has no held-out views")
        count = min(self.num_views, len(dataset)) or len(dataset)
        chosen = torch.linspace(0, len(dataset) - 1, count).round().long().tolist()
        known = getattr(model, "background", None)
        background = known.cpu() if isinstance(known, torch.Tensor) else torch.ones(3)
        photos = {index: composite(dataset[index]["image"], background) for index in chosen}
        rows = []
        for factor in self.factors:
            began, values, size = time.perf_counter(), [], (0, 0)
            for index in chosen:
                camera = shrink_camera(dataset.cameras[index : index + 1], factor).to(pipeline.device)
                with torch.no_grad():
                    picture = model.get_outputs_for_camera(camera)["rgb"].cpu()
                values.append(float(psnr(shrink(photos[index], factor), picture)))
                size = (picture.shape[1], picture.shape[0])
            mean = sum(values) / len(values)
            CONSOLE.print(
                f"{config.method_name} at 1/{factor} ({size[0]}x{size[1]}): {mean:.2f} dB, {count} views, "
                f"{time.perf_counter() - began:.0f} s"
            )
            numbers = (str(run), config.method_name, round(seconds), 1 / factor, *size, count, round(mean, 3))
            rows.append(dict(zip(FIELDS, numbers, strict=True)))
        return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """PSNR over resolution, one line for each run."""
    figure, axes = plt.subplots(figsize=(6, 4))
    for run in dict.fromkeys(row["run"] for row in rows):
        mine = [row for row in rows if row["run"] == run]
        label = f"{mine[0]['method']}, {mine[0]['training_seconds'] / 60:.0f} min"
        axes.plot([row["scale"] for row in mine], [row["psnr"] for row in mine], marker="o", label=label)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("resolution, as a share of the photos'")
    axes.set_ylabel("PSNR in dB on held-out views")
    axes.invert_xaxis()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    tyro.cli(Antialias).main()
