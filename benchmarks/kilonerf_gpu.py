"""An exported KiloNeRF on a GPU: Triton's kernels against their plain twin, vanilla-nerf and nerfacto, in one run.

    python -m benchmarks.kilonerf_gpu --asset ASSET --output kilonerf_gpu.json
    python -m benchmarks.kilonerf_gpu --asset ASSET --full --output kilonerf_gpu.json

At 800x800 (the paper's size): frame time of the decoded asset through Triton and through plain torch, whether both draw
what the CPU's kernels draw, frame times of nerfstudio's `vanilla-nerf` and `nerfacto` with fresh weights, which take as
long as trained ones, and peak memory. vanilla-nerf draws a share of the rays unless --full. The paper's figure, 2,548
times, is vanilla NeRF against KiloNeRF on one GPU. `--tiny` runs everything small on the CPU, in plain torch, only to
see that the script runs. Not yet run on a GPU.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from nerfstudio.utils.rich_utils import CONSOLE

from benchmarks.kilonerf_speed import View, in_chunks, seconds_of, untrained
from radcomp_plugins.cli.measure import device_name
from radcomp_plugins.core.files import write_json
from radcomp_plugins.errors import InputError
from radcomp_plugins.kilonerf.asset_file import read_asset
from radcomp_plugins.kilonerf.render import camera_rays
from radcomp_plugins.kilonerf.render_cpu import CpuRenderer
from radcomp_plugins.kilonerf.render_torch import TorchRenderer
from radcomp_plugins.kilonerf.scene import KiloScene


def view_around(scene: KiloScene, number: int, count: int, width: int) -> View:
    """One of `count` views in a circle around the box, from above, from as far as its diagonal and a half."""
    box = scene.grid.box
    angle = 2.0 * np.pi * number / count
    back = np.array([np.cos(angle), np.sin(angle), 0.5])
    back /= np.linalg.norm(back)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    eye = box.mean(axis=0) + 1.5 * np.linalg.norm(box[1] - box[0]) * back
    return View(np.stack([right, np.cross(back, right), back, eye], axis=1), 1.4 * width, width)


@dataclass
class KilonerfGpu:
    """Draw an exported KiloNeRF and the networks it is compared with on a GPU."""

    asset: Path
    """Folder of an exported KiloNeRF."""
    output: Path = Path("kilonerf_gpu.json")
    """Where the report is written."""
    size: int = 800
    """Width and height of the pictures, pixels."""
    frames: int = 20
    """Views around the scene that are timed."""
    share: float = 0.02
    """Share of the rays that vanilla-nerf draws."""
    full: bool = False
    """Have it draw all of them."""
    tiny: bool = False
    """Run at toy sizes, on the CPU where there is no GPU, only to see that the script runs."""

    @torch.no_grad()
    def main(self) -> None:
        """Measure everything, print it, and write it.

        Raises:
            InputError: no GPU here, and not `--tiny`.
        """
        if not torch.cuda.is_available() and not self.tiny:
            raise InputError("kilonerf_gpu: torch finds no CUDA device here; --tiny runs on the CPU")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        size, frames = (32, 2) if self.tiny else (self.size, self.frames)
        scene = read_asset(self.asset)
        views = [view_around(scene, number, frames, size) for number in range(frames)]
        report: dict[str, Any] = {
            "schema_version": 1,
            "device": device_name(device),
            "torch": torch.__version__,
            "size": size,
            "networks": scene.grid.num_networks,
        }
        for name, fused in (("kilonerf", True), ("kilonerf in plain torch", False)):
            renderer = TorchRenderer(scene, device, fused=fused)
            report[name] = {
                "kernels": renderer.kernels.__name__.rpartition(".")[2],
                "difference_to_cpu": difference(renderer, views[0]),
                **times(renderer, views, device),
            }
        for method in ("vanilla-nerf", "nerfacto"):
            share = 1.0 if self.full or method == "nerfacto" else self.share
            report[method] = other(method, scene, views[0], share, device, self.tiny)
            report[method]["times_kilonerf"] = report[method]["milliseconds"] / report["kilonerf"]["milliseconds"]
        write_json(self.output, report)
        CONSOLE.print(json.dumps(report, indent=2))


def difference(renderer: TorchRenderer, view: View) -> dict[str, float]:
    """Colours against those of the CPU's kernels, of rays with equally many samples, and the share of these."""
    rays = camera_rays(*view.camera())
    drawn = renderer.rays(*(tensor.to(renderer.device) for tensor in rays))
    truth = CpuRenderer(renderer.scene).rays(*(tensor.numpy() for tensor in rays))
    same = drawn.samples.cpu().numpy() == truth.samples
    error = np.abs(drawn.rgb.cpu().numpy() - truth.rgb)[same]
    return {"largest": float(error.max()), "mean": float(error.mean()), "share_of_rays": float(same.mean())}


def times(renderer: TorchRenderer, views: list[View], device: torch.device) -> dict[str, Any]:
    """Median milliseconds of a frame with its rays, and the memory it takes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    turn = iter(views * 2)
    each: list[Any] = []

    def draw() -> None:
        each.append(renderer.rays(*camera_rays(*next(turn).camera(), device=device)))
        wait(device)

    warm_up = min(3, len(views) - 1)
    seconds = seconds_of(draw, len(views), warm_up)
    return {
        "milliseconds": 1e3 * seconds,
        "samples_per_ray": float(each[-1].samples.float().mean()),
        "evaluated": each[-1].lanes,
        "peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
    }


def other(method: str, scene: KiloScene, view: View, share: float, device: torch.device, tiny: bool) -> dict[str, Any]:
    """Milliseconds of a frame of one of nerfstudio's models with fresh weights, of a share of its rays scaled up."""
    changes: dict[str, Any] = {}
    if method == "nerfacto":
        # tiny-cuda-nn where it is installed, as a user of nerfstudio has it.
        changes = {"implementation": "torch"} if tiny else {"implementation": "tcnn"}
    model = untrained(method, scene.grid.box, **changes).to(device)
    bundle = view.bundle(share).to(device)

    def draw() -> None:
        in_chunks(model, bundle)
        wait(device)

    seconds = seconds_of(draw, 1 if share < 1 or tiny else 3, 1)
    return {"milliseconds": 1e3 * seconds * view.width**2 / len(bundle), "rays_drawn": len(bundle)}


def wait(device: torch.device) -> None:
    """Until the GPU has done everything it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    tyro.cli(KilonerfGpu).main()
