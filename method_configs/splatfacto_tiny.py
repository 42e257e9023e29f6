"""`ns-train splatfacto-tiny`: a splat teacher in minutes on two CPU cores, or in seconds on a GPU."""

from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from nerfstudio.plugins.types import MethodSpecification

from radcomp_plugins.splats.config import (
    DeviceFreeSplatfactoModelConfig,
    FusedAdamOptimizerConfig,
    SplatDatamanagerConfig,
    SplatPipelineConfig,
)
from radcomp_plugins.trainer import RunAnywhereTrainerConfig

NUM_STEPS = 7000

splatfacto_tiny = MethodSpecification(
    config=RunAnywhereTrainerConfig(
        method_name="splatfacto-tiny",
        steps_per_eval_image=500,
        steps_per_eval_batch=0,
        steps_per_save=2000,
        steps_per_eval_all_images=NUM_STEPS,
        max_num_iterations=NUM_STEPS,
        mixed_precision=False,
        pipeline=SplatPipelineConfig(
            datamanager=SplatDatamanagerConfig(
                dataparser=NerfstudioDataParserConfig(load_3D_points=True),
                cache_images_type="uint8",
            ),
            model=DeviceFreeSplatfactoModelConfig(
                max_gaussians=70_000,
                warmup_length=400,
                stop_split_at=4500,
                densify_grad_thresh=0.0004,
                cull_alpha_thresh=0.005,
                reset_alpha_every=10_000,
                num_downscales=1,
                resolution_schedule=1000,
                sh_degree_interval=800,
            ),
        ),
        optimizers={
            "means": {
                "optimizer": FusedAdamOptimizerConfig(lr=1.6e-4, eps=1e-15),
                "scheduler": ExponentialDecaySchedulerConfig(lr_final=1.6e-6, max_steps=NUM_STEPS),
            },
            "features_dc": {"optimizer": FusedAdamOptimizerConfig(lr=0.0025, eps=1e-15), "scheduler": None},
            "features_rest": {"optimizer": FusedAdamOptimizerConfig(lr=0.0025 / 20, eps=1e-15), "scheduler": None},
            "opacities": {"optimizer": FusedAdamOptimizerConfig(lr=0.05, eps=1e-15), "scheduler": None},
            "scales": {"optimizer": FusedAdamOptimizerConfig(lr=0.005, eps=1e-15), "scheduler": None},
            "quats": {"optimizer": FusedAdamOptimizerConfig(lr=0.001, eps=1e-15), "scheduler": None},
        },
        viewer=ViewerConfig(num_rays_per_chunk=1 << 15, quit_on_train_completion=True),
        vis="viewer+tensorboard",
    ),
    description="Splatfacto for any machine: up to 70,000 Gaussians, minutes on two CPU cores.",
)
