"""Frames, and which submodel a ray belongs to."""

import numpy as np
import pytest
import torch

from radcomp_plugins.errors import InputError
from radcomp_plugins.smerf.layout import Layout, unit_to_submodel
from radcomp_plugins.smerf.submodels import Submodels, live_submodels, rotate, unit_frame


def test_layout_and_torch_agree() -> None:
    layout = Layout(64, 16, 3, 0.8, (0, 13, 26))
    points = torch.randn(50, 3)
    submodels = Submodels(layout)
    for row, index in enumerate(layout.alive):
        ours = submodels.to_submodel(points, torch.full((50,), row))
        np.testing.assert_allclose(ours.numpy(), unit_to_submodel(points.numpy(), layout, index), atol=1e-5)
    chosen = np.array(layout.alive)[submodels.assign(points).numpy()]
    np.testing.assert_array_equal(chosen, layout.nearest(points.numpy()))


def test_frames_by_hand() -> None:
    # K = 2: cell 7 is centred at (1/2, 1/2, 1/2); scale 2 * 0.8 = 1.6; WebGL axes are (-x, z, y).
    submodels = Submodels(Layout(64, 16, 2, 0.8, (0, 7)))
    point = torch.tensor([[1.0, 0.5, 0.25]])
    torch.testing.assert_close(
        submodels.to_submodel(point, torch.tensor([1])), torch.tensor([[-0.8, -0.4, 0.0]])
    )  # fmt: skip
    torch.testing.assert_close(rotate(rotate(point)), point)


def test_nearest_by_largest_norm() -> None:
    # (0.4, 0, 0) is as far from cell 0's centre (-1/2) as 0.9, from cell 7's (1/2) as 0.5.
    submodels = Submodels(Layout(64, 16, 2, 0.8, (0, 7)))
    assert submodels.assign(torch.tensor([[0.4, 0.0, 0.0], [-0.4, 0.0, 0.0]])).tolist() == [1, 0]


def test_neighbours() -> None:
    # K = 3, cells 0 (corner), 1 (touches it) and 26 (the opposite corner, which touches neither).
    submodels = Submodels(Layout(64, 16, 3, 0.8, (0, 1, 26)))
    expected = [[False, True, False], [True, False, False], [False, False, True]]
    assert submodels.is_neighbour.tolist() == expected
    drawn = submodels.random_neighbour(torch.tensor([0, 1, 2]))
    assert drawn.tolist() == [1, 0, 2]


def test_unit_frame_holds_all_cameras() -> None:
    origins = torch.tensor([[4.0, 0.0, 1.0], [0.0, -2.0, 3.0]])
    frame = unit_frame(origins, camera_room=0.5)
    unit = origins.numpy() @ frame[:, :3].T + frame[:, 3]
    assert np.abs(unit).max() == pytest.approx(0.5)
    np.testing.assert_array_equal(unit_frame(torch.zeros(2, 3)), np.eye(4)[:3])


def test_live_submodels() -> None:
    # K = 2 cells by sign: (-,-,-) is 0, (+,-,-) is 4, (+,+,+) is 7.
    origins = torch.tensor([[-0.5, -0.5, -0.5], [0.9, -0.1, -0.9], [1.0, 1.0, 1.0], [0.2, 0.3, 0.4]])
    assert live_submodels(origins, 2) == (0, 4, 7)
    assert live_submodels(torch.tensor([[-0.5, 0.5, -0.5]]), 2) == (2,)


@pytest.mark.parametrize(
    ("origins", "words"),
    [
        (torch.zeros(0, 3), "0 training cameras"),
        (torch.tensor([[0.0, float("nan"), 0.0]]), "not all finite"),
    ],
)
def test_cameras_that_cannot_be(origins: torch.Tensor, words: str) -> None:
    with pytest.raises(InputError, match=words):
        unit_frame(origins)


def test_camera_outside_of_the_cube() -> None:
    with pytest.raises(InputError, match=r"camera 1 is at \(0, 1.5, 0\)"):
        live_submodels(torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.5, 0.0]]), 2)
