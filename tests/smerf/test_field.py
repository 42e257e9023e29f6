"""The field: quantisation, gating, activations, and that it is what its texels say."""

import pytest
import torch

from radcomp_plugins.core.contraction import contract
from radcomp_plugins.smerf.corners import VOXEL_CORNERS, corners_of
from radcomp_plugins.smerf.field import (
    SmerfField,
    denormalise,
    density_of,
    first_values,
    merge,
    quantise,
)
from radcomp_plugins.smerf.layout import DENSITY, GATE, Layout

LAYOUT = Layout(64, 16, 2, 0.8, (0, 7))


def small_field(layout: Layout = LAYOUT) -> SmerfField:
    field = SmerfField(layout, num_levels=4, max_res=64, log2_table_size=12, hidden_layers=1, hidden_width=8)
    with torch.no_grad():
        for grid in field.grids:
            torch.nn.init.uniform_(grid.get_parameter("table"), -0.3, 0.3)
    return field


def test_quantised_values_are_bytes_and_gradients_pass() -> None:
    raw = torch.linspace(-6, 6, 80).view(10, 8).requires_grad_()
    value = quantise(raw)
    torch.testing.assert_close(value * 255, (value * 255).round(), rtol=0, atol=1e-4)
    assert float((value - raw.sigmoid()).abs().max()) <= 0.5 / 255 + 1e-6
    value.sum().backward()
    expected = raw.detach().sigmoid() * (1 - raw.detach().sigmoid())
    torch.testing.assert_close(raw.grad, expected)


def test_ranges() -> None:
    low, high = denormalise(torch.zeros(8)), denormalise(torch.ones(8))
    assert low.tolist() == [-7.0] * 7 + [-14.0] and high.tolist() == [7.0] * 7 + [14.0]


def test_density_by_hand() -> None:
    # exp(3 - 1) = 7.389; beyond 88 it stays finite.
    assert float(density_of(torch.tensor(3.0))) == pytest.approx(7.389, rel=1e-3)
    assert torch.isfinite(density_of(torch.tensor(500.0)))


def test_the_gate_weighs_the_planes() -> None:
    voxels, planes = torch.randn(5, 8), torch.randn(5, 8)
    voxels[:, GATE] = torch.tensor([0.0, 1.0, -2.0, 0.5, 3.0])
    values = merge(voxels, planes, LAYOUT)
    for i in range(5):
        gate = voxels[i, GATE]
        torch.testing.assert_close(values.density[i], (gate * planes[i, DENSITY] + voxels[i, DENSITY] - 1).exp())
        merged = (gate * planes[i, :DENSITY] + voxels[i, :DENSITY]).sigmoid()
        torch.testing.assert_close(values.features[i], torch.cat([merged, voxels[i, :DENSITY].sigmoid()]))


def test_without_gate_and_concatenation() -> None:
    layout = Layout(64, 16, feature_gating=False, feature_concat=False)
    voxels, planes = torch.randn(5, 8), torch.randn(5, 8)
    values = merge(voxels, planes, layout)
    torch.testing.assert_close(values.features, (planes + voxels)[:, :DENSITY].sigmoid())


def test_the_gate_has_a_gradient() -> None:
    voxels = torch.randn(3, 8, requires_grad=True)
    planes = torch.randn(3, 8)
    density = merge(voxels, planes, LAYOUT).density
    density.sum().backward()
    assert voxels.grad is not None
    torch.testing.assert_close(voxels.grad[:, GATE], density.detach() * planes[:, DENSITY])


def test_field_is_interpolated_from_its_texels() -> None:
    field = small_field()
    points, row = torch.randn(200, 3) * 1.5, torch.randint(2, (200,))
    with torch.no_grad():
        ours = field(points, row)
        corners = corners_of(contract(points), row, LAYOUT)
        # Slowly: every texel of every point on its own.
        values = denormalise(quantise(field.texels(corners.codes[corners.index].flatten()))).view(200, 20, 8)
        weighted = values * corners.weights[..., None]
        slow = merge(weighted[:, :VOXEL_CORNERS].sum(dim=1), weighted[:, VOXEL_CORNERS:].sum(dim=1), LAYOUT)
    torch.testing.assert_close(ours.features, slow.features, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours.density, slow.density, rtol=1e-2, atol=1e-3)


def test_submodels_have_fields_of_their_own() -> None:
    field = small_field()
    points = torch.rand(20, 3)
    with torch.no_grad():
        first, second = (field(points, torch.full((20,), row)).density for row in (0, 1))
        mixed = field(points, torch.arange(20) % 2).density
    assert float((first - second).abs().max()) > 1e-3
    torch.testing.assert_close(mixed[0::2], first[0::2])
    torch.testing.assert_close(mixed[1::2], second[1::2])


def test_starts_translucent() -> None:
    field = SmerfField(Layout(256, 64), num_levels=4, max_res=64, log2_table_size=12)
    with torch.no_grad():
        density = field(torch.rand(500, 3) - 0.5, torch.zeros(500, dtype=torch.long)).density
    depth = density * field.layout.triplane_voxel / field.layout.submodel_scale
    assert 0.03 < float(depth.median()) < 0.3
    # The finer the voxels, the denser.
    assert float(first_values(Layout(1024, 256))[DENSITY]) > float(first_values(Layout(256, 64))[DENSITY])
