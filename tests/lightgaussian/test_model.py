"""The shrinking model: what pruning, the SH cut and the codebook do to parameters, optimizers and checkpoints."""

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.models.splatfacto import SH2RGB
from tiny_runs import FOCAL, SIZE, make_scene, orbit, views_of

from radcomp_plugins.lightgaussian.config import LightGaussianModelConfig
from radcomp_plugins.lightgaussian.model import LightGaussianModel
from radcomp_plugins.lightgaussian.quantise import Quantised
from radcomp_plugins.splats.draw import picture
from radcomp_plugins.splats.merge import merge
from radcomp_plugins.teachers.load import gaussians_from_state, load_splats

NAMES = ("means", "quats", "scales", "opacities", "features_dc", "features_rest")


def make_model(teacher=None) -> LightGaussianModel:
    """A model as the pipeline builds it."""
    config = LightGaussianModelConfig(num_random=10)
    model = config.setup(scene_box=SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3])), num_train_data=3)
    if teacher is not None:
        model.start_from(teacher)
    return model


def with_optimizers(model: LightGaussianModel) -> LightGaussianModel:
    """Give it Adam, and moments that differ from row to row."""
    model.optimizers = {name: torch.optim.Adam(params, lr=1e-3) for name, params in model.get_param_groups().items()}
    for optimizer in model.optimizers.values():
        param = optimizer.param_groups[0]["params"][0]
        param.grad = torch.randn_like(param)
        optimizer.step()
    return model


def moments(model: LightGaussianModel, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    optimizer = model.optimizers[name]
    assert len(optimizer.param_groups[0]["params"]) == 1
    param = optimizer.param_groups[0]["params"][0]
    assert param is (model.codebook if name == "codebook" else model.gauss_params[name])
    state = optimizer.state[param]
    assert state["exp_avg"].shape == param.shape and len(optimizer.state) == 1
    return state["exp_avg"], state["exp_avg_sq"]


def camera() -> Cameras:
    return Cameras(orbit()[:1], FOCAL, FOCAL, SIZE / 2, SIZE / 2, SIZE, SIZE)


def test_starts_as_the_teacher_and_draws_its_pictures():
    teacher = make_scene(antialiased=True)
    model = make_model(teacher).eval()
    for name, tensor in model.gaussians().tensors.items():
        assert torch.equal(tensor, getattr(teacher, name)), name
    assert model.gaussians().antialiased and model.config.rasterize_mode == "antialiased"
    drawn = model.get_outputs(camera())
    expected = picture(teacher, views_of(orbit())[0], drawn["background"][0, 0])
    torch.testing.assert_close(drawn["rgb"], expected)
    assert model.config.sh_degree == model.current_sh_degree() == 3
    # The teacher's own tensors are not trained on.
    model.means.data += 1
    assert not torch.equal(model.means, teacher.means)


def test_pruning_keeps_rows_of_parameters_moments_and_buffers_together():
    teacher = make_scene()
    model = with_optimizers(make_model(teacher))
    model.significance = torch.rand(48)
    model.sh_labels = torch.arange(48, dtype=torch.int32)
    before = {name: (model.gauss_params[name].detach().clone(), *map(torch.clone, moments(model, name)))
              for name in NAMES}  # fmt: skip
    significance = model.significance.clone()
    keep = torch.rand(48) > 0.4
    model.prune(keep)
    assert model.num_points == int(keep.sum())
    for name in NAMES:
        for now, then in zip((model.gauss_params[name], *moments(model, name)), before[name], strict=True):
            assert torch.equal(now, then[keep]), name
        assert float(model.optimizers[name].state[model.gauss_params[name]]["step"]) == 1
    assert torch.equal(model.significance, significance[keep])
    assert torch.equal(model.sh_labels, torch.arange(48, dtype=torch.int32)[keep])
    assert {"significance", "sh_labels"} <= dict(model.named_buffers()).keys()


def test_pruning_before_the_first_step_works():
    model = make_model(make_scene())
    model.optimizers = {name: torch.optim.Adam(params) for name, params in model.get_param_groups().items()}
    model.prune(torch.arange(48) < 7)
    assert model.num_points == 7
    assert all(o.param_groups[0]["params"][0].shape[0] in (7, 0) for o in model.optimizers.values())


@pytest.mark.parametrize(("degree", "count"), [(2, 8), (1, 3), (0, 0)])
def test_cutting_sh_slices_parameter_and_moments(degree, count):
    model = with_optimizers(make_model(make_scene()))
    before = model.gauss_params["features_rest"].detach().clone()
    average, square = map(torch.clone, moments(model, "features_rest"))
    model.cut_sh(degree)
    assert torch.equal(model.gauss_params["features_rest"], before[:, :count])
    assert torch.equal(moments(model, "features_rest")[0], average[:, :count])
    assert torch.equal(moments(model, "features_rest")[1], square[:, :count])
    assert model.current_sh_degree() == model.config.sh_degree == model.gaussians().sh_degree == degree
    assert model.codebook.shape == (0, 3 * count)
    # The next step trains what is left.
    model.features_rest.sum().backward()
    model.optimizers["features_rest"].step()
    assert count == 0 or not torch.equal(model.gauss_params["features_rest"], before[:, :count])


def coded_model() -> tuple[LightGaussianModel, Quantised]:
    model = make_model(make_scene())
    model.cut_sh(1)
    generator = torch.Generator().manual_seed(4)
    labels = torch.randint(-1, 5, (48,), generator=generator, dtype=torch.int32)
    quantised = Quantised(torch.randn(5, 9, generator=generator), labels)
    model.adopt_codebook(quantised)
    return model, quantised


def test_mapped_gaussians_have_the_codes_sh_and_others_their_own():
    model, quantised = coded_model()
    own = model.gauss_params["features_rest"]
    for index, label in enumerate(quantised.labels.tolist()):
        expected = own[index] if label < 0 else quantised.codebook[label].view(3, 3)
        assert torch.equal(model.features_rest[index], expected)
        assert torch.equal(model.gaussians().shN[index], expected)


def test_a_code_gets_the_sum_of_its_members_gradients():
    model, quantised = coded_model()
    weights = torch.randn(48, 3, 3)
    (model.features_rest * weights).sum().backward()
    assert model.codebook.grad is not None
    for code in range(5):
        members = weights[quantised.labels == code].sum(dim=0).flatten()
        torch.testing.assert_close(model.codebook.grad[code], members)
    own = model.gauss_params["features_rest"].grad
    free = quantised.labels < 0
    assert torch.equal(own[free], weights[free]) and not bool(own[~free].any())


def test_codebook_is_trained_by_its_own_optimizer_and_the_mapping_stays():
    model, quantised = coded_model()
    model.optimizers = {name: torch.optim.Adam(params, lr=0.1) for name, params in model.get_param_groups().items()}
    model.features_rest.square().sum().backward()
    model.optimizers["codebook"].step()
    assert not torch.equal(model.codebook, quantised.codebook)
    assert torch.equal(model.sh_labels, quantised.labels)


def test_nothing_is_densified():
    model = make_model(make_scene())
    model.step = 600
    model.step_post_backward(600)
    assert model.num_points == 48


@pytest.mark.parametrize("step", [1, 3, 5, 6, 9, 10, 12])
def test_checkpoint_of_every_stage_loads_into_a_fresh_model(lightgaussian_run, step):
    path = lightgaussian_run.checkpoint_dir / f"step-{step:09d}.ckpt"
    state = torch.load(path, weights_only=True)["pipeline"]
    model = make_model()
    identities = {name: id(param) for name, param in model.named_parameters()}
    result = model.load_state_dict({key.removeprefix("_model."): value for key, value in state.items()}, strict=True)
    assert result.missing_keys == result.unexpected_keys == []
    # The trainer's optimizers hold these very parameters.
    assert {name: id(param) for name, param in model.named_parameters()} == identities
    assert model.config.sh_degree == model.current_sh_degree()
    expected = gaussians_from_state(state, path)
    for name, tensor in model.gaussians().tensors.items():
        assert torch.equal(tensor, getattr(expected, name)), name
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[f"_model.{key}"]), key


def test_colours_at_degree_0_stay_spherical_harmonics():
    teacher = make_scene(degree=0)
    model = make_model(teacher).eval()
    assert torch.equal(model.shs_0, model.features_dc) and torch.equal(model.gaussians().sh0, teacher.sh0)
    torch.testing.assert_close(model.colors, SH2RGB(teacher.sh0))
    drawn = model.get_outputs(camera())
    expected = picture(teacher, views_of(orbit())[0], drawn["background"][0, 0])
    torch.testing.assert_close(drawn["rgb"], expected)


def test_size_is_estimated_from_the_parts():
    model, quantised = coded_model()
    free = int((quantised.labels < 0).sum())
    assert model.estimated_bytes() == 48 * (13 + 2) + 9 * (5 + free)
    assert make_model(make_scene(degree=0)).estimated_bytes() == 48 * 13


def test_metrics_say_the_size_of_the_scene():
    model, _ = coded_model()
    model.eval()
    outputs = model.get_outputs(camera())
    metrics = model.get_metrics_dict(outputs, {"image": outputs["rgb"]})
    assert (metrics["codebook_entries"], metrics["sh_degree"], metrics["gaussian_count"]) == (5, 1, 48)
    assert metrics["estimated_bytes"] == model.estimated_bytes()


def test_the_teachers_reader_sees_the_same_scene_in_the_checkpoint(lightgaussian_run):
    read, trained = load_splats(lightgaussian_run.base_dir), lightgaussian_run.pipeline.model.gaussians()
    for name, tensor in trained.tensors.items():
        assert torch.equal(getattr(read, name), tensor), name


def test_merging_keeps_the_moments_of_the_place():
    teacher = make_scene()
    model = with_optimizers(make_model(teacher))
    scene = model.gaussians().detach()
    merged = merge(scene, torch.arange(1.0, len(scene) + 1), 30)
    before = {name: moments(model, name)[0].clone() for name in NAMES}
    model.merge(merged)
    for name, tensor in model.gaussians().tensors.items():
        assert torch.equal(tensor, merged.scene.tensors[name]), name
    for name in NAMES:
        assert torch.equal(moments(model, name)[0], before[name][merged.place]), name
    assert torch.equal(model.significance, merged.weights) and model.num_points == 30
