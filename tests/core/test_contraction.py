"""MERF's contraction against its definition, its inverse and its derivative."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from radcomp_plugins.core.contraction import contract, contracted_speed, uncontract

COORDINATE = st.floats(-50, 50, allow_nan=False, width=32)
POINT = st.tuples(COORDINATE, COORDINATE, COORDINATE)


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        # Inside the unit cube nothing moves.
        ([0.3, -0.9, 1.0], [0.3, -0.9, 1.0]),
        # m = 4 along y: x and z over 4, y to -(2 - 1/4).
        ([2.0, -4.0, 1.0], [0.5, -1.75, 0.25]),
        # m = 2 along x.
        ([2.0, 1.0, -0.5], [1.5, 0.5, -0.25]),
    ],
)
def test_contract_by_hand(point: list[float], expected: list[float]) -> None:
    torch.testing.assert_close(contract(torch.tensor(point)), torch.tensor(expected))


@given(POINT)
def test_contract_stays_in_the_cube_and_comes_back(point: tuple[float, float, float]) -> None:
    x = torch.tensor(point, dtype=torch.float64)
    y = contract(x)
    assert float(y.abs().max()) < 2.0
    torch.testing.assert_close(uncontract(y), x, rtol=1e-6, atol=1e-6)


def test_uncontract_is_finite_at_the_wall() -> None:
    assert torch.isfinite(uncontract(torch.tensor([[2.0, 0.5, -2.0], [2.5, 0.0, 0.0]]))).all()


def test_rays_stay_straight_within_a_region() -> None:
    # All of these have x as their largest coordinate: three points on a line stay on a line.
    start, along = torch.tensor([2.0, 0.3, -1.0]).double(), torch.tensor([1.0, 0.2, 0.4]).double()
    line = start + torch.tensor([0.0, 1.0, 7.0])[:, None] * along
    a, b, c = contract(line)
    assert float(torch.linalg.cross(b - a, c - a).norm()) < 1e-9


@given(POINT, POINT)
def test_speed_is_the_derivative(point: tuple[float, float, float], direction: tuple[float, float, float]) -> None:
    x, d = torch.tensor(point, dtype=torch.float64), torch.tensor(direction, dtype=torch.float64)
    ordered = x.abs().sort(descending=True).values
    # At the border between regions there are two derivatives.
    if float(d.norm()) < 1e-3 or float(ordered[0] - ordered[1]) < 1e-3 or abs(float(ordered[0]) - 1.0) < 1e-3:
        return
    h = 1e-7 / float(d.norm())
    numeric = (contract(x + h * d) - contract(x - h * d)).norm() / (2 * h)
    torch.testing.assert_close(contracted_speed(x, d), numeric, rtol=1e-4, atol=1e-6)
