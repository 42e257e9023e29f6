"""`ns-train nerfacto-tiny`: a radiance-field teacher in minutes on two CPU cores."""

from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from nerfstudio.plugins.types import MethodSpecification

from radcomp_plugins.splats.config import FusedAdamOptimizerConfig
from radcomp_plugins.teachers.nerfacto_tiny.config import (
    NerfactoTinyDataManagerConfig,
    NerfactoTinyModelConfig,
    NerfactoTinyPipelineConfig,
)
from radcomp_plugins.trainer import RunAnywhereTrainerConfig

NUM_STEPS = 8000

nerfacto_tiny = MethodSpecification(
    config=RunAnywhereTrainerConfig(
        method_name="nerfacto-tiny",
        steps_per_eval_image=1000,
        steps_per_eval_batch=0,
        steps_per_save=2000,
        steps_per_eval_all_images=NUM_STEPS,
        max_num_iterations=NUM_STEPS,
        mixed_precision=False,
        pipeline=NerfactoTinyPipelineConfig(
            datamanager=NerfactoTinyDataManagerConfig(
                dataparser=NerfstudioDataParserConfig(),
                train_num_rays_per_batch=1536,
                eval_num_rays_per_batch=1024,
            ),
            model=NerfactoTinyModelConfig(),
        ),
        optimizers={
            name: {
                "optimizer": FusedAdamOptimizerConfig(lr=1e-2, eps=1e-15),
                "scheduler": ExponentialDecaySchedulerConfig(lr_final=3e-4, warmup_steps=50, max_steps=NUM_STEPS),
            }
            for name in ("proposal_networks", "fields")
        },
        viewer=ViewerConfig(num_rays_per_chunk=1 << 13, quit_on_train_completion=True),
        vis="viewer+tensorboard",
    ),
    description="Nerfacto for any machine: minutes on two CPU cores.",
)
