"""Draws that depend on their place in a run alone."""

import itertools

import torch

from radcomp_plugins.core.seeded import seeded


def draw(*place: int) -> float:
    with seeded(*place):
        return float(torch.rand(()))


def test_same_place_same_numbers_and_nothing_outside_changes() -> None:
    torch.manual_seed(3)
    expected = float(torch.rand(()))
    torch.manual_seed(3)
    first = draw(0, 5, 1)
    assert float(torch.rand(())) == expected
    torch.rand(100)
    assert draw(0, 5, 1) == first


def test_every_place_draws_its_own() -> None:
    places = list(itertools.product((0, 1), (-3, 0, 7), (0, 1, 7), (0, 1)))
    assert len({draw(*place) for place in places}) == len(places)
