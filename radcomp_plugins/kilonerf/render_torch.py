"""The renderer for GPUs, and its plain twin for any device: passes over all rays, as `render_cpu` makes them.

On CUDA, Triton's kernels march and evaluate (`triton_kernels`); elsewhere, or where Triton or the networks' shape does
not allow it, plain torch does (`march_torch`). The rest, sorting aside, is a few sums over each ray's samples.
"""

import importlib.util
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from radcomp_plugins.kilonerf import march_torch
from radcomp_plugins.kilonerf.march_torch import Rays, SceneTensors
from radcomp_plugins.kilonerf.render_cpu import RenderSettings
from radcomp_plugins.kilonerf.scene import KiloScene

_MOST_PER_PASS = 16
_LANES = 2**22
"""Questions of a pass at most: bounds memory at about 64 bytes each."""


@dataclass
class DrawnTensors:
    """What rays see, in their order: the fields of `render_cpu.Drawn` as tensors on the device.

    Attributes:
        rgb: [N, 3] colour in front of the background, 0 to 1.
        accumulation: [N] share of light that the scene holds back.
        depth: [N] mean distance along the ray, scene units; 0 where nothing was seen.
        samples: [N] int64 samples that counted.
        network: [N] int64 the network that gave most, -1 where none did.
        lanes: questions to networks.
        hit: rays that passed through the box of occupied voxels.
    """

    rgb: Float[Tensor, "N 3"]
    accumulation: Float[Tensor, " N"]
    depth: Float[Tensor, " N"]
    samples: Int[Tensor, " N"]
    network: Int[Tensor, " N"]
    lanes: int
    hit: int


class TorchRenderer:
    """A scene, ready to be drawn on a device.

    Attributes:
        scene: what is drawn.
        device: where.
        kernels: the module that marches and evaluates.
    """

    def __init__(self, scene: KiloScene, device: torch.device | str, *, fused: bool = True) -> None:
        """Copy the scene to the device.

        Args:
            scene: what is drawn.
            device: where.
            fused: use Triton's kernels on CUDA, where they are to be had.
        """
        self.scene, self.device = scene, torch.device(device)
        self._tensors = SceneTensors(scene, self.device)
        self.kernels: Any = _kernels(scene, self.device) if fused else march_torch

    @torch.no_grad()
    def rays(
        self,
        origins: Float[Tensor, "N 3"],
        directions: Float[Tensor, "N 3"],
        starts: Float[Tensor, " N"] | None = None,
        ends: Float[Tensor, " N"] | None = None,
        *,
        settings: RenderSettings | None = None,
    ) -> DrawnTensors:
        """Draw rays; see `CpuRenderer.rays`. Empty voxels are always skipped, whatever `settings.skip` says."""
        settings, count = settings or RenderSettings(), len(origins)
        starts = torch.full((count,), self.scene.near, device=self.device) if starts is None else starts
        ends = torch.full((count,), torch.inf, device=self.device) if ends is None else ends
        nothing, none = torch.zeros(count, device=self.device), torch.full((count,), -1, device=self.device)
        rgb = self._tensors.background.expand(count, 3).clone()
        drawn = DrawnTensors(rgb, nothing, nothing.clone(), nothing.long(), none, 0, 0)
        step = self.scene.grid.step / settings.steps
        near = march_torch.enter_rays(self._tensors, origins, directions, starts, ends, step)
        drawn.hit = len(near.ids)
        self._passes(near, step, settings, drawn)
        return drawn

    def _passes(self, rays: Rays, step: float, settings: RenderSettings, drawn: DrawnTensors) -> None:
        device, count = self.device, len(rays.ids)
        light, color = torch.ones(count, device=device), torch.zeros(count, 3, device=device)
        depth, heaviest = torch.zeros(count, device=device), torch.zeros(count, device=device)
        samples = torch.zeros(count, dtype=torch.long, device=device)
        network = torch.full((count,), -1, device=device)
        active, each = torch.arange(count, device=device), settings.samples_per_pass
        capacity = count * each
        while len(active):
            most = min(max(capacity // len(active), each), max(_MOST_PER_PASS, each))
            for rows in active.split(max(_LANES // (most * (8 if self.scene.grid.overlap > 0 else 1)), 1)):
                away, ids, local = self.kernels.march(self._tensors, rays, rows, step, most)
                values, lanes = self._evaluate(rays, rows, away, ids, local, 1.0 / settings.steps)
                drawn.lanes += lanes
                there = torch.isfinite(away)
                alpha = torch.where(there, values[..., 3], 0.0)
                passing = torch.cat([light[rows, None], light[rows, None] * (1.0 - alpha).cumprod(-1)], dim=-1)
                counted = there & (passing[:, :-1] >= settings.termination)
                weight = torch.where(counted, passing[:, :-1] * alpha, 0.0)
                color[rows] += (passing[:, :-1, None] * torch.where(counted[..., None], values[..., :3], 0.0)).sum(1)
                depth[rows] += (weight * torch.where(there, away, 0.0)).sum(-1)
                samples[rows] += counted.sum(-1)
                # Light behind the last sample that counted: those after it are as if they were not there.
                light[rows] = passing.gather(1, counted.sum(-1, keepdim=True))[:, 0]
                largest, at = weight.max(dim=-1)
                better = largest > heaviest[rows]
                heaviest[rows] = torch.where(better, largest, heaviest[rows])
                network[rows] = torch.where(better, ids.gather(1, at[:, None])[:, 0].long(), network[rows])
            goes_on = (light[active] >= settings.termination) & (rays.first[active] <= rays.last[active])
            active = active[goes_on]
        seen = 1.0 - light
        drawn.rgb[rays.ids] = color + light[:, None] * self._tensors.background
        drawn.accumulation[rays.ids] = seen
        drawn.depth[rays.ids] = torch.where(seen > 1e-6, depth / seen.clamp(min=1e-6), 0.0)
        drawn.samples[rays.ids], drawn.network[rays.ids] = samples, network

    def _evaluate(
        self, rays: Rays, rows: Tensor, away: Tensor, ids: Tensor, local: Tensor, steps: float
    ) -> tuple[Float[Tensor, "A K 4"], int]:
        """Colour times alpha, and alpha, of each sample; and the number of questions."""
        shape = away.shape
        if self.scene.grid.overlap == 0:
            toward = rays.directions[rows, None].expand(*shape, 3).reshape(-1, 3)
            values = self.kernels.evaluate(self._tensors, ids.reshape(-1), local.reshape(-1, 3), toward, steps)
            values = values.view(*shape, 4)
            return torch.cat([values[..., :3] * values[..., 3:], values[..., 3:]], dim=-1), values[..., 0].numel()
        ids, local, weight = march_torch.blend(self._tensors, rays, rows, away)
        lane = (weight > 0).reshape(-1).nonzero()[:, 0]
        toward = rays.directions[rows][lane // (8 * shape[1])]
        said = self.kernels.evaluate(self._tensors, ids.reshape(-1)[lane], local.reshape(-1, 3)[lane], toward, steps)
        shares = weight.reshape(-1)[lane, None] * said[:, 3:]
        each = torch.zeros(weight.numel(), 4, device=self.device)
        each[lane] = torch.cat([shares * said[:, :3], shares], dim=-1)
        # Summed along an axis, not scattered: the same in every run, on a GPU too.
        return each.view(*shape, 8, 4).sum(dim=-2), len(lane)


def _kernels(scene: KiloScene, device: torch.device) -> ModuleType:
    """Triton's kernels on a CUDA device if they can be had for these networks, else those in plain torch."""
    # Triton comes with torch on Linux only; without it the same is drawn, slower.
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return march_torch
    from radcomp_plugins.kilonerf import triton_kernels

    return triton_kernels if triton_kernels.takes(scene.shape) else march_torch
