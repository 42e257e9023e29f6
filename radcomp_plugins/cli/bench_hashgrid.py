"""`radcomp bench hashgrid`: the hash encoding's kernels against plain torch, alone and in training."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from radcomp_plugins.errors import InputError

if TYPE_CHECKING:
    from torch import nn

CASES = ((8, 15, 24_576), (16, 19, 24_576), (8, 15, 300_000), (10, 17, 200_000))
"""Levels, binary logarithm of the entries, points: from a batch of nerfacto-tiny to a full nerfacto's."""


@dataclass
class BenchHashgrid:
    """Time the hash encoding on the CPU against nerfstudio's torch code, alone and in training nerfacto-tiny.

    Example: radcomp bench hashgrid --num-rays 2048
    """

    num_rays: int = 1536
    """Rays of a training step."""
    repeats: int = 5
    """Timed steps of each kind, in turns; the median counts."""
    max_points: int = 300_000
    """Cases of the encoding alone with more points than this are left out."""
    json: bool = False
    """Print JSON instead of lines."""

    def main(self) -> None:
        """Measure and print."""
        if min(self.num_rays, self.repeats, self.max_points) < 1:
            raise InputError("bench hashgrid: --num-rays, --repeats and --max-points have to be at least 1")
        result = measure(self)
        if self.json:
            sys.stdout.write(json.dumps(result, indent=2) + "\n")
            return
        from nerfstudio.utils.rich_utils import CONSOLE

        CONSOLE.print(f"cpu, {result['threads']} threads; nanoseconds per point and level, and how often torch's")
        for case in result["encoding"]:
            name = f"{case['levels']} levels of 2^{case['log2_size']}, {case['points']:,} points"
            parts = [f"{key} {case[key]:6.1f} ({case[f'torch_{key}'] / case[key]:4.1f}x)" for key in PASSES]
            CONSOLE.print(f"{name:<36} {'   '.join(parts)}", soft_wrap=True)
        training = result["training"]
        CONSOLE.print(
            f"nerfacto-tiny's settings, {self.num_rays:,} rays a step: {training['rays_per_second']:,.0f} rays/s; "
            f"nerfacto in torch {training['torch_rays_per_second']:,.0f} rays/s; {training['ratio']:.1f}x",
            soft_wrap=True,
        )


PASSES = ("forward", "backward")


def measure(bench: BenchHashgrid) -> dict[str, Any]:
    """All measurements, with the machine they were made on."""
    from radcomp_plugins.core.threads import get_num_threads

    cases = [case for case in CASES if case[2] <= bench.max_points]
    return {
        "schema_version": 1,
        "device": "cpu",
        "threads": get_num_threads(),
        "encoding": [measure_encoding(*case, bench.repeats) for case in cases],
        "training": measure_training(bench.num_rays, bench.repeats),
    }


def measure_encoding(levels: int, log2_size: int, points: int, repeats: int) -> dict[str, Any]:
    """Nanoseconds per point and level of both implementations, at uniformly random points, fastest of the repeats."""
    import torch
    from nerfstudio.field_components.encodings import HashEncoding

    from radcomp_plugins.core.hashgrid import hash_encode

    torch.manual_seed(0)
    stock = HashEncoding(num_levels=levels, log2_hashmap_size=log2_size, max_res=2048, implementation="torch")
    table, scale = stock.hash_table, 1e9 / (levels * points)
    x, grads = torch.rand(points, 3), torch.randn(points, 2 * levels)

    def ours() -> Any:
        return hash_encode(x, table, stock.scalings, log2_size)

    def passes(encode: Callable[[], Any]) -> tuple[float, float]:
        start = time.perf_counter()
        out = encode()
        middle = time.perf_counter()
        out.backward(grads)
        end = time.perf_counter()
        table.grad = None
        return scale * (middle - start), scale * (end - middle)

    result: dict[str, Any] = {"levels": levels, "log2_size": log2_size, "points": points}
    for prefix, encode in (("", ours), ("torch_", lambda: stock(x))):
        times = [passes(encode) for _ in range(repeats + 1)][1:]
        for index, name in enumerate(PASSES):
            result[prefix + name] = min(time[index] for time in times)
    return result


def measure_training(num_rays: int, repeats: int) -> dict[str, float]:
    """Rays per second of whole training steps on random rays: nerfacto-tiny, and nerfacto at the same settings.

    Both are unbounded, with the same sizes, samples and optimizer; each has the number of torch threads it trains with.
    """
    import statistics

    import torch

    default = torch.get_num_threads()
    kinds = {"ours": (training_step(False, num_rays), 1), "torch": (training_step(True, num_rays), default)}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    try:
        for round_number in range(repeats + 1):
            for name, (step, threads) in kinds.items():
                torch.set_num_threads(threads)
                start = time.perf_counter()
                step()
                if round_number > 0:
                    times[name].append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(default)
    ours, theirs = (num_rays / statistics.median(times[name]) for name in ("ours", "torch"))
    return {"rays_per_second": ours, "torch_rays_per_second": theirs, "ratio": ours / theirs}


def nerfacto(stock: bool) -> "nn.Module":
    """Nerfacto at the settings of nerfacto-tiny: nerfstudio's own class in plain torch, or ours."""
    import torch
    from nerfstudio.data.scene_box import SceneBox
    from nerfstudio.models.nerfacto import NerfactoModel

    from radcomp_plugins import compat
    from radcomp_plugins.teachers.nerfacto_tiny.config import NerfactoTinyModelConfig
    from radcomp_plugins.teachers.nerfacto_tiny.model import NerfactoTinyModel

    config = NerfactoTinyModelConfig(scene="unbounded", background_color="last_sample")
    box = SceneBox(aabb=torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]))
    torch.manual_seed(0)
    with compat.lazy_lpips():
        return (NerfactoModel if stock else NerfactoTinyModel)(config, scene_box=box, num_train_data=1).train()


def training_step(stock: bool, num_rays: int) -> Callable[[], None]:
    """A function that does one training step on rays of random cameras inside the scene's box."""
    import torch
    from nerfstudio.cameras.rays import RayBundle

    model: Any = nerfacto(stock)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        directions = torch.nn.functional.normalize(torch.randn(num_rays, 3, generator=generator), dim=-1)
        rays = RayBundle(
            origins=torch.rand(num_rays, 3, generator=generator) - 0.5,
            directions=directions,
            pixel_area=torch.full((num_rays, 1), 1e-6),
            camera_indices=torch.zeros(num_rays, 1, dtype=torch.long),
        )
        batch = {"image": directions.abs()}
        optimizer.zero_grad()
        outputs = model(rays)
        metrics = model.get_metrics_dict(outputs, batch)
        torch.stack(list(model.get_loss_dict(outputs, batch, metrics).values())).sum().backward()
        optimizer.step()

    return step
