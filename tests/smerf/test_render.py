"""Pictures of a baked scene: rays, submodels, compositing, and both devices' paths."""

import dataclasses

import numpy as np
import pytest
import torch
from baked_scenes import look_at, toy_scene

from radcomp_plugins.errors import InputError
from radcomp_plugins.smerf import render as module
from radcomp_plugins.smerf.layout import BakedScene
from radcomp_plugins.smerf.march import march
from radcomp_plugins.smerf.march_torch import TorchSubmodel, march_torch
from radcomp_plugins.smerf.render import Renderer, camera_rays, render


@pytest.fixture(scope="module")
def toy() -> BakedScene:
    return toy_scene(32, 8, K=2)


def draw(scene: BakedScene, number: int, **kwargs):  # noqa: ANN201
    frame = scene.test_frames[number]
    return render(scene, frame.c2w, frame.fx / 2, frame.fy / 2, 15.0, 10.0, 30, 20, **kwargs)


def test_rays_of_a_camera_by_hand():
    # A camera at (1, 2, 3) that looks along +x with z up: right is -y.
    c2w = np.array([[0.0, 0.0, -1.0, 1.0], [-1.0, 0.0, 0.0, 2.0], [0.0, 1.0, 0.0, 3.0]])
    origins, directions, starts = camera_rays(c2w, 2.0, 4.0, 1.5, 0.5, 3, 2, 0.1)
    assert origins.shape == (6, 3) and (origins == [1, 2, 3]).all()
    np.testing.assert_allclose(directions[1], [1, 0, 0], atol=1e-6)
    # One pixel to the right is 1/2 right; one down is 1/4 down.
    expected = np.array([1.0, -0.5, -0.25])
    np.testing.assert_allclose(directions[5], expected / np.linalg.norm(expected), atol=1e-6)
    np.testing.assert_allclose(starts[5], 0.1 * np.linalg.norm(expected), rtol=1e-6)


def test_picture_is_diffuse_plus_specular(toy):
    drawn = draw(toy, 0)
    assert drawn["rgb"].shape == (20, 30, 3) and drawn["depth"].shape == (20, 30)
    assert drawn["accumulation"].max() > 0.9 and drawn["rgb"].std() > 0.05
    bright = dataclasses.replace(toy, deferred=dataclasses.replace(
        toy.deferred,
        kernels=[np.zeros_like(kernel) for kernel in toy.deferred.kernels],
        biases=[np.zeros_like(bias) for bias in toy.deferred.biases],
    ))  # fmt: skip
    # A network of zeros says sigmoid(0) everywhere, whatever is behind.
    flat = draw(bright, 0)
    torch.testing.assert_close(flat["rgb"], (flat["diffuse"] + 0.5).clamp(max=1.0))


def test_background_reaches_the_network_alone(toy):
    dark = dataclasses.replace(toy, layout=dataclasses.replace(toy.layout, background=0.0))
    frame = dataclasses.replace(toy.test_frames[0], c2w=look_at(np.array([0.3, 0.3, 0.9]), np.array([0.2, 0.3, 5.0])))
    scenes = [dataclasses.replace(scene, test_frames=[frame]) for scene in (toy, dark)]
    first, second = (draw(scene, 0) for scene in scenes)
    torch.testing.assert_close(first["diffuse"], second["diffuse"])
    empty = first["accumulation"] < 0.1
    assert empty.any() and (first["rgb"] - second["rgb"])[empty].abs().max() > 1e-3
    assert (first["depth"][first["accumulation"] == 0] == 0).all()


def test_nearest_submodel_is_drawn(toy):
    first, last = toy.layout.alive[0], toy.layout.alive[-1]
    assert first != last
    for number, index in ((0, first), (2, last)):
        torch.testing.assert_close(draw(toy, number)["rgb"], draw(toy, number, submodel=index)["rgb"])
    assert not torch.equal(draw(toy, 0)["rgb"], draw(toy, 0, submodel=last)["rgb"])


def test_rays_from_many_places_each_get_their_submodel(toy):
    renderer = Renderer(toy)
    pictures, parts = [], []
    for frame in (toy.test_frames[0], toy.test_frames[2]):
        rays = camera_rays(frame.c2w, frame.fx, frame.fy, 5.0, 4.0, 10, 8, 0.05)
        parts.append([torch.from_numpy(array) for array in rays])
        pictures.append(renderer.rays(*parts[-1]))
    order = torch.randperm(160)
    mixed = [torch.cat(pair)[order] for pair in zip(*parts, strict=True)]
    drawn = renderer.rays(*mixed)
    for name, tensor in drawn.items():
        together = torch.cat([picture[name] for picture in pictures])[order]
        torch.testing.assert_close(tensor, together, atol=1e-5, rtol=0, msg=name)


def test_network_of_many_places_is_that_of_one(toy, monkeypatch):
    """Parameters of each ray's own against those interpolated once, in chunks that do not divide the number of rays."""
    frame = toy.test_frames[0]
    rays = [torch.from_numpy(a) for a in camera_rays(frame.c2w, frame.fx, frame.fy, 5.0, 4.0, 10, 8, 0.05)]
    shared = Renderer(toy).rays(*rays)["rgb"]
    monkeypatch.setattr(module, "_NETWORK_CHUNK", 33)
    rays[0][0] += 1e-7
    torch.testing.assert_close(Renderer(toy).rays(*rays)["rgb"], shared, atol=1e-4, rtol=0)


def test_no_rays(toy):
    nothing = Renderer(toy).rays(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0))
    assert nothing["rgb"].shape == (0, 3)


def test_other_devices_get_the_twin(toy, monkeypatch):
    """What a GPU would run, with the CPU standing in for it."""

    class Elsewhere(Renderer):
        def march(self, index, origins, directions, starts):  # noqa: ANN001, ANN202
            return march_torch(TorchSubmodel(self.scene.submodels[index], self.scene.layout, "cpu"),
                               origins, directions, starts)  # fmt: skip

    frame = toy.test_frames[0]
    camera = (frame.c2w, frame.fx, frame.fy, 5.0, 4.0, 10, 8)
    ours, theirs = Renderer(toy).picture(*camera), Elsewhere(toy).picture(*camera)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-5, rtol=1e-4, msg=name)


def test_near_plane_cuts(toy):
    frame = toy.test_frames[0]
    camera = (frame.c2w, frame.fx, frame.fy, 5.0, 4.0, 10, 8)
    depth = render(toy, *camera)["depth"]
    behind = float(depth[4, 5]) + 0.1
    assert render(toy, *camera, near=behind)["depth"][4, 5] > behind


def test_missing_submodels_are_named(toy):
    with pytest.raises(InputError, match="none of them is loaded"):
        Renderer(dataclasses.replace(toy, submodels={}))
    one = dataclasses.replace(toy, submodels={toy.layout.alive[0]: toy.submodels[toy.layout.alive[0]]})
    with pytest.raises(InputError, match="is not loaded"):
        draw(one, 0, submodel=toy.layout.alive[1])
    # Of those that are there, the nearest one is drawn.
    torch.testing.assert_close(draw(one, 2)["rgb"], draw(toy, 2, submodel=toy.layout.alive[0])["rgb"])


def test_march_is_the_renderers(toy):
    frame, index = toy.test_frames[0], toy.layout.alive[0]
    rays = camera_rays(frame.c2w, frame.fx, frame.fy, 5.0, 4.0, 10, 8, 0.05)
    ours = march(toy.submodels[index], toy.layout, *rays)
    drawn = Renderer(toy).rays(*(torch.from_numpy(array) for array in rays))
    np.testing.assert_array_equal(drawn["accumulation"].numpy(), ours.accumulation)
