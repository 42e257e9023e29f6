"""Training on whatever device there is, in a run folder that opens from anywhere."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.utils.rich_utils import CONSOLE

from radcomp_plugins.core.allocator import keep_freed_memory

_PATH_FIELDS = ("output_dir", "data", "load_dir", "load_config", "load_checkpoint")


@dataclass
class RunAnywhereTrainerConfig(TrainerConfig):
    """nerfstudio's trainer config, which picks the CPU where CUDA is absent and saves absolute paths.

    ns-train calls `set_timestamp` once the command line is read and before the config is printed, saved and run, so
    both happen there; nothing else of upstream's behaviour changes. A pipeline config with a method `prepare` is asked
    first to complete itself: what it fills in is then printed, saved and run like what the user typed.
    """

    def set_timestamp(self) -> None:
        """Fix what depends on this machine and working directory, then the timestamp."""
        self.pick_device()
        prepare = getattr(self.pipeline, "prepare", None)
        if prepare is not None:
            prepare()
        self.make_paths_absolute()
        super().set_timestamp()

    def pick_device(self) -> None:
        """Train on the CPU where CUDA was asked for, as nerfstudio does by default, and is not there."""
        if self.machine.device_type == "cuda" and not torch.cuda.is_available():
            self.machine.device_type = "cpu"
            CONSOLE.print(f"No CUDA device found: training on the CPU with {torch.get_num_threads()} threads.")

    def setup(self, **kwargs: Any) -> Any:
        """Upstream's trainer; a process that trains on the CPU keeps its memory from step to step."""
        if self.machine.device_type == "cpu":
            keep_freed_memory()
        return super().setup(**kwargs)

    def make_paths_absolute(self) -> None:
        """Make paths that are relative to the working directory absolute, so that config.yml opens from anywhere."""
        for name in _PATH_FIELDS:
            _make_absolute(self, name)
        _make_absolute(self.pipeline, "teacher")
        manager: Any = self.pipeline.datamanager
        _make_absolute(manager, "data")
        if getattr(manager, "dataparser", None) is not None:
            _make_absolute(manager.dataparser, "data")


def _make_absolute(owner: Any, name: str) -> None:
    path = getattr(owner, name, None)
    if isinstance(path, Path):
        setattr(owner, name, path.expanduser().absolute())
