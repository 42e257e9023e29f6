"""Stacked networks against a slow loop over them: values and gradients, in both ways of asking."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kilo_scenes import random_networks

from radcomp_plugins.errors import InputError
from radcomp_plugins.kilonerf import networks as module
from radcomp_plugins.kilonerf.networks import TinyNetworks, encode
from radcomp_plugins.kilonerf.scene import NetworkShape

SHAPES = [NetworkShape(), NetworkShape(width=8, position_octaves=2, direction_octaves=0)]


def one_network(networks: TinyNetworks, index: int, points, directions):
    """The paper's layers, one network, written out."""
    layer = {name: [p[index] for p in networks.parameters_of(name)] for name in module.LAYERS}

    def linear(x, name):
        return x @ layer[name][0] + layer[name][1]

    h = F.relu(linear(encode(points, networks.shape.position_octaves), "hidden0"))
    h = F.relu(linear(h, "hidden1"))
    seen = torch.cat([linear(h, "feature"), encode(directions, networks.shape.direction_octaves)], -1)
    return linear(h, "density")[:, 0], torch.sigmoid(linear(F.relu(linear(seen, "direction")), "color"))


def questions(count, networks, dtype=torch.float32):
    points = torch.rand(count, 3, dtype=dtype) * 2 - 1
    points[:4] = torch.tensor([[1.0, 1, 1], [-1, -1, -1], [1, -1, 0], [0, 0, 1]])
    # Network 2 is never asked, network 3 once.
    ids = torch.randint(0, networks.count, (count,))
    ids[ids == 2] = 0
    ids[ids == 3] = 1
    ids[count // 2] = 3
    return points, F.normalize(torch.randn(count, 3, dtype=dtype), dim=-1), ids


def gradients(networks, raw, rgb):
    weights = torch.linspace(-1, 2, raw.numel(), dtype=raw.dtype).view(raw.shape)
    networks.zero_grad()
    ((raw * weights).sum() + (rgb * (weights[..., None] + torch.arange(3, dtype=raw.dtype))).sum()).backward()
    return {name: p.grad.clone() for name, p in networks.named_parameters() if p.grad is not None}


def test_encoding_by_hand():
    x = torch.tensor([[0.25, -1.0, 0.5]])
    expected = [*x[0], *x[0].sin(), *x[0].cos(), *(2 * x[0]).sin(), *(2 * x[0]).cos()]
    torch.testing.assert_close(encode(x, 2)[0], torch.stack(expected))
    assert encode(x, 0).equal(x)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("way", ["grouped", "blocked", "double"])
def test_grouped_like_a_loop(shape, way, monkeypatch):
    if way == "blocked":
        monkeypatch.setattr(module, "_has_grouped_products", lambda x: False)
    networks = random_networks(6, shape)
    if way == "double":
        networks.double()
    points, directions, ids = questions(300, networks, next(networks.parameters()).dtype)
    raw, rgb = networks.grouped(points, directions, ids)
    assert raw.shape == (300,) and rgb.shape == (300, 3)
    found = gradients(networks, raw, rgb)
    slow_raw, slow_rgb = torch.zeros_like(raw), torch.zeros_like(rgb)
    for index in range(networks.count):
        rows = (ids == index).nonzero()[:, 0]
        part = one_network(networks, index, points[rows], directions[rows])
        slow_raw, slow_rgb = slow_raw.index_put((rows,), part[0]), slow_rgb.index_put((rows,), part[1])
    torch.testing.assert_close(raw, slow_raw, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(rgb, slow_rgb, atol=1e-5, rtol=1e-5)
    expected = gradients(networks, slow_raw, slow_rgb)
    assert set(found) == set(expected) == {name for name, _ in networks.named_parameters()}
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, atol=2e-4, rtol=1e-4)
        assert found[name][2].abs().sum() == 0 and found[name][3].abs().sum() > 0


@pytest.mark.parametrize("shape", SHAPES)
def test_balanced_like_a_loop(shape):
    networks = random_networks(5, shape).double()
    points = torch.rand(5, 7, 3, dtype=torch.float64) * 2 - 1
    directions = F.normalize(torch.randn(5, 7, 3, dtype=torch.float64), dim=-1)
    raw, rgb = networks.balanced(points, directions)
    found = gradients(networks, raw, rgb)
    slow = [one_network(networks, i, points[i], directions[i]) for i in range(5)]
    slow_raw, slow_rgb = (torch.stack(part) for part in zip(*slow, strict=True))
    torch.testing.assert_close(raw, slow_raw)
    torch.testing.assert_close(rgb, slow_rgb)
    for name, grad in gradients(networks, slow_raw, slow_rgb).items():
        torch.testing.assert_close(found[name], grad)


def test_no_points_at_all():
    raw, rgb = random_networks(3).grouped(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    assert raw.shape == (0,) and rgb.shape == (0, 3)


def test_points_have_gradients_too():
    networks = random_networks(4).double()
    points, directions, ids = questions(20, networks, torch.float64)
    points.requires_grad_()
    networks.grouped(points, directions, ids)[0].sum().backward()
    step = torch.zeros_like(points)
    step[7, 1] = 1e-6
    with torch.no_grad():
        up, down = (networks.grouped(points + sign * step, directions, ids)[0].sum() for sign in (1, -1))
    assert points.grad is not None
    assert float(points.grad[7, 1]) == pytest.approx(float((up - down) / 2e-6), rel=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_folding_changes_no_value(shape):
    networks = random_networks(3, shape)
    folded = {name: tensor.double() for name, tensor in networks.folded().items()}
    assert {name: tuple(t.shape) for name, t in folded.items()} == shape.folded_arrays(3)
    points, directions, _ = questions(50, TinyNetworks(6), torch.float64)
    raw, rgb = one_network(networks.double(), 1, points, directions)

    def linear(x, layer):
        return x @ folded[f"{layer}.weight"][1] + folded[f"{layer}.bias"][1]

    h = F.relu(linear(encode(points, shape.position_octaves), "hidden0"))
    h = F.relu(linear(h, "hidden1"))
    seen = torch.cat([h, encode(directions, shape.direction_octaves)], -1)
    color = torch.sigmoid(linear(F.relu(linear(seen, "direction")), "color"))
    torch.testing.assert_close(F.relu(linear(h, "density"))[:, 0], networks.optical_depth(raw), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(color, rgb, atol=1e-6, rtol=1e-5)


def test_parameters_of_the_paper():
    assert sum(p[0].numel() for p in TinyNetworks(2).parameters()) == 6212
    same = TinyNetworks(3)
    assert same.hidden0_weight[0].equal(same.hidden0_weight[2])
    assert not (different := TinyNetworks(3, same_start=False)).hidden0_weight[0].equal(different.hidden0_weight[2])
    assert float(same.hidden1_weight.detach().abs().max()) <= 1 / np.sqrt(32)
    again = [TinyNetworks(2, generator=torch.Generator().manual_seed(5)).color_weight for _ in range(2)]
    assert again[0].equal(again[1])


def test_view_dependent_parameters_are_those_that_see_the_direction():
    networks = random_networks(2)
    points, directions, _ = questions(10, TinyNetworks(4))
    raw, _ = networks.balanced(points.expand(2, -1, -1), directions.expand(2, -1, -1))
    raw.sum().backward()
    named = {id(p) for p in networks.view_dependent_parameters()}
    assert len(named) == 4
    for name, parameter in networks.named_parameters():
        assert id(parameter) not in named or parameter.grad is None, name


def test_optical_depth_by_hand():
    networks = TinyNetworks(1, depth_scale=0.5)
    torch.testing.assert_close(networks.optical_depth(torch.tensor([-1.0, 2.0]), 3.0), torch.tensor([0.0, 3.0]))


@pytest.mark.parametrize("bad", [{"width": 30}, {"width": 0}, {"position_octaves": 13}, {"direction_octaves": -1}])
def test_shapes_that_no_kernel_takes_are_refused(bad):
    with pytest.raises(InputError, match="networks have"):
        NetworkShape(**bad)
