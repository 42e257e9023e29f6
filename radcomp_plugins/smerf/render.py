"""Pictures of a baked scene: choose the submodel, march, and let the deferred network say the view-dependent part.

As in the official viewer, the picture is the diffuse colour gathered along the ray plus the network's output; the
background is only in what the network is told (Duckworth et al. 2024, and SNeRG before them).
"""

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from radcomp_plugins.errors import InputError
from radcomp_plugins.smerf.deferred import DeferredNetwork, cell_position, shade
from radcomp_plugins.smerf.deferred_cpu import evaluate_shared
from radcomp_plugins.smerf.formats.small_files import NEAR
from radcomp_plugins.smerf.layout import BakedScene
from radcomp_plugins.smerf.march import Marched, march
from radcomp_plugins.smerf.march_torch import TorchSubmodel, march_torch

_NETWORK_CHUNK = 4096
"""Rays for which network parameters of their own are interpolated at a time: 4 kB each."""


class Renderer:
    """A baked scene, ready to be drawn on a device.

    On the CPU the numba kernels march, on any other device their twin in torch.

    Attributes:
        scene: what is drawn.
        device: where.
        step_mult: marching steps per plane texel; assets are made for 1.
    """

    def __init__(self, scene: BakedScene, device: torch.device | str = "cpu", step_mult: int = 1) -> None:
        """Build the network; submodels go to the device when they are first seen.

        Raises:
            InputError: no submodel is loaded.
        """
        if not scene.submodels:
            raise InputError(f"baked scene with submodels {scene.layout.alive}: none of them is loaded")
        self.scene, self.device, self.step_mult = scene, torch.device(device), step_mult
        self._network = DeferredNetwork.from_baked(scene.deferred, scene.layout).to(self.device)
        self._loaded = sorted(scene.submodels)
        self._centres = np.stack([scene.layout.centre(index) for index in self._loaded])
        self._on_device: dict[int, TorchSubmodel] = {}

    def nearest(self, origins: NDArray[np.floating]) -> NDArray[np.int64]:
        """Linear index [N] of the loaded submodel whose centre is nearest to origins [N, 3], unit frame."""
        away = np.abs(np.asarray(origins)[:, None, :] - self._centres).max(axis=-1)
        return np.asarray(self._loaded, np.int64)[away.argmin(axis=-1)]

    def march(
        self,
        index: int,
        origins: Float[Tensor, "N 3"],
        directions: Float[Tensor, "N 3"],
        starts: Float[Tensor, " N"],
    ) -> tuple[Float[Tensor, "N channels"], Float[Tensor, " N"], Float[Tensor, " N"]]:
        """Features, accumulation and depth of rays through one submodel; all in the unit frame.

        Args:
            index: linear index of the submodel.
            origins: where rays begin.
            directions: unit length.
            starts: distance at which marching begins.
        """
        submodel, layout = self.scene.submodels[index], self.scene.layout
        if self.device.type == "cpu":
            arrays = [tensor.detach().float().contiguous().numpy() for tensor in (origins, directions, starts)]
            marched: Marched = march(submodel, layout, *arrays, step_mult=self.step_mult)
            features, accumulation, depth = (
                torch.from_numpy(array) for array in (marched.features, marched.accumulation, marched.depth)
            )
            return features, accumulation, depth
        if index not in self._on_device:
            self._on_device[index] = TorchSubmodel(submodel, layout, self.device)
        return march_torch(self._on_device[index], origins, directions, starts, step_mult=self.step_mult)

    @torch.no_grad()
    def rays(
        self,
        origins: Float[Tensor, "N 3"],
        directions: Float[Tensor, "N 3"],
        starts: Float[Tensor, " N"],
        *,
        submodel: int | None = None,
    ) -> dict[str, Tensor]:
        """Draw rays from anywhere, each with the submodel nearest to its origin.

        Args:
            origins: unit frame.
            directions: unit length, unit axes.
            starts: distance at which marching begins, unit frame.
            submodel: linear index of the one to use for all rays instead.

        Returns:
            "rgb" [N, 3] and "diffuse" [N, 3] in [0, 1], "accumulation" [N], "depth" [N] in the unit frame, 0 where
            nothing was hit, all float32.
        """
        count = len(origins)
        if submodel is None:
            shared = count > 0 and bool((origins == origins[:1]).all())
            chosen = self.nearest(origins[:1].cpu().numpy() if shared else origins.cpu().numpy())
        else:
            self._check_loaded(submodel)
            chosen = np.array([submodel])
        if len(np.unique(chosen)) == 1:
            return self._one_submodel(int(chosen[0]), origins, directions, starts)
        sizes = {"rgb": (count, 3), "diffuse": (count, 3), "accumulation": (count,), "depth": (count,)}
        result = {name: torch.zeros(size, device=self.device) for name, size in sizes.items()}
        for index in np.unique(chosen):
            rows = torch.from_numpy(np.flatnonzero(chosen == index)).to(self.device)
            part = self._one_submodel(int(index), origins[rows], directions[rows], starts[rows])
            for name, tensor in result.items():
                tensor[rows] = part[name]
        return result

    def _check_loaded(self, index: int) -> None:
        if index not in self.scene.submodels:
            raise InputError(f"submodel {index} is not loaded, expected one of {self._loaded}")

    def _one_submodel(self, index: int, origins: Tensor, directions: Tensor, starts: Tensor) -> dict[str, Tensor]:
        features, accumulation, depth = self.march(index, origins, directions, starts)
        specular = self._specular(index, features, accumulation, origins, directions)
        diffuse = features[:, :3]
        return {
            "rgb": (diffuse + specular).clamp(0.0, 1.0),
            "diffuse": diffuse.clamp(0.0, 1.0),
            "accumulation": accumulation,
            "depth": depth,
        }

    def _specular(
        self, index: int, features: Tensor, accumulation: Tensor, origins: Tensor, directions: Tensor
    ) -> Tensor:
        """The network's output [N, 3]; its parameters are interpolated once where all rays begin at one place."""
        layout, network = self.scene.layout, self._network
        row = layout.alive.index(index)
        centre = torch.from_numpy(layout.centre(index)).to(origins)
        position = cell_position(origins, centre.expand_as(origins), layout.submodels_per_axis)
        shared = len(origins) > 0 and bool((origins == origins[:1]).all())
        if shared and self.device.type == "cpu":
            layers = [(kernel.numpy(), bias.numpy()) for kernel, bias in network.at(position[0], row)]
            arrays = features.numpy(), accumulation.numpy(), layout.background, directions.numpy()
            return torch.from_numpy(evaluate_shared(layers, layout.activation, *arrays))
        inputs = shade(features, accumulation, torch.full((3,), layout.background, device=self.device))
        if shared:
            return network.apply_layers(network.at(position[0], row), inputs, directions)
        rows = torch.full((len(origins),), row, dtype=torch.long, device=self.device)
        parts = [tensor.split(_NETWORK_CHUNK) for tensor in (inputs, directions, position, rows)]
        return torch.cat([network(*part) for part in zip(*parts, strict=True)])

    def picture(
        self,
        c2w: Float[NDArray[np.floating], "3 4"],
        fx: float,
        fy: float,
        cx: float,
        cy: float,
        width: int,
        height: int,
        *,
        near: float = NEAR,
        submodel: int | None = None,
    ) -> dict[str, Tensor]:
        """Draw a pinhole camera's picture; see `render`."""
        origins, directions, starts = camera_rays(c2w, fx, fy, cx, cy, width, height, near)
        rays = (torch.from_numpy(array).to(self.device) for array in (origins, directions, starts))
        drawn = self.rays(*rays, submodel=submodel)
        return {name: tensor.reshape(height, width, *tensor.shape[1:]) for name, tensor in drawn.items()}


def camera_rays(
    c2w: Float[NDArray[np.floating], "3 4"],
    fx: float,
    fy: float,
    cx: float,
    cy: float,
    width: int,
    height: int,
    near: float,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Rays through the pixels' centres, row by row.

    Args:
        c2w: camera-to-unit, OpenGL convention.
        fx: focal length, pixels.
        fy: focal length, pixels.
        cx: principal point; the first pixel's centre is 0.5.
        cy: principal point.
        width: pixels.
        height: pixels.
        near: distance of the near plane in front of the camera, unit frame.

    Returns:
        Origins [H * W, 3], unit directions [H * W, 3], and distances [H * W] to the near plane, unit frame, float32.
    """
    pose = np.asarray(c2w, np.float32)
    u = (np.arange(width, dtype=np.float32) + 0.5 - cx) / fx
    v = (cy - np.arange(height, dtype=np.float32) - 0.5) / fy
    directions = (u[None, :, None] * pose[:, 0] + v[:, None, None] * pose[:, 1] - pose[:, 2]).reshape(-1, 3)
    directions = directions.astype(np.float32)
    lengths = np.sqrt(np.einsum("nc,nc->n", directions, directions))
    directions /= lengths[:, None]
    origins = np.ascontiguousarray(np.broadcast_to(pose[:, 3], directions.shape))
    return origins, directions, near * lengths


def render(
    scene: BakedScene,
    c2w: Float[NDArray[np.floating], "3 4"],
    fx: float,
    fy: float,
    cx: float,
    cy: float,
    width: int,
    height: int,
    *,
    near: float = NEAR,
    submodel: int | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """Draw one picture of a baked scene; a `Renderer` draws more of them without preparing each time.

    Args:
        scene: decoded asset.
        c2w: [3, 4] camera-to-unit, OpenGL convention: x right, y up, looking along -z.
        fx: focal length, pixels.
        fy: focal length, pixels.
        cx: principal point, pixels from the picture's left edge.
        cy: principal point, pixels from its upper edge.
        width: pixels.
        height: pixels.
        near: distance of the near plane, where marching begins, unit frame.
        submodel: linear index of the submodel to draw; by default that whose centre is nearest to the camera.
        device: where to draw.

    Returns:
        "rgb" [H, W, 3] and "diffuse" [H, W, 3] in [0, 1], "accumulation" [H, W], and "depth" [H, W] along the ray in
        the unit frame, 0 where nothing was hit; all float32 on the device.

    Raises:
        InputError: the submodel is not loaded, or none is.
    """
    return Renderer(scene, device).picture(c2w, fx, fy, cx, cy, width, height, near=near, submodel=submodel)
