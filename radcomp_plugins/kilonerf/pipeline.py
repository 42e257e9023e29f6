"""KiloNeRF as one ns-train run: find where the teacher has density, distil it, fine-tune on the photos."""

import math
from contextlib import AbstractContextManager
from typing import Any

import torch
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.pipelines.base_pipeline import VanillaPipeline
from nerfstudio.utils import writer
from nerfstudio.utils.rich_utils import CONSOLE, get_progress
from torch import Tensor

from radcomp_plugins import compat
from radcomp_plugins.core.seeded import seeded
from radcomp_plugins.distributed import distributed_step, process_index
from radcomp_plugins.kilonerf import box as boxes
from radcomp_plugins.kilonerf.config import KiloPipelineConfig
from radcomp_plugins.kilonerf.datamanager import KiloDatamanager
from radcomp_plugins.kilonerf.distill import TaughtPool, draw_pool
from radcomp_plugins.kilonerf.grid import cells_of_box, grid_of_occupancy
from radcomp_plugins.kilonerf.memory import check_networks, check_voxels
from radcomp_plugins.kilonerf.model import KiloModel, RaySettings
from radcomp_plugins.kilonerf.occupancy import density_of_opacity, find_occupancy
from radcomp_plugins.teachers.dataset import adopt_dataset, required_teacher
from radcomp_plugins.teachers.load_points import load_point_teacher
from radcomp_plugins.teachers.points import PointTeacher


class KiloPipeline(VanillaPipeline):
    """Runs the three stages: occupancy before the first step, distillation, fine-tuning."""

    config: KiloPipelineConfig
    model: KiloModel  # type: ignore[assignment]  # upstream has a read-only property
    datamanager: KiloDatamanager

    def __init__(self, config: KiloPipelineConfig, device: Any, test_mode: Any = "val", **kwargs: Any) -> None:
        # Held in lists, so that teacher and points stay out of the state_dict and of the viewer's search for controls.
        self._teacher: list[PointTeacher] = []
        self._pool: list[tuple[int, TaughtPool]] = []
        if test_mode == "val":
            adopt_dataset(config, "kilonerf")
            self._teacher = [load_point_teacher(required_teacher(config, "kilonerf"), device)]
        processes = kwargs.pop("world_size", 1)
        super().__init__(config, device, test_mode, **kwargs)
        self.world_size = processes
        self.datamanager.seed = config.seed
        self.total_steps = 1
        if self._teacher and hasattr(self.teacher, "place"):
            # Plain NeRFs live in the frame of the dataset's own poses.
            self.teacher.place(*self.datamanager.frame)  # type: ignore[attr-defined]

    @property
    def teacher(self) -> PointTeacher:
        """The frozen field that is distilled; there is none when a finished run is opened."""
        return self._teacher[0]

    @property
    def distill_steps(self) -> int:
        """Steps of the run that distil."""
        return round(self.config.distill_share * self.total_steps)

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Upstream's; a resumed run ends where it would have ended; and a new one first finds where the scene is."""
        trainer = training_callback_attributes.trainer
        if trainer is not None:
            self.total_steps = trainer.config.max_num_iterations
            compat.end_training_at(trainer, self.total_steps)
            if not self.model.has_scene:
                self.find_scene()
            self._step = distributed_step(self.model, self.losses, self.world_size)
        optimizers: Any = training_callback_attributes.optimizers
        before = TrainingCallback(
            where_to_run=[TrainingCallbackLocation.BEFORE_TRAIN_ITERATION],
            func=self.begin_step,
            update_every_num_iters=1,
            args=[optimizers],
        )
        return [before, *super().get_training_callbacks(training_callback_attributes)]

    # The three stages ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def find_scene(self) -> None:
        """Stage one: box, cells, occupied voxels, and a network for each cell that has some.

        Raises:
            InputError: the teacher shows nothing, an unbounded scene, or more than fits into memory.
        """
        config: Any = self.config.model
        rays = self.datamanager.random_rays(self.config.search_rays, self.config.seed)
        box, cells = cells_of_box(self._find_box(rays), config.grid_longest)
        side = config.voxels_per_cell
        check_voxels(cells, side, self.device)
        step = config.step_voxels * float((box[1] - box[0])[0]) / (cells[0] * side)
        if hasattr(self.teacher, "footprint"):
            self.teacher.footprint = 0.25 * step  # type: ignore[attr-defined]
        density = density_of_opacity(config.occupancy_threshold, step)
        voxels = (cells[0] * side, cells[1] * side, cells[2] * side)
        with get_progress("Asking the teacher which voxels are occupied", suffix="points/s") as progress:
            task = progress.add_task("Occupancy", total=None)

            def report(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)

            occupancy = find_occupancy(self.teacher, box, voxels, density, report, self.device)
        grid = grid_of_occupancy(box, cells, occupancy, step, config.overlap)
        check_networks(grid.num_networks, config.grid_longest, self.model.shape, self.config.pool_points, self.device)
        generator = torch.Generator().manual_seed(self.config.seed)
        color = self.datamanager.background
        self.model.set_scene(grid, self.teacher.background if color is None else color, generator)
        share = 100 * float(occupancy.mean())
        CONSOLE.log(
            f"Box {box[0].round(3).tolist()} to {box[1].round(3).tolist()}, {cells[0]} x {cells[1]} x {cells[2]} "
            f"cells, {grid.num_networks:,} networks, {int(occupancy.sum()):,} occupied voxels ({share:.1f} %), "
            f"step {step:.4f}"
        )

    def _find_box(self, rays: Any) -> Any:
        """The box of the scene: given, or around SfM points, or around what the teacher shows."""
        config: Any = self.config.model
        near = max(config.near_plane, self.teacher.trained_from)
        if config.box is None and config.box_from == "density":
            return boxes.find_box(self.teacher, rays, near)
        box = (
            boxes.given_box(tuple(map(float, config.box)))
            if config.box is not None
            else boxes.box_of_points(self.datamanager.points)
        )
        outside = boxes.check_box(box, self.teacher, rays, near)
        if outside > boxes.FEW:
            CONSOLE.print(
                f"[yellow]Warning:[/yellow] {outside:.0%} of the light that the teacher shows comes from outside of "
                f"the box {box.round(3).tolist()}, and will be missing"
            )
        return box

    def begin_step(self, optimizers: Any, step: int) -> None:
        """Set the learning rate; at the first step of fine-tuning forget the moments of distillation."""
        first = self.distill_steps
        optimizer = optimizers.optimizers["networks"]
        if step == first and step > 0:
            optimizer.state.clear()
        if step >= first and torch.device(self.device).type == "cpu":
            # Thousands of small products, one for each network and layer: torch's threads would have to meet at every
            # one of them. On the chair 76 ms a step instead of 240.
            torch.set_num_threads(1)
        rate = optimizers.config["networks"]["optimizer"].lr * self.rate_at(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        writer.put_scalar(name="learning_rate/networks", scalar=rate, step=step)
        self.model.forget_drawing()
        self.model.sampling = RaySettings(self.config.train_stop, self.config.whole_ray_share)
        if step >= first and (step - first) % self.config.opacity_every == 0:
            self.model.estimate_depths()

    def rate_at(self, step: int) -> float:
        """Learning rate of a step as a multiple of the optimiser's: a cosine in each of the stages."""
        first = self.distill_steps
        begin, length = (0, first) if step < first else (first, self.total_steps - first)
        share = min((step - begin) / max(length - 1, 1), 1.0)
        final = self.config.lr_final_mult
        fade = final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * share))
        return fade * (1.0 if step < first or first == 0 else self.config.finetune_lr_mult)

    def get_train_loss_dict(self, step: int) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        """A step of whichever stage it belongs to; of several processes, each on its own."""
        return self._step(step)

    def losses(self, step: int) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        """Outputs, losses and metrics of this process's points or rays."""
        if step < self.distill_steps:
            outputs = self.model.distill_losses(self.points_of(step), self.config.color_floor, self.config.delta_steps)
            metrics = self.model.get_metrics_dict(outputs, {})
            return outputs, self.model.get_loss_dict(outputs, {}, metrics), metrics
        self._pool.clear()
        bundle, batch = self.datamanager.next_train(step)
        with self.seeded(step, 2):
            outputs = self.model(bundle)
        metrics = self.model.get_metrics_dict(outputs, batch)
        return outputs, self.model.get_loss_dict(outputs, batch, metrics), metrics

    @property
    def pool_steps(self) -> int:
        """Steps that draw from one pool."""
        return max(self.config.pool_points * self.config.pool_reuse // self.config.distill_points, 1)

    def points_of(self, step: int) -> TaughtPool:
        """The points that a step of distillation trains on, from the pool that is current at it."""
        index, turn = divmod(step, self.pool_steps)
        if not self._pool or self._pool[0][0] != index:
            self._pool.clear()
            self._pool = [(index, self.draw_pool(index))]
        return self._pool[0][1].turn(turn, self.config.distill_points)

    @torch.no_grad()
    def draw_pool(self, index: int) -> TaughtPool:
        """Points with the teacher's answers; which ones depends on seed, rank and index alone."""
        cameras = self.datamanager.train_dataset.cameras.camera_to_worlds[:, :3, 3].to(self.device)
        with self.seeded(index, 1):
            return draw_pool(
                self.teacher, self.model.lists, self.model.lookup, cameras, count=self.config.pool_points,
                random_share=self.config.random_directions, delta=self.config.delta_steps * self.model.grid.step,
            )  # fmt: skip

    def seeded(self, index: int, purpose: int) -> AbstractContextManager[None]:
        """A context in which torch's generators depend on seed, purpose, index and process alone."""
        return seeded(self.config.seed, index, purpose, process_index())

    def get_eval_image_metrics_and_images(self, step: int) -> Any:
        """Upstream's, with what the grid has come to beside it."""
        grid = self.model.grid
        writer.put_scalar(name="KiloNeRF/networks", scalar=grid.num_networks, step=step)
        writer.put_scalar(name="KiloNeRF/occupied_voxels", scalar=int(grid.occupancy.sum()), step=step)
        writer.put_scalar(name="KiloNeRF/occupied_cells", scalar=int(grid.occupied_cells().sum()), step=step)
        return super().get_eval_image_metrics_and_images(step)
