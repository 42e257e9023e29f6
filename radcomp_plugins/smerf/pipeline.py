"""SMERF as one ns-train run: ask the teacher where the scene is, then distil its rays."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from nerfstudio.pipelines.base_pipeline import VanillaPipeline
from nerfstudio.utils import writer
from nerfstudio.utils.rich_utils import CONSOLE, get_progress
from torch import Tensor

from radcomp_plugins import compat
from radcomp_plugins.core.seeded import seeded
from radcomp_plugins.distributed import any_process, distributed_step, process_index
from radcomp_plugins.errors import InputError
from radcomp_plugins.smerf.config import SmerfPipelineConfig
from radcomp_plugins.smerf.datamanager import SmerfDatamanager
from radcomp_plugins.smerf.model import SmerfModel
from radcomp_plugins.smerf.rays import JitterSettings, TaughtPool, taught_pool, weighty_points, without_most_empty
from radcomp_plugins.smerf.replay import Replay
from radcomp_plugins.teachers.dataset import adopt_dataset, required_teacher
from radcomp_plugins.teachers.load_rays import load_ray_teacher
from radcomp_plugins.teachers.rays import RayTeacher


class SmerfPipeline(VanillaPipeline):
    """Draws pools of rays that the teacher has answered for, and trains the student on patches of them."""

    config: SmerfPipelineConfig
    model: SmerfModel  # type: ignore[assignment]  # upstream has a read-only property
    datamanager: SmerfDatamanager

    def __init__(self, config: SmerfPipelineConfig, device: Any, test_mode: Any = "val", **kwargs: Any) -> None:
        # Held in lists, so that teacher and rays stay out of the state_dict and of the viewer's search for controls.
        self._teacher: list[RayTeacher] = []
        self._replay: list[Replay] = []
        if test_mode == "val":
            adopt_dataset(config, "smerf")
            self._teacher = [load_ray_teacher(required_teacher(config, "smerf"), device)]
        manager: Any = config.datamanager
        manager.train_num_rays_per_batch = config.pool_patches * 9
        processes = kwargs.pop("world_size", 1)
        super().__init__(config, device, test_mode, **kwargs)
        self.world_size = processes
        student: Any = config.model
        if processes > 1 and student.free_texels_from < 1.0:
            raise InputError(
                f"--pipeline.model.free-texels-from {student.free_texels_from} with {processes} processes: texels "
                "are let go in one process only; expected 1 here, or --machine.num-devices 1"
            )
        self._step = distributed_step(self.model, self.losses, processes)
        self.datamanager.seed = config.seed
        replay = Replay(
            self.draw_pool,
            lambda index: self.seeded(index, 2),
            kept=config.pools_kept,
            steps=config.pool_steps,
            batch=config.batch_patches,
        )
        self._replay.append(replay)
        self.total_steps = 1

    @property
    def teacher(self) -> RayTeacher:
        """The frozen field that is distilled; there is none when a finished run is opened."""
        return self._teacher[0]

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Upstream's; a resumed run ends where it would have ended; and a new one first finds where the scene is."""
        trainer = training_callback_attributes.trainer
        if trainer is not None:
            self.total_steps = trainer.config.max_num_iterations
            compat.end_training_at(trainer, self.total_steps)
            if not bool(self.model.occupancy.cells.any()):
                self.find_scene()
        return super().get_training_callbacks(training_callback_attributes)

    @torch.no_grad()
    def find_scene(self) -> None:
        """Occupy the cells that the teacher gives weight to, on jittered rays of the training views.

        Raises:
            InputError: the teacher sees nothing at all from the training cameras.
        """
        pools = -(-self.config.occupancy_rays // (9 * self.config.pool_patches * self.world_size))
        with get_progress("Asking the teacher where the scene is", suffix="pools/s") as progress:
            for index in progress.track(range(pools)):
                pool = self.draw_pool(-1 - index)
                voxel = 4.0 / self.model.layout.sparse_resolution
                found = weighty_points(pool, self.config.occupancy_threshold, self.model.submodels, voxel)
                self.model.mark_occupied(*found)
        self.model.occupancy.cells = any_process(self.model.occupancy.cells)
        self.model.occupancy.measure()
        occupied = int(self.model.occupancy.cells.sum())
        if occupied == 0:
            raise InputError(
                f"teacher {self.config.teacher}: gives no weight to anything the training cameras see; expected a "
                "teacher of this dataset, trained with the same dataset parser settings (scale, orientation, centre)"
            )
        CONSOLE.log(f"{len(self.model.submodels)} submodels, {occupied:,} occupied voxels")

    @torch.no_grad()
    def draw_pool(self, index: int) -> TaughtPool:
        """Jittered patches with the teacher's answers; which ones depends on seed, rank and index alone."""
        bundle, batch = self.datamanager.next_train(index % 2**40)
        settings = JitterSettings(
            self.config.jitter_origin, self.config.jitter_rotation, self.config.photo_share, self.config.query_chunk
        )
        photo = batch["image"][..., :3].to(bundle.origins)
        with self.seeded(index, 1):
            pool = taught_pool(bundle, photo, self.teacher, self.model.submodels, settings)
            return without_most_empty(pool, self.config.empty_share)

    def seeded(self, index: int, purpose: int) -> AbstractContextManager[None]:
        """A context in which torch's generators depend on seed, purpose, index and process alone."""
        return seeded(self.config.seed, index, purpose, process_index())

    def get_train_loss_dict(self, step: int) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        """A step on taught patches; of several processes, each on its own."""
        return self._step(step)

    def losses(self, step: int) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        """Outputs, losses and metrics of this process's patches."""
        pool = self._replay[0].patches_of(step)
        self.model.set_progress(step, self.total_steps)
        rays = RayBundle(
            origins=pool.origins.flatten(0, 1),
            directions=pool.directions.flatten(0, 1),
            pixel_area=pool.origins.new_ones(len(pool) * 9, 1),
        )
        rays.metadata = {"pool": pool}  # type: ignore[dict-item]  # no per-ray tensor: set after the shapes are checked
        with self.seeded(step, 3):
            outputs = self.model(rays)
            metrics = self.model.get_metrics_dict(outputs, {})
            return outputs, self.model.get_loss_dict(outputs, {}, metrics), metrics

    def get_eval_image_metrics_and_images(self, step: int) -> Any:
        """Upstream's, with what training has come to beside it."""
        writer.put_scalar(name="SMERF/occupied_voxels", scalar=int(self.model.occupancy.cells.sum()), step=step)
        writer.put_scalar(name="SMERF/predicted_bytes", scalar=self.model.predicted_bytes(), step=step)
        return super().get_eval_image_metrics_and_images(step)
