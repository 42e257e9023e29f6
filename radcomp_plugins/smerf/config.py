"""Configs of SMERF (Duckworth et al. 2024); nothing heavy is imported here."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.models.base_model import ModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig

from radcomp_plugins.splats.config import FusedAdamOptimizerConfig


def build_model(config: "SmerfModelConfig", **kwargs: Any) -> Any:
    """Import the model class only when a model is built."""
    from radcomp_plugins.smerf.model import SmerfModel

    return SmerfModel(config, **kwargs)


def build_datamanager(config: "SmerfDatamanagerConfig", **kwargs: Any) -> Any:
    """Import the datamanager class only when one is built."""
    from radcomp_plugins.smerf.datamanager import SmerfDatamanager

    return SmerfDatamanager(config, **kwargs)


def build_pipeline(config: "SmerfPipelineConfig", **kwargs: Any) -> Any:
    """Import the pipeline class only when one is built."""
    from radcomp_plugins.smerf.pipeline import SmerfPipeline

    return SmerfPipeline(config, **kwargs)


@dataclass
class SmerfAdamConfig(FusedAdamOptimizerConfig):
    """Adam as the paper has it."""

    betas: tuple[float, float] = (0.9, 0.99)
    """How much of the mean gradient and of its square a step keeps. The entries of a hash table have a gradient in few
    steps, and a square that is kept for a thousand of them (torch's 0.999) makes them slow. The paper: 0.9, 0.99."""


@dataclass
class SmerfDatamanagerConfig(VanillaDataManagerConfig):
    """nerfstudio's datamanager for rays, drawing patches that depend on the step alone."""

    _target: type = field(default_factory=lambda: cast(type, build_datamanager))
    patch_size: int = 3
    """Side of the square patches that rays are drawn in, pixels. The structural loss compares whole patches of 3."""


@dataclass
class SmerfModelConfig(ModelConfig):
    """The student: MERF-like submodels with three planes, a sparse voxel grid and a deferred appearance network."""

    _target: type = field(default_factory=lambda: cast(type, build_model))
    enable_collider: bool = False
    """Rays begin at `near_plane` and end with the contracted cube; nerfstudio's collider is not used."""
    camera_room: float = 1.0
    """Half the side of the cameras' bounding box in the unit frame, in (0, 1]; with one submodel the largest coordinate
    that a camera gets. Lowering it leaves room around the cameras."""
    submodels_per_axis: int = 1
    """K: the cube that holds the cameras has K^3 cells, placed so that few of them hold cameras; each that does has a
    submodel of its own. Raising it sharpens large scenes, and costs a submodel's training and bytes each. The paper: 1
    or 5."""
    submodel_scale_factor: float = 2.5
    """How much smaller than its cell a submodel's linear region is; what lies outside is contracted. The paper: 2.5 at
    K = 1, where the scene's centre matters most; 0.8 at K = 5, so that the region reaches over the cell's border."""
    triplane_resolution: int = 2048
    """T: texels along a side of each plane, a multiple of 8. Finer detail for T^2 bytes times 24. The paper: 2048."""
    sparse_resolution: int = 512
    """S: voxels along a side of the sparse grid, a multiple of 8. What planes cannot tell apart. The paper: 512."""
    hash_levels: int = 20
    """Levels of the hash grid that the texels are computed from. The paper: 20."""
    hash_min_res: int = 16
    """Resolution of the coarsest level. The paper: 16."""
    hash_max_res: int = 8192
    """Resolution of the finest level; above T nothing is gained. The paper: 8192."""
    hash_log2_size: int = 21
    """Entries of a level are 2^this. More entries, fewer collisions, more memory. The paper: 21, or 22 at K = 1."""
    hidden_layers: int = 2
    """Hidden layers of the network behind the hash grid. The authors' configs ask for 2; by a naming slip their code
    trains 1."""
    hidden_width: int = 64
    """Width of those layers. The paper: 64."""
    free_texels_from: float = 1.0
    """Share of training after which every occupied texel is a parameter of its own instead of the network's: a step is
    then cheaper, and fine detail comes sooner. From 1 on, never, as in the paper. One process only."""
    deferred_grid: int = 5
    """P: parameter sets of the appearance network along each axis of a cell, interpolated by where the camera is.
    The paper: 5."""
    deferred_width: int = 16
    """Width of its two hidden layers, a multiple of 4. The paper: 16."""
    near_plane: float = 0.05
    """Unit-frame distance where rays begin: nothing closer is seen. The unit frame spans all cameras in [-1, 1]."""
    sampling: Literal["march", "teacher"] = "march"
    """`march`: one sample per voxel through occupied cells, as the viewer steps, as far as the teacher sees. `teacher`:
    one per interval of the teacher, as in the paper."""
    whole_ray_share: float = 0.3
    """With `march`: share of the patches, in [0, 1], whose rays are followed to their end, also behind what the teacher
    sees. With none, the student stays a little transparent, and the viewer shows what no ray has trained."""
    first_step: float = 1.0
    """With `march`: length of the steps at the beginning of training, in voxels; they shrink to one voxel halfway
    through. Raising it trains faster and less exactly."""
    prune_every: int = 0
    """Steps between prunings: cells in which no sample has reached `prune_weight` since the last one, and that touch
    none that has, are empty from then on. A hazy teacher occupies much that is nothing, and every occupied voxel on a
    ray costs an evaluation. The paper: 0, never."""
    prune_weight: float = 0.002
    """Weight of a sample in its ray, in [0, 1], that saves its cell from being pruned."""
    rgb_loss_mult: float = 1.0
    """Weight of the robust colour loss. The paper: 1."""
    dssim_loss_mult: float = 1.5
    """Weight of the structural dissimilarity of patches. The paper: 1.5."""
    geometry_loss_mult: float = 0.015
    """Weight at the start of the difference between teacher's and student's weights per interval. The paper: 0.015."""
    geometry_loss_final: float = 0.001
    """The same at the end; linear in between. The paper: 0.001."""
    opacity_loss_mult: float = 0.1
    """Weight at the start of the cross entropy between teacher's and student's opacity per interval, falling to a
    tenth. Where the student steps through voxels (`march`), the losses on weights and colours alone end in an empty
    scene with the background painted over it. The paper, whose samples are the teacher's: 0."""
    consistency_loss_mult: float = 1.0
    """Weight of the difference between a ray's colours in its own submodel and in a neighbouring one; of no effect
    with one submodel. The paper: 1. It evaluates every ray twice."""
    consistency_share: float = 1.0
    """Share of a step's patches that a neighbouring submodel draws as well, in (0, 1]; with one submodel there is none.
    Less makes steps cheaper: at 1, half of a step's work is the neighbours'. Paper: all."""
    distortion_loss_mult: float = 0.01
    """Weight of mip-NeRF 360's distortion loss. The paper: 0.01."""
    sparsity_loss_mult: float = 0.01
    """Weight of the density at random points. The paper: 0.01."""
    sparsity_samples: int = 2**17
    """How many such points; only those in occupied cells cost anything. The paper: 2^17."""
    hash_decay_mult: float = 0.01
    """Weight of the mean square of the hash tables. The paper: 0.01."""
    variation_loss_mult: float = 0.1
    """Weight of the difference between neighbouring parameter sets of the appearance network. The paper: 0.1."""
    alpha_cull_start: int = 80000
    """Step from which samples with little alpha are taken as empty, to be left out in baking. The paper: 80000."""
    alpha_cull_end: int = 160000
    """Step at which the threshold is at its last value. The paper: 160000 of 200000."""
    alpha_cull_threshold: float = 0.005
    """That value, alpha of one voxel; it grows from a tenth of it. 0 switches the culling off. The paper: 0.005."""
    reassign_share: float = 0.2
    """Share of the rays that train a neighbour of their own submodel, in [0, 1]. The paper: 0.2."""

    def __post_init__(self) -> None:
        """Check what cannot work."""
        if not 0.0 < self.camera_room <= 1.0:
            raise ValueError(f"camera_room is {self.camera_room}, expected above 0, up to 1")
        if not 0.0 < self.consistency_share <= 1.0:
            raise ValueError(f"consistency_share is {self.consistency_share}, expected above 0, up to 1")
        if self.hash_levels < 1 or self.hidden_layers < 0 or self.first_step < 1.0:
            raise ValueError(
                f"hash_levels {self.hash_levels}, hidden_layers {self.hidden_layers}, first_step {self.first_step}: "
                "expected at least 1, 0 and 1"
            )


@dataclass
class SmerfPipelineConfig(VanillaPipelineConfig):
    """Distils a teacher's rays into the student."""

    _target: type = field(default_factory=lambda: cast(type, build_pipeline))
    teacher: Path | None = None
    """What to distil: the run folder, config.yml or checkpoint of any radiance field that answers for rays
    (zipnerf-torch, nerfacto, zipnerf, ...). Without --data the dataset of the teacher's run is used."""
    batch_patches: int = 7282
    """Patches of 3 x 3 rays in a training step. The paper: 65,536 rays."""
    pool_patches: int = 29128
    """Patches that the teacher is asked for at a time; steps draw from them until the next are asked for."""
    pool_steps: int = 4
    """Steps for which a pool is the newest: a ray is used batch_patches * pool_steps / pool_patches times (the paper:
    once). Raising it asks the teacher less often, which matters where the teacher is slow."""
    pools_kept: int = 1
    """Pools that steps draw from, the newest among them. Raising it spreads the uses of a ray over more steps: nothing
    is learned by heart and forgotten again. A patch takes about 1.5 kB of memory. A resumed run asks for all of them
    anew. The paper, which uses a ray once: 1."""
    empty_share: float = 1.0
    """Share of the patches in which the teacher sees nothing that are trained on, in (0, 1]. Before a plain background
    most patches are such, and have nothing to teach that a few of them do not. The paper: 1."""
    jitter_origin: float = 0.03
    """Standard deviation of the noise on ray origins, unit frame. The paper: 0.03."""
    jitter_rotation: float = 0.03
    """Largest angle that a patch is rotated by, as a share of pi. The paper: 0.03 of all rotations."""
    photo_share: float = 0.0
    """Share of the patches that are not jittered and learn the photo's colours instead of the teacher's, in [0, 1], so
    that the teacher's errors are no ceiling. The paper: 0."""
    occupancy_rays: int = 2_000_000
    """Rays that the teacher is asked for before training, to find where the scene is at all."""
    occupancy_threshold: float = 0.005
    """Weight that a voxel has to have on a ray of the teacher to be occupied, in [0, 1]. Raise it (0.05) for a teacher
    that spreads its walls out: what is left out costs nothing. The paper, per interval of its teacher: 0.005."""
    query_chunk: int = 32768
    """Rays that the teacher is asked for at once; lower it where the teacher runs out of memory."""
    seed: int = 0
    """Seed of patches, jitter and samples; every random draw depends on it and the step alone."""

    def __post_init__(self) -> None:
        """Check what cannot work."""
        for name in ("photo_share", "jitter_rotation", "empty_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 to 1")
        for name in ("batch_patches", "pool_patches", "pool_steps", "pools_kept", "query_chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 or more")

    def prepare(self) -> None:
        """Find the teacher and take its dataset where no other is named, before the config is saved."""
        from radcomp_plugins.teachers.dataset import adopt_dataset

        adopt_dataset(self, "smerf")
