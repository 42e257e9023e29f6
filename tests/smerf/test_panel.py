"""The viewer's panel: what it previews, and that nothing else changes."""

import pytest
import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.viewer.utils import parse_object
from nerfstudio.viewer.viewer_elements import ViewerElement

from radcomp_plugins.smerf.config import SmerfModelConfig
from radcomp_plugins.smerf.datamanager import CAMERA_ORIGINS
from radcomp_plugins.smerf.panel import submodel_colours

CAMERAS = torch.tensor([[-1.0, -0.5, -0.5], [1.0, 0.5, 0.5]])


@pytest.fixture
def model():
    """An untrained student of two submodels, which has a block of voxels in the middle."""
    config = SmerfModelConfig(
        submodels_per_axis=2, submodel_scale_factor=0.8, triplane_resolution=32, sparse_resolution=16, hash_levels=2,
        hash_log2_size=8, hash_max_res=32, hidden_width=8, deferred_grid=2, deferred_width=4,
    )  # fmt: skip
    box = SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3]))
    model = config.setup(scene_box=box, num_train_data=2, metadata={CAMERA_ORIGINS: CAMERAS})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    model.mark_occupied(torch.rand(200, 3) * 0.6 - 0.3, CAMERAS.repeat(100, 1))
    model.occupancy.measure()
    return model.eval()


@torch.no_grad()
def drawn(model, origin=CAMERAS[0]) -> dict[str, torch.Tensor]:
    directions = torch.nn.functional.normalize(0.25 * torch.randn(40, 3) - origin, dim=-1)
    torch.manual_seed(0)
    bundle = RayBundle(origin.expand(40, 3), directions, pixel_area=torch.ones(40, 1))
    return model.get_outputs(bundle)


def draw_twice(model, change) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The same picture with the panel as it is at first, and after a change."""
    torch.manual_seed(1)
    before = drawn(model)
    change(model.panel)
    torch.manual_seed(1)
    return before, drawn(model)


def test_a_submodel_that_is_chosen_draws_everything(model):
    assert [model.layout.alive[0], model.layout.alive[1]] == [0, 7] and model.panel.names == ["000", "007"]
    before, own = draw_twice(model, lambda panel: setattr(panel.submodel, "value", "000"))
    assert torch.equal(own["rgb"], before["rgb"])
    _, other = draw_twice(model, lambda panel: setattr(panel.submodel, "value", "007"))
    assert not torch.allclose(other["rgb"], before["rgb"], atol=1e-3)
    assert model.panel.rows(torch.tensor([0, 1, 0])).tolist() == [1, 1, 1]
    model.panel.submodel.value = "nearest"
    assert model.panel.rows(torch.tensor([0, 1, 0])).tolist() == [0, 1, 0]


def test_boundaries_tint_what_is_hit_by_whose_cell_it_lies_in(model):
    before, tinted = draw_twice(model, lambda panel: setattr(panel.boundaries, "value", True))
    hit = before["accumulation"][:, 0] > 0.3
    assert hit.any()
    share = 0.45 * before["accumulation"].clamp(0, 1)
    tint = (tinted["rgb"] - (1 - share) * before["rgb"]) / share.clamp(min=1e-6)
    nearest = torch.cdist(tint[hit], submodel_colours(2)).min(dim=1)
    assert nearest.values.max() < 1e-3
    assert torch.equal(tinted["depth"], before["depth"])


def test_colours_tell_submodels_apart():
    colours = submodel_colours(25)
    assert colours.min() == 0 and colours.max() == 1
    away = torch.cdist(colours, colours) + torch.eye(25)
    assert away.min() > 0.05 and away[:8, :8].min() > 0.3


def test_unquantised_is_another_picture_and_leaves_the_field_as_it_was(model):
    quantised, smooth = draw_twice(model, lambda panel: setattr(panel.quantised, "value", False))
    assert not torch.equal(smooth["rgb"], quantised["rgb"])
    assert model.field.quantised
    model.panel.quantised.value = True
    torch.manual_seed(1)
    assert torch.equal(drawn(model)["rgb"], quantised["rgb"])


def test_baked_is_nearly_the_same_picture(model):
    student, baked = draw_twice(model, lambda panel: setattr(panel.baked, "value", True))
    hit = student["accumulation"][:, 0] > 0.9
    assert hit.any()
    assert (baked["rgb"] - student["rgb"])[hit].abs().mean() < 0.02
    assert (baked["depth"] - student["depth"])[hit].abs().median() < 0.1
    assert {name: tuple(value.shape) for name, value in baked.items()} == {
        name: tuple(value.shape) for name, value in student.items()
    }


def test_a_baked_preview_stays_until_it_is_switched_off(model):
    model.panel.baked.value = True
    drawn(model)
    renderer = model.panel._renderer[0]
    drawn(model)
    assert model.panel._renderer[0] is renderer
    model.panel.baked.value = False
    drawn(model)
    assert not model.panel._renderer


def test_the_status_counts_voxels_and_bytes_once_a_step(model):
    drawn(model)
    occupied = int(model.occupancy.cells.sum())
    assert model.panel.status.value == f"2 submodels, {occupied:,} voxels, about {model.predicted_bytes() / 1e6:.1f} MB"
    model.occupancy.cells[:] = False
    drawn(model)
    assert f"{occupied:,} voxels" in model.panel.status.value
    model.set_progress(1, 10)
    drawn(model)
    assert " 0 voxels" in model.panel.status.value


def test_the_viewer_finds_the_controls_and_the_checkpoint_does_not(model):
    found = {element.name for _, element in parse_object(model, ViewerElement, "Custom Elements")}
    assert {"Submodel", "Submodel boundaries", "Quantised", "Baked", "Student"} <= found
    assert not any(key.startswith("panel") for key in model.state_dict())
