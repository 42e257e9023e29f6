"""The external zipnerf plugin, which is CUDA only: a stand-in with its names, parts and quirks."""

import math
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from nerfstudio.model_components.scene_colliders import NearFarCollider
from ray_teachers import copy_of, rays_around
from torch import nn

from radcomp_plugins.teachers.rays import RayTeacher
from radcomp_plugins.teachers.zipnerf_plugin import ZipNerfPluginTeacher, is_plugin_model

NEAR, FAR, INTERVALS = 0.2, 1e6, 8


def ray_warps(fn: Any, near: torch.Tensor, far: torch.Tensor, lam: float) -> Any:
    """Barron et al. 2023, Eq. 4 with the factor 2 of Sec. 3: a stand-in for the plugin's module `coord`."""
    scale = abs(lam - 1)

    def forward(t):
        return scale / lam * ((2 * t / scale + 1) ** lam - 1)

    def inverse(s):
        return (((s * lam / scale + 1) ** (1 / lam)) - 1) * scale / 2

    low, high = forward(near), forward(far)
    return lambda t: (forward(t) - low) / (high - low), lambda s: inverse(s * high + (1 - s) * low)


class Network(nn.Module):
    """Samples evenly in normalised distance a ball of radius 1 whose colour depends on position and direction."""

    raydist_fn, power_lambda, bg_intensity_range = "power_transformation", -1.5, (1.0, 0.0)

    def __init__(self, opaque: bool) -> None:
        super().__init__()
        self.opaque, self.calls = opaque, []
        self.density = nn.Parameter(torch.tensor(2.0))

    def forward(self, rand, batch, train_frac, compute_extras, zero_glo=True):
        self.calls.append(SimpleNamespace(rand=rand, batch=batch, train_frac=train_frac, zero_glo=zero_glo))
        s = torch.linspace(0.3, 0.9, INTERVALS + 1).expand(len(batch["origins"]), -1)
        if rand:
            s = s + 0.01 * torch.rand(len(s), 1)
        _, to_metric = ray_warps(self.raydist_fn, batch["near"], batch["far"], self.power_lambda)
        t = to_metric(s)
        middle = 0.5 * (t[:, 1:] + t[:, :-1])
        points = batch["origins"][:, None] + batch["directions"][:, None] * middle[..., None]
        # Cones are turned at random in evaluation too.
        points = points + 1e-3 * torch.randn_like(points)
        inside = torch.sigmoid(20 * (1 - points.norm(dim=-1)))
        depth = self.density * inside * t.diff(dim=-1) * batch["directions"].norm(dim=-1, keepdim=True)
        through = torch.exp(-torch.cumsum(depth, dim=-1) + depth)
        weights = (1 - torch.exp(-depth)) * through
        if self.opaque:
            weights = torch.cat([weights[:, :-1], through[:, -1:]], dim=-1)
        rgb = torch.sigmoid(points + batch["viewdirs"][:, None])
        acc = weights.sum(dim=-1, keepdim=True)
        rendered = (weights[..., None] * rgb).sum(dim=-2) + (1 - acc) * 0.5
        level = {"sdist": s, "weights": weights, "rgb": rgb}
        return [{"rgb": rendered}] * 3, [{}, {}, level]


class ZipNerfModel(nn.Module):
    """The plugin's model as far as its evaluation goes."""

    def __init__(self, opaque: bool = True) -> None:
        super().__init__()
        self.zipnerf = Network(opaque)
        self.collider = NearFarCollider(near_plane=NEAR, far_plane=FAR)
        self.config = SimpleNamespace(eval_num_rays_per_chunk=50)
        self.device = torch.device("cpu")

    def construct_batch_from_raybundle(self, bundle):
        return {
            "origins": bundle.origins, "directions": bundle.directions * bundle.metadata["directions_norm"],
            "viewdirs": bundle.directions, "radii": bundle.pixel_area.sqrt() * 2 / math.sqrt(12),
            "cam_idx": bundle.camera_indices, "near": bundle.nears, "far": bundle.fars, "cam_dirs": None,
        }  # fmt: skip

    def get_outputs(self, bundle):
        bundle.directions = bundle.directions * bundle.metadata["directions_norm"]
        batch = self.construct_batch_from_raybundle(bundle)
        renderings, history = self.zipnerf(False, batch, 1.0, True, True)
        return {"rgb": renderings[2]["rgb"], "ray_history": history}


@pytest.fixture
def plugin(monkeypatch):
    """`plugin(opaque)` makes the model, under the plugin's module names."""
    network_module, coord, package = (
        ModuleType("internal.models"),
        ModuleType("internal.coord"),
        ModuleType("zipnerf_ns"),
    )
    coord.construct_ray_warps = ray_warps  # type: ignore[attr-defined]
    network_module.coord = coord  # type: ignore[attr-defined]
    for module in (network_module, coord, package):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(Network, "__module__", "internal.models")
    monkeypatch.setattr(ZipNerfModel, "__module__", "zipnerf_ns.zipnerf_model")
    return ZipNerfModel


def test_it_is_known_by_its_names(plugin):
    assert is_plugin_model(plugin())
    assert not is_plugin_model(nn.Linear(2, 2)) and not is_plugin_model(type("ZipNerfModel", (), {})())


@pytest.mark.parametrize("opaque", [True, False])
def test_weights_colours_and_metric_distances_are_those_of_its_own_picture(plugin, opaque):
    model = plugin(opaque)
    teacher, rays = ZipNerfPluginTeacher(model), rays_around(40)
    assert isinstance(teacher, RayTeacher)
    taught = teacher.query_rays(rays)
    torch.manual_seed(0)
    outputs = model.get_outputs(model.collider(copy_of(rays)))
    level = outputs["ray_history"][2]
    torch.testing.assert_close(taught.weights, level["weights"])
    acc = taught.weights.sum(dim=-1, keepdim=True)
    torch.testing.assert_close(taught.rgb + (1 - acc) * teacher.background, outputs["rgb"])
    assert bool(((acc - 1).abs() < 1e-5).all()) == opaque
    # A fencepost t of the twice scaled direction lies t norm^2 along the unit direction.
    s_to_t = ray_warps(None, torch.zeros(40, 1), torch.full((40, 1), FAR), -1.5)[1]
    torch.testing.assert_close(taught.edges, s_to_t(level["sdist"]) * rays.metadata["directions_norm"] ** 2)
    assert taught.edges.shape == (40, INTERVALS + 1) and (taught.edges.diff(dim=-1) > 0).all()


def test_where_its_light_comes_from_is_where_its_scene_is(plugin):
    """Distances, taken along unit directions, put the weight inside the ball of radius 1."""
    rays = rays_around(60)
    rays.directions = torch.nn.functional.normalize(-rays.origins, dim=-1)
    taught = ZipNerfPluginTeacher(plugin(False)).query_rays(rays)
    middle = 0.5 * (taught.edges[:, 1:] + taught.edges[:, :-1])
    points = rays.origins[:, None] + rays.directions[:, None] * middle[..., None]
    assert (taught.weights[points.norm(dim=-1) > 1.4] < 1e-2).all() and (taught.weights.sum(dim=-1) > 0.3).any()


def test_it_is_asked_as_in_evaluation_with_the_quirk_of_double_scaling(plugin):
    model, rays = plugin(), rays_around(40)
    ZipNerfPluginTeacher(model).query_rays(rays)
    (call,) = model.zipnerf.calls
    norm = rays.metadata["directions_norm"]
    assert (call.rand, call.train_frac, call.zero_glo) == (False, 1.0, True)
    torch.testing.assert_close(call.batch["viewdirs"], rays.directions * norm)
    torch.testing.assert_close(call.batch["directions"], rays.directions * norm * norm)
    assert float(call.batch["near"].max()) == 0 and float(call.batch["far"].max()) == FAR


def test_the_rays_are_left_alone_and_may_have_any_shape(plugin):
    model, rays = plugin(), rays_around(60)
    before = copy_of(rays)
    teacher = ZipNerfPluginTeacher(model)
    flat = teacher.query_rays(rays)
    assert torch.equal(rays.directions, before.directions) and rays.nears is None
    assert set(rays.metadata) == {"directions_norm"} and len(model.zipnerf.calls) == 2
    folded = teacher.query_rays(rays.reshape((20, 3)))
    assert folded.edges.shape == (20, 3, INTERVALS + 1)
    assert torch.equal(folded.weights.reshape(60, INTERVALS), flat.weights)
    assert not flat.rgb.requires_grad


def test_answers_repeat_and_leave_the_random_numbers_alone_unless_jittered(plugin):
    teacher, rays = ZipNerfPluginTeacher(plugin()), rays_around(30)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = teacher.query_rays(rays)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first.rgb, teacher.query_rays(rays).rgb)
    jittered = teacher.query_rays(rays, jitter=True)
    assert not torch.equal(jittered.edges, first.edges)
    assert not torch.equal(jittered.edges, teacher.query_rays(rays, jitter=True).edges)


def test_rays_without_norms_count_as_the_centres(plugin):
    teacher, rays = ZipNerfPluginTeacher(plugin()), rays_around(30)
    rays.metadata["directions_norm"] = torch.ones(30, 1)
    expected = teacher.query_rays(rays)
    rays.metadata = {}
    assert torch.equal(teacher.query_rays(rays).edges, expected.edges)


def test_background_is_the_middle_of_its_range(plugin):
    assert ZipNerfPluginTeacher(plugin()).background.tolist() == [0.5, 0.5, 0.5]
