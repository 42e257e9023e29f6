"""How alike neighbouring submodels of a baked scene look where a viewer goes from one to the other.

    python benchmarks/smerf_consistency.py ASSET [ASSET_WITHOUT_THE_LOSS ...] --output-dir consistency

From each test camera that is nearest to a border between two live submodels, the scene is drawn by both, and the two
pictures are compared. Writes consistency.json and, for the first camera, the two pictures with their difference.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image

from radcomp_plugins.core.metrics import psnr
from radcomp_plugins.smerf.formats.smerf import read_smerf
from radcomp_plugins.smerf.layout import BakedScene
from radcomp_plugins.smerf.render import Renderer


@dataclass
class Consistency:
    """Compare neighbouring submodels' pictures at their border."""

    assets: tyro.conf.Positional[tuple[Path, ...]]
    """Asset folders of scenes with several live submodels."""
    output_dir: Path = Path("consistency")
    """Where the results go."""
    views: int = 12
    """Cameras: those of the test frames that are nearest to a border, moved onto it."""

    def main(self) -> None:
        """Measure, print, write."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        results = {str(asset): self.measure(asset) for asset in self.assets}
        (self.output_dir / "consistency.json").write_text(
            json.dumps({"schema_version": 1, "assets": results}, indent=2)
        )
        for name, result in results.items():
            print(f"{name}: {result['psnr']:.2f} dB over {result['views']} views at {result['borders']} borders")

    def measure(self, asset: Path) -> dict[str, Any]:
        """Mean PSNR between the pictures of the two submodels at each border."""
        scene = read_smerf(asset)
        renderer = Renderer(scene)
        values, pairs = [], set()
        for frame, first, second in border_views(scene, self.views):
            size = (frame.width, frame.height)
            camera = (frame.c2w, frame.fx, frame.fy, size[0] / 2, size[1] / 2, *size)
            drawn = [renderer.picture(*camera, submodel=index)["rgb"] for index in (first, second)]
            if not values:
                self.save(asset, drawn)
            values.append(float(psnr(*drawn)))
            pairs.add((min(first, second), max(first, second)))
        return {"psnr": float(np.mean(values)), "worst": min(values), "views": len(values), "borders": len(pairs)}

    def save(self, asset: Path, drawn: list[torch.Tensor]) -> None:
        """Both pictures and four times their difference, side by side."""
        row = torch.cat([*drawn, ((drawn[0] - drawn[1]).abs() * 4).clamp(0, 1)], dim=1)
        Image.fromarray((row * 255).round().byte().numpy()).save(self.output_dir / f"{asset.name}.png")


def border_views(scene: BakedScene, count: int) -> list[tuple[Any, int, int]]:
    """Test frames nearest to a border, moved onto it along one axis, with the two submodels that meet there."""
    layout, found = scene.layout, []
    side = 2.0 / layout.submodels_per_axis
    for frame in scene.test_frames:
        origin = frame.c2w[:, 3]
        home = int(layout.nearest(origin[None])[0])
        for other in layout.alive:
            apart = layout.centre(other) - layout.centre(home)
            axis = int(np.abs(apart).argmax())
            if np.count_nonzero(apart) != 1 or abs(abs(apart[axis]) - side) > 1e-9:
                continue
            border = layout.centre(home)[axis] + 0.5 * apart[axis]
            moved = frame.c2w.copy()
            moved[axis, 3] = border
            distance = abs(origin[axis] - border)
            found.append((distance, type(frame)(moved, frame.fx, frame.fy, frame.width, frame.height), home, other))
    found.sort(key=lambda entry: entry[0])
    return [(frame, home, other) for _, frame, home, other in found[:count]]


if __name__ == "__main__":
    tyro.cli(Consistency).main()
