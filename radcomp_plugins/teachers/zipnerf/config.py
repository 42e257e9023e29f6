"""Config of Zip-NeRF in plain torch (Barron et al. 2023); nothing heavy is imported here."""

from dataclasses import dataclass, field
from typing import Any, Literal, cast

from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.models.base_model import ModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig


def build_model(config: "ZipNerfModelConfig", **kwargs: Any) -> Any:
    """Import the model class only when a model is built: it brings numba with it."""
    from radcomp_plugins.teachers.zipnerf.model import ZipNerfModel

    return ZipNerfModel(config, **kwargs)


def build_datamanager(config: "ZipNerfDataManagerConfig", **kwargs: Any) -> Any:
    """Import the datamanager class only when one is built."""
    from radcomp_plugins.teachers.zipnerf.datamanager import ZipNerfDataManager

    return ZipNerfDataManager(config, **kwargs)


def build_pipeline(config: "ZipNerfPipelineConfig", **kwargs: Any) -> Any:
    """Import the pipeline class only when one is built."""
    from radcomp_plugins.teachers.zipnerf.pipeline import ZipNerfPipeline

    return ZipNerfPipeline(config, **kwargs)


@dataclass
class ZipNerfDataManagerConfig(VanillaDataManagerConfig):
    """nerfstudio's datamanager of rays, which also tells the model what colour its images were composited on."""

    _target: type = field(default_factory=lambda: cast(type, build_datamanager))
    num_scales: int = 1
    """Pixels of 1, 2, 4 .. times the side are trained on, this many sizes. The paper: 4 where it measures several
    scales, otherwise 1. With 1 the field has never seen a wide cone, and is blurry from afar."""
    coarse_share: float = 0.25
    """Share of the rays that go to coarser pixels, evenly over their sizes, where `num_scales` is above 1."""


@dataclass
class ZipNerfPipelineConfig(VanillaPipelineConfig):
    """nerfstudio's pipeline, which ends a resumed run where it would have ended."""

    _target: type = field(default_factory=lambda: cast(type, build_pipeline))


@dataclass
class ZipNerfModelConfig(ModelConfig):
    """Zip-NeRF on any device. The defaults are the paper's."""

    _target: type = field(default_factory=lambda: cast(type, build_model))
    enable_collider: bool = False
    """The model finds near and far itself, from `scene_bounds`."""
    scene_bounds: Literal["auto", "box", "contracted"] = "auto"
    """What space is modelled. box: the dataset's scene box, and rays are sampled evenly where they cross it.
    contracted: all of space (mip-NeRF 360's contraction of the unit ball), sampled along the power curve from near to
    far. auto: box where the dataset composites its images on a colour, as object datasets do; otherwise contracted."""
    background_color: Literal["auto", "white", "black", "random", "last_sample"] = "auto"
    """What lies behind the scene. last_sample: the last interval is opaque, as in the paper for photos. random: a new
    colour for every ray in training, for images with alpha, and the dataset's colour (else white) to look at. auto:
    random for images with alpha, otherwise the colour the dataset names, otherwise last_sample."""
    near_plane: float = 0.05
    """Nearest distance that is sampled in a contracted scene, scene units."""
    far_plane: float = 1000.0
    """Farthest distance that is sampled in a contracted scene, scene units."""
    power_lambda: float = -1.5
    """lambda of the curve of ray distances (Eq. 4 of the supplement); smaller gives more samples to near content."""
    num_multisamples: int = 6
    """Points per sample of a cone; 6 as in the paper, which is what the pattern is made for."""
    num_proposal_multisamples: int = 6
    """Points per sample of the proposal levels. The paper: 6; fewer cost less and see thin things less evenly."""
    num_proposal_samples: tuple[int, ...] = (64, 64)
    """Intervals per ray of each proposal level; more find thin things sooner. The paper: 64, 64."""
    num_samples: int = 32
    """Intervals per ray of the final level; more sharpen and cost in proportion. The paper: 32."""
    proposal_num_levels: tuple[int, ...] = (6, 8)
    """Grid levels of each proposal field."""
    proposal_log2_size: tuple[int, ...] = (21, 21)
    """Base-2 logarithm of the entries per grid level of each proposal field."""
    proposal_features: int = 1
    """Features per grid level of the proposal fields. The paper: 1."""
    proposal_hidden_dim: int = 64
    """Width of the proposal fields' hidden layer. The paper: 64."""
    base_resolution: int = 16
    """Cells along the modelled cube of the coarsest level; each next level has twice as many."""
    contracted_resolution_factor: int = 1
    """What the resolutions of all levels are multiplied by in a contracted scene, where the unit ball fills only half
    of the cube's side. The paper: 1. 2 gives what is in the ball the cells that a box of side 2 would give it."""
    num_levels: int = 10
    """Grid levels of the final field; 10 levels from 16 end at 8192. The paper: 10."""
    log2_size: int = 21
    """Base-2 logarithm of the entries per grid level of the final field; one more doubles memory. The paper: 21."""
    features: int = 4
    """Features per grid level of the final field. The paper: 4."""
    hidden_dim: int = 64
    """Width of the density network's hidden layer. The paper: 64."""
    bottleneck_dim: int = 256
    """Numbers the density network hands to the colour network. The paper: 256."""
    color_hidden_dim: int = 256
    """Width of the colour network. The paper: 256."""
    color_num_layers: int = 2
    """Hidden layers of the colour network. The paper: 2."""
    direction_degree: int = 4
    """Degree of the spherical harmonics that encode the viewing direction, 1 to 4. The paper's is a sinusoidal
    encoding of degree 4."""
    density_activation: Literal["softplus", "exp"] = "softplus"
    """What makes a density of a network's output. The paper: softplus. exp reaches opaque surfaces in fewer steps."""
    density_bias: float = -1.0
    """Added before the activation. The paper: -1."""
    appearance_dim: int = 0
    """Numbers per training image that the colour network gets as well, for photos of changing exposure; 0 is off.
    Outside training they are zero."""
    rgb_loss: Literal["mse", "charbonnier"] = "charbonnier"
    """Data term. The paper: charbonnier on photos, mse on rendered scenes; mse gives more PSNR."""
    interlevel_loss_mult: float = 0.01
    """Weight of the anti-aliased interlevel loss. The paper: 0.01."""
    pulse_widths: tuple[float, ...] = (0.03, 0.003)
    """Half widths of the blur of that loss at each proposal level, in normalised ray distance. The paper: 0.03,
    0.003."""
    empty_loss_mult: float = 0.0
    """Weight of the squared excess of the light a proposal level sees over what the final level sees. The interlevel
    loss only ever raises proposals, so that rays into the void keep the haze they began with and cannot be left out.
    0, as in the paper, is off."""
    distortion_loss_mult: float = 0.005
    """Weight of the distortion loss; more gathers each ray's weight into fewer intervals. The paper: 0.005 (2023
    release: 0.01)."""
    hash_decay_mult: float = 0.1
    """Weight of the sum over levels of the mean squared feature. The paper: 0.1."""
    anneal_slope: float = 10.0
    """How fast the resampled weights go from flat to what the proposals say. The paper: 10."""
    anneal_steps: int = 25_000
    """Steps this takes. The paper: all of training."""
    color_weight_threshold: float = 0.0
    """Intervals that send less than this share of the ray's light get no colour: the colour network is the dearest
    part of a sample. 0, as in the paper, is exact."""
    skip_weight_threshold: float = 0.0
    """Rays to which a proposal level gives less weight than this in total are left out of the later levels: they see
    the background. 0, as in the paper, leaves out none."""
    skip_after: int = 0
    """Step from which rays are left out; before, proposals know nothing."""
    skip_keep: float = 0.05
    """Share of the rays to leave out that is trained all the same, at random, so that what was missed can appear."""
    eval_num_rays_per_chunk: int = 8192
    """Rays per chunk outside training."""
