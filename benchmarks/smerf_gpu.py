"""SMERF where there is a GPU: train, export and draw at a size that a CPU cannot, and say what it took.

    python benchmarks/smerf_gpu.py --teacher RUN_FOLDER --output-dir outputs/smerf_gpu
    python benchmarks/smerf_gpu.py --teacher RUN_FOLDER --data DATASET --minutes 8 --output-dir outputs/smerf_gpu

Trains `smerf` with T = 1024 and S = 256, unless told otherwise, bakes and writes it, reads it back, and prints and
writes report.json: minutes of each stage, peak memory on the GPU, PSNR of teacher, student and decoded asset on the
held-out photos, bytes, and frames per second of the decoded asset. `--tiny` runs `smerf-tiny` for a few steps, on the
CPU where there is no GPU, only to see that the script runs. Not yet run on a GPU.
"""

import copy
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.scripts.train import _set_random_seed
from nerfstudio.utils.rich_utils import CONSOLE

from radcomp_plugins import compat
from radcomp_plugins.cli.measure import device_name
from radcomp_plugins.cli.training import dataset_parser
from radcomp_plugins.core.files import write_json
from radcomp_plugins.errors import InputError
from radcomp_plugins.smerf.formats.smerf import read_smerf
from radcomp_plugins.smerf.layout import TestFrame
from radcomp_plugins.smerf.render import Renderer

WARM_UP = 3
TINY = {"triplane_resolution": 64, "sparse_resolution": 16, "hash_log2_size": 12}
TINY_PIPELINE = {"batch_patches": 32, "pool_patches": 128, "pool_steps": 8, "occupancy_rays": 5_000}


@dataclass
class SmerfGpu:
    """Train, export and draw a SMERF student, and write what it took."""

    teacher: Path
    """Run folder of the teacher: zipnerf-torch, nerfacto, or what else answers for rays."""
    output_dir: Path
    """Where the run, the asset and report.json are written."""
    data: Path | None = None
    """Dataset to train on; the teacher's own otherwise."""
    triplane: int = 1024
    """T: texels along a side of each plane."""
    sparse: int = 256
    """S: voxels along a side of the sparse grid."""
    submodels: int = 1
    """K: cells along each axis."""
    steps: int | None = None
    """Training steps; those of `smerf` otherwise."""
    minutes: float | None = None
    """Train no longer than this. Schedules are those of `steps`, so a run that is cut short is not at its best."""
    frames: int = 50
    """Frames that are drawn for the frame rate."""
    tiny: bool = False
    """Run smerf-tiny at toy sizes for a few steps, only to see that the script runs."""

    def main(self) -> None:
        """Measure everything.

        Raises:
            InputError: no GPU here, and not `--tiny`.
        """
        if not torch.cuda.is_available() and not self.tiny:
            raise InputError("smerf_gpu: torch finds no CUDA device here; --tiny runs on the CPU")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        config = self.configured()
        seconds: dict[str, float] = {}
        begun = time.perf_counter()
        steps = self.train(config)
        seconds["train"] = time.perf_counter() - begun
        report: dict[str, Any] = {
            "schema_version": 1,
            "device": device_name(device),
            "torch": torch.__version__,
            "settings": {"T": self.triplane, "S": self.sparse, "K": self.submodels, "steps": steps},
            "training_peak_bytes": peak_bytes(),
        }
        begun = time.perf_counter()
        manifest = self.export(config.get_base_dir())
        seconds["export and measure"] = time.perf_counter() - begun
        report["quality"] = manifest["quality"]
        asset = self.output_dir / "asset"
        report["asset_bytes"] = sum(path.stat().st_size for path in asset.rglob("*") if path.is_file())
        report["drawing"] = self.draw(asset, device)
        report["seconds"] = {name: round(value, 1) for name, value in seconds.items()}
        write_json(self.output_dir / "report.json", report)
        CONSOLE.print(json.dumps(report, indent=2))

    def configured(self) -> Any:
        """The training's config, its paths absolute and its timestamp fixed."""
        config = copy.deepcopy(all_methods["smerf-tiny" if self.tiny else "smerf"])
        config.output_dir, config.experiment_name, config.timestamp = self.output_dir / "runs", "gpu", "run"
        config.vis, config.viewer.quit_on_train_completion = "tensorboard", True
        config.steps_per_eval_image = config.steps_per_eval_all_images = config.steps_per_eval_batch = 10**9
        config.pipeline.teacher = self.teacher
        if self.data is not None:
            config.pipeline.datamanager.dataparser = dataset_parser(self.data)
        model = config.pipeline.model
        model.submodels_per_axis = self.submodels
        model.triplane_resolution, model.sparse_resolution = self.triplane, self.sparse
        if self.submodels > 1:  # as in smerf-large
            model.submodel_scale_factor = 0.8
        if self.tiny:
            self.triplane, self.sparse = TINY["triplane_resolution"], TINY["sparse_resolution"]
            for owner, fields in ((model, TINY), (config.pipeline, TINY_PIPELINE)):
                for name, value in fields.items():
                    setattr(owner, name, value)
        config.max_num_iterations = self.steps or (20 if self.tiny else config.max_num_iterations)
        config.steps_per_save = config.max_num_iterations
        config.set_timestamp()
        config.save_config()
        return config

    def train(self, config: Any) -> int:
        """Train as ns-train does, and return the number of steps."""
        _set_random_seed(config.machine.seed)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        trainer = config.setup(local_rank=0, world_size=1)
        trainer.setup()
        if self.minutes is not None:
            stop_after(trainer, 60 * self.minutes)
        trainer.train()
        compat.forget_writers()
        return trainer.step + 1

    def export(self, run: Path) -> dict[str, Any]:
        """Bake and write the run, and measure what was written."""
        from radcomp_plugins.smerf.asset import export_run

        return export_run(run / "config.yml", self.output_dir / "asset", overwrite=True)

    def draw(self, asset: Path, device: torch.device) -> dict[str, Any]:
        """Median time of a frame of the held-out cameras, and the memory that drawing takes."""
        scene = read_smerf(asset)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        renderer = Renderer(scene, device)
        times = []
        for index in range(WARM_UP + (2 if self.tiny else self.frames)):
            frame = scene.test_frames[index % len(scene.test_frames)]
            begun = now()
            draw_frame(renderer, frame)
            times.append(now() - begun)
        median = statistics.median(times[WARM_UP:])
        frame = scene.test_frames[0]
        size = [frame.width, frame.height]
        return {"size": size, "frames_per_second": 1 / median, "milliseconds": 1e3 * median, "peak_bytes": peak_bytes()}


def draw_frame(renderer: Renderer, frame: TestFrame) -> torch.Tensor:
    """The picture of a held-out camera."""
    centre = frame.width / 2, frame.height / 2
    return renderer.picture(frame.c2w, frame.fx, frame.fy, *centre, frame.width, frame.height)["rgb"]


def stop_after(trainer: Any, seconds: float) -> None:
    """Have a trainer stop once it has trained for so long; it then saves its checkpoint as at the end."""
    begun, iteration = time.perf_counter(), trainer.train_iteration

    def timed(step: int) -> Any:
        trainer.stop_training = time.perf_counter() - begun > seconds
        return iteration(step)

    trainer.train_iteration = timed


def peak_bytes() -> int | None:
    """Largest amount of GPU memory that torch has held since the last reset; None without a GPU."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def now() -> float:
    """Seconds, after everything the GPU was asked for is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    tyro.cli(SmerfGpu).main()
