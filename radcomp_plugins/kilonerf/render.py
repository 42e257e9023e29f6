"""One renderer for every device: tensors in, tensors out, drawn where the renderer was made for."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from radcomp_plugins.kilonerf.render_cpu import CpuRenderer, RenderSettings
from radcomp_plugins.kilonerf.scene import KiloScene


class Renderer:
    """A scene, ready to be drawn.

    Attributes:
        scene: what is drawn.
        device: where outputs lie.
    """

    def __init__(self, scene: KiloScene, device: torch.device | str = "cpu") -> None:
        """Prepare a scene for a device."""
        self.scene, self.device = scene, torch.device(device)
        self._cpu = CpuRenderer(scene)

    @torch.no_grad()
    def rays(
        self,
        origins: Float[Tensor, "N 3"],
        directions: Float[Tensor, "N 3"],
        nears: Float[Tensor, " N"] | None = None,
        fars: Float[Tensor, " N"] | None = None,
        *,
        settings: RenderSettings | None = None,
    ) -> dict[str, Any]:
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
        arrays = [None if t is None else t.detach().float().cpu().numpy() for t in (origins, directions, nears, fars)]
        drawn = self._cpu.rays(arrays[0], arrays[1], arrays[2], arrays[3], settings)  # type: ignore[arg-type]
        outputs = {"rgb": drawn.rgb}
        for name in ("accumulation", "depth", "samples", "network"):
            outputs[name] = getattr(drawn, name)[:, None]
        return {name: torch.from_numpy(array).to(self.device) for name, array in outputs.items()}
