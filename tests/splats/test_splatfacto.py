"""The device-free model: stock checkpoints both ways, densification under a cap, backgrounds, outputs, gradients."""

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox, SceneBox
from nerfstudio.models.splatfacto import SplatfactoModel, SplatfactoModelConfig
from tiny_runs import FOCAL, SIZE, draw_rgba, make_scene, orbit, views_of

from radcomp_plugins import compat
from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.config import DeviceFreeSplatfactoModelConfig
from radcomp_plugins.splats.draw import picture
from radcomp_plugins.splats.gaussians import SH_C0
from radcomp_plugins.splats.splatfacto import CappedStrategy, DeviceFreeSplatfactoModel

BOX = SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3]))


def make_model(count: int = 30, **fields) -> DeviceFreeSplatfactoModel:
    """A model seeded with points of the tiny scene."""
    scene = make_scene(count=count)
    colors = (255 * (0.5 + SH_C0 * scene.sh0).clamp(0, 1)).byte()
    config = DeviceFreeSplatfactoModelConfig(**{"num_downscales": 0, "sh_degree_interval": 1, **fields})
    return config.setup(scene_box=BOX, num_train_data=3, seed_points=(scene.means, colors))


def stock_model(count: int = 20, sh_degree: int = 3) -> SplatfactoModel:
    """nerfstudio's own, which can be built without CUDA where it starts from random points."""
    config = SplatfactoModelConfig(random_init=True, num_random=count, sh_degree=sh_degree)
    with compat.lazy_lpips():
        return config.setup(scene_box=BOX, num_train_data=3)


def camera(index: int = 0) -> Cameras:
    return Cameras(orbit()[index : index + 1], FOCAL, FOCAL, SIZE / 2, SIZE / 2, SIZE, SIZE)


def optimizers_of(model) -> dict[str, torch.optim.Optimizer]:
    rates = {"means": 1e-3, "scales": 1e-2}
    return {name: torch.optim.Adam(p, lr=rates.get(name, 1e-2)) for name, p in model.get_param_groups().items()}


def step(model, number: int) -> float:
    """One training step on a picture of the whole scene; returns the loss."""
    model.train()
    model.step = number
    outputs = model.get_outputs(camera(number % 9))
    truth = torch.from_numpy(draw_rgba(make_scene(), views_of(orbit())[number % 9]))
    loss = torch.stack([*model.get_loss_dict(outputs, {"image": truth}).values()]).sum()
    for optimizer in model.optimizers.values():
        optimizer.zero_grad()
    loss.backward()
    for optimizer in model.optimizers.values():
        optimizer.step()
    model.step_post_backward(number)
    return float(loss)


# Without CUDA ---------------------------------------------------------------------------------------------------------


def test_seeds_are_coloured_and_nothing_calls_cuda(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("moved to CUDA")

    monkeypatch.setattr(torch.Tensor, "cuda", refuse)
    monkeypatch.setattr(torch.nn.Module, "cuda", refuse)
    model = make_model()
    scene = make_scene(count=30)
    assert torch.equal(model.means.detach(), scene.means)
    torch.testing.assert_close(model.colors.detach(), (0.5 + SH_C0 * scene.sh0).clamp(0, 1), atol=1 / 255, rtol=0)
    model.optimizers = optimizers_of(model)
    losses = [step(model, number) for number in range(18)]
    assert sum(losses[9:]) < sum(losses[:9])


def test_what_is_not_there_is_refused_and_not_ignored():
    with pytest.raises(InputError, match="use_bilateral_grid: got True, expected False"):
        make_model(use_bilateral_grid=True)


def test_seeds_without_colours_and_random_ones_work():
    config = DeviceFreeSplatfactoModelConfig(num_random=12)
    plain = config.setup(
        scene_box=BOX, num_train_data=3, seed_points=(make_scene(count=9).means, torch.zeros(0, 3, dtype=torch.uint8))
    )
    assert plain.num_points == 9
    assert config.setup(scene_box=BOX, num_train_data=3).num_points == 12


def test_gradient_reaches_every_parameter():
    model = make_model()
    model.gauss_params["features_rest"].data += 0.1
    model.optimizers = optimizers_of(model)
    model.step = 3
    outputs = model.train().get_outputs(camera())
    weights = torch.rand(SIZE, SIZE, 3)
    (outputs["rgb"] * weights).sum().backward()
    for name, param in model.gauss_params.items():
        assert param.grad.shape == param.shape and bool(param.grad.isfinite().all()), name
        assert float((param.grad != 0).float().mean()) > 0.3, name


# Densification --------------------------------------------------------------------------------------------------------

GROWING = {"warmup_length": 1, "refine_every": 2, "densify_grad_thresh": 1e-7, "stop_split_at": 30,
           "cull_alpha_thresh": 1e-4, "reset_alpha_every": 1000, "stop_screen_size_at": 30}  # fmt: skip


def grown(steps: int, **fields) -> tuple[list[int], DeviceFreeSplatfactoModel]:
    model = make_model(**{**GROWING, **fields})
    model.optimizers = optimizers_of(model)
    model.strategy.pause_refine_after_reset = 0
    counts = []
    for number in range(steps):
        step(model, number)
        counts.append(model.num_points)
    return counts, model


def test_scene_grows_under_its_rising_cap_at_every_step():
    counts, model = grown(26, max_gaussians=100)
    limits = [max(model.strategy.limit(number), 30) for number in range(26)]
    assert all(count <= limit for count, limit in zip(counts, limits, strict=True))
    assert counts[-1] == 100 == model.strategy.limit(25)
    for name, optimizer in model.optimizers.items():
        param = optimizer.param_groups[0]["params"][0]
        assert param is model.gauss_params[name] and optimizer.state[param]["exp_avg"].shape == param.shape


def test_without_a_cap_it_grows_beyond():
    assert grown(12)[0][-1] > 100


def test_limit_rises_from_a_tenth_to_all_of_it():
    strategy = CappedStrategy(max_gaussians=1000, refine_stop_iter=500)
    assert [strategy.limit(number) for number in (0, 200, 400, 450, 900)] == [100, 550, 1000, 1000, 1000]


def test_the_budget_goes_to_the_largest_gradients():
    model = make_model()
    model.optimizers = optimizers_of(model)
    strategy = CappedStrategy(max_gaussians=35, refine_stop_iter=1, grow_grad2d=0.1, refine_scale2d_stop_iter=0,
                              grow_scale3d=1e9)  # fmt: skip
    gradients = torch.rand(30, generator=torch.Generator().manual_seed(0))
    state = {"grad2d": 3 * gradients, "count": torch.full((30,), 3.0), "scene_scale": 1.0}
    parents = model.means.detach()[gradients.argsort(descending=True)[:5]]
    assert strategy._grow_gs(model.gauss_params, model.optimizers, state, step=10) == (5, 0)
    assert model.num_points == 35
    children = model.means.detach()[30:]
    assert torch.equal(children.sort(dim=0).values, parents.sort(dim=0).values)
    # Full: nothing more.
    assert strategy._grow_gs(model.gauss_params, model.optimizers, state, step=10) == (0, 0)


# Backgrounds ----------------------------------------------------------------------------------------------------------


def test_background_is_the_datasets_unless_training_sees_alpha():
    model = make_model()
    model.data_background = torch.tensor([0.25, 0.5, 0.75])
    for training, alpha, same in [(False, False, True), (True, False, True), (False, True, True), (True, True, False)]:
        model.train(training)
        model.images_have_alpha = alpha
        assert torch.equal(model._get_background_color(), model.data_background) == same


def test_random_background_depends_on_the_step_alone():
    model = make_model().train()
    model.step = 5
    first = model._get_background_color()
    torch.manual_seed(77)
    assert torch.equal(model._get_background_color(), first)
    model.step = 6
    assert not torch.equal(model._get_background_color(), first)
    assert torch.equal(model.eval()._get_background_color(), model.background_color)


@pytest.mark.parametrize(("name", "value"), [("white", 1.0), ("black", 0.0)])
def test_background_asked_for_by_name_wins(name, value):
    model = make_model(background_color=name)
    model.data_background = torch.tensor([0.25, 0.5, 0.75])
    assert model._get_background_color().tolist() == [value] * 3
    assert model.eval()._get_background_color().tolist() == [value] * 3


# Checkpoints ----------------------------------------------------------------------------------------------------------


def test_checkpoint_has_stock_names_shapes_and_no_lpips():
    ours, stock = make_model(count=20).state_dict(), stock_model(count=20).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in stock.items()}
    assert not any(key.startswith("lpips") for key in ours)


@pytest.mark.parametrize("sh_degree", [3, 0])
def test_stock_model_opens_our_checkpoint(sh_degree):
    ours, stock = make_model(count=30, sh_degree=sh_degree), stock_model(count=7, sh_degree=sh_degree)
    stock.load_state_dict(dict(ours.state_dict()), strict=True)
    for name, param in ours.gauss_params.items():
        assert torch.equal(stock.gauss_params[name], param)
    assert torch.equal(stock.shs_0, ours.shs_0)


def test_our_model_opens_a_stock_checkpoint_with_its_lpips():
    stock = stock_model(count=11)
    state = {**stock.state_dict(), "lpips.net.net.slice1.0.weight": torch.ones(2, 2)}
    ours = make_model(count=30)
    result = ours.load_state_dict(state, strict=True)
    assert result.missing_keys == result.unexpected_keys == []
    for name, param in stock.gauss_params.items():
        assert torch.equal(ours.gauss_params[name], param)


def test_parameters_keep_their_identity_when_a_checkpoint_is_loaded():
    """Optimizers are made before: with new parameters a resumed run would train nothing (nerfstudio #3554)."""
    model = make_model(count=30)
    model.optimizers = optimizers_of(model)
    before = {name: id(param) for name, param in model.gauss_params.items()}
    model.load_state_dict(make_model(count=50).state_dict())
    assert {name: id(param) for name, param in model.gauss_params.items()} == before
    means = model.means.detach().clone()
    step(model, 1)
    assert not torch.equal(model.means.detach(), means) and model.num_points == 50


def test_lower_sh_degree_of_a_checkpoint_is_taken_on():
    model = make_model(count=30)
    model.load_state_dict(make_model(count=10, sh_degree=1).state_dict(), strict=True)
    assert model.gauss_params["features_rest"].shape == (10, 3, 3) and model.gaussians().sh_degree == 1


def test_a_checkpoint_that_lacks_a_part_is_not_half_loaded_in_silence():
    state = make_model(count=10).state_dict()
    del state["gauss_params.quats"]
    with pytest.raises(RuntimeError, match="gauss_params.quats"):
        make_model(count=10).load_state_dict(state, strict=True)


# Outputs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["classic", "antialiased"])
def test_picture_is_that_of_the_scene(mode):
    model = make_model(rasterize_mode=mode).eval()
    model.step = 30_000
    outputs = model.get_outputs(camera(2))
    scene = model.gaussians()
    assert scene.antialiased == (mode == "antialiased") and scene.sh_degree == 3
    torch.testing.assert_close(outputs["rgb"], picture(scene, views_of(orbit())[2], model.background_color))
    assert {key: tuple(outputs[key].shape) for key in ("rgb", "depth", "accumulation", "background")} == {
        "rgb": (SIZE, SIZE, 3), "depth": (SIZE, SIZE, 1), "accumulation": (SIZE, SIZE, 1),
        "background": (SIZE, SIZE, 3),
    }  # fmt: skip


def test_harmonics_join_one_degree_after_the_other():
    model = make_model(sh_degree_interval=10)
    degrees = []
    for number in (0, 9, 10, 25, 30, 500):
        model.step = number
        degrees.append(model.current_sh_degree())
    assert degrees == [0, 0, 1, 2, 3, 3]
    assert make_model(sh_degree=0).current_sh_degree() is None


def test_plain_colours_are_the_same_scene_as_harmonics():
    model = make_model(sh_degree=0).eval()
    torch.testing.assert_close(
        model.get_outputs(camera())["rgb"], picture(model.gaussians(), views_of(orbit())[0], model.background_color),
        atol=1e-5, rtol=0,
    )  # fmt: skip


def test_depth_is_the_distance_along_the_axis_and_the_far_end_where_nothing_is():
    model = make_model(count=5).eval()
    model.gauss_params["means"].data[:] = torch.tensor([1.0, 0.0, 0.0])
    model.gauss_params["scales"].data[:] = -4.0
    outputs = model.get_outputs(camera())
    # The first camera is at (3, 0, 0).
    assert float(outputs["depth"][SIZE // 2, SIZE // 2]) == pytest.approx(2.0, abs=1e-3)
    empty = outputs["accumulation"] == 0
    assert bool(empty.any()) and torch.equal(outputs["depth"][empty].unique(), outputs["depth"].max()[None])


def test_training_draws_no_depth_and_at_the_scheduled_resolution():
    model = make_model(num_downscales=1, resolution_schedule=10)
    model.optimizers = optimizers_of(model)
    model.train().step = 0
    outputs = model.get_outputs(camera())
    assert outputs["depth"] is None and outputs["rgb"].shape == (SIZE // 2, SIZE // 2, 3)
    assert model.get_gt_img(torch.zeros(SIZE, SIZE, 3)).shape == (SIZE // 2, SIZE // 2, 3)
    model.step = 10
    assert model.get_outputs(camera())["rgb"].shape == (SIZE, SIZE, 3)
    # Half the size shows the same field of view: it is the mean of the pixels, about.
    model.eval().step = 0
    whole = model.get_outputs(camera())["rgb"].detach()
    background = model.background_color
    small = outputs["rgb"].detach() - (1 - outputs["accumulation"].detach()) * outputs["background"]
    large = whole - (1 - model.get_outputs(camera())["accumulation"].detach()) * background
    pooled = torch.nn.functional.avg_pool2d(large.permute(2, 0, 1)[None], 2)[0].permute(1, 2, 0)
    assert float((pooled - small).abs().mean()) < 0.03


def test_crop_box_hides_what_lies_outside():
    model = make_model(count=30).eval()
    inside = model.means.detach()[:, 0] > 0
    model.crop_box = OrientedBox.from_params((1.0, 0.0, 0.0), (0.0, 0.0, 0.0), (2.0, 4.0, 4.0))
    expected = picture(model.gaussians().select(inside), views_of(orbit())[0], model.background_color)
    model.step = 30_000
    assert 0 < int(inside.sum()) < 30
    torch.testing.assert_close(model.get_outputs(camera())["rgb"], expected)
    model.crop_box = OrientedBox.from_params((50.0, 0.0, 0.0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    empty = model.get_outputs(camera())
    assert torch.equal(empty["rgb"], model.background_color.expand(SIZE, SIZE, 3)) and not empty["accumulation"].any()


def test_crop_box_around_the_only_gaussian():
    model = make_model(count=5).eval()
    model.load_state_dict({key: value[:1] for key, value in model.state_dict().items()}, strict=True)
    model.crop_box = OrientedBox.from_params((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (9.0, 9.0, 9.0))
    assert bool(model.get_outputs(camera())["accumulation"].any())


def test_metrics_have_the_size_and_the_error_as_an_image():
    model = make_model().eval()
    outputs = model.get_outputs(camera())
    truth = outputs["rgb"].detach() * 0.5
    metrics, images = model.get_image_metrics_and_images(outputs, {"image": truth})
    assert metrics["num_gaussians"] == 30
    torch.testing.assert_close(images["error"], (outputs["rgb"] - truth).abs())


def test_ply_bytes_counts_every_float(tmp_path):
    from radcomp_plugins.splats.formats.ply import write_ply

    for degree in (0, 2, 3):
        model = make_model(sh_degree=degree)
        write_ply(tmp_path / f"{degree}.ply", model.gaussians())
        header = (tmp_path / f"{degree}.ply").read_bytes().index(b"end_header\n") + len(b"end_header\n")
        assert model.ply_bytes() == (tmp_path / f"{degree}.ply").stat().st_size - header
