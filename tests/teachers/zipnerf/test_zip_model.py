"""The model: what the dataset decides, training, saving and drawing."""

import copy

import pytest
import torch
from nerfstudio.data.scene_box import SceneBox
from tiny_zipnerf import OBJECT, rays_at, red_ball, tiny_config, tiny_model

from radcomp_plugins.errors import InputError
from radcomp_plugins.teachers.zipnerf import render
from radcomp_plugins.teachers.zipnerf.datamanager import ALPHA_KEY, BACKGROUND_KEY
from radcomp_plugins.teachers.zipnerf.field import DensityField
from radcomp_plugins.teachers.zipnerf.model import ZipNerfModel


def targets(count: int) -> torch.Tensor:
    return (torch.rand(count, 3) - 0.5) * 2


def train(model: ZipNerfModel, steps: int, first: int = 0) -> list[float]:
    """Steps on a red ball; the loss of each."""
    optimizer = torch.optim.Adam([p for group in model.get_param_groups().values() for p in group], lr=1e-2)
    model.train()
    values = []
    for step in range(first, first + steps):
        model.set_step(step)
        rays = rays_at(targets(256))
        outputs = model(rays)
        losses = model.get_loss_dict(outputs, {"image": red_ball(rays)})
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        values.append(float(losses["rgb_loss"].detach()))
    return values


@pytest.mark.parametrize(
    ("metadata", "kind", "bounded", "background"),
    [
        ({BACKGROUND_KEY: torch.ones(3), ALPHA_KEY: True}, "random", True, [1, 1, 1]),
        ({BACKGROUND_KEY: torch.tensor([0.1, 0.2, 0.3]), ALPHA_KEY: False}, "dataset", True, [0.1, 0.2, 0.3]),
        ({ALPHA_KEY: True}, "random", False, [1, 1, 1]),
        ({ALPHA_KEY: False}, "last_sample", False, [1, 1, 1]),
        ({}, "last_sample", False, [1, 1, 1]),
    ],
)
def test_the_dataset_decides_what_lies_behind(
    metadata: dict, kind: str, bounded: bool, background: list[float]
) -> None:
    model = tiny_model(metadata)
    assert (model._kind, model._bounded) == (kind, bounded)
    assert model.background.tolist() == pytest.approx(background)
    assert model.opaque_end == (kind == "last_sample")


def test_contracted_grids_can_be_finer() -> None:
    """The resolutions follow the scene, also where a checkpoint says what it is."""
    boxed, contracted = (
        tiny_model(OBJECT, contracted_resolution_factor=2),
        tiny_model({}, contracted_resolution_factor=2),
    )
    assert boxed.field.grid.resolutions.tolist() == [8, 16, 32, 64]
    assert contracted.field.grid.resolutions.tolist() == [16, 32, 64, 128]
    boxed.load_state_dict(contracted.state_dict())
    assert boxed.field.grid.resolutions.tolist() == [16, 32, 64, 128]


def test_a_checkpoint_brings_its_scene_along() -> None:
    model = tiny_model(OBJECT, scene_bounds="box")
    model.box[:] = torch.tensor([[-1.0, -1, -1], [2.0, 2, 2]])
    other = ZipNerfModel(
        tiny_config(), scene_box=SceneBox(aabb=torch.zeros(2, 3) + torch.tensor([[0.0], [1.0]])), num_train_data=1
    )
    assert not other._bounded
    other.load_state_dict({**model.state_dict(), "lpips.net.weight": torch.zeros(1)})
    assert other._bounded and other._kind == "random" and torch.equal(other.box, model.box)
    rays = rays_at(targets(20))
    model.eval()
    other.eval()
    with torch.no_grad():
        assert torch.equal(model(rays)["rgb"], other(rays)["rgb"])


def test_training_lowers_the_loss_and_leaves_no_fog() -> None:
    model = tiny_model(empty_loss_mult=0.1, density_bias=-2.0)
    values = train(model, 150)
    assert sum(values[-10:]) < 0.15 * sum(values[:10])
    model.eval()
    aside = rays_at(torch.tensor([[0.9, 0.9, 0.9], [0.0, 0.95, -0.95], [0.9, -0.9, 0.0]]))
    with torch.no_grad():
        centre = model(rays_at(torch.zeros(3, 3)))
        assert centre["accumulation"].min() > 0.8
        assert (centre["depth"] - 3.4).abs().max() < 0.4  # 4 to the centre, less the radius
        assert model(aside)["accumulation"].max() < 0.15


def test_all_losses_reach_what_they_are_for() -> None:
    model = tiny_model(OBJECT, empty_loss_mult=0.1)
    rays = rays_at(targets(64))
    losses = model.get_loss_dict(model(rays), {"image": red_ball(rays)})
    assert set(losses) == {"rgb_loss", "interlevel_loss", "empty_loss", "distortion_loss", "hash_decay"}
    first = model.proposals[0]
    assert isinstance(first, DensityField)
    proposal, final = first.grid.table, model.field.grid.table

    def reaches(name: str, table: torch.Tensor) -> bool:
        (grad,) = torch.autograd.grad(losses[name], table, retain_graph=True, allow_unused=True)
        return grad is not None and bool(grad.any())

    assert reaches("rgb_loss", final) and not reaches("rgb_loss", proposal)
    assert reaches("empty_loss", proposal) and not reaches("empty_loss", final)
    assert reaches("distortion_loss", final) and not reaches("distortion_loss", proposal)
    assert reaches("hash_decay", final) and reaches("hash_decay", proposal)
    assert not reaches("interlevel_loss", final)


def test_weights_of_an_opaque_end_sum_to_one() -> None:
    model = tiny_model({}).eval()
    rays = rays_at(targets(30), distance=1.0)
    with torch.no_grad():
        outputs = model(rays)
    torch.testing.assert_close(outputs["accumulation"], torch.ones(30, 1))


def test_drawing_twice_gives_the_same_and_training_does_not() -> None:
    model = tiny_model()
    rays = rays_at(targets(30))
    with torch.no_grad():
        assert not torch.equal(model(rays)["accumulation"], model(rays)["accumulation"])
        model.eval()
        assert torch.equal(model(rays)["rgb"], model(rays)["rgb"])


def test_rays_into_the_void_are_left_out() -> None:
    model = tiny_model(density_bias=-2.0, empty_loss_mult=1.0)
    train(model, 120)
    model.eval()
    rays = rays_at(targets(200))
    cones = model.cones(rays)
    with torch.no_grad():
        full, all_levels = model(rays), model.march(cones, jitter=False)
        model.config.skip_weight_threshold = 0.1
        few, some_levels = model(rays), model.march(cones, jitter=False)
    assert all_levels[-1].rays is None and some_levels[-1].rays is not None
    left_out = 200 - len(some_levels[-1].edges)
    assert 20 < left_out < 180
    # What a left-out ray saw is at most about what its proposals gave it; the others are as they were.
    assert (full["rgb"] - few["rgb"]).abs().max() < 0.15
    torch.testing.assert_close(few["rgb"][some_levels[-1].rays], full["rgb"][some_levels[-1].rays])
    assert few["depth"].shape == few["accumulation"].shape == (200, 1)
    void = torch.ones(200, dtype=torch.bool)
    void[some_levels[-1].rays] = False
    torch.testing.assert_close(few["rgb"][void], torch.ones(left_out, 3))
    torch.testing.assert_close(few["depth"][void], cones.far[void])


def test_a_batch_that_sees_nothing_at_all_is_drawn() -> None:
    model = tiny_model(skip_weight_threshold=2.0).eval()
    with torch.no_grad():
        outputs = model(rays_at(targets(5)))
    torch.testing.assert_close(outputs["rgb"], torch.ones(5, 3))
    assert not outputs["accumulation"].any() and torch.isfinite(outputs["depth"]).all()


def test_training_goes_on_where_it_stopped() -> None:
    def run(model: ZipNerfModel, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            torch.manual_seed(step)
            rays = rays_at(targets(32))
            losses = model.get_loss_dict(model(rays), {"image": red_ball(rays)})
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()

    model = tiny_model()
    optimizer = torch.optim.Adam(model.get_param_groups()["grids"], lr=1e-2)
    run(model, optimizer, range(3))
    resumed = tiny_model()
    resumed.load_state_dict(copy.deepcopy(model.state_dict()))
    again = torch.optim.Adam(resumed.get_param_groups()["grids"], lr=1e-2)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(model, optimizer, range(3, 6))
    run(resumed, again, range(3, 6))
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_appearance_is_neutral_outside_training() -> None:
    model = tiny_model(appearance_dim=4)
    rays = rays_at(targets(30))
    model.eval()
    with torch.no_grad():
        before = model(rays)["rgb"]
        model.appearance.weight.mul_(100.0)
        assert torch.equal(model(rays)["rgb"], before)
    model.train()
    torch.manual_seed(1)
    first = model(rays)["rgb"]
    with torch.no_grad():
        model.appearance.weight.mul_(-1.0)
    torch.manual_seed(1)
    assert not torch.equal(model(rays)["rgb"], first)


def test_parameters_are_each_in_one_group() -> None:
    model = tiny_model(appearance_dim=2)
    groups = model.get_param_groups()
    grouped = [id(parameter) for group in groups.values() for parameter in group]
    everything = {id(p) for p in model.parameters()} - {id(model.device_indicator_param)}
    assert len(grouped) == len(set(grouped)) and set(grouped) == everything
    assert len(groups["grids"]) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_multisamples": 4}, "num_multisamples: got 4, expected 1, 2, 3 or 6"),
        ({"pulse_widths": (0.1,)}, "pulse_widths: got 1 numbers, expected 2"),
    ],
)
def test_contradicting_settings_are_named(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny_model(**options)


def test_weights_are_alpha_times_transmittance() -> None:
    density, distances = torch.tensor([[0.5, 2.0, 1.0]]), torch.tensor([[1.0, 2.0, 2.5, 4.0]])
    alpha = 1 - torch.exp(-torch.tensor([0.5, 1.0, 1.5]))
    expected = alpha * torch.tensor([1.0, 1 - alpha[0], (1 - alpha[0]) * (1 - alpha[1])])
    torch.testing.assert_close(render.weights_from_density(density, distances, False)[0], expected)
    closed = render.weights_from_density(density, distances, True)[0]
    assert float(closed.sum()) == pytest.approx(1.0)
    torch.testing.assert_close(closed[:2], expected[:2])


def test_light_intervals_may_go_without_colour() -> None:
    model = tiny_model(density_bias=-2.0).eval()
    rays = rays_at(targets(50))
    with torch.no_grad():
        exact = model(rays)["rgb"]
        model.config.color_weight_threshold = 1e-3
        assert (model(rays)["rgb"] - exact).abs().max() < 8 * 1e-3 * 1.01
