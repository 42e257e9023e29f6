"""VQ-AD at the paper's scale where there is a GPU: train, export and draw, and say what it took.

    python benchmarks/vqad_gpu.py --data DATASET --output-dir outputs/vqad_gpu
    python benchmarks/vqad_gpu.py --data DATASET --method vqad-paper --bits 4 --minutes 8 --output-dir outputs/vqad_gpu

Trains a preset with levels 5 to 8, writes the file, reads it back, and prints and writes report.json: vertices (the
paper: 636,000), minutes, seconds per step, peak memory on the GPU (the paper: 8 GB at 4 bits, 18 GB at 6, in 20 to 40
minutes on an RTX 8000), PSNR and bytes of each level on the held-out photos, and frames per second. `--tiny` runs
vqad-tiny for a few steps, on the CPU where there is no GPU, only to see that the script runs. Not yet run on a GPU.
"""

import copy
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
from radcomp_plugins.vqad.asset import export_run


@dataclass
class VqadGpu:
    """Train, export and draw a VQ-AD scene, and write what it took."""

    data: Path
    """Dataset, in the Blender, nerfstudio or COLMAP form."""
    output_dir: Path
    """Where the run, the asset and report.json are written."""
    method: Literal["vqad", "vqad-paper"] = "vqad"
    """Preset. vqad-paper needs depth maps."""
    bits: int = 6
    """Per index; the paper has 4 and 6."""
    finest_level: int = 8
    """Finest octree level."""
    steps: int | None = None
    """Training steps; the preset's otherwise."""
    minutes: float | None = None
    """Train no longer than this. Schedules are those of `steps`, so a run that is cut short is not at its best, and one
    that is cut before its indices are made has no file."""
    tiny: bool = False
    """Run vqad-tiny for a few steps, only to see that the script runs."""

    def main(self) -> None:
        """Measure everything.

        Raises:
            InputError: no GPU here, and not `--tiny`.
        """
        cuda = torch.cuda.is_available()
        if not cuda and not self.tiny:
            raise InputError("vqad_gpu: torch finds no CUDA device here; --tiny runs on the CPU")
        config = self.configured()
        begun = time.perf_counter()
        steps = self.train(config)
        seconds = time.perf_counter() - begun
        memory = torch.cuda.max_memory_allocated() / 1e9 if cuda else None
        report: dict[str, Any] = {
            "schema_version": 1,
            "device": device_name("cuda" if cuda else "cpu"),
            "method": config.method_name,
            "bits": self.bits,
            "steps": steps,
            "train_minutes": seconds / 60,
            "seconds_per_step": seconds / max(steps, 1),
            "peak_gpu_gb": memory,
        }
        manifest = export_run(config.get_base_dir(), self.output_dir / "asset", overwrite=True)
        quality = manifest["quality"]
        report |= {
            "vertices": sum(level["vertices"] for level in manifest["levels"]),
            "levels": manifest["levels"],
            "quality": quality,
            "frames_per_second": 1.0 / quality["seconds_per_frame"],
            "seconds": manifest["seconds"],
        }
        write_json(self.output_dir / "report.json", report)
        CONSOLE.print(json.dumps(report, indent=2), highlight=False, soft_wrap=True)

    def configured(self) -> Any:
        """The preset's config with our changes."""
        config: Any = copy.deepcopy(all_methods["vqad-tiny" if self.tiny else self.method])
        steps = self.steps or (40 if self.tiny else config.max_num_iterations)
        for group in config.optimizers.values():
            group["scheduler"].max_steps = steps
        config.max_num_iterations = steps
        config.pipeline.datamanager.dataparser = dataset_parser(self.data)
        config.pipeline.model.bits = self.bits
        if self.tiny:
            config.pipeline.model.finest_level = min(self.finest_level, 6)
            config.pipeline.datamanager.train_num_rays_per_batch = 256
        else:
            config.pipeline.model.finest_level = self.finest_level
        config.output_dir, config.experiment_name, config.timestamp = self.output_dir / "runs", "gpu", "run"
        config.vis, config.viewer.quit_on_train_completion = "tensorboard", True
        config.steps_per_eval_image = config.steps_per_eval_all_images = config.steps_per_eval_batch = 10**9
        config.steps_per_save = steps
        config.machine.device_type = "cuda" if torch.cuda.is_available() else "cpu"
        config.set_timestamp()
        config.save_config()
        return config

    def train(self, config: Any) -> int:
        """Train as ns-train does; returns how many steps it came to."""
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


def stop_after(trainer: Any, seconds: float) -> None:
    """Have a trainer stop once it has trained for so long; it then saves its checkpoint as at the end."""
    begun, iteration = time.perf_counter(), trainer.train_iteration

    def timed(step: int) -> Any:
        trainer.stop_training = time.perf_counter() - begun > seconds
        return iteration(step)

    trainer.train_iteration = timed


if __name__ == "__main__":
    tyro.cli(VqadGpu).main()
