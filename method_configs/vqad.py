"""VQ-AD in nerfstudio's menu."""

from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from nerfstudio.plugins.types import MethodSpecification

from radcomp_plugins import compat
from radcomp_plugins.trainer import RunAnywhereTrainerConfig
from radcomp_plugins.vqad.config import VqadAdamConfig, VqadDatamanagerConfig, VqadModelConfig, VqadPipelineConfig

compat.apply()


def _optimizers(steps: int, rates: dict[str, float], last: float) -> dict:
    """Adam for each group, whose rate falls to a share `last` of its first."""
    return {
        group: {
            "optimizer": VqadAdamConfig(lr=rate, eps=1e-15),
            "scheduler": ExponentialDecaySchedulerConfig(lr_final=rate * last, max_steps=steps),
        }
        for group, rate in rates.items()
    }


def _spec(
    name: str, description: str, steps: int, rays: int, model: VqadModelConfig, optimizers: dict
) -> MethodSpecification:
    config = RunAnywhereTrainerConfig(
        method_name=name,
        max_num_iterations=steps,
        steps_per_save=max(steps // 10, 100),
        steps_per_eval_batch=10**9,
        steps_per_eval_image=max(steps // 8, 100),
        steps_per_eval_all_images=10**9,
        mixed_precision=False,
        pipeline=VqadPipelineConfig(
            datamanager=VqadDatamanagerConfig(
                dataparser=NerfstudioDataParserConfig(load_3D_points=True),
                train_num_rays_per_batch=rays,
                eval_num_rays_per_batch=1024,
            ),
            model=model,
        ),
        optimizers=optimizers,
        viewer=ViewerConfig(num_rays_per_chunk=1 << 14),
        vis="viewer",
    )
    return MethodSpecification(config=config, description=description)


vqad = _spec(
    "vqad",
    "VQ-AD: a field in learned codebooks, one progressive file (one 24 GB GPU).",
    20_000,
    8192,
    VqadModelConfig(eval_num_rays_per_chunk=1 << 15),
    _optimizers(20_000, {"grid": 0.03, "codebook": 0.01, "decoder": 2e-3}, 0.05),
)

vqad_paper = _spec(
    "vqad-paper",
    "VQ-AD with the paper's settings: needs depth maps (the paper: RTX 8000, 40 minutes).",
    60_000,
    4096,
    VqadModelConfig(
        quantise_from=0.0,
        density_activation="relu",
        samples_per_voxel=16,
        samples_at="coarsest",
        opaque=0.0,
        octree_from="depth",
        depth_dilation=0,
        reshape_at=(),
        eval_num_rays_per_chunk=1 << 12,
    ),
    _optimizers(60_000, {"grid": 0.1, "codebook": 0.1, "decoder": 1e-3}, 1.0),
)

vqad_tiny = _spec(
    "vqad-tiny",
    "VQ-AD on two CPU cores in a quarter of an hour.",
    10_000,
    12_288,
    VqadModelConfig(
        coarsest_level=4,
        finest_level=8,
        hidden_dim=48,
        compression="latent",
        quantise_from=0.6,
        samples_per_voxel=2,
        max_samples=2**17,
        prune_share=0.2,
        lod_growth=4.0,
        reshape_at=(0.02, 0.04, 0.06, 0.09, 0.14, 0.2, 0.3, 0.4),
        eval_num_rays_per_chunk=1 << 14,
    ),
    _optimizers(10_000, {"grid": 0.03, "codebook": 0.01, "decoder": 3e-3}, 0.05),
)
