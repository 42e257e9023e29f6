"""`radcomp bench`: speed of the parts on this machine, in medians over several runs."""

import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from radcomp_plugins.cli.bench_baked import BenchBaked
from radcomp_plugins.cli.bench_hashgrid import BenchHashgrid
from radcomp_plugins.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class BenchRasterizer:
    """Time the rasterizer: forward, and forward and backward to all parameters, on a scene of nested shells.

    Example: radcomp bench rasterizer --num-gaussians 100000 --size 400
    """

    num_gaussians: int = 100_000
    """Gaussians in the scene, about 5 tiles each at the default size."""
    size: int = 400
    """Width and height of the image in pixels."""
    sh_degree: Literal[0, 1, 2, 3] = 3
    """Degree of the spherical harmonics."""
    repeats: int = 15
    """Timed runs after two warm-up runs; the median and the fastest are printed."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is one."""
    json: bool = False
    """Print JSON instead of lines."""

    def main(self) -> None:
        """Measure and print."""
        if min(self.num_gaussians, self.size, self.repeats) < 1:
            raise InputError("bench rasterizer: --num-gaussians, --size and --repeats have to be at least 1")
        result = measure_rasterizer(self)
        if self.json:
            sys.stdout.write(json.dumps(result, indent=2) + "\n")
            return
        from nerfstudio.utils.rich_utils import CONSOLE

        place = f"{result['device']}, {result['threads']} threads"
        CONSOLE.print(f"{self.num_gaussians:,} Gaussians, SH {self.sh_degree}, {self.size}x{self.size}, {place}")
        for name in ("forward", "forward_backward"):
            times = result[name]
            label = name.replace("_", " + ")
            CONSOLE.print(f"{label:<20} median {times['median_ms']:7.1f} ms   fastest {times['min_ms']:7.1f} ms")


@dataclass
class BenchFrames:
    """Time frames of splat scenes, in turns, from the held-out cameras of a run: the compressed against its teacher.

    Example: radcomp bench frames --load-config outputs/chair/splatfacto-tiny/RUN --scenes teacher.ply asset/scene.sog
    """

    load_config: Path
    """config.yml of a run, or its folder, whose dataset has the cameras."""
    scenes: tuple[Path, ...]
    """Splat files, asset folders' scene files, or splat runs."""
    repeats: int = 5
    """Rounds over all cameras; the scenes take turns within a round, so that noise falls on all of them."""

    def main(self) -> None:
        """Measure and print."""
        if not self.scenes or self.repeats < 1:
            raise InputError("bench frames: expected at least one of --scenes and --repeats of at least 1")
        from nerfstudio.utils.rich_utils import CONSOLE

        first = None
        for path, milliseconds in measure_frames(self).items():
            first = milliseconds if first is None else first
            CONSOLE.print(f"{milliseconds:8.1f} ms  {first / milliseconds:5.2f}x  {path}", soft_wrap=True)


BENCHES = (
    Annotated[BenchRasterizer, tyro.conf.subcommand(name="rasterizer")],
    Annotated[BenchFrames, tyro.conf.subcommand(name="frames")],
    Annotated[BenchHashgrid, tyro.conf.subcommand(name="hashgrid")],
    Annotated[BenchBaked, tyro.conf.subcommand(name="baked")],
)


def shell_scene(count: int, sh_degree: int, seed: int = 0) -> "dict[str, Tensor]":
    """Gaussians near three nested shells and log-normal in size: activated, with leaves that require gradients."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    radius = torch.tensor([0.6, 1.0, 1.4])[torch.randint(0, 3, (count,), generator=generator)]
    radius = radius + 0.03 * torch.randn(count, generator=generator)
    return {
        "means": direction * radius[:, None],
        "quats": torch.randn(count, 4, generator=generator),
        "scales": torch.exp(math.log(0.02) + 0.6 * torch.randn(count, 3, generator=generator)),
        "opacities": torch.sigmoid(1.5 * torch.randn(count, generator=generator)),
        "colors": 0.1 * torch.randn(count, (sh_degree + 1) ** 2, 3, generator=generator),
    }


def front_camera(size: int) -> "tuple[Tensor, Tensor]":
    """A camera four units before the shells: viewmats [1, 4, 4] and intrinsics [1, 3, 3] of 50 degrees."""
    import torch

    view = torch.eye(4)
    view[2, 3] = 4.0
    focal = 0.5 * size / math.tan(math.radians(25))
    return view[None], torch.tensor([[[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]]])


def measure_rasterizer(bench: BenchRasterizer) -> dict[str, Any]:
    """Milliseconds of both passes, with the machine they were measured on."""
    import torch

    from radcomp_plugins.core.threads import get_num_threads
    from radcomp_plugins.splats.rasterize import rasterize

    cuda = bench.device == "cuda" or (bench.device == "auto" and torch.cuda.is_available())
    if cuda and not torch.cuda.is_available():
        raise InputError("bench rasterizer: --device cuda, but torch finds no CUDA device here; use --device cpu")
    device = "cuda" if cuda else "cpu"
    scene = shell_scene(bench.num_gaussians, bench.sh_degree)
    leaves = [tensor.to(device).requires_grad_() for tensor in scene.values()]
    means, quats, scales, opacities, colors = leaves
    viewmats, intrinsics = (tensor.to(device) for tensor in front_camera(bench.size))
    size, degree = bench.size, bench.sh_degree

    def forward() -> "tuple[Tensor, Tensor]":
        return rasterize(means, quats, scales, opacities, colors, viewmats, intrinsics, size, size, sh_degree=degree)[
            :2
        ]

    def forward_only() -> None:
        with torch.no_grad():
            forward()

    def forward_backward() -> None:
        for leaf in leaves:
            leaf.grad = None
        image, alpha = forward()
        (image.square().mean() + alpha.mean()).backward()

    return {
        "schema_version": 1,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "threads": get_num_threads(),
        "num_gaussians": bench.num_gaussians,
        "size": bench.size,
        "sh_degree": bench.sh_degree,
        "forward": timings(forward_only, bench.repeats, cuda),
        "forward_backward": timings(forward_backward, bench.repeats, cuda),
    }


def measure_frames(bench: BenchFrames) -> dict[Path, float]:
    """Median milliseconds of a frame of each scene."""
    import torch

    from radcomp_plugins import compat
    from radcomp_plugins.splats.draw import draw
    from radcomp_plugins.splats.views import pinhole_views
    from radcomp_plugins.teachers.load import load_splats

    pipeline: Any = compat.load_run(bench.load_config, test_mode="test")[1]
    # Reading the images first takes the distortion out of the cameras.
    _ = pipeline.datamanager.cached_eval
    views = pinhole_views(pipeline.datamanager.eval_dataset.cameras.to(pipeline.device))
    scenes = {path: load_splats(path).to(pipeline.device) for path in bench.scenes}
    times: dict[Path, list[float]] = {path: [] for path in scenes}
    for round_number in range(bench.repeats + 1):
        for view in views:
            for path, scene in scenes.items():
                start = time.perf_counter()
                draw(scene, view)
                if pipeline.device.type == "cuda":
                    torch.cuda.synchronize()
                if round_number > 0:
                    times[path].append(1e3 * (time.perf_counter() - start))
    return {path: statistics.median(values) for path, values in times.items()}


def timings(function: Callable[[], None], repeats: int, cuda: bool) -> dict[str, float]:
    """Median and fastest milliseconds of a call, after two that are not counted."""
    import torch

    times = []
    for index in range(repeats + 2):
        start = time.perf_counter()
        function()
        if cuda:
            torch.cuda.synchronize()
        if index >= 2:
            times.append(1e3 * (time.perf_counter() - start))
    return {"median_ms": statistics.median(times), "min_ms": min(times)}
