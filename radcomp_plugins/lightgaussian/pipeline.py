"""LightGaussian as one ns-train run: the stages, their losses and their report."""

from pathlib import Path
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.utils import writer
from nerfstudio.utils.rich_utils import CONSOLE, get_progress
from torch import Tensor

from radcomp_plugins.core.files import read_json, write_json
from radcomp_plugins.errors import InputError
from radcomp_plugins.lightgaussian.asset import export_run, log_wandb_artifact
from radcomp_plugins.lightgaussian.belongs import check_photos, spread
from radcomp_plugins.lightgaussian.config import LightGaussianPipelineConfig
from radcomp_plugins.lightgaussian.model import LightGaussianModel
from radcomp_plugins.lightgaussian.quantise import Quantised, quantise
from radcomp_plugins.lightgaussian.stages import Stage, plan, stage_at, starting_at, total_steps
from radcomp_plugins.splats.draw import picture
from radcomp_plugins.splats.evaluate import HeldOutView, composite, held_out_views, quality
from radcomp_plugins.splats.fake_quantise import fake_quantiser
from radcomp_plugins.splats.formats.rcs_quantise import RcsSettings
from radcomp_plugins.splats.gaussians import Gaussians
from radcomp_plugins.splats.merge import merge
from radcomp_plugins.splats.pipeline import SplatPipeline
from radcomp_plugins.splats.significance import contributions, most_significant, score
from radcomp_plugins.splats.views import focus_of_cameras, jitter_positions, pinhole_views
from radcomp_plugins.teachers.dataset import adopt_dataset, required_teacher
from radcomp_plugins.teachers.load import load_splats

REPORT_NAME = "stages.json"


class LightGaussianPipeline(SplatPipeline):
    """Starts from the teacher's Gaussians and takes the run through its stages, each a function of the step alone."""

    config: LightGaussianPipelineConfig
    model: LightGaussianModel

    def __init__(self, config: LightGaussianPipelineConfig, **kwargs: Any) -> None:
        training = kwargs.get("test_mode", "val") == "val"
        # Held in a list, so that the teacher stays out of the state_dict and of the viewer's search for controls.
        self._teacher: list[Gaussians] = []
        if training:
            adopt_dataset(config, "lightgaussian")
            teacher = load_splats(required_teacher(config, "lightgaussian"))
        super().__init__(config, **kwargs)
        if training:
            self._teacher = [teacher.to(self.device)]
            self.model.start_from(self.teacher)
            self.stages = plan(config, self.teacher.sh_degree)
        self._begun = -1
        self._held_out: list[HeldOutView] = []
        self._report: dict[str, Any] = {"schema_version": 1, "stages": []}
        self._report_path: Path | None = None

    @property
    def teacher(self) -> Gaussians:
        """The frozen scene the run started from; there is none when a finished run is opened."""
        return self._teacher[0]

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Splatfacto's callbacks, then the action of each stage before its first step."""
        callbacks = super().get_training_callbacks(training_callback_attributes)
        trainer = training_callback_attributes.trainer
        if trainer is not None:
            self._report_path = trainer.base_dir / REPORT_NAME
            self._resume_report(trainer)
        before, after = TrainingCallbackLocation.BEFORE_TRAIN_ITERATION, TrainingCallbackLocation.AFTER_TRAIN_ITERATION
        callbacks.append(TrainingCallback([before], self.begin_step))
        callbacks.append(TrainingCallback([after], self.finish_step))
        if trainer is not None and self.config.log_artifact:
            if not trainer.config.is_wandb_enabled():
                raise InputError("--pipeline.log-artifact True: nothing is logged to wandb; add --vis wandb")
            callbacks.append(
                TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN], self.log_artifact, args=[trainer])
            )
        return callbacks

    def log_artifact(self, trainer: Any, step: int) -> None:
        """Export the finished run and attach asset and stage report to the wandb run."""
        folder = trainer.base_dir / "asset"
        export_run(trainer.base_dir / "config.yml", folder, overwrite=True)
        log_wandb_artifact(folder, trainer.base_dir / REPORT_NAME)

    def num_training_steps(self, configured: int) -> int:
        """The run ends with its last stage, whatever --max-num-iterations says."""
        return total_steps(self.stages)

    def begin_step(self, step: int) -> None:
        """Act where a stage begins, once, and set the learning rates of the step."""
        if step != self._begun:
            self._begun = step
            for stage in starting_at(self.stages, step):
                self.act(stage)
        self._schedule(step)

    def finish_step(self, step: int) -> None:
        """Measure where a stage ends."""
        stage = stage_at(self.stages, step)
        if stage is not None and step + 1 == stage.end:
            self.measure(f"{stage.name}, trained", step)
        for later in starting_at(self.stages, step + 1):
            if later.steps == 0 and step + 1 == total_steps(self.stages):
                self.act(later)

    def _schedule(self, step: int) -> None:
        stage = stage_at(self.stages, step)
        if stage is None:
            return
        factor = self.config.lr_final_factor ** stage.progress(step)
        for optimizer in self.model.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = factor * group.setdefault("initial_lr", group["lr"])

    def check_photos(self) -> None:
        """Refuse photos that do not show the teacher's scene.

        Raises:
            InputError: they do not.
        """
        batches, background = self.datamanager.cached_train, self.model._get_background_color().to(self.device)
        some = spread(len(batches))
        cameras = self.datamanager.train_dataset.cameras.to(self.device)
        drawn = pinhole_views(cameras[torch.tensor(some)])
        images = [composite(batches[i]["image"].to(self.device), background) for i in some]
        views = [HeldOutView(view, image) for view, image in zip(drawn, images, strict=True)]
        check_photos(self.teacher, views, background)

    def act(self, stage: Stage) -> None:
        """Change the scene as the stage says: prune, cut the SH, quantise, or take on a format's quantisers."""
        if stage.start == 0 and stage is self.stages[0] and self.config.check_photos:
            self.check_photos()
        if not self._report["stages"]:
            self.measure("teacher", stage.start)
        with torch.no_grad():
            if stage.action == "distil":
                self.model.cut_sh(self.config.sh_degree)
            else:
                self.model.significance = self.measure_significance().float()
            if stage.action == "prune":
                self._reduce(stage.keep)
            if stage.action == "quantise":
                self._quantise()
            if stage.action == "encode":
                self._encode()
        CONSOLE.log(f"{stage.name}: {self.model.num_points:,} Gaussians, SH degree {self.model.current_sh_degree()}")
        self.measure(stage.name, stage.start)

    def _reduce(self, keep: float) -> None:
        """Fewer Gaussians: drop the least significant, or merge neighbours."""
        model = self.model
        if self.config.reduction == "drop":
            model.prune(most_significant(model.significance, keep))
        else:
            model.merge(merge(model.gaussians().detach(), model.significance, max(1, round(keep * model.num_points))))

    def _quantise(self) -> None:
        own = self.model.gauss_params["features_rest"].detach()
        quantised = quantise(
            own.flatten(1),
            self.model.significance,
            ratio=self.config.vq_ratio,
            codebook_size=self.config.vq_codebook_size,
            iterations=self.config.vq_iterations,
            batch_size=self.config.vq_batch_size,
            decay=self.config.vq_decay,
            seed=self.config.seed,
        )
        self.model.adopt_codebook(quantised)

    def _encode(self) -> None:
        """Fix the quantisers of the format, and share the higher SH where it wants that and no codebook does yet."""
        encoding, model = self.config.encoding, self.model
        assert encoding != "none"
        shared = model.palette()
        settings = RcsSettings().trained(self.config.encoding_coarse)
        quantiser, palette = fake_quantiser(
            encoding, model.gaussians(), significance=model.weights(), palette=shared, settings=settings
        )
        if shared is None and palette is not None:
            model.adopt_codebook(Quantised(palette.entries.flatten(1), palette.labels.int()))
        model.adopt_quantiser(quantiser)

    def measure_significance(self) -> Tensor:
        """Significance [N] of the scene as it stands over all training views."""
        # Reading the images first takes the distortion out of the cameras.
        _ = self.datamanager.cached_train
        views = pinhole_views(self.datamanager.train_dataset.cameras.to(self.device))
        scene = self.model.gaussians()
        with get_progress("Measuring significance", suffix="views/s") as progress:
            return score(scene, contributions(scene, progress.track(views)), self.config.significance)

    def get_train_loss_dict(self, step: int) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        """A step on a photo, or on the teacher's picture of a training or pseudo view."""
        stage = stage_at(self.stages, step)
        camera, batch = self.datamanager.next_train(step)
        if stage is not None:
            distils = stage.action == "distil"
            share = self.config.pseudo_view_share if distils else self.config.recovery_pseudo_view_share
            taught = distils and self.config.distillation_target == "teacher"
            camera, batch = self._taught_view(step, camera, batch, share, taught)
        outputs = self.model(camera)
        metrics = self.model.get_metrics_dict(outputs, batch)
        losses = self.model.get_loss_dict(outputs, batch, metrics)
        if stage is not None and stage.action == "distil" and self.config.distillation_loss == "squared":
            target = self.model.composite_with_background(self.model.get_gt_img(batch["image"]), outputs["background"])
            losses["main_loss"] = torch.nn.functional.mse_loss(outputs["rgb"], target)
        metrics["stage"] = self.stages.index(stage) + 1 if stage is not None else len(self.stages) + 1
        return outputs, losses, metrics

    def _taught_view(
        self, step: int, camera: Cameras, batch: dict, pseudo_share: float, taught: bool
    ) -> tuple[Cameras, dict]:
        """The camera of a step and its target: at pseudo views the teacher's picture (Fan et al. 2024, Eq. 5 and 6).

        Args:
            step: decides on the view.
            camera: the training view that is due.
            batch: its photo.
            pseudo_share: chance of a pseudo view, the camera moved.
            taught: whether the training view has the teacher's picture as its target too, not the photo.
        """
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        if torch.rand((), generator=generator).item() < pseudo_share:
            sigma = self.config.pseudo_view_sigma * self._view_distance()
            camera = camera.to(self.device)
            camera.camera_to_worlds = jitter_positions(camera.camera_to_worlds, sigma, generator)
        elif not taught:
            return camera, batch
        background = self.model._get_background_color().to(self.device)
        return camera, {"image": picture(self.teacher, pinhole_views(camera.to(self.device))[0], background)}

    def _view_distance(self) -> float:
        """Mean distance of the training cameras from the point they look at, world units."""
        c2w = self.datamanager.train_dataset.cameras.camera_to_worlds
        return float((c2w[:, :3, 3] - focus_of_cameras(c2w)).norm(dim=-1).mean())

    def held_out(self) -> list[HeldOutView]:
        """The dataset's held-out views, read once."""
        if not self._held_out:
            background = self.model._get_background_color().to(self.device)
            self._held_out = held_out_views(self.datamanager.fixed_indices_eval_dataloader, background)
        return self._held_out

    def measure(self, name: str, step: int) -> None:
        """Add a row to the stage report: Gaussians, SH degree, estimated bytes, PSNR and SSIM on the held-out views."""
        if not self.config.measure_stages or not len(self.datamanager.eval_dataset):
            return
        self.model.eval()
        background = self.model._get_background_color().to(self.device)
        row = {
            "stage": name,
            "step": step,
            "gaussians": self.model.num_points,
            "sh_degree": self.model.current_sh_degree(),
            "estimated_bytes": self.model.estimated_bytes(),
            **quality(self.model.encoded().detach(), self.held_out(), background),
        }
        self.model.train()
        self._report["stages"].append(row)
        CONSOLE.log(f"{name}: {row['psnr']:.2f} dB on {len(self.held_out())} held-out views")
        for key in ("gaussians", "estimated_bytes", "psnr", "ssim"):
            writer.put_scalar(name=f"LightGaussian/{key}", scalar=row[key], step=step)
        if self._report_path is not None:
            write_json(self._report_path, self._report)

    def _resume_report(self, trainer: Any) -> None:
        """Take over the rows that the run being resumed had measured up to its checkpoint."""
        source = trainer.config.load_dir or (trainer.config.load_checkpoint and trainer.config.load_checkpoint.parent)
        if source and (source.parent / REPORT_NAME).exists():
            rows = read_json(source.parent / REPORT_NAME)["stages"]
            self._report["stages"] = [row for row in rows if row["step"] < trainer._start_step]
