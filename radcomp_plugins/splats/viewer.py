"""Splat files beside each other in viser's viewer.

viser draws the constant SH coefficient only. It stores square roots of covariances as half floats, and version 0.2.7
adds 1e-7 to every entry of a covariance, so scenes are shown centred and `SHOWN_RADIUS` large: there that is nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from radcomp_plugins.splats.gaussians import SH_C0, Gaussians
from radcomp_plugins.splats.virtual_views import UP, painted_extent

SHOWN_RADIUS = 5.0
SPACING = 2.4
"""Between the centres of neighbours, in radii."""

FLATTEST = 1e-3
"""Least share of a Gaussian's largest scale that another one has: viser takes a Cholesky factor."""

LARGEST = 1e3
"""Scale in shown units beyond which half floats would overflow in the viewer."""

HIGHEST = 0.999
"""Share of the Gaussians of the first file that labels stand above."""

SIDE_BY_SIDE, ONE = "side by side", "one at a time"
NOTE = "viser draws SH of degree 0: colours that change with the direction are not shown. "
NOTE += "Compare those with `radcomp compare --output-dir`."


@dataclass(frozen=True)
class Shown:
    """One file.

    Attributes:
        name: For its label.
        bytes: Of the file.
        gaussians: What it holds.
    """

    name: str
    bytes: int
    gaussians: Gaussians

    @property
    def label(self) -> str:
        """Name, bytes and number of Gaussians."""
        return f"{self.name}: {self.bytes:,} bytes, {len(self.gaussians):,} Gaussians"


def covariances(gaussians: Gaussians, scale: float = 1.0) -> Float[Tensor, "N 3 3"]:
    """R S^2 R^T in float64, of a scene enlarged by `scale`; very flat and very large Gaussians are limited."""
    w, x, y, z = torch.nn.functional.normalize(gaussians.quats.double(), dim=1).T
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)]
    rows += [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)]
    rows += [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]
    sizes = (gaussians.scales.double().clamp(-60, 60).exp() * scale).clamp(max=LARGEST)
    sizes = sizes.maximum(FLATTEST * sizes.amax(dim=1, keepdim=True)).clamp(min=1e-6)
    axes = torch.stack(rows, dim=1).reshape(-1, 3, 3) * sizes[:, None]
    return axes @ axes.transpose(1, 2)


def add_gaussian_splats(scene: Any, name: str, **arrays: npt.NDArray[Any]) -> Any:
    """viser's node of Gaussians, which version 0.2.7, the one nerfstudio 1.1.5 pins, has under a private name.

    Args:
        scene: The `scene` of a viser server.
        name: Of the node.
        **arrays: centers [N, 3], covariances [N, 3, 3], rgbs [N, 3] and opacities [N, 1] from 0 to 1.
    """
    add = getattr(scene, "add_gaussian_splats", None) or scene._add_gaussian_splats
    return add(name, **arrays)


class SplatViewer:
    """A viser server with one node of Gaussians and one label for each file.

    Args:
        files: At least one; all in one frame, that of the first decides where they stand and how large they are shown.
        host: Address to listen on.
        port: A free one.
        up: Which way is up, a key of `UP`; it can be changed in the panel.
    """

    def __init__(self, files: Sequence[Shown], host: str = "127.0.0.1", port: int = 7009, up: str = "z") -> None:
        import viser

        self.files, self.up = files, up
        self.server = viser.ViserServer(host=host, port=port, label="radcomp view", verbose=False)
        center, radius, _ = painted_extent(files[0].gaussians)
        self.center, self.scale = center, SHOWN_RADIUS / radius
        self.means = (files[0].gaussians.means.detach().cpu().double() - center).numpy() * self.scale
        self.splats = [self._add_splats(k, file) for k, file in enumerate(files)]
        self.labels = [self.server.scene.add_label(f"/file_{k}_label", file.label) for k, file in enumerate(files)]
        self._add_panel()
        self.server.on_client_connect(lambda client: self.aim(client.camera))
        self.place()

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{self.server.get_host()}:{self.server.get_port()}"

    def stop(self) -> None:
        """End the server."""
        self.server.stop()

    def _add_splats(self, k: int, file: Shown) -> Any:
        g = file.gaussians.to("cpu")
        means = (g.means.double() - self.center) * self.scale
        return add_gaussian_splats(
            self.server.scene,
            f"/file_{k}",
            centers=means.float().numpy(),
            covariances=covariances(g, self.scale).numpy(),
            rgbs=(g.sh0 * SH_C0 + 0.5).clamp(0, 1).numpy(),
            opacities=g.opacities.sigmoid()[:, None].numpy(),
        )

    def _add_panel(self) -> None:
        """Layout, the file shown alone, a switch for each file, and the direction that is up."""
        gui = self.server.gui
        gui.add_markdown(NOTE)
        names = [f"{k + 1}. {file.name}" for k, file in enumerate(self.files)]
        self.layout = gui.add_dropdown("Layout", (SIDE_BY_SIDE, ONE))
        self.chosen = gui.add_dropdown("File", names)
        self.switches = [gui.add_checkbox(name, True, hint=f.label) for name, f in zip(names, self.files, strict=True)]
        self.direction = gui.add_dropdown("Up", tuple(UP), initial_value=self.up)
        self.names = names
        for handle in (self.layout, self.chosen, *self.switches):
            handle.on_update(lambda _: self.place())
        self.direction.on_update(lambda _: self.turn(self.direction.value))

    def turn(self, up: str) -> None:
        """Make another direction up, for everybody who is connected."""
        self.up = up
        self.place()
        for client in self.server.get_clients().values():
            self.aim(client.camera)

    def place(self) -> None:
        """Show and move the files as the panel says."""
        self.server.scene.set_up_direction(UP[self.up])
        alone = self.names.index(self.chosen.value) if self.layout.value == ONE else None
        up = np.array(UP[self.up])
        above = max(1.3 * float(np.quantile(self.means @ up, HIGHEST)), 0.5 * SHOWN_RADIUS) * up
        for k, (splats, label) in enumerate(zip(self.splats, self.labels, strict=True)):
            position = self.offset(0 if alone is not None else k)
            splats.position, label.position = position, position + above
            splats.visible = label.visible = k == alone if alone is not None else self.switches[k].value

    def offset(self, place: int) -> npt.NDArray[np.float64]:
        """Where the file at a place of the row stands: along x, or along y where x is up."""
        return place * SPACING * SHOWN_RADIUS * self._right()

    def _right(self) -> npt.NDArray[np.float64]:
        return np.eye(3)[1 if self.up.startswith("x") else 0]

    def aim(self, camera: Any) -> None:
        """Stand before the row, a little above it, so that all of it is seen with its first file on the left."""
        up, right = np.array(UP[self.up]), self._right()
        last = 0 if self.layout.value == ONE else len(self.files) - 1
        middle = 0.5 * self.offset(last)
        distance = 1.8 * SHOWN_RADIUS + 0.55 * float(np.linalg.norm(self.offset(last)))
        camera.up_direction = up
        camera.position = middle - distance * np.cross(up, right) + 0.35 * distance * up
        camera.look_at = middle
