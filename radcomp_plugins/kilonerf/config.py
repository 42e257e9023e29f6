"""Configs of KiloNeRF (Reiser et al. 2021); nothing heavy is imported here."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.models.base_model import ModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig


def build_model(config: "KiloModelConfig", **kwargs: Any) -> Any:
    """Import the model class only when a model is built."""
    from radcomp_plugins.kilonerf.model import KiloModel

    return KiloModel(config, **kwargs)


def build_datamanager(config: "KiloDatamanagerConfig", **kwargs: Any) -> Any:
    """Import the datamanager class only when one is built."""
    from radcomp_plugins.kilonerf.datamanager import KiloDatamanager

    return KiloDatamanager(config, **kwargs)


def build_pipeline(config: "KiloPipelineConfig", **kwargs: Any) -> Any:
    """Import the pipeline class only when one is built."""
    from radcomp_plugins.kilonerf.pipeline import KiloPipeline

    return KiloPipeline(config, **kwargs)


@dataclass
class KiloDatamanagerConfig(VanillaDataManagerConfig):
    """nerfstudio's datamanager for rays, drawing pixels that depend on the step alone."""

    _target: type = field(default_factory=lambda: cast(type, build_datamanager))
    train_num_rays_per_batch: int = 8192
    """Rays of a fine-tuning step. Those that meet no occupied voxel cost next to nothing. The paper: 8192."""


@dataclass
class KiloModelConfig(ModelConfig):
    """A grid of tiny networks, and which of its voxels are occupied."""

    _target: type = field(default_factory=lambda: cast(type, build_model))
    enable_collider: bool = False
    """Rays begin at `near_plane` and end with the box; nerfstudio's collider is not used."""
    box: tuple[float, float, float, float, float, float] | None = None
    """Lower and upper corner of the scene, x0 y0 z0 x1 y1 z1, scene frame. None: found, see `box_from`."""
    box_from: Literal["density", "points"] = "density"
    """Where no box is given: around what the teacher shows to the training cameras, or around the SfM points."""
    grid_longest: int = 16
    """Cells along the longest side of the box; as many cubes as cover the others. Raising it makes more networks for
    less each: sharper, larger, slower to train. The paper: 16."""
    voxels_per_cell: int = 16
    """Voxels of the occupancy along a side of each cell: 4, 8, 16, 32 or 64. Finer voxels skip more empty space and
    cost the teacher that many more questions. The paper: 16."""
    step_voxels: float = 1.25
    """Length of a ray's step, in voxels. Lowering it draws finer and slower. The paper: 384 steps from near to far,
    which is 1.25 voxels for the synthetic scenes."""
    hidden_width: int = 32
    """Outputs of every hidden layer, a multiple of 4. Cost grows with its square. The paper: 32."""
    position_octaves: int = 10
    """Frequencies of the encoded local position. The paper: 10."""
    direction_octaves: int = 4
    """Frequencies of the encoded direction. The paper: 4."""
    overlap: float = 0.0
    """How far beyond its cell a network speaks as well, in halves of a cell's side, 0 to 0.25: neighbours are blended
    there, which takes seams away and costs samples near borders twice. The paper: 0."""
    occupancy_threshold: float = 0.1
    """Opacity of one step of the teacher's density, in (0, 1), from which a voxel is occupied. Raising it loses what is
    faint. The paper: a density of 10 at steps of 0.0104, which is 0.1."""
    near_plane: float = 0.05
    """Distance from the camera where rays begin, scene units."""
    early_stop: float = 0.01
    """Transmittance below which a ray ends in drawing, in [0, 1). 0 follows every ray to its end. The paper: 0.01."""
    view_regulariser: float = 1e-6
    """Weight of the sum of norms of the parameters that see the direction, in fine-tuning: colours are not to explain
    what geometry should. The paper: 1e-6."""

    def __post_init__(self) -> None:
        """Check what cannot work."""
        for name, low, high in (
            ("occupancy_threshold", 0.0, 1.0), ("early_stop", -1e-9, 1.0), ("step_voxels", 0.0, 64.0),
            ("near_plane", -1e-9, float("inf")),
        ):  # fmt: skip
            if not low < getattr(self, name) < high:
                raise ValueError(f"{name} is {getattr(self, name)}, expected between {max(low, 0):g} and {high:g}")
        if self.voxels_per_cell not in (4, 8, 16, 32, 64):
            raise ValueError(f"voxels_per_cell is {self.voxels_per_cell}, expected 4, 8, 16, 32 or 64")


@dataclass
class KiloPipelineConfig(VanillaPipelineConfig):
    """Finds where the teacher has density, distils it into tiny networks, and fine-tunes them on the photos."""

    _target: type = field(default_factory=lambda: cast(type, build_pipeline))
    teacher: Path | None = None
    """What to distil: the run folder, config.yml or checkpoint of any radiance field that answers for points (nerfacto
    and its family, vanilla-nerf, zipnerf-torch), or a plain NeRF checkpoint (.npz, .tar, .pth, .ckpt of the
    nerf-pytorch families). Without --data the dataset of the teacher's run is used."""
    distill_share: float = 0.6
    """Share of the steps, in [0, 1], that distil; the rest fine-tunes on the photos. 0 trains from scratch. The paper:
    150,000 of 1,150,000 steps."""
    distill_points: int = 32
    """Points that every network is asked about in a distillation step. The paper: 128."""
    pool_points: int = 2048
    """Points of every network that the teacher is asked for at a time. Memory: 40 bytes each times the networks, 48 MB
    for 600 networks. The paper: 1,000,000, which took 20 GB."""
    pool_reuse: int = 8
    """How often each of these points is trained on before the next are asked for. The paper: 19 times on average."""
    random_directions: float = 0.2
    """Share of the points, in [0, 1], seen from anywhere instead of from one of the training cameras. The paper: 1."""
    color_floor: float = 0.05
    """What the colour of a point with opacity a counts in distillation is (a + this) / (1 + this): the colour of what
    nobody sees need not be learned. Large values weigh all alike, as the paper does."""
    delta_steps: float = 2.0
    """Distance over which distillation compares opacities, in steps of a ray. The paper: 0.0211, which is 2 steps of
    its synthetic scenes."""
    finetune_lr_mult: float = 0.33
    """Learning rate of fine-tuning, as a multiple of the optimiser's. The paper: 1."""
    lr_final_mult: float = 0.03
    """Learning rate at the end of each stage, as a multiple of its beginning; a cosine in between. The paper: 1 in
    distillation, 0.01 over fine-tuning."""
    train_stop: float = 0.001
    """Estimated transmittance below which a ray ends in fine-tuning, in [0, 1). Lower than what drawing ends at."""
    whole_ray_share: float = 0.02
    """Share of the rays that are followed to their end in fine-tuning, in [0, 1], so that what lies behind surfaces
    stays what it was taught to be."""
    opacity_every: int = 500
    """Fine-tuning steps between estimates of every voxel's opacity, by which rays end."""
    search_rays: int = 8192
    """Rays of the training cameras that the teacher is asked about to find the scene."""
    seed: int = 0
    """Seed of rays, points and parameters; every random draw depends on it and the step alone."""

    def __post_init__(self) -> None:
        """Check what cannot work."""
        for name in ("distill_share", "random_directions", "whole_ray_share", "train_stop"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 to 1")
        for name in ("distill_points", "pool_points", "pool_reuse", "opacity_every", "search_rays"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 or more")

    def prepare(self) -> None:
        """Find the teacher and take its dataset where no other is named, before the config is saved."""
        from radcomp_plugins.teachers.dataset import adopt_dataset

        adopt_dataset(self, "kilonerf")
