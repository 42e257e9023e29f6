"""Configs of VQ-AD (Takikawa et al. 2022); nothing heavy is imported here."""

from dataclasses import dataclass, field
from typing import Any, Literal, cast

from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.models.base_model import ModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig


def build_model(config: "VqadModelConfig", **kwargs: Any) -> Any:
    """Import the model class only when a model is built."""
    from radcomp_plugins.vqad.model import VqadModel

    return VqadModel(config, **kwargs)


def build_datamanager(config: "VqadDatamanagerConfig", **kwargs: Any) -> Any:
    """Import the datamanager class only when one is built."""
    from radcomp_plugins.vqad.datamanager import VqadDatamanager

    return VqadDatamanager(config, **kwargs)


def build_pipeline(config: "VqadPipelineConfig", **kwargs: Any) -> Any:
    """Import the pipeline class only when one is built."""
    from radcomp_plugins.vqad.pipeline import VqadPipeline

    return VqadPipeline(config, **kwargs)


@dataclass
class VqadAdamConfig(AdamOptimizerConfig):
    """Adam in one fused kernel."""

    fused: bool = True
    """Use torch's fused kernel, on CPU and CUDA; the results agree with the loop's to rounding."""


@dataclass
class VqadDatamanagerConfig(VanillaDataManagerConfig):
    """Rays of all training images, which keep their alpha channel where they have one."""

    _target: type = field(default_factory=lambda: cast(type, build_datamanager))


@dataclass
class VqadModelConfig(ModelConfig):
    """A radiance field on an octree whose vertices hold indices into learned codebooks."""

    _target: type = field(default_factory=lambda: cast(type, build_model))
    enable_collider: bool = False
    """Rays are sampled in the voxels they hit; nerfstudio's collider is not used."""
    coarsest_level: int = 5
    """Coarsest level of the octree, 2^this voxels a side: the first picture of a streamed file. The paper: 5."""
    finest_level: int = 8
    """Finest level. One more shows half the detail size, for about four times the file. The paper: 8."""
    features: int = 16
    """k, length of a vertex's feature vector. The CPU kernels are made for 16. The paper: 16."""
    bits: int = 6
    """b, bits of an index, 1 to 8; a codebook has 2^b entries. The paper: 4 and 6."""
    compression: Literal["logits", "latent", "fixed", "full"] = "logits"
    """What stands for an index in training. logits: 2^b numbers per vertex and their softmax, as in the paper. latent:
    a vector per vertex and its nearest code, in a fraction of the memory. fixed: indices that stay as they are once
    there are any (clustered, or random with quantise_from 0), a baseline. full: no codebook, a baseline; such a run has
    no file."""
    codebook_gradient: Literal["hard", "soft"] = "hard"
    """With logits: whether a vertex's gradient goes to its code alone, or to all codes by their softmax. The paper's
    text says soft."""
    quantise_from: float = 0.5
    """Share of training, in [0, 1), that goes by at full precision; clustering what it learned then gives codebook and
    indices to go on with. The paper: 0, codebooks from the first step."""
    commitment_loss_mult: float = 0.25
    """With latent: weight of the squared distance of latents to their codes, in units of the codebook's variance.
    Raising it holds the indices still."""
    entropy_loss_mult: float = 0.0
    """With logits: weight of the indices' entropy in bits, averaged over the codes of a level. Raising it makes a
    smaller file of less quality. The paper's main results: 0."""
    hidden_dim: int = 128
    """Width of the decoder's hidden layer, a multiple of 16 for the CPU kernels. Its weights are what comes first in a
    file: 4 kB at 48, 12 kB at 128. The paper: 128."""
    direction_frequencies: int = 4
    """Frequencies of the view direction's encoding; 0 makes colours and densities the same from all sides. The paper:
    4."""
    density_activation: Literal["relu", "softplus", "exp"] = "exp"
    """What the decoder's density goes through. exp reaches opaque from empty in few steps. The paper: relu."""
    density_bias: float = 0.0
    """Added to the decoder's density before the activation. Raising it makes space opaque at the start."""
    samples_per_voxel: int = 2
    """Samples along a ray's way through a voxel of `samples_at`. The paper: 16."""
    samples_at: Literal["coarsest", "finest"] = "finest"
    """Level whose voxels rays are sampled in. coarsest also sees what finer levels leave out, at many samples; finest
    is faster. The paper: coarsest."""
    opaque: float = 1e-3
    """Share of a ray's light below which it ends, in [0, 1). The paper: 0, no early end."""
    near_plane: float = 0.05
    """Distance from the camera where rays begin, scene units."""
    octree_from: Literal["auto", "depth", "points", "none"] = "auto"
    """What tells where the scene is. depth: the training images' depth maps, as in the paper. points: the dataset's
    SfM points. none: a full grid, which is pruned and refined while training. auto: the first of them that is
    there."""
    depth_dilation: int = 1
    """Voxels of the finest level that depth maps' octree grows by in each direction, before it is pruned in training.
    Where a depth map's pixels are wider than voxels, 0 leaves holes. The paper: 0."""
    points_dilation: int = 1
    """Voxels of `start_level` that SfM points' octree grows by in each direction; raise it where points are sparse."""
    start_level: int = 5
    """Without depth: finest level at the start of training."""
    reshape_at: tuple[float, ...] = (0.02, 0.04, 0.08, 0.14, 0.25, 0.4)
    """Shares of training at which voxels that no ray has found anything in are pruned; below the finest level, another
    level is added then. Without depth and points, the box is drawn around what is left instead where that makes it
    smaller."""
    prune_weight: float = 0.01
    """Weight of a sample in its ray, in [0, 1], that saves its voxel from being pruned. Raising it makes smaller
    files, and holes."""
    prune_share: float = 0.0
    """Share of its ray's heaviest weight, in [0, 1], below which a sample saves no voxel. Raising it peels surfaces to
    the voxels that show them: smaller files, sharper pictures, and holes in what is half transparent. The paper has no
    pruning."""
    lod_growth: float = 2.0
    """How much likelier each finer level of detail is to be trained in a step. Raising it favours the finest picture
    over those of a file's prefixes. The paper: 2."""
    background_color: Literal["auto", "white", "black", "random"] = "auto"
    """Behind the scene. auto: the colour that the dataset parser names for transparent pixels, black if it names none.
    Training on images with alpha draws random colours, whatever is shown: fog in the background's colour would cost
    nothing otherwise."""
    max_samples: int = 2**19
    """Samples of a training step at most, before rays end where they are opaque; beyond it a step uses fewer rays."""
    eval_num_rays_per_chunk: int = 1 << 14
    """Rays drawn at once outside training."""

    def __post_init__(self) -> None:
        """Check what cannot work."""
        if not 0 <= self.coarsest_level <= self.finest_level <= 10:
            raise ValueError(f"levels {self.coarsest_level} to {self.finest_level}, expected 0 to 10, coarsest first")
        if not 1 <= self.bits <= 8:
            raise ValueError(f"bits is {self.bits}, expected 1 to 8")
        for name in ("quantise_from", "prune_weight", "opaque"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected from 0 to below 1")
        for name in ("features", "samples_per_voxel", "max_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 or more")
        if list(self.reshape_at) != sorted(self.reshape_at) or any(not 0 < at < 1 for at in self.reshape_at):
            raise ValueError(f"reshape_at is {self.reshape_at}, expected ascending shares between 0 and 1")
        if not 0.0 <= self.prune_share <= 1.0:
            raise ValueError(f"prune_share is {self.prune_share}, expected 0 to 1")
        if self.lod_growth < 1.0:
            raise ValueError(f"lod_growth is {self.lod_growth}, expected 1 or more")


@dataclass
class VqadPipelineConfig(VanillaPipelineConfig):
    """Finds where the scene is, then trains field and octree."""

    _target: type = field(default_factory=lambda: cast(type, build_pipeline))
    seed: int = 0
    """Seed of pixels, samples and clustering; every random draw depends on it and the step alone."""
