"""Triton's kernels in Triton's interpreter, which needs no GPU, against their twins in plain torch.

Triton asks for its interpreter when it is first imported, so these tests run in a process of their own.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from kilo_scenes import shell_scene, sphere_rays

from radcomp_plugins.kilonerf import march_torch
from radcomp_plugins.kilonerf.march_torch import SceneTensors
from radcomp_plugins.kilonerf.render_cpu import CpuRenderer
from radcomp_plugins.kilonerf.render_torch import TorchRenderer
from radcomp_plugins.kilonerf.scene import NetworkShape

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
only_interpreted = pytest.mark.skipif(
    not INTERPRETED, reason="run by test_kernels_in_the_interpreter, in a process of its own"
)


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_kernels_in_the_interpreter():
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(Path(__file__))]
    run = subprocess.run(
        command,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert run.returncode == 0, run.stdout[-3000:]
    assert "6 passed" in run.stdout


@pytest.fixture
def interpreted():
    from radcomp_plugins.kilonerf import triton_kernels

    return triton_kernels


def marched(module, tensors, most):
    rays = march_torch.enter_rays(
        tensors,
        *map(torch.from_numpy, sphere_rays(300)),
        torch.full((300,), 0.2),  # pyright: ignore[reportCallIssue]
        torch.full((300,), torch.inf),  # pyright: ignore[reportCallIssue]
        0.05,  # pyright: ignore[reportCallIssue]
    )
    active = torch.arange(0, len(rays.ids), 2)
    first = module.march(tensors, rays, active, 0.05, most)
    return [*first, *module.march(tensors, rays, active, 0.05, most), rays.first]


@only_interpreted
def test_triton_marches_as_torch_does(interpreted):
    tensors = SceneTensors(shell_scene(NetworkShape(width=4))[0], "cpu")
    ours, theirs = marched(interpreted, tensors, 3), marched(march_torch, tensors, 3)
    agree = torch.isclose(ours[0], theirs[0]).all(-1) & torch.isclose(ours[3], theirs[3]).all(-1)
    assert float(agree.float().mean()) > 0.97 and bool(torch.isfinite(ours[3]).any())
    for mine, other in zip(ours[:-1], theirs[:-1], strict=True):
        torch.testing.assert_close(mine[agree], other[agree], atol=1e-4, rtol=0, check_dtype=False)
    assert float((ours[-1] == theirs[-1]).float().mean()) > 0.97


@only_interpreted
@pytest.mark.parametrize("shape", [NetworkShape(), NetworkShape(width=16, position_octaves=2, direction_octaves=0)])
def test_triton_evaluates_as_torch_does(interpreted, shape):
    tensors = SceneTensors(shell_scene(shape)[0], "cpu")
    networks, generator = tensors.scene.grid.num_networks, torch.Generator().manual_seed(3)
    # Some networks get no sample, one more than a block of them, and some samples have no network.
    ids = torch.randint(-1, networks, (400,), generator=generator)
    ids[ids == 5], ids[:150] = 4, 7
    local = torch.rand(400, 3, generator=generator) * 2 - 1
    toward = torch.nn.functional.normalize(torch.randn(400, 3, generator=generator), dim=-1)
    ours = interpreted.evaluate(tensors, ids, local, toward, 1.5)
    theirs = march_torch.evaluate(tensors, ids, local, toward, 1.5)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert bool((ours[ids < 0] == 0).all()) and float(ours[:, 3].std()) > 0.05


@only_interpreted
@pytest.mark.parametrize("overlap", [0.0, 0.2])
def test_triton_draws_what_the_cpu_draws(interpreted, overlap):
    scene, _ = shell_scene(NetworkShape(width=16, position_octaves=4), overlap=overlap)
    rays = sphere_rays(100)
    renderer = TorchRenderer(scene, "cpu")
    renderer.kernels = interpreted
    ours, theirs = renderer.rays(*map(torch.from_numpy, rays)), CpuRenderer(scene).rays(*rays)
    agree = ours.samples.numpy() == theirs.samples
    assert agree.mean() > 0.95 and theirs.samples.max() > 5
    np.testing.assert_allclose(ours.rgb.numpy()[agree], theirs.rgb[agree], atol=2e-4)


@only_interpreted
def test_networks_that_triton_does_not_take(interpreted):
    assert interpreted.takes(NetworkShape()) and interpreted.takes(NetworkShape(width=64))
    assert not interpreted.takes(NetworkShape(width=24)) and not interpreted.takes(NetworkShape(width=8))


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize("width", [16, 32, 64])
def test_kernels_compile_for_a_gpu_that_is_not_there(width):
    """Types, shapes and shared memory are checked down to the machine code of an H100, on any machine."""
    compiler = pytest.importorskip("triton.compiler")
    from triton.backends.compiler import GPUTarget

    from radcomp_plugins.kilonerf import triton_kernels

    pointer, shape = "*fp32", NetworkShape(width=width)
    weights = dict.fromkeys(("w0", "b0", "w1", "b1", "wd", "bd", "w2", "b2", "w3", "b3"), pointer)
    rays = dict.fromkeys(("origins", "directions", "starts", "away", "positions"), pointer)
    whole = dict.fromkeys(("active", "first", "last", "ids", "networks"), "*i64")
    sorting = {"order": "*i64", "first_block": "*i32", "starts": "*i64"}
    numbers = dict.fromkeys(("step", "corner_x", "corner_y", "corner_z", "per_x", "per_y", "per_z"), "fp32")
    counts = dict.fromkeys(("count", "bx", "by", "bz", "nx", "ny", "nz"), "i32")
    lanes = dict.fromkeys(("positions", "directions", "out"), pointer)
    kernels = [
        (
            triton_kernels._march_kernel,
            {**rays, **whole, **numbers, **counts, "distance": "*u8", "voxels": "*i1"},
            {"side": 16, "most": 4, "block": 128},
        ),
        (
            triton_kernels._evaluate_kernel,
            {**weights, **lanes, **sorting, "networks": "i32", "steps": "fp32"},
            {
                "position_size": shape.position_size, "direction_size": shape.direction_size, "width": width,
                "padded_position": 64, "padded_direction": 32, "block": 64, "precision": "tf32x3",
            },
        ),
    ]  # fmt: skip
    for kernel, types, constants in kernels:
        names = kernel.arg_names
        source = compiler.ASTSource(
            fn=kernel,
            signature={name: types.get(name, "constexpr") for name in names},
            constexprs={(names.index(name),): value for name, value in constants.items()},
        )
        compiled = compiler.compile(source, target=GPUTarget("cuda", 90, 32))
        # What a consumer's GPU has for a program as well.
        assert compiled.metadata.shared <= 99 * 1024
