"""Small nerfacto teachers: trained for a few steps, or made up."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import blender_parser, run_config, train

SMALL = {
    "num_levels": 3, "max_res": 32, "log2_hashmap_size": 8, "hidden_dim": 8, "hidden_dim_color": 8,
    "num_proposal_samples_per_ray": (12, 8), "num_nerf_samples_per_ray": 6, "eval_num_rays_per_chunk": 50,
    "proposal_net_args_list": [{"hidden_dim": 4, "log2_hashmap_size": 6, "num_levels": 2, "max_res": 16}],
}  # fmt: skip
"""Fields of nerfacto's config; a chunk of 50 rays splits every batch of the tests."""


def nerfacto_tiny_config(output_dir: Path, data: Path, steps: int = 4, **model: Any) -> Any:
    """nerfacto-tiny at `SMALL` on a blender dataset, one thread of control, 64 rays a step."""
    config = run_config("nerfacto-tiny", output_dir, max_num_iterations=steps, timestamp="t")
    config.pipeline.datamanager.dataparser = blender_parser(data)
    config.pipeline.datamanager.train_num_rays_per_batch = 64
    for name, value in {**SMALL, **model}.items():
        setattr(config.pipeline.model, name, value)
    return config


def make_nerfacto(seed: int = 0, stock: bool = False, has_alpha: bool = False, **fields: Any) -> Any:
    """An untrained model at `SMALL` whose density varies: nerfstudio's own class, or ours.

    Args:
        seed: of its parameters.
        stock: build nerfstudio's NerfactoModel.
        has_alpha: what the datamanager would say of the training images.
        **fields: of the model's config.
    """
    from nerfstudio.data.scene_box import SceneBox
    from nerfstudio.models.nerfacto import NerfactoModel

    from radcomp_plugins import compat
    from radcomp_plugins.teachers.nerfacto_tiny.config import NerfactoTinyModelConfig
    from radcomp_plugins.teachers.nerfacto_tiny.datamanager import HAS_ALPHA
    from radcomp_plugins.teachers.nerfacto_tiny.model import NerfactoTinyModel

    config = NerfactoTinyModelConfig(**{**SMALL, "average_init_density": 1.0, **fields})
    box = SceneBox(aabb=torch.tensor([[-1.5, -1.5, -1.5], [1.5, 1.5, 1.5]]))
    kind = NerfactoModel if stock else NerfactoTinyModel
    torch.manual_seed(seed)
    with compat.lazy_lpips():
        model = kind(config, scene_box=box, num_train_data=7, metadata={HAS_ALPHA: has_alpha})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("hash_table"):
                parameter.mul_(2000)  # features of magnitude 1, so that the scene is not one grey fog
    return model


def rays_around(count: int = 130, seed: int = 0, radius: float = 4.0) -> Any:
    """Rays [count] from a sphere towards points near its centre, with camera indices and norms of their directions."""
    from nerfstudio.cameras.rays import RayBundle

    g = torch.Generator().manual_seed(seed)
    origins = radius * torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=-1)
    towards = torch.nn.functional.normalize(0.8 * torch.randn(count, 3, generator=g) - origins, dim=-1)
    return RayBundle(
        origins=origins, directions=towards, pixel_area=torch.full((count, 1), 1e-4),
        camera_indices=torch.full((count, 1), 3),
        metadata={"directions_norm": 1 + 0.2 * torch.rand(count, 1, generator=g)},
    )  # fmt: skip


def copy_of(rays: Any) -> Any:
    """A bundle of its own tensors."""
    clones = {
        item.name: value.clone()
        for item in dataclasses.fields(rays)
        if torch.is_tensor(value := getattr(rays, item.name))
    }
    return dataclasses.replace(rays, **clones, metadata={key: value.clone() for key, value in rays.metadata.items()})


@pytest.fixture(scope="session")
def nerfacto_tiny_trainer(tmp_path_factory: pytest.TempPathFactory, blender_data: Path) -> Any:
    """The trainer of a finished nerfacto-tiny run of four steps on transparent pictures."""
    return train(nerfacto_tiny_config(tmp_path_factory.mktemp("nerfacto"), blender_data))


@pytest.fixture
def nerfacto_run(nerfacto_tiny_trainer: Any) -> Path:
    """Folder of that run."""
    return nerfacto_tiny_trainer.base_dir


@pytest.fixture
def saved_run(nerfacto_run: Path, tmp_path: Path) -> Callable[..., Path]:
    """`saved_run(model)` is a copy of that run's folder with another model in it, of the same class or not."""

    def save(model: Any, config: Any = None) -> Path:
        import yaml

        from radcomp_plugins.teachers.load import read_config

        folder = tmp_path / "run"
        (folder / "nerfstudio_models").mkdir(parents=True)
        whole = read_config(nerfacto_run / "config.yml")
        whole.pipeline.model = model.config if config is None else config
        (folder / "config.yml").write_text(yaml.dump(whole))
        state = {f"_model.{name}": tensor for name, tensor in model.state_dict().items()}
        torch.save({"step": 1, "pipeline": state}, folder / "nerfstudio_models" / "step-000000001.ckpt")
        return folder

    return save
