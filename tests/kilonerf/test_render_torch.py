"""The twin in torch, and on a GPU Triton's kernels, against the kernels for the CPU."""

import numpy as np
import pytest
import torch
from kilo_scenes import shell_scene, sphere_rays

from radcomp_plugins.kilonerf import render_torch
from radcomp_plugins.kilonerf.render_cpu import CpuRenderer, RenderSettings
from radcomp_plugins.kilonerf.render_torch import TorchRenderer
from radcomp_plugins.kilonerf.scene import NetworkShape


def same(ours, theirs, *, allowed=0.02, atol=2e-4):
    """Most rays are equal; of a few, rounding puts a sample on the other side of a voxel's border."""
    agree = ours.samples.numpy() == theirs.samples
    assert agree.mean() >= 1 - allowed
    for name in ("rgb", "accumulation"):
        np.testing.assert_allclose(getattr(ours, name).numpy()[agree], getattr(theirs, name)[agree], atol=atol)
    np.testing.assert_allclose(ours.depth.numpy()[agree], theirs.depth[agree], atol=2e-3)
    # Of blended cells, one asks which gave most to the sample, the other which sample gave most.
    close = (ours.network.numpy() == theirs.network) | (theirs.accumulation < 0.1)
    assert close.mean() > 0.9
    assert theirs.samples.max() > 8


@pytest.mark.parametrize(
    "shape, overlap, settings",
    [
        (NetworkShape(), 0.0, RenderSettings()),
        (NetworkShape(width=8, position_octaves=3, direction_octaves=0), 0.2, RenderSettings(termination=0.0)),
        (NetworkShape(width=4, position_octaves=0), 0.0, RenderSettings(steps=2.0, samples_per_pass=1)),
    ],
)
def test_torch_draws_what_the_cpu_draws(shape, overlap, settings):
    scene, _ = shell_scene(shape, overlap=overlap)
    rays = sphere_rays(500)
    ours = TorchRenderer(scene, "cpu").rays(*map(torch.from_numpy, rays), settings=settings)
    theirs = CpuRenderer(scene).rays(*rays, settings=settings)
    same(ours, theirs)
    assert ours.hit == theirs.counters.hit


def test_starts_and_ends():
    scene, _ = shell_scene(NetworkShape(width=4))
    arrays = [*sphere_rays(300), np.full(300, 1.9, np.float32), np.full(300, 2.6, np.float32)]
    same(TorchRenderer(scene, "cpu").rays(*map(torch.from_numpy, arrays)), CpuRenderer(scene).rays(*arrays))


def test_many_rays_go_in_parts(monkeypatch):
    scene, _ = shell_scene(NetworkShape(width=4))
    rays = [torch.from_numpy(array) for array in sphere_rays(200)]
    whole = TorchRenderer(scene, "cpu").rays(*rays)
    monkeypatch.setattr(render_torch, "_LANES", 100)
    parts = TorchRenderer(scene, "cpu").rays(*rays)
    torch.testing.assert_close(whole.rgb, parts.rgb)
    assert whole.samples.equal(parts.samples)


def test_rays_that_see_nothing():
    scene, _ = shell_scene(NetworkShape(width=4))
    drawn = TorchRenderer(scene, "cpu").rays(torch.tensor([[5.0, 0, 0]]), torch.tensor([[0.0, 0, 1]]))
    torch.testing.assert_close(drawn.rgb[0].double(), torch.from_numpy(scene.background))
    assert drawn.hit == drawn.lanes == int(drawn.samples) == 0 and int(drawn.network) == -1
    assert TorchRenderer(scene, "cpu").rays(torch.zeros(0, 3), torch.zeros(0, 3)).rgb.shape == (0, 3)


@pytest.mark.gpu
def test_cuda_draws_what_the_cpu_draws():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for overlap in (0.0, 0.1):
        scene, _ = shell_scene(overlap=overlap)
        rays = sphere_rays(5000)
        theirs = CpuRenderer(scene).rays(*rays)
        for fused in (True, False):
            drawn = TorchRenderer(scene, "cuda", fused=fused).rays(*(torch.from_numpy(a).cuda() for a in rays))
            for name in ("rgb", "accumulation", "depth", "samples", "network"):
                setattr(drawn, name, getattr(drawn, name).cpu())
            same(drawn, theirs, atol=2e-3)
