"""The exported asset: the compressed scene in files that other programs open, measured after decoding them.

scene.sog           SOG v2, with LightGaussian's codebook as its SH palette; or scene.spz, scene.rcs
scene.ply           the same scene as 3DGS .ply at the reduced SH degree, uncompressed
run/                a small nerfstudio run: ns-viewer, ns-eval and ns-render show the decoded first file
manifest.json       files with bytes and sha256, transform to the dataset's own frame, measured quality
"""

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml

from radcomp_plugins import compat
from radcomp_plugins.core.files import atomic_dir, refuse_overwrite, write_manifest
from radcomp_plugins.core.metrics import Lpips
from radcomp_plugins.errors import InputError
from radcomp_plugins.lightgaussian.config import BakedSplatModelConfig
from radcomp_plugins.lightgaussian.model import LightGaussianModel, sh_palette
from radcomp_plugins.splats.config import SplatPipelineConfig
from radcomp_plugins.splats.evaluate import held_out_views, quality
from radcomp_plugins.splats.formats.rcs import RcsSettings, write_rcs
from radcomp_plugins.splats.formats.registry import read_splats, write_splats
from radcomp_plugins.splats.formats.sog import write_sog
from radcomp_plugins.splats.formats.spz import write_spz
from radcomp_plugins.splats.gaussians import Gaussians
from radcomp_plugins.teachers.dataset import dataset_frame
from radcomp_plugins.teachers.load import CHECKPOINT_FOLDER, load_splats

FORMAT = "radcomp-lightgaussian"
VERSION = 1
AssetFormat = Literal["sog", "ply", "spz", "rcs"]


def write_scene(folder: Path, model: LightGaussianModel, formats: Sequence[AssetFormat]) -> dict[str, Any]:
    """Write the scene into a folder in each format; returns what the .sog writer says about its parts.

    The format that the last stage trained through gets the quantisers of that stage, a .ply what they give back.
    """
    scene, palette = model.gaussians(), sh_palette(model)
    parts: dict[str, Any] = {}
    for suffix in formats:
        path = folder / f"scene.{suffix}"
        trained = model.quantiser.options() if model.quantiser and model.quantiser.encoding == suffix else {}
        if suffix == "sog":
            parts = write_sog(path, scene, sh_palette=palette, significance=model.weights(), **trained)
        elif suffix == "rcs":
            settings = RcsSettings(palette=len(palette[0]) if palette else None)
            write_rcs(path, scene, settings=settings, significance=model.weights(), **trained)
        elif suffix == "spz":
            write_spz(path, scene, **trained)
        else:
            write_splats(path, model.encoded().detach())
    return parts


def baked_run(folder: Path, config: Any, asset: Path, transforms: Path | None) -> None:
    """A run folder whose checkpoint is the asset file itself."""
    baked = copy.deepcopy(config)
    fields = {
        name: value
        for name, value in vars(config.pipeline.model).items()
        if name in BakedSplatModelConfig.__dataclass_fields__ and name != "_target"
    }
    baked.pipeline = SplatPipelineConfig(datamanager=baked.pipeline.datamanager, model=BakedSplatModelConfig(**fields))
    baked.load_dir = baked.load_step = baked.load_checkpoint = None
    checkpoints = folder / CHECKPOINT_FOLDER
    checkpoints.mkdir(parents=True)
    (folder / "config.yml").write_text(yaml.dump(baked), "utf8")
    data = torch.from_numpy(np.frombuffer(asset.read_bytes(), dtype=np.uint8).copy())
    state = {"_model.asset": data}
    torch.save({"step": 0, "pipeline": state, "optimizers": {}, "schedulers": {}, "scalers": {}},
               checkpoints / "step-000000000.ckpt")  # fmt: skip
    if transforms is not None:
        shutil.copyfile(transforms, folder / transforms.name)


def measure(pipeline: Any, decoded: Gaussians, teacher: Gaussians | None) -> dict[str, Any]:
    """Quality of the decoded scene on the held-out photos and against the teacher's pictures of the same views."""
    model = pipeline.model
    background = model._get_background_color().to(model.device)
    views = held_out_views(pipeline.datamanager.fixed_indices_eval_dataloader, background)
    if not views:
        return {"num_views": 0}
    decoded = decoded.to(model.device)
    result: dict[str, Any] = {"num_views": len(views), **quality(decoded, views, background, lpips=Lpips())}
    if teacher is not None:
        teacher = teacher.to(model.device)
        result["teacher"] = quality(teacher, views, background, lpips=Lpips())
        result["to_teacher"] = quality(decoded, views, background, reference=teacher)
    return result


def export_run(
    load_config: Path,
    output_dir: Path,
    *,
    formats: Sequence[AssetFormat] | None = None,
    with_quality: bool = True,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Export a LightGaussian run as an asset folder.

    Args:
        load_config: config.yml of the run, or its folder.
        output_dir: the folder to make.
        formats: files to write; the first is the one that `run/` shows. None takes the format that was trained through,
            or .sog, and .ply.
        with_quality: measure the decoded file on the held-out views, which needs the dataset.
        overwrite: replace an asset that is already there.

    Returns:
        The manifest.

    Raises:
        InputError: the run is no LightGaussian run, its dataset is missing, the output exists, or there is no format.
    """
    if formats is not None and not formats:
        raise InputError(f"{output_dir}: no format to write; expected at least one of sog, ply, spz, rcs")
    refuse_overwrite(output_dir, overwrite)
    config, pipeline, _, _ = compat.load_run(load_config, test_mode="test" if with_quality else "inference")
    model = pipeline.model
    if not isinstance(model, LightGaussianModel):
        raise InputError(f"{load_config}: a run of {config.method_name}, expected one of lightgaussian")
    if formats is None:
        formats = (model.quantiser.encoding if model.quantiser else "sog", "ply")
    run = Path(load_config) if Path(load_config).is_dir() else Path(load_config).parent
    frame, transforms = dataset_frame(run)
    with atomic_dir(output_dir, overwrite) as folder:
        parts = write_scene(folder, model, formats)
        shown = folder / f"scene.{formats[0]}"
        decoded = read_splats(shown)
        baked_run(folder / "run", config, shown, transforms)
        source: Path | None = getattr(config.pipeline, "teacher", None)
        teacher = load_splats(source) if with_quality and source is not None and source.exists() else None
        return write_manifest(
            folder,
            {
                "format": FORMAT,
                "version": VERSION,
                "method": config.method_name,
                "gaussians": len(decoded),
                "sh_degree": decoded.sh_degree,
                "antialiased": decoded.antialiased,
                "dataset_to_scene": frame,
                "parts": parts,
                "quality": measure(pipeline, decoded, teacher) if with_quality else None,
            },
        )


def log_wandb_artifact(folder: Path, report: Path) -> None:
    """Attach an asset folder and the stage report to the wandb run that is logging.

    Raises:
        InputError: no wandb run is logging.
    """
    import wandb

    if wandb.run is None:
        raise InputError("--pipeline.log-artifact True: no wandb run is logging; add --vis wandb")
    artifact = wandb.Artifact(f"lightgaussian-{wandb.run.id}", type="lightgaussian-asset")
    artifact.add_dir(str(folder))
    if report.exists():
        artifact.add_file(str(report))
    wandb.run.log_artifact(artifact)
