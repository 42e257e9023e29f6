"""Teachers of rays from their runs: without their dataset, and one line for everything that is none."""

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.models.base_model import Model, ModelConfig
from nerfstudio.models.nerfacto import NerfactoModelConfig
from ray_teachers import SMALL, copy_of, make_nerfacto, rays_around

from radcomp_plugins import compat
from radcomp_plugins.errors import InputError
from radcomp_plugins.teachers.hash_encoding import CpuTwinHashEncoding
from radcomp_plugins.teachers.load import latest_checkpoint
from radcomp_plugins.teachers.load_rays import load_ray_teacher
from radcomp_plugins.teachers.nerfacto import NerfactoTeacher
from radcomp_plugins.teachers.rays import RayTeacher


class OddModel(Model):
    """A model of unknown class: nothing of it answers rays."""

    def populate_modules(self):
        super().populate_modules()
        self.layer = torch.nn.Linear(2, 2)


class ProposalModel(OddModel):
    """A model of unknown class with the parts of nerfacto."""

    def populate_modules(self):
        super().populate_modules()
        inner: Any = make_nerfacto(scene="unbounded", background_color="last_sample")
        for name in ("field", "proposal_networks", "proposal_sampler", "renderer_rgb", "collider"):
            setattr(self, name, getattr(inner, name))
        self.density_fns = [network.density_fn for network in inner.proposal_networks]


class UnbuildableModel(OddModel):
    """A model that needs what is not here."""

    def populate_modules(self):
        raise ImportError("no module named gridencoder")


@dataclass
class OddModelConfig(ModelConfig):
    _target: type = field(default_factory=lambda: OddModel)


@dataclass
class ProposalModelConfig(ModelConfig):
    _target: type = field(default_factory=lambda: ProposalModel)


@dataclass
class UnbuildableModelConfig(ModelConfig):
    _target: type = field(default_factory=lambda: UnbuildableModel)


def odd(config, kind):
    with compat.lazy_lpips():
        return kind(config, scene_box=make_nerfacto().scene_box, num_train_data=1)


def assert_one_line(path: Path, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        load_ray_teacher(path)
    assert "\n" not in str(caught.value)
    for word in words:
        assert re.search(word, str(caught.value)), f"{word} not in {caught.value}"


# What loads -----------------------------------------------------------------------------------------------------------


def test_a_trained_run_answers_as_its_model_wherever_its_data_is(nerfacto_run, nerfacto_tiny_trainer, tmp_path):
    folder = tmp_path / "elsewhere"
    shutil.copytree(nerfacto_run, folder)
    text = (folder / "config.yml").read_text()
    (folder / "config.yml").write_text(re.sub(r"\n- blender\S*\n", "\n- gone\n", text))
    for path in (folder, folder / "config.yml", latest_checkpoint(folder / "nerfstudio_models")):
        teacher: Any = load_ray_teacher(path)
        assert isinstance(teacher, RayTeacher) and isinstance(teacher, NerfactoTeacher)
        model = nerfacto_tiny_trainer.pipeline.model.eval()
        with torch.no_grad():
            drawn = model(rays_around())["rgb"]
        taught = teacher.query_rays(rays_around())
        total = taught.weights.sum(dim=-1, keepdim=True)
        torch.testing.assert_close(taught.rgb + (1 - total) * teacher.background, drawn, atol=1e-5, rtol=1e-5)
        assert teacher.background.tolist() == [1, 1, 1]
    assert sum(isinstance(part, CpuTwinHashEncoding) for part in teacher.model.modules()) == 3


def test_a_checkpoint_that_is_not_the_last_is_the_one_asked_for(nerfacto_run):
    checkpoints = sorted((nerfacto_run / "nerfstudio_models").iterdir())
    first, last = (load_ray_teacher(checkpoints[i]).query_rays(rays_around()) for i in (0, -1))
    assert not torch.equal(first.rgb, last.rgb)


def test_stock_nerfacto_with_embeddings_refined_poses_and_a_box_of_its_own(saved_run):
    options = {"background_color": "last_sample", "use_appearance_embedding": True, "appearance_embed_dim": 3}
    model = make_nerfacto(stock=True, **options, camera_optimizer=CameraOptimizerConfig(mode="SO3xR3"))
    stock = {key: value for key, value in vars(model.config).items() if key in NerfactoModelConfig.__dataclass_fields__}
    config = NerfactoModelConfig(**{**stock, "_target": NerfactoModelConfig()._target, "implementation": "tcnn"})
    teacher: Any = load_ray_teacher(saved_run(model, config))
    assert type(teacher.model) is NerfactoModelConfig()._target and teacher.model.num_train_data == 7
    assert torch.equal(teacher.model.scene_box.aabb, torch.tensor([[-1.5] * 3, [1.5] * 3]))
    with torch.no_grad():
        expected = model.eval()(copy_of(rays_around()))["rgb"]
    torch.testing.assert_close(teacher.query_rays(rays_around()).rgb, expected, atol=1e-5, rtol=1e-4)


def test_an_unknown_model_with_the_parts_of_nerfacto(saved_run):
    config = ProposalModelConfig()
    teacher = load_ray_teacher(saved_run(odd(config, ProposalModel), config))
    torch.testing.assert_close(teacher.query_rays(rays_around()).weights.sum(dim=-1), torch.ones(130))


def test_our_own_zipnerf(saved_run):
    from radcomp_plugins.teachers.zipnerf.config import ZipNerfModelConfig
    from radcomp_plugins.teachers.zipnerf.teacher import ZipNerfTeacher

    config = ZipNerfModelConfig(
        proposal_num_levels=(2, 2), proposal_log2_size=(6, 6), num_levels=2, log2_size=6, num_samples=4,
        num_proposal_samples=(6, 6), hidden_dim=4, color_hidden_dim=4, bottleneck_dim=4, proposal_hidden_dim=4,
    )  # fmt: skip
    teacher = load_ray_teacher(saved_run(config.setup(scene_box=make_nerfacto().scene_box, num_train_data=5), config))
    assert isinstance(teacher, ZipNerfTeacher)
    assert teacher.query_rays(rays_around(5)).rgb.shape == (5, 3)


# What does not --------------------------------------------------------------------------------------------------------


def test_splats_answer_no_rays(teacher_run, teacher_ply):
    for path in (teacher_run, teacher_run / "config.yml", teacher_ply):
        assert_one_line(path, "splat models answer no ray queries", "nerfacto-tiny")


def test_unknown_models(saved_run):
    config = OddModelConfig()
    assert_one_line(saved_run(odd(config, OddModel), config), "OddModel models answer no ray queries")


def test_what_cannot_be_built_here(saved_run):
    model = odd(OddModelConfig(), OddModel)
    assert_one_line(
        saved_run(model, UnbuildableModelConfig()), "UnbuildableModelConfig", "gridencoder", "zipnerf-torch"
    )


def test_tiny_cuda_nn_where_it_is_not(saved_run, monkeypatch):
    import nerfstudio.utils.external

    monkeypatch.setattr(nerfstudio.utils.external, "TCNN_EXISTS", False)
    model = make_nerfacto()
    model.field.mlp_head.tcnn_encoding = torch.nn.Module()
    model.field.mlp_head.tcnn_encoding.params = torch.nn.Parameter(torch.zeros(9))
    assert_one_line(saved_run(model), "tiny-cuda-nn, which is not installed here", "implementation torch")


def test_a_checkpoint_of_other_sizes_than_its_config(saved_run):
    model = make_nerfacto()
    config = type(model.config)(**{**SMALL, "num_levels": 5})
    assert_one_line(saved_run(model, config), "does not fit the config.yml", "hash_table")


def test_nothing_there_no_checkpoint_no_config_and_no_model(nerfacto_run, tmp_path):
    assert_one_line(tmp_path / "missing", "no such file")
    assert_one_line(tmp_path, "without config.yml")
    shutil.copytree(nerfacto_run, tmp_path / "run")
    checkpoint = latest_checkpoint(tmp_path / "run" / "nerfstudio_models")
    alone = tmp_path / "alone.ckpt"
    shutil.copy(checkpoint, alone)
    assert_one_line(alone, "no config.yml")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert_one_line(checkpoint, "not a readable nerfstudio checkpoint")
    torch.save({"pipeline": {"something": torch.zeros(1)}}, checkpoint)
    assert_one_line(checkpoint, "holds no model")
    shutil.rmtree(tmp_path / "run" / "nerfstudio_models")
    assert_one_line(tmp_path / "run", "no checkpoint")


def test_a_method_that_is_not_installed(nerfacto_run, tmp_path):
    shutil.copytree(nerfacto_run, tmp_path / "run")
    path = tmp_path / "run" / "config.yml"
    path.write_text(path.read_text().replace("radcomp_plugins.teachers.nerfacto_tiny", "plugin_that_is_not_here"))
    assert "plugin_that_is_not_here" in path.read_text()
    assert_one_line(tmp_path / "run", "not a config.yml that this installation can read")
    path.write_text(yaml.dump({"a": 1}))
    assert_one_line(tmp_path / "run", "expected the TrainerConfig")
