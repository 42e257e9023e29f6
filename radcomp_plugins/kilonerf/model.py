"""KiloNeRF as a nerfstudio model (Reiser et al. 2021)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.models.base_model import Model
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional import structural_similarity_index_measure

from radcomp_plugins import compat
from radcomp_plugins.core.metrics import psnr
from radcomp_plugins.core.volume import accumulate, ray_index, render_weights
from radcomp_plugins.errors import InputError
from radcomp_plugins.kilonerf import losses
from radcomp_plugins.kilonerf.config import KiloModelConfig
from radcomp_plugins.kilonerf.distill import TaughtPool, VoxelLists, voxel_lists
from radcomp_plugins.kilonerf.grid import CellLookup, grid_of_occupancy
from radcomp_plugins.kilonerf.networks import TinyNetworks
from radcomp_plugins.kilonerf.panel import KiloPanel
from radcomp_plugins.kilonerf.sampling import RaySamples, depth_to_stop, levels_of, march
from radcomp_plugins.kilonerf.scene import KiloGrid, KiloScene, NetworkShape

_AT_ONCE = 1 << 16
"""Points that the networks are asked about at once without gradients."""


@dataclass(frozen=True)
class RaySettings:
    """How rays are sampled in training.

    Attributes:
        stop: estimated transmittance below which a ray ends.
        whole_share: share of the rays that are followed to their end all the same.
    """

    stop: float
    whole_share: float


class KiloModel(Model):
    """The grid and its networks; empty until `set_scene` or a checkpoint says where the scene is.

    Attributes:
        networks: of all cells that have something.
        box: [2, 3] float64, scene frame.
        cells: [3] along each axis.
        occupancy: uint8, 8 voxels a byte, in C order.
        settings: [4] float64: step, overlap, voxels per cell, near.
        background: [3] colour behind the scene.
        voxel_depth: [V] float16 estimated optical depth of a step in each occupied voxel, in C order.
    """

    config: KiloModelConfig
    box: Tensor
    cells: Tensor
    occupancy: Tensor
    settings: Tensor
    background: Tensor
    voxel_depth: Tensor

    def populate_modules(self) -> None:
        """An empty grid: where the scene is, the teacher or a checkpoint has to say."""
        super().populate_modules()
        config = self.config
        self.shape = NetworkShape(config.hidden_width, config.position_octaves, config.direction_octaves)
        self.networks = TinyNetworks(0, self.shape)
        self.register_buffer("box", torch.zeros(2, 3, dtype=torch.float64))
        self.register_buffer("cells", torch.zeros(3, dtype=torch.int64))
        self.register_buffer("occupancy", torch.zeros(0, dtype=torch.uint8))
        self.register_buffer("settings", torch.zeros(4, dtype=torch.float64))
        self.register_buffer("background", torch.ones(3))
        self.register_buffer("voxel_depth", torch.zeros(0, dtype=torch.float16))
        self.panel = KiloPanel(config.early_stop)
        self.lpips = compat.LazyLpips(normalize=True)
        self.sampling = RaySettings(0.0, 1.0)
        self._lookup: list[CellLookup] = []
        self._lists: list[VoxelLists] = []
        self._levels: list[Tensor] = []
        self._scene: list[KiloScene] = []

    # The scene ---------------------------------------------------------------------------------------------------

    @property
    def has_scene(self) -> bool:
        """Whether there is a grid yet."""
        return len(self.occupancy) > 0

    @property
    def lookup(self) -> CellLookup:
        """The grid, for questions about points."""
        return self._lookup[0]

    @property
    def grid(self) -> KiloGrid:
        """Cells, voxels and step."""
        return self._lookup[0].grid

    @property
    def lists(self) -> VoxelLists:
        """Which voxels each network has to know."""
        if not self._lists:
            self._lists.append(voxel_lists(self.grid).to(self.device))
        return self._lists[0]

    def set_scene(self, grid: KiloGrid, background: Float[Tensor, " 3"], generator: torch.Generator) -> None:
        """Take on a grid and draw networks for it; parameters keep their identity, so optimisers follow."""
        self._resize(grid.num_networks, generator)
        self.box = torch.from_numpy(grid.box.copy()).to(self.device)
        self.cells = torch.tensor(grid.cells, device=self.device)
        self.occupancy = torch.from_numpy(np.packbits(grid.occupancy.reshape(-1))).to(self.device)
        numbers = [grid.step, grid.overlap, grid.voxels_per_cell, self.config.near_plane]
        self.settings = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        self.background = background.to(self.device).float().clone()
        count = int(grid.occupancy.sum())
        self.voxel_depth = torch.zeros(count, dtype=torch.float16, device=self.device)
        self._take(grid)

    def _resize(self, count: int, generator: torch.Generator | None = None) -> None:
        fresh = TinyNetworks(count, self.shape, generator=generator)
        for mine, new in zip(self.networks.parameters(), fresh.parameters(), strict=True):
            mine.data = new.data.to(self.device)
            mine.grad = None
        self.networks.count = count

    def _take(self, grid: KiloGrid) -> None:
        for cached in (self._lookup, self._lists, self._levels, self._scene):
            cached.clear()
        self._lookup.append(CellLookup(grid).to(self.device))

    def load_state_dict(self, state_dict: Any, **kwargs: Any) -> Any:
        """Load a checkpoint, whatever grid it has.

        Raises:
            InputError: its sizes do not fit each other, or the widths of the config.
        """
        state = compat.without_lpips(state_dict)
        grid = grid_of_state(state)
        for name, (inputs, outputs) in self.networks.layers().items():
            wanted = {
                f"{name}_weight": (grid.num_networks, inputs, outputs),
                f"{name}_bias": (grid.num_networks, outputs),
            }
            for key, shape in wanted.items():
                got = state.get(f"networks.{key}")
                if got is None or tuple(got.shape) != shape:
                    found = "missing" if got is None else f"{tuple(got.shape)}"
                    raise InputError(f"kilonerf checkpoint: networks.{key} is {found}, expected {shape}")
        self._resize(grid.num_networks)
        for name in ("box", "cells", "occupancy", "settings", "voxel_depth"):
            setattr(self, name, torch.empty_like(state[name], device=self.device))
        result = super().load_state_dict(state, **kwargs)
        self._take(grid)
        return result

    def get_param_groups(self) -> dict[str, list[torch.nn.Parameter]]:
        """All networks."""
        return {"networks": list(self.networks.parameters())}

    def scene(self, dataset_to_scene: NDArray[np.float64] | None = None) -> KiloScene:
        """What is trained, folded, for renderers and assets."""
        weights = {name: array.cpu().numpy() for name, array in self.networks.folded().items()}
        frame = np.eye(4)[:3] if dataset_to_scene is None else dataset_to_scene
        background = self.background.cpu().double().numpy()
        return KiloScene(self.grid, self.shape, weights, background, float(self.settings[3]), frame)

    # Distillation ------------------------------------------------------------------------------------------------

    def distill_losses(self, taught: TaughtPool, color_floor: float, delta_steps: float) -> dict[str, Any]:
        """Loss of each network on points of its own."""
        raw, rgb = self.networks.balanced(taught.local, taught.directions)
        alpha = losses.alpha_of(raw, self.networks.depth_scale * delta_steps)
        return {"per_network": losses.distillation(alpha, rgb, taught.alpha, taught.rgb, color_floor)}

    # Rays --------------------------------------------------------------------------------------------------------

    def forget_drawing(self) -> None:
        """What was prepared for drawing is out of date: the networks are about to change."""
        self._scene.clear()

    def ask(self, points: Float[Tensor, "M 3"], directions: Float[Tensor, "M 3"]) -> tuple[Tensor, Tensor]:
        """Optical depth [M] of one step, and colour [M, 3], at points of the scene frame that lie in used cells.

        Networks that overlap are blended as the renderers do it: alpha by alpha, and colours by what they send.
        """
        if self.grid.overlap == 0:
            network, local = self.lookup.locate(points)
            raw, rgb = self.networks.grouped(local, directions, network)
            return self.networks.optical_depth(raw), rgb
        network, local, weight = self.lookup.blend(points)
        sample, corner = torch.where(network >= 0)
        raw, rgb = self.networks.grouped(local[sample, corner], directions[sample], network[sample, corner])
        part = weight[sample, corner] * -torch.expm1(-self.networks.optical_depth(raw))
        alpha = torch.zeros_like(points[:, 0]).index_add(0, sample, part)
        sent = torch.zeros_like(points).index_add(0, sample, part[:, None] * rgb)
        return -torch.log1p(-alpha.clamp(max=1.0 - 1e-6)), sent / alpha.clamp(min=1e-6)[:, None]

    @property
    def levels(self) -> Tensor:
        """Voxels' estimated depths as `sampling.march` wants them, [vx, vy, vz] uint8."""
        if not self._levels:
            occupied = torch.from_numpy(self.grid.occupancy).to(self.device)
            levels = torch.zeros(occupied.shape, dtype=torch.uint8, device=self.device)
            levels[occupied] = levels_of(self.voxel_depth.float())
            self._levels.append(levels)
        return self._levels[0]

    @torch.no_grad()
    def estimate_depths(self) -> None:
        """Bring the voxels' estimates up to date: the networks' depth in the middle of each."""
        grid, depths = self.grid, []
        place = torch.from_numpy(np.argwhere(grid.occupancy)).to(self.device)
        for chunk in place.split(_AT_ONCE):
            points = self.lookup.lower + (chunk + 0.5) / grid.voxels_per_cell * (2.0 * self.lookup.half_cell)
            towards = torch.zeros_like(points)
            depths.append(self.ask(points, towards)[0].clamp(max=1000.0).half())
        self.voxel_depth = torch.cat(depths)
        self._levels.clear()

    def samples_of(self, origins: Tensor, directions: Tensor) -> RaySamples:
        """Samples of rays: in training shifted at random and up to where rays end; else all of them, in the middle."""
        phase = torch.full_like(origins[:, 0], 0.5)
        stop = torch.full_like(phase, depth_to_stop(0.0))
        if self.training:
            phase = torch.rand_like(phase)
            whole = torch.rand_like(phase) < self.sampling.whole_share
            stop = torch.where(whole, stop, depth_to_stop(self.sampling.stop))
        return march(origins, directions, phase, stop, self.grid, self.levels, float(self.settings[3]))

    def draw(self, origins: Float[Tensor, "R 3"], directions: Float[Tensor, "R 3"]) -> dict[str, Any]:
        """Colours of rays through the networks as they are, with gradients if those are on."""
        samples = self.samples_of(origins, directions)
        index = ray_index(samples.ray_offsets)
        points = origins[index] + samples.distance[:, None] * directions[index]
        # Rounding may put a point into the next cell, which need not have a network.
        network, _ = self.lookup.locate(points)
        known = network >= 0
        if not bool(known.all()):
            kept = torch.nn.functional.pad(known.cumsum(0), (1, 0))
            samples = RaySamples(samples.distance[known], kept[samples.ray_offsets])
            index, points = index[known], points[known]
        depth, rgb = self.ask(points, directions[index])
        weights = render_weights(depth, samples.ray_offsets)
        channels = torch.cat([rgb, torch.ones_like(weights)[:, None], samples.distance[:, None]], dim=-1)
        summed = accumulate(weights, channels, index, len(origins))
        accumulation = summed[:, 3:4]
        return {
            "rgb": summed[:, :3] + (1.0 - accumulation) * self.background,
            "accumulation": accumulation,
            "depth": summed[:, 4:5] / accumulation.clamp(min=1e-6),
            "num_samples": samples.ray_offsets.diff()[:, None],
        }

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Any]:  # type: ignore[override]
        """Colours of rays of the scene frame.

        Raises:
            InputError: there is no scene yet.
        """
        if not self.has_scene:
            raise InputError("kilonerf: no grid yet; expected a checkpoint, or a training that has found the scene")
        origins, directions = ray_bundle.origins.reshape(-1, 3), ray_bundle.directions.reshape(-1, 3)
        if self.training:
            return self.draw(origins, directions)
        with torch.no_grad():
            if not self._scene:
                self._scene.append(self.scene())
                self.panel.describe(self._scene[0])
            nears = None if ray_bundle.nears is None else ray_bundle.nears.reshape(-1)
            outputs = self.panel.drawn(self._scene[0], self.lookup, origins, directions, nears)
        outputs["rgb"] = outputs["rgb"].clamp(0.0, 1.0)
        shape = ray_bundle.origins.shape[:-1]
        return {name: value.reshape(*shape, value.shape[-1]) for name, value in outputs.items()}

    # What nerfstudio asks for ------------------------------------------------------------------------------------

    def _photo(self, batch: dict[str, Any], like: Tensor) -> Tensor:
        """The photo's pixels, on the background where they have alpha."""
        image = batch["image"].to(like)
        if image.shape[-1] == 4:
            return image[..., :3] * image[..., 3:] + (1.0 - image[..., 3:]) * self.background
        return image

    def get_metrics_dict(self, outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
        """PSNR of a batch of rays in fine-tuning, of teacher against networks in distillation; what training costs."""
        if "per_network" in outputs:
            worst = outputs["per_network"].detach().max()
            return {"distill_error": outputs["per_network"].detach().mean(), "worst_network_error": worst}
        metrics: dict[str, Any] = {}
        if "image" in batch:
            metrics["psnr"] = psnr(outputs["rgb"].detach().clamp(0, 1), self._photo(batch, outputs["rgb"]))
        if "num_samples" in outputs:
            metrics["samples_per_ray"] = outputs["num_samples"].float().mean()
        return metrics

    def get_loss_dict(
        self, outputs: dict[str, Any], batch: dict[str, Any], metrics_dict: dict[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """Distillation: the networks' losses summed. Fine-tuning: colour, and what keeps view dependence small."""
        if "per_network" in outputs:
            return {"distill_loss": outputs["per_network"].sum()}
        result = {"rgb_loss": (outputs["rgb"] - self._photo(batch, outputs["rgb"])).square().mean()}
        if self.training and self.config.view_regulariser > 0:
            norms = losses.view_dependence(self.networks.view_dependent_parameters())
            result["view_regulariser"] = self.config.view_regulariser * norms
        return result

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """PSNR, SSIM and LPIPS of a whole picture, and the picture beside the photo."""
        rgb = outputs["rgb"]
        image = self._photo(batch, rgb)
        first, second = (t.movedim(-1, 0)[None] for t in (image, rgb))
        ssim: Any = structural_similarity_index_measure(second, first, data_range=1.0)
        metrics = {"psnr": float(psnr(rgb, image)), "ssim": float(ssim), "lpips": float(self.lpips(first, second))}
        return metrics, {"img": torch.cat([image, rgb], dim=1), "error": (rgb - image).abs()}


def grid_of_state(state: Any) -> KiloGrid:
    """The grid in a checkpoint.

    Raises:
        InputError: tensors are missing or contradict each other.
    """
    missing = [name for name in ("box", "cells", "occupancy", "settings", "voxel_depth") if name not in state]
    if missing:
        raise InputError(f"kilonerf checkpoint: {missing[0]} is missing, expected a checkpoint of kilonerf")
    cells = tuple(int(n) for n in state["cells"].reshape(-1).tolist())
    step, overlap, side, _ = (float(value) for value in state["settings"].reshape(-1).tolist())
    count = int(np.prod(cells)) * int(side) ** 3
    packed = state["occupancy"].cpu().numpy()
    if len(cells) != 3 or count == 0 or min(cells) < 1 or packed.shape != ((count + 7) // 8,):
        raise InputError(
            f"kilonerf checkpoint: occupancy of {packed.shape} bytes for {cells} cells of {int(side)}^3 voxels; "
            "expected a checkpoint that was saved after the scene was found"
        )
    occupancy: Bool[np.ndarray, "vx vy vz"] = np.unpackbits(packed, count=count).astype(np.bool_)
    occupancy = occupancy.reshape([int(side) * n for n in cells])
    if state["voxel_depth"].shape != (int(occupancy.sum()),):
        raise InputError(
            f"kilonerf checkpoint: {tuple(state['voxel_depth'].shape)} depths, expected {int(occupancy.sum())}"
        )
    return grid_of_occupancy(state["box"].cpu().numpy(), (cells[0], cells[1], cells[2]), occupancy, step, overlap)
