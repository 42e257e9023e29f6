"""KiloNeRF in nerfstudio's menu."""

from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.plugins.types import MethodSpecification

from radcomp_plugins import compat
from radcomp_plugins.kilonerf.config import KiloDatamanagerConfig, KiloModelConfig, KiloPipelineConfig
from radcomp_plugins.splats.config import FusedAdamOptimizerConfig
from radcomp_plugins.trainer import RunAnywhereTrainerConfig

compat.apply()


def _spec(name: str, description: str, steps: int, lr: float, pipeline: KiloPipelineConfig) -> MethodSpecification:
    config = RunAnywhereTrainerConfig(
        method_name=name,
        max_num_iterations=steps,
        steps_per_save=max(steps // 10, 100),
        steps_per_eval_batch=10**9,
        steps_per_eval_image=max(steps // 5, 100),
        steps_per_eval_all_images=10**9,
        mixed_precision=False,
        pipeline=pipeline,
        # The pipeline sets the learning rate: each of the stages has a schedule of its own.
        optimizers={"networks": {"optimizer": FusedAdamOptimizerConfig(lr=lr, eps=1e-15), "scheduler": None}},
        viewer=ViewerConfig(num_rays_per_chunk=1 << 18),
        vis="viewer",
    )
    return MethodSpecification(config=config, description=description)


kilonerf = _spec(
    "kilonerf",
    "KiloNeRF: distil any bounded radiance field into thousands of tiny networks (one 24 GB GPU).",
    120_000,
    3e-3,
    KiloPipelineConfig(
        datamanager=KiloDatamanagerConfig(dataparser=NerfstudioDataParserConfig(), train_num_rays_per_batch=16384),
        model=KiloModelConfig(eval_num_rays_per_chunk=1 << 18),
        distill_share=0.4,
        distill_points=128,
        pool_points=8192,
    ),
)

kilonerf_paper = _spec(
    "kilonerf-paper",
    "KiloNeRF with the paper's numbers of steps and its losses.",
    1_150_000,
    1e-3,
    KiloPipelineConfig(
        datamanager=KiloDatamanagerConfig(dataparser=NerfstudioDataParserConfig()),
        model=KiloModelConfig(eval_num_rays_per_chunk=1 << 18),
        distill_share=150 / 1150,
        distill_points=128,
        pool_points=16384,
        pool_reuse=19,
        random_directions=1.0,
        color_floor=1e6,
        finetune_lr_mult=1.0,
        lr_final_mult=0.01,
        whole_ray_share=1.0,
    ),
)

kilonerf_tiny = _spec(
    "kilonerf-tiny",
    "KiloNeRF on two CPU cores in half an hour.",
    30_000,
    3e-3,
    KiloPipelineConfig(
        datamanager=KiloDatamanagerConfig(
            dataparser=NerfstudioDataParserConfig(), train_num_rays_per_batch=12288, eval_num_rays_per_batch=1024
        ),
        model=KiloModelConfig(eval_num_rays_per_chunk=1 << 18),
        distill_share=0.5,
    ),
)
