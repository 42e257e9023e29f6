"""`radcomp bench baked`: frame time of a baked SMERF asset, beside its teacher's in the same run."""

import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from radcomp_plugins.errors import InputError


@dataclass
class BenchBaked:
    """Time frames of a baked SMERF asset from its test poses, and of its teacher in turns with them.

    Example: radcomp bench baked --asset assets/chair --teacher outputs/chair/zipnerf-torch-tiny/RUN
    """

    asset: Path
    """Folder of a baked asset, ours or the official exporter's."""
    teacher: Path | None = None
    """Run folder of a radiance field, to time as well; it has to know the scene in the asset's frame."""
    size: int = 400
    """Width and height of the picture in pixels; the test poses keep their vertical field of view."""
    repeats: int = 5
    """Timed rounds over the poses, after one that is not counted."""
    poses: int = 8
    """How many of the asset's test poses, evenly spread."""
    teacher_poses: int = 1
    """How many of them the teacher draws in each round: it takes seconds each."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is one."""
    json: bool = False
    """Print JSON instead of lines."""

    def main(self) -> None:
        """Measure and print."""
        if min(self.size, self.repeats, self.poses, self.teacher_poses) < 1:
            raise InputError("bench baked: --size, --repeats, --poses and --teacher-poses have to be at least 1")
        result = measure_baked(self)
        if self.json:
            sys.stdout.write(json.dumps(result, indent=2) + "\n")
            return
        from nerfstudio.utils.rich_utils import CONSOLE

        place = f"{result['device']}, {result['threads']} threads"
        CONSOLE.print(f"{self.size}x{self.size}, {result['poses']} poses, {result['submodels']} submodels, {place}")
        CONSOLE.print(f"baked    median {result['baked_ms']:9.1f} ms   {1e3 / result['baked_ms']:8.2f} frames/s")
        if self.teacher is not None:
            ratio = f"{result['ratio']:8.1f} times the baked"
            CONSOLE.print(f"teacher  median {result['teacher_ms']:9.1f} ms   {ratio}")


def measure_baked(bench: BenchBaked) -> dict[str, Any]:
    """Median milliseconds of a frame, with the machine they were measured on.

    Raises:
        InputError: the asset or the teacher cannot be read, the asset has no test poses, or there is no such device.
    """
    import numpy as np
    import torch

    from radcomp_plugins.core.threads import get_num_threads
    from radcomp_plugins.smerf.baked_model import read_baked
    from radcomp_plugins.smerf.render import Renderer
    from radcomp_plugins.teachers.load_rays import load_ray_teacher

    cuda = bench.device == "cuda" or (bench.device == "auto" and torch.cuda.is_available())
    if cuda and not torch.cuda.is_available():
        raise InputError("bench baked: --device cuda, but torch finds no CUDA device here; use --device cpu")
    device = "cuda" if cuda else "cpu"
    scene = read_baked(bench.asset)
    if not scene.test_frames:
        raise InputError(f"{bench.asset}: its test_frames.json lists no pose, expected at least one")
    count = min(bench.poses, len(scene.test_frames))
    frames = [scene.test_frames[i] for i in np.linspace(0, len(scene.test_frames) - 1, count).round().astype(int)]
    renderer = Renderer(scene, device)
    teacher = load_ray_teacher(bench.teacher, device) if bench.teacher is not None else None
    times: dict[str, list[float]] = {"baked": [], "teacher": []}
    for round_number in range(bench.repeats + 1):
        for number, frame in enumerate(frames):
            focal, middle = frame.fy * bench.size / frame.height, bench.size / 2
            draw_baked = functools.partial(
                renderer.picture, frame.c2w, focal, focal, middle, middle, bench.size, bench.size
            )
            turns: dict[str, Callable[[], Any]] = {"baked": draw_baked}
            if teacher is not None and number < bench.teacher_poses:
                turns["teacher"] = functools.partial(
                    _teacher_picture, teacher, scene.layout, frame.c2w, focal, bench.size, device
                )
            for name, draw in turns.items():
                start = time.perf_counter()
                draw()
                if cuda:
                    torch.cuda.synchronize()
                if round_number > 0:
                    times[name].append(1e3 * (time.perf_counter() - start))
    result: dict[str, Any] = {
        "schema_version": 1,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "threads": get_num_threads(),
        "asset": str(bench.asset),
        "size": bench.size,
        "poses": count,
        "submodels": len(scene.submodels),
        "baked_ms": statistics.median(times["baked"]),
        "baked_min_ms": min(times["baked"]),
    }
    if teacher is not None:
        result["teacher_ms"] = statistics.median(times["teacher"])
        result["ratio"] = result["teacher_ms"] / result["baked_ms"]
    return result


def _teacher_picture(teacher: Any, layout: Any, c2w: Any, focal: float, size: int, device: str) -> Any:
    """The same picture by the teacher, whose camera is in the scene's frame."""
    import numpy as np
    import torch
    from nerfstudio.cameras.cameras import Cameras

    from radcomp_plugins.teachers.picture import teacher_picture

    pose = np.array(c2w, np.float64)
    pose[:, 3] = np.linalg.solve(layout.scene_to_unit[:, :3], pose[:, 3] - layout.scene_to_unit[:, 3])
    cameras = Cameras(
        torch.tensor(pose, dtype=torch.float32)[None], focal, focal, size / 2, size / 2, width=size, height=size
    )
    with torch.no_grad():
        return teacher_picture(teacher, cameras.generate_rays(camera_indices=0, keep_shape=True).to(device))
