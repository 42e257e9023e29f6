"""The model: rays against a loop, checkpoints of any grid, what it refuses."""

import numpy as np
import pytest
import torch
from kilo_scenes import random_networks, shell_grid, sphere_rays
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox

from radcomp_plugins.errors import InputError
from radcomp_plugins.kilonerf.config import KiloModelConfig
from radcomp_plugins.kilonerf.model import KiloModel, RaySettings

WHITE = torch.ones(3)


def empty_model(**changes) -> KiloModel:
    config = KiloModelConfig(**{"hidden_width": 16, "position_octaves": 4, "near_plane": 0.2, **changes})
    return KiloModel(config, scene_box=SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3])), num_train_data=3, metadata={})


def make_model(**grid) -> KiloModel:
    """A model of the shell with networks that all differ."""
    model = empty_model(overlap=grid.get("overlap", 0.0))
    model.set_scene(shell_grid(**grid), torch.tensor([1.0, 0.5, 0.0]), torch.Generator().manual_seed(0))
    networks = random_networks(model.networks.count, model.shape)
    with torch.no_grad():
        for mine, other in zip(model.networks.parameters(), networks.parameters(), strict=True):
            mine.copy_(other)
    return model.eval()


def rays(count: int = 300) -> RayBundle:
    origins, directions = (torch.from_numpy(array) for array in sphere_rays(count))
    return RayBundle(origins, directions, torch.ones(count, 1))


@pytest.mark.parametrize("overlap", [0.0, 0.2])
def test_training_draws_what_the_renderer_draws(overlap: float) -> None:
    model = make_model(overlap=overlap)
    model.panel.threshold.value = 0.0
    bundle = rays()
    exact = model(bundle)
    with torch.no_grad():
        mine = model.draw(bundle.origins, bundle.directions)
    wrong = (mine["rgb"] - exact["rgb"]).abs().amax(dim=-1)
    # A sample on a border may fall either way.
    assert (wrong > 2e-3).float().mean() < 0.02 and exact["accumulation"].max() > 0.5
    assert (mine["depth"] - exact["depth"]).abs().median() < 1e-3


def test_gradients_reach_the_networks_that_rays_meet() -> None:
    model = make_model().train()
    model.sampling = RaySettings(0.001, 0.1)
    model.estimate_depths()
    outputs = model(rays())
    outputs["rgb"].sum().backward()
    grads = model.networks.color_weight.grad
    assert grads is not None and (grads.abs().sum(dim=(1, 2)) > 0).float().mean() > 0.3
    assert outputs["num_samples"].shape == (300, 1)


def test_rays_end_where_voxels_are_estimated_opaque() -> None:
    model = make_model()
    with torch.no_grad():
        model.networks.density_bias.fill_(50.0)
    model.estimate_depths()
    assert model.voxel_depth.min() > 1.0
    model.train()
    counts = []
    for stop, whole in ((0.0, 1.0), (0.001, 0.0), (0.001, 1.0)):
        model.sampling = RaySettings(stop, whole)
        torch.manual_seed(0)
        counts.append(model.draw(rays().origins, rays().directions)["num_samples"].sum().item())
    assert counts[1] < 0.7 * counts[0] and counts[2] == counts[0]


def test_estimates_are_the_networks_depths() -> None:
    model = make_model()
    model.estimate_depths()
    place = np.argwhere(model.grid.occupancy)[17]
    point = torch.from_numpy(model.grid.box[0] + (place + 0.5) * model.grid.cell_size / model.grid.voxels_per_cell)
    depth, _ = model.ask(point[None].float(), torch.zeros(1, 3))
    assert model.voxel_depth[17].float() == pytest.approx(depth.item(), abs=2e-3)


def test_checkpoint_brings_its_grid_and_keeps_the_parameters_identity() -> None:
    model, other = make_model(), empty_model()
    model.estimate_depths()
    mine = list(other.networks.parameters())
    other.load_state_dict(model.state_dict())
    assert other.networks.count == model.networks.count
    assert all(a is b for a, b in zip(mine, other.networks.parameters(), strict=True))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert np.array_equal(other.grid.occupancy, model.grid.occupancy) and other.grid.step == model.grid.step
    assert torch.equal(other.eval()(rays())["rgb"], model(rays())["rgb"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.pop("box"), "box is missing"),
        (lambda s: s.pop("networks.color_bias"), "networks.color_bias is missing"),
        (lambda s: s.update({"networks.color_bias": s["networks.color_bias"][:-1]}), "expected \\("),
        (lambda s: s.update(occupancy=s["occupancy"][:-1]), "occupancy of"),
        (lambda s: s.update(voxel_depth=s["voxel_depth"][:-1]), "depths, expected"),
        (lambda s: s.update(cells=s["cells"] * 0), "occupancy of"),
        (lambda s: s.update(box=s["box"].flip(0)), "lower corner"),
    ],
)
def test_wrong_checkpoints_are_told(change, told: str) -> None:
    state = dict(make_model().state_dict())
    change(state)
    with pytest.raises(InputError, match=told):
        empty_model().load_state_dict(state)


def test_checkpoint_of_other_widths_is_told() -> None:
    with pytest.raises(InputError, match="networks.hidden0_weight is"):
        empty_model(hidden_width=32).load_state_dict(make_model().state_dict())


def test_without_a_scene_there_is_nothing_to_draw() -> None:
    with pytest.raises(InputError, match="no grid yet"):
        empty_model()(rays())


def test_losses_of_both_stages() -> None:
    model = make_model().train()
    each = torch.arange(5.0, requires_grad=True)
    outputs = {"per_network": each}
    assert model.get_loss_dict(outputs, {})["distill_loss"].item() == 10.0
    metrics = model.get_metrics_dict(outputs, {})
    assert metrics["worst_network_error"] == 4.0 and metrics["distill_error"] == 2.0
    batch = {"image": torch.zeros(300, 4)}
    found = model.get_loss_dict(model(rays()), batch)
    norms = sum(p.norm() for p in model.networks.view_dependent_parameters())
    assert found["view_regulariser"].item() == pytest.approx(1e-6 * float(norms))
    # Transparent photos show the background.
    white = model.get_loss_dict(model(rays()), {"image": model.background.expand(300, 3)})
    assert found["rgb_loss"].item() == pytest.approx(white["rgb_loss"].item(), rel=0.3)


def test_panel_changes_the_picture_and_nothing_else() -> None:
    model = make_model()
    picture = model(rays())
    for show in ("networks", "occupancy", "samples per ray"):
        model.panel.show.value = show
        other = model(rays())
        assert (other["rgb"] - picture["rgb"]).abs().max() > 0.1, show
        assert torch.equal(other["depth"], picture["depth"])
    model.panel.show.value = "picture"
    model.panel.threshold.value = 0.5
    assert model(rays())["samples"].sum() < picture["samples"].sum()
    assert f"{model.networks.count} networks" in model.panel.status.value
