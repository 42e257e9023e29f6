"""Export of a SMERF run: bake, write, read back, measure, and leave a run folder that shows the decoded asset."""

import copy
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from nerfstudio.utils.rich_utils import CONSOLE, get_progress

from radcomp_plugins import compat
from radcomp_plugins.core.files import atomic_dir, refuse_overwrite, write_manifest
from radcomp_plugins.core.metrics import Lpips
from radcomp_plugins.core.quality import Quality
from radcomp_plugins.errors import InputError
from radcomp_plugins.shown_run import RUN, write_shown_run
from radcomp_plugins.smerf.bake import BakeSettings, bake
from radcomp_plugins.smerf.bake_views import view_rays
from radcomp_plugins.smerf.formats.smerf import read_smerf, write_smerf
from radcomp_plugins.smerf.layout import BakedScene, TestFrame
from radcomp_plugins.smerf.model import SmerfModel
from radcomp_plugins.smerf.render import Renderer
from radcomp_plugins.teachers.dataset import dataset_frame
from radcomp_plugins.teachers.load_rays import load_ray_teacher
from radcomp_plugins.teachers.picture import teacher_picture

FORMAT = "radcomp-smerf"
VERSION = 1
AssetFormat = Literal["smerf", "merf"]


def test_frames(cameras: Any, submodels: Any) -> list[TestFrame]:
    """The held-out cameras as the asset lists them, unit frame."""
    frames = []
    for index in range(len(cameras)):
        c2w = cameras.camera_to_worlds[index].cpu().double()
        c2w[:3, 3] = submodels.to_unit(c2w[:3, 3].float().to(submodels.centres.device)).cpu().double()
        size = (int(cameras.width[index]), int(cameras.height[index]))
        frames.append(TestFrame(c2w[:3].numpy(), float(cameras.fx[index]), float(cameras.fy[index]), *size))
    return frames


def bake_run(pipeline: Any, settings: BakeSettings, view_pixels: int = 160_000) -> BakedScene:
    """Bake the student of a pipeline."""
    model: SmerfModel = pipeline.model
    cameras = pipeline.datamanager.train_dataset.cameras
    views = view_rays(
        cameras, model.submodels, sigma=pipeline.config.jitter_origin,
        max_angle=pipeline.config.jitter_rotation * np.pi, max_rays=view_pixels, seed=pipeline.config.seed,
    )  # fmt: skip
    with get_progress("Baking", suffix="texels/s") as progress:
        task = progress.add_task("Baking", total=None)

        def report(what: str, done: int, total: int) -> None:
            progress.update(task, completed=done, total=total, description=f"Baking {what}")

        submodels = bake(
            model.field, model.occupancy.cells.cpu().numpy(), views, model.config.near_plane, settings, report
        )  # fmt: skip
    return BakedScene(
        layout=model.layout,
        deferred=model.deferred.baked(),
        submodels={submodel.index: submodel for submodel in submodels},
        test_frames=test_frames(pipeline.datamanager.eval_dataset.cameras, model.submodels),
    )


@torch.no_grad()
def measure(pipeline: Any, decoded: BakedScene, teacher_path: Path | None) -> dict[str, Any]:
    """Quality on the held-out photos of the decoded asset, of the student it was baked from, and of the teacher."""
    model: SmerfModel = pipeline.model
    renderer = Renderer(decoded)
    teacher = load_ray_teacher(teacher_path, model.device) if teacher_path is not None else None
    baked, student, taught, to_teacher = (Quality(Lpips()), Quality(), Quality(Lpips()), Quality())
    views = list(pipeline.datamanager.fixed_indices_eval_dataloader)
    with get_progress("Measuring", suffix="views/s") as progress:
        for camera, batch in progress.track(views):
            photo = batch["image"][..., :3].float()
            photo = photo / 255 if batch["image"].dtype == torch.uint8 else photo
            bundle = camera.generate_rays(camera_indices=0, keep_shape=True)
            shape = bundle.origins.shape
            origins = model.submodels.to_unit(bundle.origins.to(model.device)).reshape(-1, 3).cpu()
            directions = bundle.directions.reshape(-1, 3).cpu()
            starts = torch.full((len(origins),), model.config.near_plane)
            begun = time.perf_counter()
            drawn = renderer.rays(origins, directions, starts)["rgb"].reshape(shape)
            baked.add(drawn, photo, time.perf_counter() - begun)
            begun = time.perf_counter()
            unbaked = model.get_outputs_for_camera(camera)["rgb"]
            student.add(unbaked, photo, time.perf_counter() - begun)
            if teacher is not None:
                begun = time.perf_counter()
                said = teacher_picture(teacher, bundle.to(model.device)).reshape(shape)
                taught.add(said, photo, time.perf_counter() - begun)
                to_teacher.add(drawn, said.cpu(), 0.0)
    result: dict[str, Any] = {"num_views": len(views), **baked.summary(), "unbaked": student.summary()}
    if teacher is not None and views:
        result["teacher"] = taught.summary()
        result["to_teacher"] = {name: to_teacher.summary()[name] for name in ("psnr", "ssim")}
    return result


def baked_run(folder: Path, config: Any, transforms: Path | None) -> None:
    """A run folder inside of the asset, whose model is the asset."""
    from radcomp_plugins.smerf.baked_config import BakedSmerfModelConfig, baked_pipeline

    model = BakedSmerfModelConfig(asset=Path(".."))
    write_shown_run(folder, config, baked_pipeline(copy.deepcopy(config.pipeline.datamanager), model), transforms)


def export_run(
    load_config: Path,
    output_dir: Path,
    *,
    format: AssetFormat = "smerf",
    settings: BakeSettings | None = None,
    with_quality: bool = True,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Export a SMERF run as an asset folder.

    Args:
        load_config: config.yml of the run, or its folder.
        output_dir: the folder to make.
        format: `smerf`, the official viewer's and ours; or `merf`, for students without gating and concatenation.
        settings: what is kept in baking.
        with_quality: measure the decoded asset, the student and the teacher on the held-out photos.
        overwrite: replace an asset that is already there.

    Returns:
        The manifest.

    Raises:
        InputError: the run is no SMERF run, its dataset is missing, or the output exists.
    """
    refuse_overwrite(output_dir, overwrite)
    config, pipeline, _, _ = compat.load_run(load_config, test_mode="test")
    if not isinstance(pipeline.model, SmerfModel):
        raise InputError(f"{load_config}: a run of {config.method_name}, expected one of smerf")
    pipeline.eval()
    begun = time.perf_counter()
    scene = bake_run(pipeline, settings or BakeSettings())
    seconds = {"bake": time.perf_counter() - begun}
    run = Path(load_config) if Path(load_config).is_dir() else Path(load_config).parent
    frame, transforms = dataset_frame(run)
    with atomic_dir(output_dir, overwrite) as folder:
        begun = time.perf_counter()
        _write(folder, scene, format)
        seconds["write"] = time.perf_counter() - begun
        quality = None
        if with_quality:
            teacher: Path | None = getattr(config.pipeline, "teacher", None)
            quality = measure(pipeline, _read(folder, format), teacher if teacher and teacher.exists() else None)
            CONSOLE.print(
                f"Held-out photos: {quality['unbaked']['psnr']:.2f} dB before baking, {quality['psnr']:.2f} dB after"
            )
        baked_run(folder / RUN, config, transforms)
        return write_manifest(
            folder,
            {
                "format": FORMAT if format == "smerf" else "radcomp-merf",
                "version": VERSION,
                "method": config.method_name,
                "submodels": list(scene.layout.alive),
                "blocks": {str(index): len(one.blocks) for index, one in scene.submodels.items()},
                "dataset_to_scene": frame,
                "scene_to_unit": scene.layout.scene_to_unit.tolist(),
                "seconds": seconds,
                "quality": quality,
            },
        )


def _write(folder: Path, scene: BakedScene, format: AssetFormat) -> None:
    if format == "smerf":
        write_smerf(folder, scene)
        return
    from radcomp_plugins.smerf.formats.merf import write_merf

    write_merf(folder, scene)


def _read(folder: Path, format: AssetFormat) -> BakedScene:
    if format == "smerf":
        return read_smerf(folder)
    from radcomp_plugins.smerf.formats.merf import read_merf

    return read_merf(folder)
