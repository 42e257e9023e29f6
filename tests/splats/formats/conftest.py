"""Scenes to write and read, and the peers that must read the same."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from radcomp_plugins.splats.gaussians import Gaussians, num_sh_rest

MakeScene = Callable[..., Gaussians]


@pytest.fixture(scope="session")
def make_scene() -> MakeScene:
    """`make_scene(n, degree, seed)`: Gaussians spread as in trained scenes: far ones, thin ones, faint ones."""

    def make(n: int = 200, degree: int = 3, seed: int = 0, antialiased: bool = False) -> Gaussians:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        means = normal(n, 3) * (2.0 * normal(n, 1)).exp()
        rest = 0.2 * normal(n, num_sh_rest(degree), 3)
        return Gaussians(
            means, normal(n, 4), 1.5 * normal(n, 3) - 5.0, 3.0 * normal(n), normal(n, 3), rest, antialiased
        )

    return make


@pytest.fixture(scope="session")
def covariances() -> Callable[[Gaussians], Tensor]:
    """R S^2 R^T [N, 3, 3] float64, by which two descriptions of one Gaussian are compared."""

    def of(g: Gaussians) -> Tensor:
        w, x, y, z = torch.nn.functional.normalize(g.quats.double(), dim=1).T
        rows = [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)]
        rows += [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)]
        rows += [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]
        axes = torch.stack(rows, dim=1).reshape(-1, 3, 3) * g.scales.double().exp()[:, None]
        return axes @ axes.transpose(1, 2)

    return of


@pytest.fixture(scope="session")
def splat_transform() -> Callable[..., None]:
    """Runs PlayCanvas's own converter with the given arguments."""
    program = os.environ.get("RADCOMP_SPLAT_TRANSFORM") or shutil.which("splat-transform")
    if program is None:
        pytest.skip("splat-transform is not installed: npm install -g @playcanvas/splat-transform")

    def run(*args: str | Path) -> None:
        done = subprocess.run([program, "-q", "-w", *map(str, args)], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr + done.stdout

    return run
