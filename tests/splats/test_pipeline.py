"""The pipeline around splat models: backgrounds, and where runs end that were resumed."""

import pytest
import torch
from tiny_runs import blender_parser, run_config, train

from radcomp_plugins.splats.gaussians import Gaussians


@pytest.fixture(scope="module")
def resumed(teacher_run, blender_data, tmp_path_factory):
    """The trainer of a run of eight steps that went on after the six of `teacher_run`."""
    config = run_config("splatfacto-tiny", tmp_path_factory.mktemp("resumed"), max_num_iterations=8)
    config.pipeline.datamanager.dataparser = blender_parser(blender_data, with_points=True)
    config.pipeline.model.num_downscales = 0
    config.load_dir = teacher_run / "nerfstudio_models"
    return train(config)


def test_a_resumed_run_ends_where_it_would_have_ended(resumed):
    assert resumed.step == 7
    names = sorted(path.name for path in resumed.checkpoint_dir.iterdir())
    assert names == ["step-000000006.ckpt", "step-000000007.ckpt"]


def test_a_resumed_run_trains_the_parameters_that_its_optimizers_hold(resumed, teacher_run):
    model = resumed.pipeline.model
    for name, optimizer in resumed.optimizers.optimizers.items():
        assert optimizer.param_groups[0]["params"] == [model.gauss_params[name]]
        state = optimizer.state[model.gauss_params[name]]
        assert float(state["step"]) == 8 and state["exp_avg"].shape == model.gauss_params[name].shape
    before = torch.load(teacher_run / "nerfstudio_models/step-000000005.ckpt", weights_only=True)["pipeline"]
    for name in ("means", "features_dc", "opacities"):
        assert not torch.equal(model.gauss_params[name], before[f"_model.gauss_params.{name}"]), name


def test_a_run_resumed_at_its_end_keeps_its_step(teacher_run, blender_data, tmp_path):
    config = run_config("splatfacto-tiny", tmp_path, max_num_iterations=6)
    config.pipeline.datamanager.dataparser = blender_parser(blender_data, with_points=True)
    config.load_dir = teacher_run / "nerfstudio_models"
    trainer = train(config)
    assert [path.name for path in trainer.checkpoint_dir.iterdir()] == ["step-000000005.ckpt"]


def test_pictures_have_the_datasets_background(resumed):
    model = resumed.pipeline.model.eval()
    assert model.data_background.tolist() == [1.0, 1.0, 1.0] and model.images_have_alpha
    camera, _ = resumed.pipeline.datamanager.fixed_indices_eval_dataloader[0]
    outputs = model.get_outputs_for_camera(camera)
    empty = outputs["accumulation"][..., 0] == 0
    assert bool(empty.any()) and torch.equal(outputs["rgb"][empty], torch.ones(int(empty.sum()), 3))


def test_the_trained_scene_is_finite_and_of_the_points(resumed, scene):
    trained = resumed.pipeline.model.gaussians()
    assert isinstance(trained, Gaussians) and bool(trained.finite().all())
    torch.testing.assert_close(trained.means, scene.means, atol=0.01, rtol=0)
