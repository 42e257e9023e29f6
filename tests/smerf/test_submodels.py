"""Frames, and which submodel a ray belongs to."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from radcomp_plugins.errors import InputError
from radcomp_plugins.smerf.layout import Layout, unit_to_submodel
from radcomp_plugins.smerf.submodels import CAMERA_ROOM, Submodels, live_submodels, rotate, unit_frame


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


def moved(origins: torch.Tensor, per_axis: int, room: float = 1.0) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Cameras in the unit frame, and the cells that live."""
    frame = unit_frame(origins, room, per_axis)
    unit = (origins.double() @ torch.from_numpy(frame[:, :3]).T + torch.from_numpy(frame[:, 3])).float()
    return unit, live_submodels(unit, per_axis)


def test_cameras_at_eye_height_are_in_one_layer_of_cells() -> None:
    """Two rooms, 7 m wide, cameras within 2.4 m and half a metre of height, all to one side of the scene's origin."""
    generator = torch.Generator().manual_seed(0)
    origins = torch.rand(300, 3, generator=generator) * torch.tensor([7.0, 2.4, 0.5]) + torch.tensor([-3.5, -1.2, 1.2])
    unit, live = moved(origins, 2)
    assert live == (0, 4)
    for axis, middle in ((0, 0.0), (1, -0.5), (2, -0.5)):
        assert float(unit[:, axis].amin() + unit[:, axis].amax()) / 2 == pytest.approx(middle, abs=1e-5)
    assert float(unit[:, 0].amax()) == pytest.approx(1.0, abs=1e-5)
    assert len(moved(origins, 3)[1]) == 6 and len(moved(origins, 5)[1]) == 10


@given(st.integers(0, 1000), st.integers(1, 5), st.floats(0.2, 1.0))
def test_every_axis_has_as_few_cells_as_can_be(seed: int, per_axis: int, room: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    size, place = torch.rand(2, 3, generator=generator) * torch.tensor([[8.0], [20.0]])
    origins = torch.rand(9, 3, generator=generator) * size + place
    unit, live = moved(origins, per_axis, room)
    assert float(unit.abs().max()) <= CAMERA_ROOM
    if per_axis > 1:
        extent = unit.amax(dim=0) - unit.amin(dim=0)
        assert float(extent.max()) == pytest.approx(2 * room, rel=1e-4)
        cells = np.unravel_index(np.array(live), (per_axis,) * 3)
        for axis in range(3):
            most = max(1, int(np.ceil(float(extent[axis]) * per_axis / 2 + 1e-4)))
            assert cells[axis].max() - cells[axis].min() + 1 <= most


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
