"""The SMERF student as a nerfstudio model (Duckworth et al. 2024)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.models.base_model import Model
from torch import Tensor
from torchmetrics.functional import structural_similarity_index_measure

from radcomp_plugins import compat
from radcomp_plugins.core.contraction import contract, contracted_speed, uncontract
from radcomp_plugins.core.metrics import psnr
from radcomp_plugins.core.volume import accumulate, render_weights
from radcomp_plugins.errors import InputError
from radcomp_plugins.smerf import losses
from radcomp_plugins.smerf.config import SmerfModelConfig
from radcomp_plugins.smerf.datamanager import CAMERA_ORIGINS
from radcomp_plugins.smerf.deferred import DeferredNetwork, cell_position, shade
from radcomp_plugins.smerf.field import SmerfField
from radcomp_plugins.smerf.free_texels import codes_of_cells
from radcomp_plugins.smerf.layout import NUM_CHANNELS, Layout
from radcomp_plugins.smerf.occupancy import Occupancy
from radcomp_plugins.smerf.panel import SmerfPanel
from radcomp_plugins.smerf.rays import TaughtPool, end_of_sight
from radcomp_plugins.smerf.sampling import (
    PackedSamples,
    cone_mean,
    march,
    sum_over_intervals,
    teacher_intervals,
)
from radcomp_plugins.smerf.submodels import Submodels, live_submodels, rotate, unit_frame

FAR = 1e3
"""Unit-frame distance that stands for infinity: contracted space ends at a coordinate of 1,000."""
EVAL_BACKGROUND = 0.5
"""Grey behind the scene as the appearance network sees it, the viewers' default."""


@dataclass(frozen=True)
class Rendered:
    """What the student makes of rays.

    Attributes:
        rgb: [R, 3].
        accumulation: [R] share of the light that the scene sends.
        depth: [R] expected unit-frame distance, `FAR` counted for nothing.
        depths: [M] optical depths of the samples.
        weights: [M] share of the ray's light that each sample sends.
        samples: where they are.
    """

    rgb: Float[Tensor, "R 3"]
    accumulation: Float[Tensor, " R"]
    depth: Float[Tensor, " R"]
    depths: Float[Tensor, " M"]
    weights: Float[Tensor, " M"]
    samples: PackedSamples


class SmerfModel(Model):
    """Submodels, their occupancy and the appearance network; the teacher is no part of it."""

    config: SmerfModelConfig

    def populate_modules(self) -> None:
        """Build submodels for the cells of the training cameras.

        Raises:
            InputError: the dataset's cameras do not fit the unit frame.
        """
        super().populate_modules()
        origins = self.kwargs["metadata"][CAMERA_ORIGINS]
        self.layout = layout_for(self.config, origins)
        self.submodels = Submodels(self.layout)
        self.occupancy = Occupancy(len(self.submodels), self.layout.sparse_resolution)
        self.field = SmerfField(
            self.layout,
            num_levels=self.config.hash_levels,
            min_res=self.config.hash_min_res,
            max_res=self.config.hash_max_res,
            log2_table_size=self.config.hash_log2_size,
            hidden_layers=self.config.hidden_layers,
            hidden_width=self.config.hidden_width,
        )
        self.deferred = DeferredNetwork(self.layout, self.config.deferred_grid, self.config.deferred_width)
        self.register_buffer("scene_to_unit", torch.tensor(self.layout.scene_to_unit, dtype=torch.float64))
        self.register_buffer("alive", torch.tensor(self.layout.alive))
        self.panel = SmerfPanel(self.layout)
        self.progress = 1.0
        self.cull_threshold = 0.0
        self.step = 0
        self.lpips = compat.LazyLpips(normalize=True)

    def load_state_dict(self, state_dict: Any, **kwargs: Any) -> Any:
        """Load a checkpoint of a student of the same cameras.

        Raises:
            InputError: the cameras of the dataset are not those the checkpoint was trained with.
        """
        for name in ("alive", "scene_to_unit"):
            theirs, ours = state_dict[name].cpu(), getattr(self, name).cpu()
            if theirs.shape != ours.shape or not torch.allclose(theirs.double(), ours.double(), rtol=1e-5, atol=1e-6):
                raise InputError(
                    f"smerf checkpoint: its {name} is {theirs.tolist()}, the dataset's cameras give {ours.tolist()}; "
                    "expected the dataset it was trained on, read by the same dataset parser settings"
                )
        return super().load_state_dict(compat.without_lpips(state_dict), **kwargs)

    def get_param_groups(self) -> dict[str, list[torch.nn.Parameter]]:
        """Hash grids with their network, texels that were let go of it, and the appearance network."""
        return {
            "field": [*self.field.grids.parameters(), *self.field.network.parameters()],
            "texels": [self.field.free.values],
            "deferred": list(self.deferred.parameters()),
        }

    def set_progress(self, step: int, total: int) -> None:
        """Tell the model where in its training it is; everything scheduled depends on this alone."""
        self.step, self.progress = step, min(step / max(total - 1, 1), 1.0)
        self.cull_threshold = cull_threshold(self.config, step)
        every = self.config.prune_every
        if self.training and every > 0 and step > 0 and step % every == 0:
            self.occupancy.prune()
        if self.training and len(self.field.free) == 0 and step >= self.config.free_texels_from * total:
            codes = codes_of_cells(self.occupancy.cells.cpu().numpy(), self.layout)
            self.field.let_go(torch.from_numpy(codes).to(self.device))

    def step_length(self) -> float:
        """Length of a marching step, contracted units: a voxel, or more of them in the first half of training."""
        early = max(1.0 - 2.0 * self.progress, 0.0) if self.training else 0.0
        return self.layout.triplane_voxel * (1.0 + (self.config.first_step - 1.0) * early)

    def render(
        self,
        origins: Float[Tensor, "R 3"],
        directions: Float[Tensor, "R 3"],
        row: Int[Tensor, " R"],
        background: Float[Tensor, "R 3"] | Float[Tensor, " 3"],
        samples: PackedSamples,
    ) -> Rendered:
        """Evaluate the field at samples and see what the rays look like.

        Args:
            origins: unit frame.
            directions: unit length, unit axes.
            row: submodel that each ray is drawn by.
            background: what the appearance network sees behind the scene.
            samples: where to evaluate.
        """
        rays, index = len(origins), samples.ray_index
        middle = cone_mean(samples.starts, samples.ends)
        points = self.submodels.to_submodel(origins[index] + middle[:, None] * directions[index], row[index])
        values = self.field(points, row[index])
        density = values.density
        if self.cull_threshold > 0:
            along = rotate(directions[index]) * self.layout.submodel_scale
            voxel = self.layout.triplane_voxel / contracted_speed(points, along)
            density = density * (-torch.expm1(-density.detach() * voxel) >= self.cull_threshold)
        depths = density * (samples.ends - samples.starts)
        weights = render_weights(depths, samples.ray_offsets)
        if self.training and self.config.prune_every > 0:
            matters = weights.detach() > self.config.prune_weight
            self.occupancy.see(contract(points[matters]), row[index][matters])
        channels = torch.cat([values.features, torch.ones_like(middle)[:, None], middle[:, None].detach()], dim=-1)
        summed = accumulate(weights, channels, index, rays)
        features, accumulation, depth = summed[:, :-2], summed[:, -2], summed[:, -1]
        position = cell_position(origins, self.submodels.centres[row], self.layout.submodels_per_axis)
        specular = self.deferred(shade(features, accumulation, background), directions, position, row)
        return Rendered(
            rgb=features[:, :3] + specular,
            accumulation=accumulation,
            depth=depth / accumulation.clamp(min=1e-6),
            depths=depths,
            weights=weights,
            samples=samples,
        )

    def march(
        self, origins: Tensor, directions: Tensor, row: Tensor, far: Tensor, phase: Tensor, step: float
    ) -> PackedSamples:
        """Steps through the occupied cells from the near plane on; see `sampling.march`."""
        near = torch.full_like(far, self.config.near_plane)
        return march(origins, directions, row, near, far, phase, self.submodels, self.occupancy, step)

    def samples_for(self, pool: TaughtPool, row: Int[Tensor, " R"]) -> PackedSamples:
        """Where to evaluate rays in training: as far as their teacher sees, or at its intervals."""
        origins, directions, edges = pool.origins.flatten(0, 1), pool.directions.flatten(0, 1), pool.edges.flatten(0, 1)
        if self.config.sampling == "teacher":
            return teacher_intervals(edges, origins, directions, row, self.submodels, self.occupancy)
        step = self.step_length()
        # Two voxels more, so that what the student puts just behind the teacher's surface is seen and taken away.
        room = 2.0 * self.layout.triplane_voxel / self.layout.submodel_scale
        far = end_of_sight(edges, pool.weights.flatten(0, 1), FAR) + room
        # And for some patches all that lies behind: where the student lets light through, the viewer will show it.
        whole = torch.rand(len(pool), device=far.device) < self.config.whole_ray_share
        far = torch.where(whole.repeat_interleave(9), FAR, far)
        samples = self.march(origins, directions, row, far, torch.rand_like(far), step)
        along = rotate(directions) * self.layout.submodel_scale
        return self.field.sight.reaching(self.submodels.to_submodel(origins, row), along, row, samples)

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Any]:
        """Colours of rays of the scene frame; in training those of a taught pool, with all that its losses need."""
        metadata: dict[str, Any] = ray_bundle.metadata or {}
        if self.training and "pool" in metadata:
            return self.taught_outputs(metadata["pool"])
        origins, directions = self.submodels.to_unit(ray_bundle.origins), ray_bundle.directions
        outputs: Any = self.panel.baked_outputs(self, origins, directions)
        if outputs is None:
            with self.panel.precision(self.field):
                outputs = self.student_outputs(origins, directions, self.panel.rows(self.submodels.assign(origins)))
        return self.panel.finish(self, origins, directions, outputs)

    def student_outputs(
        self, origins: Float[Tensor, "R 3"], directions: Float[Tensor, "R 3"], row: Int[Tensor, " R"]
    ) -> dict[str, Tensor]:
        """Colours, accumulation and scene-frame depths of rays of the unit frame."""
        far = torch.full_like(origins[:, 0], FAR)
        samples = self.march(origins, directions, row, far, torch.full_like(far, 0.5), self.layout.triplane_voxel)
        drawn = self.render(origins, directions, row, origins.new_full((3,), EVAL_BACKGROUND), samples)
        return {
            "rgb": drawn.rgb.clamp(0.0, 1.0),
            "accumulation": drawn.accumulation[:, None],
            "depth": drawn.depth[:, None] / self.submodels.unit_scale,
        }

    def taught_outputs(self, pool: TaughtPool) -> dict[str, Any]:
        """What a training step compares: rays in their own submodel, and, with several, in a neighbour as well."""
        origins, directions = pool.origins.flatten(0, 1), pool.directions.flatten(0, 1)
        home = self.submodels.assign(origins)
        row, several = home, len(self.submodels) > 1
        if several:
            moved = torch.rand_like(origins[:, 0]) < self.config.reassign_share
            row = torch.where(moved, self.submodels.random_neighbour(home), home)
        background = torch.rand_like(origins)
        drawn = self.render(origins, directions, row, background, self.samples_for(pool, row))
        outputs: dict[str, Any] = {
            "rgb": drawn.rgb,
            "accumulation": drawn.accumulation[:, None],
            "drawn": drawn,
            "pool": pool,
            "sparsity": self.random_opacity(),
        }
        if several and self.config.consistency_loss_mult > 0:
            some = pool.select(torch.arange(max(1, round(self.config.consistency_share * len(pool)))))
            rays = 9 * len(some)
            other = self.submodels.random_neighbour(row[:rays])
            outputs["neighbour_rgb"] = self.render(
                origins[:rays], directions[:rays], other, background[:rays], self.samples_for(some, other)
            ).rgb
        return outputs

    def random_opacity(self) -> Tensor:
        """The sparsity loss: opacity of a voxel at random points of the contracted cube, in random directions."""
        count = self.config.sparsity_samples if self.config.sparsity_loss_mult > 0 else 0
        device = self.device
        if count == 0:
            return torch.zeros((), device=device)
        points = torch.rand(count, 3, device=device) * 4.0 - 2.0
        row = torch.randint(len(self.submodels), (count,), device=device)
        # Contraction reaches no point with two coordinates beyond 1.
        inside = self.occupancy.contains(points, row) & ((points.abs() > 1.0).sum(dim=-1) <= 1)
        points, row = uncontract(points[inside]), row[inside]
        if len(points) == 0:
            return torch.zeros((), device=device)
        directions = torch.nn.functional.normalize(torch.randn_like(points), dim=-1) * self.layout.submodel_scale
        voxel = self.layout.triplane_voxel / contracted_speed(points, directions)
        # The mean is over the whole cube; there is no density outside of the occupied cells.
        return losses.sparsity(self.field(points, row).density, voxel) * (len(points) / count)

    def get_metrics_dict(self, outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
        """PSNR to what is to be learned, occupied cells, predicted bytes, samples per ray."""
        metrics: dict[str, Any] = {}
        if "pool" in outputs:
            metrics["psnr_to_teacher"] = psnr(outputs["rgb"].detach().clamp(0, 1), outputs["pool"].target.flatten(0, 1))
            metrics["samples_per_ray"] = len(outputs["drawn"].weights) / len(outputs["rgb"])
        elif "image" in batch:
            metrics["psnr"] = psnr(outputs["rgb"], batch["image"][..., :3].to(outputs["rgb"]))
        return metrics

    def get_loss_dict(
        self, outputs: dict[str, Any], batch: dict[str, Any], metrics_dict: dict[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """All losses of the paper, weighed; on photos (evaluation) the colour's alone."""
        if "pool" not in outputs:
            image = batch["image"][..., :3].to(outputs["rgb"])
            return {"rgb_loss": losses.robust_rgb(outputs["rgb"].view(-1, 3), image.view(-1, 3))}
        config, pool, drawn = self.config, outputs["pool"], outputs["drawn"]
        target, edges = pool.target.flatten(0, 1), pool.edges.flatten(0, 1)
        samples: PackedSamples = drawn.samples
        geometry = config.geometry_loss_mult + self.progress * (config.geometry_loss_final - config.geometry_loss_mult)
        per_interval = sum_over_intervals(drawn.weights, samples, edges)
        shape = (-1, 9, 3)
        result = {
            "rgb_loss": config.rgb_loss_mult * losses.robust_rgb(outputs["rgb"], target),
            "dssim_loss": config.dssim_loss_mult * losses.patch_dssim(outputs["rgb"].view(shape), target.view(shape)),
            "geometry_loss": geometry * losses.geometry(per_interval, pool.weights.flatten(0, 1)),
            "distortion_loss": config.distortion_loss_mult
            * losses.distortion_packed(
                squash(samples.starts), squash(samples.ends), drawn.weights, samples.ray_index, samples.ray_offsets
            ),
            "sparsity_loss": config.sparsity_loss_mult * outputs["sparsity"],
        }
        if len(self.field.free) == 0:
            decay = sum(losses.hash_decay(table, config.hash_levels) for table in self.field.grids.parameters())
            result["hash_decay"] = config.hash_decay_mult * decay
        if config.opacity_loss_mult > 0:
            depth = sum_over_intervals(drawn.depths, samples, edges)
            count = sum_over_intervals(torch.ones_like(drawn.depths), samples, edges)
            fading = config.opacity_loss_mult * 0.1**self.progress
            taught = pool.weights.flatten(0, 1)
            result["opacity_loss"] = fading * losses.opacity_likelihood(depth, taught, count > 0)
        if config.deferred_grid > 1:
            grids = self.deferred.on_grid()
            result["variation_loss"] = config.variation_loss_mult * losses.network_variation(*grids)
        if "neighbour_rgb" in outputs:
            result["consistency_loss"] = config.consistency_loss_mult * losses.robust_rgb(
                outputs["neighbour_rgb"], outputs["rgb"][: len(outputs["neighbour_rgb"])]
            )
        return result

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """PSNR, SSIM and LPIPS of a whole picture, and the picture beside the photo."""
        image, rgb = batch["image"][..., :3].to(outputs["rgb"]), outputs["rgb"]
        first, second = (t.movedim(-1, 0)[None] for t in (image, rgb))
        ssim: Any = structural_similarity_index_measure(second, first, data_range=1.0)
        metrics = {
            "psnr": float(psnr(rgb, image)),
            "ssim": float(ssim),
            "lpips": float(self.lpips(first, second)),
            "occupied_voxels": float(self.occupancy.cells.sum()),
            "predicted_bytes": float(self.predicted_bytes()),
        }
        images = {"img": torch.cat([image, rgb], dim=1), "error": (rgb - image).abs()}
        return metrics, images

    def predicted_bytes(self) -> int:
        """Bytes of the planes and of the sparse grid's blocks before compression, as they stand."""
        layout = self.layout
        blocks = int(
            torch.nn.functional.max_pool3d(
                self.occupancy.cells.float().unsqueeze(1), layout.block_size
            ).sum()
        )  # fmt: skip
        planes = len(self.submodels) * 3 * layout.triplane_resolution**2 * NUM_CHANNELS
        return planes + blocks * (layout.block_size + 1) ** 3 * NUM_CHANNELS

    def mark_occupied(self, points: Float[Tensor, "M 3"], origins: Float[Tensor, "M 3"]) -> None:
        """Occupy the cells of points (unit frame) in the submodels that see them, and in those' neighbours."""
        home = self.submodels.assign(origins)
        for row in range(len(self.submodels)):
            sees = self.submodels.is_neighbour[row][home] | (home == row)
            mine = points[sees]
            rows = torch.full((len(mine),), row, device=mine.device)
            self.occupancy.mark(contract(self.submodels.to_submodel(mine, rows)), rows)


def layout_for(config: SmerfModelConfig, origins: Float[Tensor, "cameras 3"]) -> Layout:
    """The layout of a student, given where its training cameras are in the scene frame."""
    frame = unit_frame(origins, config.camera_room, config.submodels_per_axis)
    unit = origins.double() * float(frame[0, 0]) + torch.from_numpy(frame[:, 3])
    return Layout(
        triplane_resolution=config.triplane_resolution,
        sparse_resolution=config.sparse_resolution,
        submodels_per_axis=config.submodels_per_axis,
        submodel_scale_factor=config.submodel_scale_factor,
        alive=live_submodels(unit.float(), config.submodels_per_axis),
        scene_to_unit=frame,
    )


def cull_threshold(config: SmerfModelConfig, step: int) -> float:
    """Alpha of a voxel below which density counts as none: 0, then log-linear from a tenth of its last value."""
    if config.alpha_cull_threshold <= 0 or step < config.alpha_cull_start:
        return 0.0
    span = max(config.alpha_cull_end - config.alpha_cull_start, 1)
    share = float(np.clip((step - config.alpha_cull_start) / span, 0.0, 1.0))
    return config.alpha_cull_threshold * 10.0 ** (share - 1.0)


def squash(distance: Tensor) -> Tensor:
    """Unit-frame distances in [0, 1), for a loss that compares lengths near and far."""
    return distance / (1.0 + distance)
