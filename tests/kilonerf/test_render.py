"""The renderer that picks the kernels: outputs as stock tools want them, on the CPU and elsewhere alike."""

import numpy as np
import torch
from kilo_scenes import shell_scene, sphere_rays

from radcomp_plugins.kilonerf.render import Renderer, camera_rays
from radcomp_plugins.kilonerf.render_torch import TorchRenderer
from radcomp_plugins.kilonerf.scene import NetworkShape

CHANNELS = {"rgb": 3, "accumulation": 1, "depth": 1, "samples": 1, "network": 1}
CAMERA = (np.array([[1.0, 0, 0, 0.1], [0, 1, 0, -0.2], [0, 0, 1, 2.4]]), 40.0, 44.0, 17.0, 13.0, 36, 24)


def elsewhere(renderer: Renderer) -> Renderer:
    """The same renderer as it would be on another device."""
    renderer._cpu, renderer._torch = None, TorchRenderer(renderer.scene, "cpu")
    return renderer


def test_rays_and_pictures_have_a_channel_everywhere():
    scene, _ = shell_scene(NetworkShape(width=8, position_octaves=4))
    here, there = Renderer(scene), elsewhere(Renderer(scene))
    rays = [torch.from_numpy(array) for array in sphere_rays(50)]
    for renderer in (here, there):
        drawn, picture = renderer.rays(*rays), renderer.picture(*CAMERA)
        assert {name: tuple(tensor.shape) for name, tensor in drawn.items()} == {
            n: (50, c) for n, c in CHANNELS.items()
        }
        assert {name: tuple(t.shape) for name, t in picture.items()} == {n: (24, 36, c) for n, c in CHANNELS.items()}
        assert drawn["network"].dtype == drawn["samples"].dtype == torch.int32
        assert renderer.rays(torch.zeros(0, 3), torch.zeros(0, 3))["rgb"].shape == (0, 3)
    ours, theirs = here.picture(*CAMERA), there.picture(*CAMERA)
    agree = (ours["samples"] == theirs["samples"])[..., 0]
    assert float(agree.float().mean()) > 0.97 and int(ours["samples"].max()) > 5
    torch.testing.assert_close(ours["rgb"][agree], theirs["rgb"][agree], atol=2e-4, rtol=0)


def test_nears_and_fars_are_passed_on():
    scene, _ = shell_scene(NetworkShape(width=4))
    rays = [torch.from_numpy(array) for array in sphere_rays(50)]
    for renderer in (Renderer(scene), elsewhere(Renderer(scene))):
        assert int(renderer.rays(*rays, torch.full((50,), 9.0))["samples"].max()) == 0  # pyright: ignore[reportCallIssue]
        assert int(renderer.rays(*rays, None, torch.full((50,), 0.5))["samples"].max()) == 0  # pyright: ignore[reportCallIssue]


def test_rays_of_a_camera_by_hand():
    pose = np.array([[0.0, 0, 1, 5], [1, 0, 0, 6], [0, 1, 0, 7]])
    origins, directions = camera_rays(pose, 2.0, 4.0, 1.0, 1.0, 2, 2)
    assert origins.tolist() == [[5.0, 6.0, 7.0]] * 4
    # The second pixel of the second row: right and down of the axis, which is -x of the scene.
    expected = torch.tensor([-1.0, 0.25, -0.125])
    torch.testing.assert_close(directions[3], expected / expected.norm())
