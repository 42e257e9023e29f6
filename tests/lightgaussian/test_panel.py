"""The viewer's panel: what it previews, and that nothing else changes."""

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.viewer.utils import parse_object
from nerfstudio.viewer.viewer_elements import ViewerElement
from tiny_runs import FOCAL, SIZE, make_scene, orbit, views_of

from radcomp_plugins.lightgaussian.config import LightGaussianModelConfig
from radcomp_plugins.splats.draw import picture


@pytest.fixture
def model():
    box = SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3]))
    model = LightGaussianModelConfig(num_random=10).setup(scene_box=box, num_train_data=3)
    model.start_from(make_scene())
    return model.eval()


def drawn(model) -> tuple[torch.Tensor, torch.Tensor]:
    outputs = model.get_outputs(Cameras(orbit()[:1], FOCAL, FOCAL, SIZE / 2, SIZE / 2, SIZE, SIZE))
    return outputs["rgb"], outputs["background"][0, 0]


def test_without_preview_everything_is_drawn_and_counted(model):
    model.panel.prune_ratio.value, model.panel.sh_degree.value = 0.5, 0
    rgb, background = drawn(model)
    torch.testing.assert_close(rgb, picture(make_scene(), views_of(orbit())[0], background))
    assert model.panel.size.value == f"48 Gaussians, about {model.estimated_bytes() / 1e6:.2f} MB"


def test_preview_draws_the_most_significant_with_fewer_harmonics(model):
    model.significance = torch.rand(48)
    model.panel.preview.value, model.panel.prune_ratio.value, model.panel.sh_degree.value = True, 0.75, 1
    kept = model.significance.argsort(descending=True)[:12].sort().values
    rgb, background = drawn(model)
    expected = make_scene().select(kept).with_sh_degree(1)
    torch.testing.assert_close(rgb, picture(expected, views_of(orbit())[0], background))
    assert model.panel.size.value.startswith("12 Gaussians")


def test_preview_leaves_the_parameters_and_training_alone(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.panel.preview.value, model.panel.prune_ratio.value, model.panel.sh_degree.value = True, 0.9, 0
    drawn(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.train()
    assert len(model._selected()["means"]) == 48


def test_before_the_first_measurement_opacity_stands_in(model):
    model.panel.preview.value, model.panel.prune_ratio.value = True, 0.5
    kept = make_scene().opacities.argsort(descending=True)[:24].sort().values
    rgb, background = drawn(model)
    torch.testing.assert_close(rgb, picture(make_scene().select(kept), views_of(orbit())[0], background))


def test_preview_of_a_higher_degree_than_there_is_changes_nothing(model):
    model.cut_sh(1)
    model.panel.preview.value, model.panel.sh_degree.value = True, 3
    rgb, background = drawn(model)
    torch.testing.assert_close(rgb, picture(make_scene().with_sh_degree(1), views_of(orbit())[0], background))


def test_the_viewer_finds_the_controls_and_the_checkpoint_does_not(model):
    found = {element.name for _, element in parse_object(model, ViewerElement, "Custom Elements")}
    assert {"Preview", "Prune ratio", "SH degree", "Size"} <= found
    assert not any(key.startswith("panel") for key in model.state_dict())
