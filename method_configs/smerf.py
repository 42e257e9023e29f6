"""SMERF in nerfstudio's menu."""

from functools import partial

from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from nerfstudio.plugins.types import MethodSpecification

from radcomp_plugins import compat
from radcomp_plugins.smerf.config import SmerfAdamConfig, SmerfDatamanagerConfig, SmerfModelConfig, SmerfPipelineConfig
from radcomp_plugins.trainer import RunAnywhereTrainerConfig

compat.apply()


def _optimizers(steps: int, lr: float, lr_final: float, max_norm: float | None, warmup: int = 100) -> dict:
    """Both groups alike: a sine warm-up, then exponential decay (Duckworth et al. 2024)."""
    rates = {"field": (lr, lr_final), "deferred": (lr, lr_final), "texels": (0.03, 0.0005)}
    return {
        group: {
            "optimizer": SmerfAdamConfig(lr=first, eps=1e-15, max_norm=max_norm),
            "scheduler": ExponentialDecaySchedulerConfig(
                lr_pre_warmup=0.01 * first, lr_final=last, warmup_steps=warmup, max_steps=steps, ramp="cosine"
            ),
        }
        for group, (first, last) in rates.items()
    }


def _spec(
    name: str, description: str, steps: int, pipeline: SmerfPipelineConfig, optimizers: dict
) -> MethodSpecification:
    config = RunAnywhereTrainerConfig(
        method_name=name,
        max_num_iterations=steps,
        steps_per_save=max(steps // 10, 100),
        steps_per_eval_batch=10**9,
        steps_per_eval_image=max(steps // 5, 100),
        steps_per_eval_all_images=10**9,
        mixed_precision=False,
        pipeline=pipeline,
        optimizers=optimizers,
        viewer=ViewerConfig(num_rays_per_chunk=1 << 15),
        vis="viewer",
    )
    return MethodSpecification(config=config, description=description)


smerf = _spec(
    "smerf",
    "SMERF: distil any radiance field into streamable submodels (one 24 GB GPU).",
    25_000,
    SmerfPipelineConfig(
        datamanager=SmerfDatamanagerConfig(dataparser=NerfstudioDataParserConfig()),
        model=SmerfModelConfig(
            hash_log2_size=20,
            triplane_resolution=1024,
            sparse_resolution=256,
            hash_levels=16,
            hash_max_res=2048,
            alpha_cull_start=10_000,
            alpha_cull_end=20_000,
            prune_every=2500,
            eval_num_rays_per_chunk=1 << 15,
        ),
        batch_patches=1820,
        pool_patches=7280,
        pool_steps=8,
        pools_kept=16,
        photo_share=0.5,
    ),
    _optimizers(25_000, 3e-3, 1e-4, 1e-3),
)

smerf_large = _spec(
    "smerf-large",
    "SMERF for houses: K = 5, up to 125 submodels (one 24 GB GPU for a few live submodels, more for many).",
    50_000,
    SmerfPipelineConfig(
        datamanager=SmerfDatamanagerConfig(dataparser=NerfstudioDataParserConfig()),
        model=SmerfModelConfig(
            submodels_per_axis=5,
            submodel_scale_factor=0.8,
            hash_log2_size=20,
            alpha_cull_start=20_000,
            alpha_cull_end=40_000,
            prune_every=5000,
            eval_num_rays_per_chunk=1 << 15,
        ),
        batch_patches=1820,
        pool_patches=7280,
        pool_steps=8,
        pools_kept=16,
        photo_share=0.5,
    ),
    _optimizers(50_000, 3e-3, 1e-4, 1e-3),
)

smerf_paper = _spec(
    "smerf-paper",
    "SMERF with the paper's settings for mip-NeRF 360 (the paper: 16 A100s).",
    200_000,
    SmerfPipelineConfig(
        datamanager=SmerfDatamanagerConfig(dataparser=NerfstudioDataParserConfig()),
        model=SmerfModelConfig(
            hash_log2_size=22,
            sampling="teacher",
            opacity_loss_mult=0.0,
            eval_num_rays_per_chunk=1 << 15,
        ),
    ),
    _optimizers(200_000, 1e-2, 3e-4, 1e-3),
)


_tiny_model = partial(
    SmerfModelConfig,
    submodel_scale_factor=3.0,
    triplane_resolution=768,
    sparse_resolution=192,
    hash_levels=8,
    hash_max_res=1024,
    hash_log2_size=17,
    free_texels_from=0.3,
    whole_ray_share=1.0,
    hidden_width=32,
    consistency_share=0.25,
    deferred_grid=3,
    first_step=2.0,
    prune_every=500,
    sparsity_samples=2**14,
    alpha_cull_threshold=0.0,
    eval_num_rays_per_chunk=8192,
)
"""What the presets for the CPU share."""

_tiny_pipeline = partial(
    SmerfPipelineConfig,
    batch_patches=256,
    pool_patches=4096,
    pool_steps=32,
    pools_kept=64,
    empty_share=0.08,
    photo_share=0.5,
    occupancy_rays=150_000,
    query_chunk=8192,
)


def _tiny_datamanager() -> SmerfDatamanagerConfig:
    return SmerfDatamanagerConfig(dataparser=NerfstudioDataParserConfig(), eval_num_rays_per_batch=1024)


smerf_tiny = _spec(
    "smerf-tiny",
    "SMERF on two CPU cores in a quarter of an hour.",
    8000,
    _tiny_pipeline(datamanager=_tiny_datamanager(), model=_tiny_model()),
    _optimizers(8000, 1e-2, 3e-4, None, warmup=20),
)

smerf_large_tiny = _spec(
    "smerf-large-tiny",
    "SMERF for a few rooms on two CPU cores in an hour: K = 2, small photos.",
    12_000,
    _tiny_pipeline(
        datamanager=_tiny_datamanager(),
        model=_tiny_model(
            submodels_per_axis=2,
            submodel_scale_factor=1.0,
            triplane_resolution=480,
            sparse_resolution=120,
            free_texels_from=0.08,
            prune_every=250,
            prune_weight=0.003,
        ),
        pool_patches=2048,
        pool_steps=20,
        occupancy_rays=100_000,
        occupancy_threshold=0.03,
    ),
    _optimizers(12_000, 1e-2, 3e-4, None, warmup=20),
)
