"""What the reports say about a scene: quality of each held-out view, time of a frame, and the machine."""

import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from nerfstudio.utils.rich_utils import get_progress
from torch import Tensor

from radcomp_plugins.core.metrics import Lpips, psnr
from radcomp_plugins.core.ssim import ssim
from radcomp_plugins.splats.draw import picture
from radcomp_plugins.splats.evaluate import HeldOutView
from radcomp_plugins.splats.gaussians import Gaussians

WARM_UP_FRAMES = 3
TIMING_SECONDS = 4.0
"""Time for the frame times of each scene; at least one pass over the views."""
NO_LPIPS = "not asked for: --lpips False"


@dataclass(frozen=True)
class ViewScore:
    """Quality of one held-out view: PSNR in dB, SSIM, and LPIPS, None where its weights cannot be had."""

    psnr: float
    ssim: float
    lpips: float | None


def score_views(
    scene: Gaussians, views: Sequence[HeldOutView], background: Float[Tensor, " 3"], lpips: Lpips | None, title: str
) -> list[ViewScore]:
    """Quality of a scene on each view against its photo.

    Args:
        scene: On the device of the views.
        views: Held-out views.
        background: Colour the photos were composited on.
        lpips: The metric, None to leave it out.
        title: What the progress bar says.
    """
    scores = []
    with get_progress(title, suffix="views/s") as progress:
        for held_out in progress.track(views):
            truth = held_out.image.to(scene.means.device)
            drawn = picture(scene, held_out.view, background)
            stacked = [image.permute(2, 0, 1)[None] for image in (truth, drawn)]
            scores.append(
                ViewScore(
                    psnr=float(psnr(truth, drawn)),
                    ssim=float(ssim(*stacked)),
                    lpips=None if lpips is None else lpips(*stacked),
                )
            )
    return scores


def average(scores: Sequence[ViewScore], lpips: Lpips | None) -> dict[str, Any]:
    """Means over the views, with the net of LPIPS, and the reason where there is no value."""
    values = [score.lpips for score in scores if score.lpips is not None]
    complete = len(values) == len(scores) > 0
    result: dict[str, Any] = {
        "psnr": statistics.fmean(score.psnr for score in scores),
        "ssim": statistics.fmean(score.ssim for score in scores),
        "lpips": statistics.fmean(values) if complete else None,
    }
    if complete and lpips is not None:
        result["lpips_net"] = lpips.net
    else:
        result["lpips_reason"] = NO_LPIPS if lpips is None else lpips.reason
    return result


def frame_times(
    scenes: dict[str, Gaussians], views: Sequence[HeldOutView], background: Float[Tensor, " 3"]
) -> dict[str, float]:
    """Median milliseconds to draw a view of each scene, one rasterizer and one run.

    The scenes take turns view by view, so that whatever else the machine does falls on all alike.
    """
    times: dict[str, list[float]] = {name: [] for name in scenes}
    for scene in [*scenes.values()] * WARM_UP_FRAMES:
        picture(scene, views[0].view, background)
    deadline = time.perf_counter() + TIMING_SECONDS * len(scenes)
    while not all(times.values()) or time.perf_counter() < deadline:
        for held_out in views:
            for name, scene in scenes.items():
                began = _now(scene)
                picture(scene, held_out.view, background)
                times[name].append(_now(scene) - began)
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def _now(scene: Gaussians) -> float:
    if scene.means.is_cuda:
        torch.cuda.synchronize(scene.means.device)
    return time.perf_counter()


def device_name(device: torch.device | str) -> str:
    """The GPU's name, or the processor's and the threads used."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(torch.device(device))
    from radcomp_plugins.core.threads import get_num_threads

    return f"{processor_name()}, {get_num_threads()} threads"


def processor_name() -> str:
    """Model of the CPU as the kernel has it, else the architecture."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text("utf8", "replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or f"{platform.machine()} with {os.cpu_count()} cores"
