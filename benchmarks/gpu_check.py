"""The CPU twin of the rasterizer against gsplat on CUDA: images, gradients and statistics, and the speed of both.

    python benchmarks/gpu_check.py --output gpu_check.json                    # one machine with a GPU does both
    python benchmarks/gpu_check.py --save-cpu cpu.npz                         # without a GPU: the CPU's half
    python benchmarks/gpu_check.py --cpu cpu.npz --output gpu_check.json      # with a GPU, without numba

Needs torch, numpy and gsplat, and numba for the CPU's half; nothing of nerfstudio. gsplat compiles its kernels on first
use: set TORCH_CUDA_ARCH_LIST (9.0 for an H200) and MAX_JOBS. Agreement within 1e-4 is expected, beside rare single
splats that cross a threshold of 1/255, because gsplat's exponential is approximate. Not yet run on a GPU.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from radcomp_plugins.cli.bench import front_camera, shell_scene

COUNT, SIZE, DEGREE = 20_000, 256, 3
NAMES = ("means", "quats", "scales", "opacities", "colors")


def evaluate(device: str, mode: Literal["classic", "antialiased"]) -> dict[str, np.ndarray]:
    """Image, alpha, gradients and statistics of the shell scene on one device."""
    from radcomp_plugins.splats.rasterize import rasterize

    leaves = [tensor.to(device).requires_grad_() for tensor in shell_scene(COUNT, DEGREE).values()]
    means, quats, scales, opacities, colors = leaves
    viewmats, intrinsics = (tensor.to(device) for tensor in front_camera(SIZE))
    image, alpha, info = rasterize(
        means, quats, scales, opacities, colors, viewmats, intrinsics, SIZE, SIZE, sh_degree=DEGREE,
        render_mode="RGB+ED", rasterize_mode=mode, absgrad=True, compute_stats=True,
    )  # fmt: skip
    info["means2d"].retain_grad()
    weights = torch.randn(image.shape, generator=torch.Generator().manual_seed(1)).to(device)
    ((image * weights).mean() + alpha.mean()).backward()
    result = {"image": image, "alpha": alpha, "absgrad": info["means2d"].absgrad}
    result.update({f"grad_{name}": leaf.grad for name, leaf in zip(NAMES, leaves, strict=True)})
    result.update({name: info[name] for name in ("hits", "weight_sum", "weight_max")})
    return {f"{mode}/{name}": tensor.detach().cpu().numpy() for name, tensor in result.items()}


def compare(cpu: dict[str, np.ndarray], cuda: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Largest and mean difference of each array, over its largest value."""
    report = {}
    for name, ours in cpu.items():
        theirs = cuda[name].astype(np.float64)
        error = np.abs(ours.astype(np.float64) - theirs) / max(float(np.abs(theirs).max()), 1e-30)
        report[name] = {
            "max": float(error.max()),
            "mean": float(error.mean()),
            "share_over_1e-4": float((error > 1e-4).mean()),
        }
    return report


def milliseconds(function: Callable[[], Any], repeats: int = 20) -> float:
    """Median time of a call on the GPU, after a warm-up."""
    times = []
    for index in range(repeats + 3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        torch.cuda.synchronize()
        if index >= 3:
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def cuda_speed(count: int = 100_000, size: int = 400) -> dict[str, float]:
    """The benchmark of `radcomp bench rasterizer`, on CUDA."""
    from radcomp_plugins.splats.rasterize import rasterize

    leaves = [tensor.cuda().requires_grad_() for tensor in shell_scene(count, DEGREE).values()]
    means, quats, scales, opacities, colors = leaves
    viewmats, intrinsics = (tensor.cuda() for tensor in front_camera(size))

    def forward() -> torch.Tensor:
        return rasterize(means, quats, scales, opacities, colors, viewmats, intrinsics, size, size, sh_degree=DEGREE)[0]

    return {
        "forward_ms": milliseconds(forward),
        "forward_backward_ms": milliseconds(lambda: forward().square().mean().backward()),
    }


def main() -> None:
    """Compare, time, and write JSON; exit code 1 where the twins disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu_check.json"))
    parser.add_argument("--save-cpu", type=Path, help="write the CPU's half to this .npz and stop")
    parser.add_argument("--cpu", type=Path, help="take the CPU's half from this .npz")
    options = parser.parse_args()
    modes: tuple[Literal["classic", "antialiased"], ...] = ("classic", "antialiased")
    if options.cpu is not None:
        with np.load(options.cpu, allow_pickle=False) as stored:
            cpu = {name: stored[name] for name in stored.files}
    else:
        cpu = {name: array for mode in modes for name, array in evaluate("cpu", mode).items()}
    if options.save_cpu is not None:
        np.savez_compressed(options.save_cpu, **cpu)
        print(f"wrote {options.save_cpu}")
        return
    if not torch.cuda.is_available():
        raise SystemExit("gpu_check: torch finds no CUDA device here; use --save-cpu for the CPU's half")
    cuda = {name: array for mode in modes for name, array in evaluate("cuda", mode).items()}
    differences = compare(cpu, cuda)
    report = {
        "schema_version": 1,
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "scene": {"gaussians": COUNT, "size": SIZE, "sh_degree": DEGREE},
        "differences": differences,
        "speed": cuda_speed(),
    }
    options.output.write_text(json.dumps(report, indent=2))
    print(json.dumps(report, indent=2))
    agree = all(entry["mean"] < 1e-4 and math.isfinite(entry["max"]) for entry in differences.values())
    raise SystemExit(0 if agree else 1)


if __name__ == "__main__":
    main()
