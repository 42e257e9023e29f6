"""The torch twin against the numba kernels, on the CPU: piece by piece, and whole pictures."""

import dataclasses

import numpy as np
import pytest
import torch
from baked_scenes import toy_scene

from radcomp_plugins.smerf import march_torch as twin
from radcomp_plugins.smerf.layout import BakedScene
from radcomp_plugins.smerf.march import march
from radcomp_plugins.smerf.ray_pieces import MAX_PIECES, piece_ends
from radcomp_plugins.smerf.render import camera_rays


@pytest.fixture(scope="module")
def toy() -> BakedScene:
    return toy_scene(32, 8, K=2)


def test_pieces_are_the_kernels():
    rng = np.random.default_rng(0)
    o, d = rng.uniform(-3, 3, (300, 3)), rng.normal(size=(300, 3))
    d[:20, 0], d[20:30, :2], o[30:40] = 0.0, 0.0, 0.0
    d[40:50] = np.abs(d[40:50, :1])  # along the diagonal, where regions meet
    found = twin.piece_ends(torch.from_numpy(o), torch.from_numpy(d), 1.0).numpy()
    crossings, ends = np.empty(12), np.empty(MAX_PIECES)
    for n in range(300):
        piece_ends(tuple(o[n]), tuple(d[n]), 1.0, crossings, ends)
        if n not in range(40, 50):
            np.testing.assert_allclose(found[n], ends, rtol=1e-12, err_msg=str((n, o[n], d[n])))
        assert found[n][-1] == twin._NEVER and (np.diff(found[n]) >= 0).all()


@pytest.mark.parametrize("frame_number", [0, 1, 2])
def test_pictures_are_the_kernels(toy, frame_number):
    frame = toy.test_frames[frame_number]
    rays = camera_rays(frame.c2w, frame.fx / 2, frame.fy / 2, 15.0, 10.0, 30, 20, 0.05)
    index = int(toy.layout.nearest(frame.c2w[None, :, 3])[0])
    submodel = toy.submodels[index]
    for layout in (toy.layout, dataclasses.replace(toy.layout, feature_gating=False, feature_concat=False)):
        ours = march(submodel, layout, *rays, step_mult=1 + frame_number)
        tensors = [torch.from_numpy(array) for array in rays]
        theirs = twin.march_torch(twin.TorchSubmodel(submodel, layout, "cpu"), *tensors, step_mult=1 + frame_number)
        assert ours.accumulation.max() > 0.5
        for a, b in zip((ours.features, ours.accumulation, ours.depth), theirs, strict=True):
            np.testing.assert_allclose(a, b.numpy(), atol=2e-5, rtol=1e-4)


def test_rays_that_are_no_numbers_see_nothing(toy):
    submodel = twin.TorchSubmodel(toy.submodels[toy.layout.alive[0]], toy.layout, "cpu")
    directions = torch.tensor([[1.0, 0.0, 0.0], [torch.nan, 0.0, 0.0]])
    origins = torch.tensor([[torch.inf, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert twin.march_torch(submodel, origins, directions, torch.full((2,), 0.1))[1].tolist() == [0, 0]


def test_no_rays_at_all(toy):
    submodel = twin.TorchSubmodel(toy.submodels[toy.layout.alive[0]], toy.layout, "cpu")
    features, accumulation, depth = twin.march_torch(submodel, torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0))
    assert features.shape == (0, 14) and accumulation.shape == (0,) and depth.shape == (0,)


@pytest.mark.gpu
def test_gpu_is_the_cpu(toy):
    frame = toy.test_frames[0]
    rays = camera_rays(frame.c2w, frame.fx, frame.fy, 30.0, 20.0, 60, 40, 0.05)
    submodel = toy.submodels[toy.layout.alive[0]]
    ours = march(submodel, toy.layout, *rays)
    tensors = [torch.from_numpy(array).cuda() for array in rays]
    theirs = twin.march_torch(twin.TorchSubmodel(submodel, toy.layout, "cuda"), *tensors)
    for a, b in zip((ours.features, ours.accumulation, ours.depth), theirs, strict=True):
        np.testing.assert_allclose(a, b.cpu().numpy(), atol=1e-4, rtol=1e-3)
