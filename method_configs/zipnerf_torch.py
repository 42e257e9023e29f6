"""`ns-train zipnerf-torch` and `zipnerf-torch-tiny`: Zip-NeRF without a CUDA extension, on a GPU or two CPU cores."""

from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from nerfstudio.plugins.types import MethodSpecification

from radcomp_plugins.splats.config import FusedAdamOptimizerConfig
from radcomp_plugins.teachers.zipnerf.config import (
    ZipNerfDataManagerConfig,
    ZipNerfModelConfig,
    ZipNerfPipelineConfig,
)
from radcomp_plugins.trainer import RunAnywhereTrainerConfig

NUM_STEPS = 25_000
TINY_STEPS = 5000

zipnerf_torch = MethodSpecification(
    config=RunAnywhereTrainerConfig(
        method_name="zipnerf-torch",
        steps_per_eval_image=1000,
        steps_per_eval_batch=0,
        steps_per_save=2000,
        steps_per_eval_all_images=NUM_STEPS,
        max_num_iterations=NUM_STEPS,
        mixed_precision=False,
        pipeline=ZipNerfPipelineConfig(
            datamanager=ZipNerfDataManagerConfig(
                dataparser=NerfstudioDataParserConfig(),
                train_num_rays_per_batch=8192,
                eval_num_rays_per_batch=8192,
            ),
            model=ZipNerfModelConfig(),
        ),
        optimizers={
            "grids": {
                "optimizer": FusedAdamOptimizerConfig(lr=1e-2, eps=1e-15),
                "scheduler": ExponentialDecaySchedulerConfig(lr_final=1e-3, warmup_steps=1000, max_steps=NUM_STEPS),
            },
            "networks": {
                "optimizer": FusedAdamOptimizerConfig(lr=1e-2, eps=1e-15),
                "scheduler": ExponentialDecaySchedulerConfig(lr_final=1e-3, warmup_steps=1000, max_steps=NUM_STEPS),
            },
        },
        viewer=ViewerConfig(num_rays_per_chunk=1 << 13, quit_on_train_completion=True),
        vis="viewer+tensorboard",
    ),
    description="Zip-NeRF (Barron et al. 2023) in plain torch, at the paper's settings: one 24 GB GPU.",
)

zipnerf_torch_tiny = MethodSpecification(
    config=RunAnywhereTrainerConfig(
        method_name="zipnerf-torch-tiny",
        steps_per_eval_image=1000,
        steps_per_eval_batch=0,
        steps_per_save=1000,
        steps_per_eval_all_images=TINY_STEPS,
        max_num_iterations=TINY_STEPS,
        mixed_precision=False,
        pipeline=ZipNerfPipelineConfig(
            datamanager=ZipNerfDataManagerConfig(
                dataparser=NerfstudioDataParserConfig(),
                train_num_rays_per_batch=2048,
                eval_num_rays_per_batch=1024,
            ),
            model=ZipNerfModelConfig(
                num_proposal_multisamples=2,
                num_proposal_samples=(32, 24),
                num_samples=16,
                proposal_num_levels=(4, 5),
                proposal_log2_size=(15, 15),
                proposal_hidden_dim=16,
                contracted_resolution_factor=2,
                num_levels=6,
                log2_size=16,
                bottleneck_dim=15,
                color_hidden_dim=64,
                density_activation="exp",
                density_bias=-2.0,
                rgb_loss="mse",
                distortion_loss_mult=0.002,
                empty_loss_mult=0.1,
                hash_decay_mult=0.01,
                anneal_steps=500,
                color_weight_threshold=1e-4,
                skip_weight_threshold=1e-2,
                skip_after=100,
            ),
        ),
        optimizers={
            "grids": {
                "optimizer": FusedAdamOptimizerConfig(lr=2e-2, eps=1e-15),
                "scheduler": ExponentialDecaySchedulerConfig(lr_final=5e-4, warmup_steps=50, max_steps=TINY_STEPS),
            },
            "networks": {
                "optimizer": FusedAdamOptimizerConfig(lr=5e-3, eps=1e-15),
                "scheduler": ExponentialDecaySchedulerConfig(lr_final=2e-4, warmup_steps=50, max_steps=TINY_STEPS),
            },
        },
        viewer=ViewerConfig(num_rays_per_chunk=1 << 13, quit_on_train_completion=True),
        vis="viewer+tensorboard",
    ),
    description="Zip-NeRF for any machine: minutes on two CPU cores.",
)
