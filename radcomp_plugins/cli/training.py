"""Training from Python, as ns-train would do it: a dataset's parser, a preset with fewer steps, a run made whole."""

import copy
import gc
import os
import shutil
from pathlib import Path
from typing import Any

from radcomp_plugins import compat
from radcomp_plugins.core.files import read_json
from radcomp_plugins.errors import InputError

TIMESTAMP = "demo"
"""Name of a run's folder, where ns-train has the time of day: a run keeps its path when it is trained anew."""
LINES_PER_RUN = 20
COLMAP_FOLDERS = ("colmap/sparse/0", "sparse/0", "sparse", "colmap/sparse")

_STEP_FIELDS = {
    "trainer": ("max_num_iterations",),
    "pipeline": ("co_adaptation_steps", "distillation_steps", "vq_finetune_steps"),
    "model": (
        "warmup_length",
        "resolution_schedule",
        "sh_degree_interval",
        "stop_screen_size_at",
        "stop_split_at",
    ),
}


def dataset_parser(data: Path) -> Any:
    """The config of nerfstudio's parser for a dataset, told by the files in it.

    Args:
        data: A folder in the Blender, nerfstudio or COLMAP form, or the path of a transforms.json.

    Raises:
        InputError: Nothing there, or none of the three.
    """
    from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
    from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

    data = Path(data).expanduser().absolute()
    if not data.exists():
        raise InputError(f"--data {data}: no such folder; expected a Blender, nerfstudio or COLMAP dataset")
    if (data / "transforms_train.json").is_file():
        points = Path("points3D.ply")
        return BlenderDataParserConfig(data=data, ply_path=points if (data / points).is_file() else None)
    transforms = data if data.suffix == ".json" else data / "transforms.json"
    if transforms.is_file():
        # Asked for points that a dataset has not, nerfstudio stops to ask a question.
        has_points = "ply_file_path" in read_json(transforms)
        return NerfstudioDataParserConfig(data=data, load_3D_points=has_points)
    for name in COLMAP_FOLDERS:
        if any((data / name / f"cameras.{suffix}").is_file() for suffix in ("bin", "txt")):
            return _colmap_parser(data, Path(name))
    raise InputError(
        f"--data {data}: not a dataset known here; expected transforms_train.json (Blender), transforms.json "
        "(nerfstudio) or sparse/0/cameras.bin (COLMAP) in it"
    )


def _colmap_parser(data: Path, model: Path) -> Any:
    from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig

    if not (data / "images").is_dir():
        raise InputError(f"--data {data}: a COLMAP model in {model}, but no folder images/ with its photos")
    # nerfstudio would ask whether to shrink large photos; take the largest that are there already shrunk, or as is.
    shrunk = next((factor for factor in (2, 4, 8) if (data / f"images_{factor}").is_dir()), 1)
    return ColmapDataParserConfig(data=data, colmap_path=model, downscale_factor=shrunk)


def preset(method: str, output_dir: Path, scale: float) -> Any:
    """A method's config as ns-train has it, for a run at output_dir/runs/<method>/demo without a viewer.

    Args:
        method: Name in ns-train's menu.
        output_dir: Folder of the demo.
        scale: Share of the preset's training steps, and of every schedule counted in steps, to keep; > 0.
    """
    from nerfstudio.configs.method_configs import all_methods

    config = copy.deepcopy(all_methods[method])
    config.output_dir, config.experiment_name, config.timestamp = Path(output_dir).absolute(), "runs", TIMESTAMP
    config.vis = "tensorboard"
    config.logging.profiler = "none"
    config.logging.local_writer.max_log_size = 0
    # The demo measures at the end; on the way each measurement would cost time, and LPIPS a download.
    config.steps_per_eval_image = config.steps_per_eval_all_images = config.steps_per_save = 10**9
    scale_steps(config, scale)
    return config


def scale_steps(config: Any, scale: float) -> None:
    """Multiply the number of steps of a run, and every schedule that counts in them, in place; at least 1 each."""
    owners = {"trainer": config, "pipeline": config.pipeline, "model": config.pipeline.model}
    for owner, names in _STEP_FIELDS.items():
        for name in names:
            value = getattr(owners[owner], name, None)
            if value:
                setattr(owners[owner], name, max(1, round(value * scale)))
    for optimizer in config.optimizers.values():
        scheduler = optimizer["scheduler"]
        if getattr(scheduler, "max_steps", None):
            scheduler.max_steps = max(1, round(scheduler.max_steps * scale))


def train(config: Any, num_steps: int) -> Path:
    """Train as ns-train does, and put the run in its place only when it is complete.

    Args:
        config: From `preset`.
        num_steps: Steps the run will take, for the number of progress lines.

    Returns:
        The run's config.yml. A run that was there before is replaced.
    """
    import yaml
    from nerfstudio.scripts.train import train_loop

    final = config.output_dir / config.experiment_name / config.method_name / config.timestamp
    unfinished = config.output_dir / f".{config.method_name}.partial"
    shutil.rmtree(unfinished, ignore_errors=True)
    trained = copy.deepcopy(config)
    trained.output_dir = unfinished
    trained.logging.steps_per_log = max(1, num_steps // LINES_PER_RUN)
    try:
        compat.forget_writers()
        # What nerfstudio.scripts.train.main does, without printing the whole config.
        trained.set_timestamp()
        trained.save_config()
        train_loop(local_rank=0, world_size=1, config=trained)
        run = unfinished / final.relative_to(config.output_dir)
        saved = yaml.load((run / "config.yml").read_text(), Loader=yaml.Loader)
        saved.output_dir = config.output_dir
        (run / "config.yml").write_text(yaml.dump(saved), "utf8")
        if final.exists():
            shutil.rmtree(final)
        final.parent.mkdir(parents=True, exist_ok=True)
        os.replace(run, final)
    finally:
        compat.forget_writers()
        shutil.rmtree(unfinished, ignore_errors=True)
        gc.collect()
    return final / "config.yml"
