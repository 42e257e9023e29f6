"""One renderer for every device: tensors in, tensors out, drawn where the renderer was made for."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from radcomp_plugins.kilonerf.render_cpu import CpuRenderer, RenderSettings
from radcomp_plugins.kilonerf.render_torch import TorchRenderer
from radcomp_plugins.kilonerf.scene import KiloScene

_OUTPUTS = ("rgb", "accumulation", "depth", "samples", "network")


class Renderer:
    """A scene, ready to be drawn: by numba's kernels on the CPU, by `TorchRenderer` on any other device.

    Attributes:
        scene: what is drawn.
        device: where outputs lie.
    """

    def __init__(self, scene: KiloScene, device: torch.device | str = "cpu") -> None:
        """Prepare a scene for a device."""
        self.scene, self.device = scene, torch.device(device)
        on_cpu = self.device.type == "cpu"
        self._cpu = CpuRenderer(scene) if on_cpu else None
        self._torch = None if on_cpu else TorchRenderer(scene, self.device)

    @torch.no_grad()
    def rays(
        self,
        origins: Float[Tensor, "N 3"],
        directions: Float[Tensor, "N 3"],
        nears: Float[Tensor, " N"] | None = None,
        fars: Float[Tensor, " N"] | None = None,
        *,
        settings: RenderSettings | None = None,
    ) -> dict[str, Tensor]:
        """Draw rays.

        Args:
            origins: scene frame.
            directions: unit length.
            nears: where steps begin, scene units; the scene's near plane by default.
            fars: behind which there are no samples; none by default.
            settings: how to draw.

        Returns:
            rgb [N, 3] in front of the background, accumulation [N, 1], depth [N, 1] in scene units, samples [N, 1]
            int32, network [N, 1] int32 of the network that gave most, -1 for none.
        """
        if self._cpu is not None:
            o, d, starts, ends = (
                None if t is None else t.detach().cpu().numpy() for t in (origins, directions, nears, fars)
            )
            return self._outputs(self._cpu.rays(o, d, starts, ends, settings=settings))  # type: ignore[arg-type]
        assert self._torch is not None
        arguments = (
            None if t is None else t.detach().float().to(self.device) for t in (origins, directions, nears, fars)
        )
        return self._outputs(self._torch.rays(*arguments, settings=settings))  # type: ignore[arg-type]

    @torch.no_grad()
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
        settings: RenderSettings | None = None,
    ) -> dict[str, Tensor]:
        """Draw a pinhole camera's picture.

        Args:
            c2w: [3, 4] camera-to-scene, OpenGL convention: x right, y up, looking along -z.
            fx: focal length, pixels.
            fy: focal length, pixels.
            cx: principal point, pixels from the picture's left edge.
            cy: principal point, pixels from its upper edge.
            width: pixels.
            height: pixels.
            settings: how to draw.

        Returns:
            What `rays` gives, as [height, width, channels].
        """
        camera = (c2w, fx, fy, cx, cy, width, height)
        if self._cpu is not None:
            drawn = self._outputs(self._cpu.picture(*camera, settings=settings))
        else:
            drawn = self.rays(*camera_rays(*camera, device=self.device), settings=settings)
        return {name: tensor.view(height, width, tensor.shape[-1]) for name, tensor in drawn.items()}

    def _outputs(self, drawn: Any) -> dict[str, Tensor]:
        """A renderer's fields as tensors of this device, with a channel everywhere."""
        outputs = {name: torch.as_tensor(getattr(drawn, name), device=self.device) for name in _OUTPUTS}
        for name in ("samples", "network"):
            outputs[name] = outputs[name].int()
        return {name: tensor.reshape(len(tensor), 3 if name == "rgb" else 1) for name, tensor in outputs.items()}


def camera_rays(
    c2w: Float[NDArray[np.floating], "3 4"],
    fx: float,
    fy: float,
    cx: float,
    cy: float,
    width: int,
    height: int,
    device: torch.device | str = "cpu",
) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"]]:
    """Origins and unit directions of a pinhole camera's pixels, row by row; see `Renderer.picture`."""
    pose = torch.as_tensor(np.asarray(c2w, np.float32), device=device)
    u = (torch.arange(width, device=device) + (0.5 - cx)) / fx
    v = ((cy - 0.5) - torch.arange(height, device=device)) / fy
    directions = u[None, :, None] * pose[:, 0] + v[:, None, None] * pose[:, 1] - pose[:, 2]
    directions = torch.nn.functional.normalize(directions.reshape(-1, 3), dim=-1)
    return pose[:, 3].expand(len(directions), 3).contiguous(), directions
