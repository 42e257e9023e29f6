"""Configs of nerfacto-tiny; nothing heavy is imported here, because every ns-* command reads them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.models.nerfacto import NerfactoModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from PIL import Image

from radcomp_plugins.errors import InputError


def build_model(config: "NerfactoTinyModelConfig", **kwargs: Any) -> Any:
    """Import the model class only when a model is built: it brings numba with it."""
    from radcomp_plugins.teachers.nerfacto_tiny.model import NerfactoTinyModel

    return NerfactoTinyModel(config, **kwargs)


def build_datamanager(config: "NerfactoTinyDataManagerConfig", **kwargs: Any) -> Any:
    """Import the datamanager class only when one is built."""
    from radcomp_plugins.teachers.nerfacto_tiny.datamanager import NerfactoTinyDataManager

    return NerfactoTinyDataManager(config, **kwargs)


def build_pipeline(config: "NerfactoTinyPipelineConfig", **kwargs: Any) -> Any:
    """Import the pipeline class only when one is built."""
    from radcomp_plugins.teachers.nerfacto_tiny.pipeline import NerfactoTinyPipeline

    return NerfactoTinyPipeline(config, **kwargs)


@dataclass
class NerfactoTinyDataManagerConfig(VanillaDataManagerConfig):
    """Rays of all training images, which keep their alpha channel where they have one."""

    _target: type = field(default_factory=lambda: cast(type, build_datamanager))


@dataclass
class NerfactoTinyModelConfig(NerfactoModelConfig):
    """Nerfacto in plain torch with numba kernels for its hash encodings, sized for two CPU cores."""

    _target: type = field(default_factory=lambda: cast(type, build_model))
    scene: Literal["auto", "object", "unbounded"] = "auto"
    """object: only the dataset's scene box has content; rays are sampled uniformly inside it. unbounded: all of space,
    contracted as in nerfacto. auto: object where the training images have an alpha channel, unbounded otherwise; what
    it came to is saved in config.yml."""
    background_color: Literal["auto", "random", "last_sample", "black", "white", "red", "green", "blue"] = "auto"  # type: ignore[assignment]
    """What is shown where a ray meets nothing. auto: for images with alpha the colour that the dataset parser names,
    black where it names none; last_sample otherwise. Training on images with alpha always draws random colours: on one
    colour, fog of that colour would cost nothing."""
    cpu_twin: bool = True
    """Compute hash encodings on the CPU with numba kernels. False: nerfstudio's torch code, with the same results."""
    implementation: Literal["tcnn", "torch"] = "torch"
    """torch runs everywhere, and its checkpoints open everywhere; tcnn needs CUDA and tiny-cuda-nn."""
    num_levels: int = 8
    """Levels of the hash grid. nerfacto: 16."""
    max_res: int = 512
    """Cells along a side of its finest level. nerfacto: 2048."""
    log2_hashmap_size: int = 17
    """Binary logarithm of the entries of a level. nerfacto: 19."""
    hidden_dim: int = 32
    """Width of the density network. nerfacto: 64."""
    hidden_dim_color: int = 32
    """Width of the colour network. nerfacto: 64."""
    num_proposal_samples_per_ray: tuple[int, ...] = (64, 32)
    """Samples along a ray for each proposal network. nerfacto: 256, 96."""
    num_nerf_samples_per_ray: int = 20
    """Samples along a ray that get a colour. nerfacto: 48."""
    proposal_warmup: int = 1000
    """Steps over which the proposal networks come to be trained more rarely. nerfacto: 5000."""
    proposal_weights_anneal_max_num_iters: int = 300
    """Steps over which samples go from even to where the proposals put them. nerfacto: 1000."""
    proposal_net_args_list: list[dict] = field(
        default_factory=lambda: [
            {"hidden_dim": 16, "log2_hashmap_size": 14, "num_levels": 4, "max_res": 64, "use_linear": False},
            {"hidden_dim": 16, "log2_hashmap_size": 15, "num_levels": 5, "max_res": 128, "use_linear": False},
        ]
    )
    """Sizes of the proposal networks. nerfacto: 5 levels of 2^17 entries up to 128 and 256 cells."""
    average_init_density: float = 0.01
    """Density of an untrained field, per scene unit. nerfacto's method has the same."""
    use_appearance_embedding: bool = False
    """Whether every training image may have a look of its own, for photos of varying exposure."""
    camera_optimizer: CameraOptimizerConfig = field(default_factory=lambda: CameraOptimizerConfig(mode="off"))
    """Whether training poses are refined. nerfacto: SO3xR3. Off, because students are trained on the poses as given."""
    eval_num_rays_per_chunk: int = 1 << 13
    """Rays drawn at once outside training."""


@dataclass
class NerfactoTinyPipelineConfig(VanillaPipelineConfig):
    """Pipeline that looks at the dataset to tell an object from an unbounded scene."""

    _target: type = field(default_factory=lambda: cast(type, build_pipeline))

    def prepare(self) -> None:
        """Replace what is `auto` in the model's config, before the config is saved."""
        model: Any = self.model
        if "auto" not in (model.scene, model.background_color):
            return
        transparent, color = look_at_images(self.datamanager)
        if model.scene == "auto":
            model.scene = "object" if transparent else "unbounded"
        if model.background_color == "auto":
            model.background_color = (color or "black") if transparent else "last_sample"


def look_at_images(manager: Any) -> tuple[bool, str | None]:
    """Whether the training images have an alpha channel, and the name of the colour they are to be shown on, if any.

    Args:
        manager: config of a datamanager.

    Raises:
        InputError: there is no dataset where the config says.
    """
    parser = manager.dataparser
    if manager.data is not None:
        parser.data = Path(manager.data)
    if not parser.data.exists():
        raise InputError(f"dataset {parser.data}: no such file or folder; give one with --data")
    images = parser.setup().get_dataparser_outputs(split="train").image_filenames
    if not images:
        raise InputError(f"dataset {parser.data}: has no training images")
    with Image.open(images[0]) as image:
        transparent = image.mode == "RGBA"
    return transparent, getattr(parser, "alpha_color", None)
