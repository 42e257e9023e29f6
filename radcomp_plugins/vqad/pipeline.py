"""VQ-AD as one ns-train run: find where the scene is, then train field and octree."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.pipelines.base_pipeline import VanillaPipeline
from nerfstudio.utils import writer
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from radcomp_plugins import compat
from radcomp_plugins.core.octree import Octree
from radcomp_plugins.core.seeded import seeded
from radcomp_plugins.distributed import process_index
from radcomp_plugins.errors import InputError
from radcomp_plugins.vqad import growth
from radcomp_plugins.vqad.bitstream import encode_scene, sizes_of
from radcomp_plugins.vqad.config import VqadPipelineConfig
from radcomp_plugins.vqad.datamanager import VqadDatamanager
from radcomp_plugins.vqad.field import scene_from_field
from radcomp_plugins.vqad.model import VqadModel


class VqadPipeline(VanillaPipeline):
    """Trains on photos; the octree comes from the dataset or from training itself."""

    config: VqadPipelineConfig
    model: VqadModel  # type: ignore[assignment]  # upstream has a read-only property
    datamanager: VqadDatamanager

    def __init__(self, config: VqadPipelineConfig, device: Any, test_mode: Any = "val", **kwargs: Any) -> None:
        if kwargs.get("world_size", 1) > 1:
            raise InputError(
                f"vqad with {kwargs['world_size']} processes: its parameters change their shapes while training; "
                "expected --machine.num-devices 1"
            )
        super().__init__(config, device, test_mode, **kwargs)
        self.datamanager.seed = config.seed
        self.total_steps = 1
        if torch.device(device).type == "cpu":
            # The cores belong to the kernels' pool; torch's own threads spin between small operations.
            torch.set_num_threads(1)

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Upstream's; a resumed run ends where it would have ended; a new one finds its octree; all reshape it."""
        trainer = training_callback_attributes.trainer
        if trainer is not None:
            self.total_steps = trainer.config.max_num_iterations
            compat.end_training_at(trainer, self.total_steps)
        if not bool(self.model.started):
            self.find_scene()
        advance = TrainingCallback(
            where_to_run=[TrainingCallbackLocation.BEFORE_TRAIN_ITERATION],
            func=self.advance,
            args=[training_callback_attributes.optimizers],
        )
        return [advance, *super().get_training_callbacks(training_callback_attributes)]

    def advance(self, optimizers: Any, step: int) -> None:
        """Let the model do what is due; moments of parameters that have other shapes now are forgotten."""
        with self.seeded(step, 1):
            changed = self.model.advance(step, self.total_steps)
        if changed and optimizers is not None:
            for name in ("grid", "codebook"):
                optimizers.optimizers[name].state.clear()

    def find_scene(self) -> None:
        """Give the model its first octree.

        Raises:
            InputError: what the config asks for is not there, empty, or mostly outside the scene box.
        """
        config, dataset = self.model.config, self.datamanager.train_dataset
        metadata = dataset.metadata
        source = config.octree_from
        if source == "auto":
            source = "points" if len(metadata.get("points3D_xyz", ())) else "none"
            source = "depth" if metadata.get("depth_filenames") else source
        aabb = dataset.scene_box.aabb.float().cpu()
        start = min(max(config.start_level, config.coarsest_level), config.finest_level)
        if source == "depth":
            levels = config.coarsest_level, config.finest_level
            octree, box = growth.octree_from_depth(dataset, aabb, *levels, config.depth_dilation)
        elif source == "points":
            points = metadata.get("points3D_xyz")
            if points is None or len(points) == 0:
                raise InputError(
                    "--pipeline.model.octree-from points: the dataset has no SfM points; expected points3D.ply with "
                    "--pipeline.datamanager.dataparser.load-3D-points True, or --pipeline.model.octree-from none"
                )
            octree, box = growth.octree_from_points(
                points.float().cpu(), aabb, config.coarsest_level, start, config.points_dilation
            )
        else:
            octree, box = Octree.dense(config.coarsest_level, start), growth.cube_around(aabb[0], aabb[1], margin=0.0)
        self.model.start(octree.to(self.model.device), box, box_is_loose=source == "none")
        CONSOLE.log(
            f"Octree from {source}: levels {octree.coarsest} to {octree.finest}, {len(octree.voxels[-1]):,} voxels, "
            f"{octree.num_vertices:,} vertices"
        )

    def seeded(self, step: int, purpose: int) -> AbstractContextManager[None]:
        """A context in which torch's generators depend on seed, purpose, step and process alone."""
        return seeded(self.config.seed, step, purpose, process_index())

    def get_train_loss_dict(self, step: int) -> tuple[Any, dict[str, Tensor], dict[str, Any]]:
        """Upstream's, with samples, levels and backgrounds that depend on seed and step alone."""
        with self.seeded(step, 0):
            return super().get_train_loss_dict(step)

    @torch.no_grad()
    def get_eval_image_metrics_and_images(self, step: int) -> Any:
        """Metrics of a held-out picture, its PSNR at each coarser level, and how the codebooks are used."""
        self.eval()
        camera, batch = self.datamanager.next_eval_image(step)
        model, levels = self.model, {}
        for level in model.field.octree.levels:
            model.level = level
            try:
                outputs = model.get_outputs_for_camera(camera)
            finally:
                model.level = None
            levels[f"psnr_level_{level}"] = float(model.get_metrics_dict(outputs, batch)["psnr"])
        metrics, images = model.get_image_metrics_and_images(outputs, batch)
        encoding = model.field.encoding
        if encoding.mode != "full":
            scene = scene_from_field(model.field, model.background())
            sizes = sizes_of(encode_scene(scene), scene)
            for size, perplexity in zip(sizes, encoding.perplexity().tolist(), strict=True):
                found = {"perplexity": perplexity, "bits per index": size["bits_per_index"], "bytes": size["end"]}
                for name, value in found.items():
                    writer.put_scalar(name=f"VQ-AD/{name} level {size['level']}", scalar=value, step=step)
        self.train()
        return {**metrics, **levels, "num_rays": int(camera.height * camera.width)}, images
