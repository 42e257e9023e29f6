"""`radcomp scene NAME`: makes a procedural scene and writes it as a dataset."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass
class Scene:
    """Make a procedural scene with exact ground truth and write it as a dataset.

    `still-life` is read by both `blender-data` and `nerfstudio-data`, `two-rooms` by `nerfstudio-data`. Depth maps and
    SfM-like points come with both; every eighth view is held out for testing.
    """

    name: Annotated[str, tyro.conf.Positional]
    """still-life or two-rooms."""
    output_dir: Path
    """Folder to make."""
    views: int = 60
    """Number of images, held-out ones included."""
    size: int = 200
    """Width and height of the images in pixels."""
    width: int | None = None
    """Width in pixels, if it is not `size`."""
    height: int | None = None
    """Height in pixels, if it is not `size`."""
    seed: int = 0
    """Varies the scene and the cameras."""
    overwrite: bool = False
    """Replace a scene that was written here before."""

    def main(self) -> None:
        """Render and write."""
        from nerfstudio.utils.rich_utils import CONSOLE, ItersPerSecColumn
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from radcomp_plugins.scenes.dataset import make_dataset

        began = time.perf_counter()
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            ItersPerSecColumn(suffix="views/s"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=CONSOLE,
        )
        with bar:
            task = bar.add_task("Baking light (the first run also compiles)", total=None)

            def report(stage: str, done: int, total: int) -> None:
                if stage == "views":
                    bar.update(task, description="Rendering views", completed=done, total=total)
                elif done:
                    bar.reset(task, description="Rendering views", total=self.views)

            manifest = make_dataset(
                self.name,
                self.output_dir,
                views=self.views,
                width=self.size if self.width is None else self.width,
                height=self.size if self.height is None else self.height,
                seed=self.seed,
                overwrite=self.overwrite,
                progress=report,
            )
        held = manifest["test_views"]
        CONSOLE.print(
            f"{self.output_dir}: {self.name}, {self.views - held} training and {held} test views, "
            f"{time.perf_counter() - began:.1f} s"
        )
