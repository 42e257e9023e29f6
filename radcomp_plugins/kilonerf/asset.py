"""Export of a KiloNeRF run: write, read back, measure, and leave a run folder that shows the decoded asset."""

import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.utils.rich_utils import CONSOLE, get_progress
from torch import Tensor

from radcomp_plugins import compat
from radcomp_plugins.core.files import atomic_dir, refuse_overwrite, write_manifest
from radcomp_plugins.core.metrics import Lpips
from radcomp_plugins.core.quality import Quality
from radcomp_plugins.errors import InputError
from radcomp_plugins.kilonerf.asset_file import FORMAT, SCENE, VERSION, Precision, read_scene, write_scene
from radcomp_plugins.kilonerf.baked_config import BakedKiloModelConfig, baked_pipeline
from radcomp_plugins.kilonerf.model import KiloModel
from radcomp_plugins.kilonerf.render import Renderer
from radcomp_plugins.kilonerf.render_cpu import RenderSettings
from radcomp_plugins.kilonerf.scene import KiloScene
from radcomp_plugins.shown_run import RUN, write_shown_run
from radcomp_plugins.teachers.dataset import dataset_frame
from radcomp_plugins.teachers.load_points import load_point_teacher
from radcomp_plugins.teachers.picture import teacher_picture


def photo_of(batch: dict[str, Any], background: Tensor) -> Tensor:
    """A photo [H, W, 3] in [0, 1], on the background where it has alpha."""
    image = batch["image"].float()
    image = image / 255 if batch["image"].dtype == torch.uint8 else image
    if image.shape[-1] == 4:
        return image[..., :3] * image[..., 3:] + (1.0 - image[..., 3:]) * background.to(image)
    return image


@torch.no_grad()
def measure(pipeline: Any, decoded: KiloScene, teacher: Any, teacher_views: int) -> dict[str, Any]:
    """Quality on the held-out photos of the decoded asset, of the networks before rounding, and of the teacher.

    Args:
        pipeline: of the run, with its held-out views.
        decoded: the asset as it was read back.
        teacher: answers for rays; None leaves it out.
        teacher_views: how many of the views, evenly spread, it draws: it takes seconds to minutes each.
    """
    model: KiloModel = pipeline.model
    settings = RenderSettings(termination=model.config.early_stop)
    renderers = {"asset": Renderer(decoded, model.device), "unrounded": Renderer(model.scene(), model.device)}
    found = {"asset": Quality(Lpips()), "unrounded": Quality(), "teacher": Quality(Lpips()), "to_teacher": Quality()}
    views = list(pipeline.datamanager.fixed_indices_eval_dataloader)
    asked = set(np.linspace(0, len(views) - 1, min(teacher_views, len(views))).round().astype(int).tolist())
    with get_progress("Measuring", suffix="views/s") as progress:
        for index, (camera, batch) in progress.track(list(enumerate(views))):
            photo = photo_of(batch, model.background)
            bundle = camera.generate_rays(camera_indices=0, keep_shape=True).to(model.device)
            shape, drawn = bundle.origins.shape, {}
            for name, renderer in renderers.items():
                begun = time.perf_counter()
                rays = (bundle.origins.reshape(-1, 3), bundle.directions.reshape(-1, 3))
                drawn[name] = renderer.rays(*rays, settings=settings)["rgb"].clamp(0.0, 1.0).reshape(shape)
                found[name].add(drawn[name], photo, time.perf_counter() - begun)
            if teacher is not None and index in asked:
                begun = time.perf_counter()
                said = teacher_picture(teacher, own_rays(teacher, camera).to(model.device)).reshape(shape)
                found["teacher"].add(said, photo, time.perf_counter() - begun)
                said = teacher_picture(teacher, bundle).reshape(shape) if own_offset(teacher) != 0.5 else said
                found["to_teacher"].add(drawn["asset"], said, 0.0)
    result: dict[str, Any] = {"num_views": len(views), **found["asset"].summary()}
    result["unrounded"] = found["unrounded"].summary()
    if teacher is not None and asked:
        result["teacher"] = {"num_views": len(asked), **found["teacher"].summary()}
        result["to_teacher"] = {name: found["to_teacher"].summary()[name] for name in ("psnr", "ssim")}
    return result


def own_offset(teacher: Any) -> float:
    """Where in a pixel a teacher's training rays went through: its middle, unless it says otherwise."""
    return float(getattr(teacher, "pixel_offset", 0.5))


def own_rays(teacher: Any, camera: Any) -> Any:
    """Rays of a camera as a teacher was trained with them: some code bases shoot through the corners of pixels."""
    coords = camera.get_image_coords() + (own_offset(teacher) - 0.5)
    return camera.generate_rays(camera_indices=0, coords=coords, keep_shape=True)


def ray_teacher(path: Path | None, pipeline: Any) -> Any:
    """The teacher of a run, if it is still there and answers for rays; else None, with a word about it."""
    if path is None:
        return None
    if not path.exists():
        CONSOLE.print(f"[yellow]Not measured against the teacher:[/yellow] it is not at {path} any more")
        return None
    teacher: Any = load_point_teacher(path, pipeline.device)
    if hasattr(teacher, "place"):
        teacher.place(*pipeline.datamanager.frame)
    if hasattr(teacher, "query_rays"):
        return teacher
    from radcomp_plugins.teachers.load_rays import load_ray_teacher

    return load_ray_teacher(path, pipeline.device)


def export_run(
    load_config: Path,
    output_dir: Path,
    *,
    precision: Precision = "int8",
    with_quality: bool = True,
    teacher_views: int = 2,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Export a KiloNeRF run as an asset folder.

    Args:
        load_config: config.yml of the run, or its folder.
        output_dir: the folder to make.
        precision: of the networks' weights.
        with_quality: measure the decoded asset, and the teacher, on the held-out photos.
        teacher_views: of how many photos the teacher draws a picture; 0 leaves it out.
        overwrite: replace an asset that is already there.

    Returns:
        The manifest.

    Raises:
        InputError: the run is no KiloNeRF run, its dataset is missing, or the output exists.
    """
    refuse_overwrite(output_dir, overwrite)
    config, pipeline, _, _ = compat.load_run(load_config, test_mode="test")
    model: Any = pipeline.model
    if not isinstance(model, KiloModel):
        raise InputError(f"{load_config}: a run of {config.method_name}, expected one of kilonerf")
    pipeline.eval()
    run = Path(load_config) if Path(load_config).is_dir() else Path(load_config).parent
    frame, transforms = dataset_frame(run)
    dataset_to_scene = frame["scale"] * np.array(frame["transform"], np.float64)[:3]
    scene = model.scene(dataset_to_scene)
    teacher_path: Path | None = getattr(config.pipeline, "teacher", None)
    teacher = ray_teacher(teacher_path, pipeline) if with_quality and teacher_views > 0 else None
    with atomic_dir(output_dir, overwrite) as folder:
        write_scene(folder / SCENE, scene, precision)
        quality = measure(pipeline, read_scene(folder / SCENE), teacher, teacher_views) if with_quality else None
        if quality is not None:
            CONSOLE.print(
                f"Held-out photos: {quality['unrounded']['psnr']:.2f} dB before rounding, {quality['psnr']:.2f} after"
            )
        shown = BakedKiloModelConfig(asset=Path(".."), early_stop=model.config.early_stop)
        manager = copy.deepcopy(config.pipeline.datamanager)
        write_shown_run(folder / RUN, config, baked_pipeline(manager, shown), transforms)
        return write_manifest(
            folder,
            {
                "format": FORMAT,
                "version": VERSION,
                "method": config.method_name,
                "precision": precision,
                "networks": scene.grid.num_networks,
                "cells": list(scene.grid.cells),
                "occupied_voxels": int(scene.grid.occupancy.sum()),
                "dataset_to_scene": frame,
                "quality": quality,
            },
        )
