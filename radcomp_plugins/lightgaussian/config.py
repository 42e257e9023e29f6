"""Configs of LightGaussian (Fan et al. 2024); nothing heavy is imported here."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from radcomp_plugins.splats.config import DeviceFreeSplatfactoModelConfig, SplatPipelineConfig


def build_model(config: "LightGaussianModelConfig", **kwargs: Any) -> Any:
    """Import the model class only when a model is built."""
    from radcomp_plugins.lightgaussian.model import LightGaussianModel

    return LightGaussianModel(config, **kwargs)


def build_baked_model(config: "BakedSplatModelConfig", **kwargs: Any) -> Any:
    """Import the model class only when a model is built."""
    from radcomp_plugins.lightgaussian.baked_model import BakedSplatModel

    return BakedSplatModel(config, **kwargs)


def build_pipeline(config: "LightGaussianPipelineConfig", **kwargs: Any) -> Any:
    """Import the pipeline class only when one is built."""
    from radcomp_plugins.lightgaussian.pipeline import LightGaussianPipeline

    return LightGaussianPipeline(config, **kwargs)


@dataclass
class LightGaussianModelConfig(DeviceFreeSplatfactoModelConfig):
    """A splatfacto model that starts from its teacher's Gaussians and never densifies."""

    _target: type = field(default_factory=lambda: cast(type, build_model))
    num_downscales: int = 0
    """Training starts at 1/2^this resolution. The teacher is trained, so full resolution from the first step."""


@dataclass
class BakedSplatModelConfig(LightGaussianModelConfig):
    """An exported splat file as a model: what ns-viewer, ns-eval and ns-render show is the decoded file."""

    _target: type = field(default_factory=lambda: cast(type, build_baked_model))


@dataclass
class LightGaussianPipelineConfig(SplatPipelineConfig):
    """The stages of LightGaussian: prune and recover, distil the SH, quantise, fine-tune the codebook."""

    _target: type = field(default_factory=lambda: cast(type, build_pipeline))
    teacher: Path | None = None
    """What to compress: a splatfacto run folder, its config.yml, a .ckpt of it, or a splat file (.ply, .sog) in the
    frame that the dataset parser gives. Without --data the dataset of the teacher's run is used."""
    significance: Literal["exact", "paper", "hits", "hits-opacity", "weight-sum", "weight-max"] = "exact"
    """What pruning and quantisation rank Gaussians by. `exact`: the blending weights alpha * T they reach over all
    training pixels. `paper`: hit count * opacity * clipped volume^0.1 (Eq. 3 and 4); the others are its ablations."""
    prune_ratio: float = 0.66
    """Share of the Gaussians to prune in all, in [0, 1). Raising it makes the scene smaller and faster, and loses
    detail. The paper: 0.66."""
    prune_rounds: int = 2
    """Rounds in which they are pruned, each followed by co-adaptation. More rounds rank what has already adapted; they
    cost co_adaptation_steps each. The paper: 1. 0 switches pruning off."""
    reduction: Literal["drop", "merge"] = "drop"
    """How a round makes them fewer. `drop`: the least significant go, as in the paper. `merge`: neighbours that are
    most alike become one (splats/merge.py)."""
    co_adaptation_steps: int = 2500
    """Training steps of the remaining Gaussians on the photos after each round. The paper: 5000 after its one."""
    sh_degree: int = 2
    """Degree that the spherical harmonics are distilled to, 0 to 3. Lower is smaller and loses reflections.
    The paper: 2."""
    distillation_steps: int = 5000
    """Training steps of the cut spherical harmonics against the teacher's pictures (Eq. 5). The paper: 5000."""
    distillation_loss: Literal["squared", "photometric"] = "photometric"
    """`squared`: mean squared error, Eq. 5. `photometric`: 0.8 L1 + 0.2 (1 - SSIM), as on photos, of the teacher's
    pictures."""
    distillation_target: Literal["photo", "teacher"] = "photo"
    """What training views are compared with while distilling; pseudo views have the teacher alone. `teacher`: as in
    Eq. 5. `photo`: what the teacher got wrong is not learned from it."""
    pseudo_view_share: float = 0.5
    """Share of distillation steps at pseudo views, cameras moved by Gaussian noise (Eq. 6), in [0, 1]. The rest are
    training views."""
    pseudo_view_sigma: float = 0.05
    """Standard deviation of that noise, in units of the mean distance between the training cameras and the point they
    look at, so that it means the same in every scene. The paper: 0.1 in the units of its scenes."""
    recovery_pseudo_view_share: float = 0.0
    """Share of all other stages' steps at pseudo views, against the teacher's picture, in [0, 1]; the rest are photos.
    Raising it keeps a scene of few photos from being fitted to them alone; a step at one costs the teacher's picture.
    The paper: 0."""
    vq_ratio: float = 1.0
    """Share of the Gaussians, the least significant, whose SH become entries of a codebook, in [0, 1]. The others keep
    SH of their own. The paper: 0.6. 0 switches quantisation off."""
    vq_codebook_size: int = 4096
    """Entries of the codebook. More keep finer reflections and make the file larger. The paper: 8192."""
    vq_iterations: int = 100
    """Moving-average updates of the codebook after its k-means initialisation (Sec. 3.4). The authors' code: 1000."""
    vq_batch_size: int = 8192
    """Gaussians drawn for each of those updates. The authors' code: 80000."""
    vq_decay: float = 0.8
    """Share of the old code that an update keeps, in [0, 1). The paper: 0.8."""
    vq_finetune_steps: int = 5000
    """Joint training steps of codebook and other attributes on the photos, the mapping fixed. The paper: 5000."""
    encoding: Literal["none", "sog", "spz", "rcs"] = "none"
    """Format whose quantisers a last stage trains through, so that the file is what was trained, not the scene before
    it was rounded. ns-export then writes it. `none`: no such stage."""
    encoding_steps: int = 1000
    """Training steps of that stage on the photos."""
    encoding_coarse: float = 1.0
    """Factor of the steps of .rcs, 0.25 to 8. Raising it makes the file smaller and loses quality."""
    lr_final_factor: float = 0.1
    """Learning rates fall exponentially to this share of their start within each stage. The means' also start lower
    than in training, because they are trained."""
    seed: int = 0
    """Seed of pseudo views and of the codebook; every random draw depends on it and the step alone."""
    measure_stages: bool = True
    """Measure PSNR on the held-out views before and after each stage and write stages.json into the run folder."""
    check_photos: bool = True
    """Refuse to begin where the teacher's pictures of the training photos are hardly better than one colour: then the
    photos are of another scene, or in another frame."""
    log_artifact: bool = False
    """Export the asset when training ends and log it with its report as a wandb artifact (needs --vis wandb)."""

    def prepare(self) -> None:
        """Find the teacher and take its dataset where no other is named, before the config is saved."""
        from radcomp_plugins.teachers.dataset import adopt_dataset

        adopt_dataset(self, "lightgaussian")
