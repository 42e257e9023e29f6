"""The texels around points: numbering, weights, places, and the twin in torch."""

import pytest
import torch

from radcomp_plugins.smerf.corners import (
    PLANE_AXES,
    VOXEL_CORNERS,
    corners_of,
    corners_torch,
    texel_centres,
    texels_per_submodel,
)
from radcomp_plugins.smerf.layout import Layout

LAYOUT = Layout(64, 16, 2, 0.8, (0, 7))


def random_points(count: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    # Within the outermost texels' centres, where interpolation has a texel on either side.
    return (torch.rand(count, 3) - 0.5) * 3.7, torch.randint(2, (count,))


def test_every_texel_is_listed_once() -> None:
    points, row = random_points()
    corners = corners_of(points, row, LAYOUT)
    assert len(corners.codes.unique()) == len(corners.codes)
    assert int(corners.index.max()) == len(corners.codes) - 1
    assert int(corners.codes.max()) < 2 * texels_per_submodel(LAYOUT)


def test_interpolated_places_are_the_points() -> None:
    points, row = random_points()
    corners = corners_of(points, row, LAYOUT)
    centres, rows = texel_centres(corners.codes, LAYOUT)
    assert bool((rows[corners.index] == row[:, None]).all())
    weighted = centres[corners.index] * corners.weights[..., None]
    torch.testing.assert_close(weighted[:, :VOXEL_CORNERS].sum(dim=1), points, rtol=1e-5, atol=1e-5)
    for plane, axes in enumerate(PLANE_AXES):
        begin = VOXEL_CORNERS + 4 * plane
        place = weighted[:, begin : begin + 4].sum(dim=1)
        torch.testing.assert_close(place[:, list(axes)], points[:, list(axes)], rtol=1e-5, atol=1e-5)
        # The axis a plane leaves out stands at the first texel.
        left_out = 3 - sum(axes)
        assert float((place[:, left_out] - (-2 + 2 / 64)).abs().max()) < 1e-5


def test_by_hand() -> None:
    # S = 16: voxels of 1/4; the centre of voxel 8 lies at 0.125. A point there has weight 1 on (8, 8, 8).
    corners = corners_of(torch.full((1, 3), 0.125), torch.tensor([1]), LAYOUT)
    heavy = corners.weights[0, :VOXEL_CORNERS].argmax()
    assert float(corners.weights[0, heavy]) == 1.0
    code = int(corners.codes[corners.index[0, heavy]])
    assert code == texels_per_submodel(LAYOUT) + (8 * 16 + 8) * 16 + 8


@pytest.mark.parametrize("far", [1.999, 2.0, 2.5])
def test_points_at_the_wall_have_texels(far: float) -> None:
    points = torch.tensor([[far, -far, 0.0], [-far, far, far]])
    corners = corners_of(points, torch.tensor([0, 1]), LAYOUT)
    assert int(corners.codes.min()) >= 0
    assert int(corners.codes.max()) < 2 * texels_per_submodel(LAYOUT)


def test_twin() -> None:
    points, row = random_points()
    codes, weights = corners_torch(points, row, LAYOUT)
    corners = corners_of(points, row, LAYOUT)
    assert bool((corners.codes[corners.index] == codes).all())
    torch.testing.assert_close(corners.weights, weights, rtol=1e-5, atol=1e-6)
