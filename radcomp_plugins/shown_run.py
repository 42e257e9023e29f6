"""The small run folder beside an asset, which ns-viewer, ns-eval and ns-render open and whose model is the asset."""

import copy
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml

from radcomp_plugins.teachers.load import CHECKPOINT_FOLDER

RUN = "run"
"""Its name in the asset's folder."""


def write_shown_run(folder: Path, config: Any, pipeline: Any, transforms: Path | None) -> None:
    """Write a run folder with a config and an empty checkpoint.

    Args:
        folder: to make.
        config: of the run that the asset was exported from; left as it is.
        pipeline: config of the pipeline that shows the asset.
        transforms: the run's file of the dataset's frame, copied along.
    """
    shown = copy.deepcopy(config)
    shown.pipeline = pipeline
    shown.load_dir = shown.load_step = shown.load_checkpoint = None
    checkpoints = folder / CHECKPOINT_FOLDER
    checkpoints.mkdir(parents=True)
    (folder / "config.yml").write_text(yaml.dump(shown), "utf8")
    state = {"step": 0, "pipeline": {}, "optimizers": {}, "schedulers": {}, "scalers": {}}
    torch.save(state, checkpoints / "step-000000000.ckpt")
    if transforms is not None:
        shutil.copyfile(transforms, folder / transforms.name)
