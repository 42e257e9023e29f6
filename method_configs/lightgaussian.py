"""`ns-train lightgaussian`, `-paper` and `-tiny`: compress a trained splat scene."""

from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.plugins.types import MethodSpecification

from radcomp_plugins.lightgaussian.config import LightGaussianModelConfig, LightGaussianPipelineConfig
from radcomp_plugins.splats.config import FusedAdamOptimizerConfig, SplatDatamanagerConfig
from radcomp_plugins.trainer import RunAnywhereTrainerConfig

LEARNING_RATES = {
    "means": 4e-5,
    "features_dc": 0.0025,
    "features_rest": 0.001,
    "codebook": 0.001,
    "opacities": 0.02,
    "scales": 0.0025,
    "quats": 0.001,
}
"""Start of each stage; `lr_final_factor` says where it ends. The means start where a trained scene's schedule is."""


def lightgaussian_run(method_name: str, pipeline: LightGaussianPipelineConfig) -> RunAnywhereTrainerConfig:
    """The trainer around a set of stages, which end the run by themselves."""
    pipeline.datamanager = SplatDatamanagerConfig(
        dataparser=NerfstudioDataParserConfig(load_3D_points=False), cache_images_type="uint8"
    )
    pipeline.model = LightGaussianModelConfig()
    return RunAnywhereTrainerConfig(
        method_name=method_name,
        steps_per_eval_image=500,
        steps_per_eval_batch=0,
        steps_per_save=1000,
        steps_per_eval_all_images=1_000_000,
        max_num_iterations=30_000,
        mixed_precision=False,
        pipeline=pipeline,
        optimizers={
            name: {"optimizer": FusedAdamOptimizerConfig(lr=lr, eps=1e-15), "scheduler": None}
            for name, lr in LEARNING_RATES.items()
        },
        viewer=ViewerConfig(num_rays_per_chunk=1 << 15, quit_on_train_completion=True),
        vis="viewer+tensorboard",
    )


lightgaussian = MethodSpecification(
    config=lightgaussian_run("lightgaussian", LightGaussianPipelineConfig()),
    description="LightGaussian: prune, distil and quantise a splatfacto run (--pipeline.teacher).",
)

lightgaussian_paper = MethodSpecification(
    config=lightgaussian_run(
        "lightgaussian-paper",
        LightGaussianPipelineConfig(
            significance="paper",
            prune_rounds=1,
            co_adaptation_steps=5000,
            distillation_loss="squared",
            distillation_target="teacher",
            pseudo_view_share=2 / 3,
            vq_ratio=0.6,
            vq_codebook_size=8192,
            vq_iterations=1000,
            vq_batch_size=80_000,
        ),
    ),
    description="LightGaussian with the settings of the paper (Fan et al. 2024).",
)

lightgaussian_tiny = MethodSpecification(
    config=lightgaussian_run(
        "lightgaussian-tiny",
        LightGaussianPipelineConfig(
            prune_ratio=0.5,
            co_adaptation_steps=600,
            distillation_steps=600,
            vq_codebook_size=4096,
            vq_finetune_steps=900,
        ),
    ),
    description="LightGaussian in minutes on two CPU cores.",
)

lightgaussian_rcs_tiny = MethodSpecification(
    config=lightgaussian_run(
        "lightgaussian-rcs-tiny",
        LightGaussianPipelineConfig(
            reduction="merge",
            prune_ratio=0.7,
            co_adaptation_steps=2000,
            sh_degree=3,
            vq_codebook_size=1024,
            vq_finetune_steps=1500,
            encoding="rcs",
            encoding_steps=2500,
            encoding_coarse=1.58,
        ),
    ),
    description="LightGaussian to the smallest .rcs file, on two CPU cores: merged, and trained through the format.",
)
