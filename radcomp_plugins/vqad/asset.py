"""Export of a VQ-AD run: one progressive file, read back and measured level by level, and a run that shows it."""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from radcomp_plugins.shown_run import RUN, write_shown_run
from radcomp_plugins.teachers.dataset import dataset_frame
from radcomp_plugins.vqad.baked_config import BakedVqadModelConfig, baked_pipeline
from radcomp_plugins.vqad.baked_model import draw_scene, drawable
from radcomp_plugins.vqad.bitstream import SCENE, VERSION, Decoded, read_scene, sizes_of, write_scene
from radcomp_plugins.vqad.field import VqadField, scene_from_field
from radcomp_plugins.vqad.float_coding import MANTISSA_BITS, round_mantissa
from radcomp_plugins.vqad.info import FORMAT
from radcomp_plugins.vqad.losses import photo_on_background
from radcomp_plugins.vqad.model import VqadModel
from radcomp_plugins.vqad.scene import VqadLevel, VqadScene

CHUNK = 1 << 16
"""Rays drawn at once when measuring."""


@dataclass(frozen=True)
class FileSettings:
    """What may be given up for a smaller file.

    Attributes:
        decoder_digits: binary digits kept behind the leading one of the decoder's half-precision weights, 0 to 10; 10
            keeps all. Six save a third of the decoder's bytes.
        codebook_digits: the same for codebooks.
    """

    decoder_digits: int = MANTISSA_BITS
    codebook_digits: int = MANTISSA_BITS

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            InputError: one is out of its range.
        """
        for name in ("decoder_digits", "codebook_digits"):
            if not 0 <= getattr(self, name) <= MANTISSA_BITS:
                raise InputError(f"{name} is {getattr(self, name)}, expected 0 to {MANTISSA_BITS}")


def settle(scene: VqadScene, settings: FileSettings) -> VqadScene:
    """The scene as it will be in the file: rounded, and its codes in an order that codes well.

    Codes that stand close together in the codebook get numbers that do: the first bits of an index then say what
    region of feature space it is from, which neighbours predict better than the index itself. Codes that no vertex uses
    become zeros, which cost nothing. What is drawn does not change by this, only by rounding.
    """
    decoder = replace(
        scene.decoder,
        weights=[round_mantissa(weight, settings.decoder_digits) for weight in scene.decoder.weights],
        biases=[round_mantissa(bias, settings.decoder_digits) for bias in scene.decoder.biases],
    )
    return replace(scene, decoder=decoder, levels=[_settle_level(level, settings) for level in scene.levels])


def _settle_level(level: VqadLevel, settings: FileSettings) -> VqadLevel:
    counts = np.bincount(level.indices, minlength=len(level.codebook))
    rounded = round_mantissa(level.codebook, settings.codebook_digits)
    book = rounded.astype(np.float64)
    used = np.flatnonzero(counts)
    order = np.concatenate([used[_tree_order(book[used], counts[used])], np.flatnonzero(counts == 0)])
    rank = np.empty(len(order), np.uint8)
    rank[order] = np.arange(len(order))
    fresh = np.where(counts[order, None] > 0, rounded[order], np.float16(0))
    return replace(level, indices=rank[level.indices], codebook=fresh)


def _tree_order(points: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Places of points in an order that halves them, weighed by counts, across the direction they vary most along."""
    if len(points) < 3:
        return np.arange(len(points))
    centred = points - np.average(points, axis=0, weights=counts)
    _, _, axes = np.linalg.svd(centred * np.sqrt(counts)[:, None], full_matrices=False)
    # The sign of an axis is arbitrary: its largest entry decides, so that the same codebook gives the same order.
    axis = axes[0] * np.sign(axes[0][np.abs(axes[0]).argmax()] or 1.0)
    order = np.argsort(centred @ axis, kind="stable")
    half = 1 << ((len(points) - 1).bit_length() - 1)
    first, second = order[:half], order[half:]
    return np.concatenate(
        [first[_tree_order(points[first], counts[first])], second[_tree_order(points[second], counts[second])]]
    )


@torch.no_grad()
def quality_of(
    field: VqadField, background: Tensor, views: Sequence[Any], *, level: int | None = None, lpips: bool = False
) -> dict[str, Any]:
    """Quality of a field's pictures of held-out photos.

    Args:
        field: on the device that is to draw.
        background: [3] colour behind the scene, and behind photos that are transparent.
        views: pairs of a camera and a batch with its photo, as nerfstudio's datamanagers give them.
        level: finest level that is drawn; None is all.
        lpips: whether to measure that too.
    """
    quality = Quality(Lpips() if lpips else None)
    device = field.box.device
    for camera, batch in views:
        bundle = camera.generate_rays(camera_indices=0, keep_shape=True).to(device)
        image = batch["image"].float() / (255 if batch["image"].dtype == torch.uint8 else 1)
        photo = photo_on_background(image.reshape(-1, image.shape[-1]).to(device), background)
        begun = time.perf_counter()
        rays = bundle.origins.reshape(-1, 3).split(CHUNK), bundle.directions.reshape(-1, 3).split(CHUNK)
        drawn = torch.cat([draw_scene(field, background, *part, level)["rgb"] for part in zip(*rays, strict=True)])
        if device.type == "cuda":
            torch.cuda.synchronize()
        shape = bundle.origins.shape
        quality.add(drawn.reshape(shape), photo.reshape(shape), time.perf_counter() - begun)
    return quality.summary()


def measure(pipeline: Any, decoded: Decoded) -> dict[str, Any]:
    """Quality on the held-out photos of the decoded file at each of its levels, and of the run before rounding.

    Args:
        pipeline: of the run, with its held-out views.
        decoded: the file as it was read back.
    """
    model: VqadModel = pipeline.model
    background, views = model.background(), list(pipeline.datamanager.fixed_indices_eval_dataloader)
    field = drawable(decoded, model.config.opaque).to(model.device)
    rates = []
    with get_progress("Measuring", suffix="levels/s") as progress:
        for level, chunk in progress.track(list(zip(decoded.scene.levels, decoded.chunks[1:], strict=False))):
            finest = level is decoded.scene.levels[-1]
            found = quality_of(field, background, views, level=level.level, lpips=finest)
            rates.append({"level": level.level, "bytes": chunk.end, **found})
        unrounded = quality_of(model.field, background, views)
    last = {name: value for name, value in rates[-1].items() if name not in ("level", "bytes")}
    return {"num_views": len(views), **last, "levels": rates, "unrounded": unrounded}


def export_run(
    load_config: Path,
    output_dir: Path,
    *,
    settings: FileSettings | None = None,
    with_quality: bool = True,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Export a VQ-AD run as an asset folder.

    Args:
        load_config: config.yml of the run, or its folder.
        output_dir: the folder to make.
        settings: what may be given up for a smaller file; None is nothing.
        with_quality: measure the decoded file on the held-out photos.
        overwrite: replace an asset that is already there.

    Returns:
        The manifest.

    Raises:
        InputError: the run is no VQ-AD run or has no codebook, its dataset is missing, or the output exists.
    """
    refuse_overwrite(output_dir, overwrite)
    config, pipeline, _, _ = compat.load_run(load_config, test_mode="test")
    model: Any = pipeline.model
    if not isinstance(model, VqadModel):
        raise InputError(f"{load_config}: a run of {config.method_name}, expected one of vqad")
    if model.field.encoding.mode == "full":
        raise InputError(
            f"{load_config}: at full precision still, expected a codebook: train on past quantise_from, or without "
            "--pipeline.model.compression full"
        )
    pipeline.eval()
    run = Path(load_config) if Path(load_config).is_dir() else Path(load_config).parent
    frame, transforms = dataset_frame(run)
    dataset_to_scene = frame["scale"] * np.array(frame["transform"], np.float64)[:3]
    scene = settle(scene_from_field(model.field, model.background(), dataset_to_scene), settings or FileSettings())
    seconds: dict[str, float] = {}
    with atomic_dir(output_dir, overwrite) as folder:
        begun = time.perf_counter()
        write_scene(folder / SCENE, scene)
        seconds["encode"] = time.perf_counter() - begun
        begun = time.perf_counter()
        decoded = read_scene(folder / SCENE)
        seconds["decode"] = time.perf_counter() - begun
        quality = measure(pipeline, decoded) if with_quality else None
        if quality is not None:
            rates = ", ".join(f"{rate['bytes']:,} bytes {rate['psnr']:.2f} dB" for rate in quality["levels"])
            CONSOLE.print(f"Held-out photos: {rates}; {quality['unrounded']['psnr']:.2f} dB before rounding")
        shown = BakedVqadModelConfig(asset=Path(".."), opaque=model.config.opaque)
        manager = copy.deepcopy(config.pipeline.datamanager)
        write_shown_run(folder / RUN, config, baked_pipeline(manager, shown), transforms)
        return write_manifest(
            folder,
            {
                "format": FORMAT,
                "version": VERSION,
                "method": config.method_name,
                "levels": sizes_of((folder / SCENE).read_bytes(), decoded.scene),
                "dataset_to_scene": frame,
                "seconds": seconds,
                "quality": quality,
            },
        )
