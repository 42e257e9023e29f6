"""Training pixels of several sizes."""

import pytest
import torch

from radcomp_plugins.teachers.zipnerf.scales import coarse_pixels, draw_exponents


def index(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def test_colours_are_means_over_cells_and_centres_are_theirs() -> None:
    images = torch.rand(2, 9, 13, 3)
    colors, centers = coarse_pixels(images, index(0, 1, 1), index(3, 7, 8), index(5, 2, 12), index(0, 1, 2))
    torch.testing.assert_close(colors[0], images[0, 3, 5])
    torch.testing.assert_close(colors[1], images[1, 6:8, 2:4].mean(dim=(0, 1)))
    # Row 8 and column 12 are beyond the last whole cell of 4 x 4.
    torch.testing.assert_close(colors[2], images[1, 4:8, 8:12].mean(dim=(0, 1)))
    assert centers.tolist() == [[3.5, 5.5], [7.0, 3.0], [6.0, 10.0]]


def test_transparent_pixels_have_no_say_in_the_colour() -> None:
    images = torch.zeros(1, 2, 2, 4)
    images[0, 0, 0] = torch.tensor([1.0, 0.5, 0.0, 1.0])
    images[0, 1, 1] = torch.tensor([0.0, 0.5, 1.0, 0.5])
    images[0, 0, 1] = torch.tensor([1.0, 1.0, 1.0, 0.0])
    colors, _ = coarse_pixels(images, index(0), index(1), index(0), index(1))
    # On black: (1 * 1 + 0.5 * 0) / 4 of red, 0.375 of alpha.
    torch.testing.assert_close(colors[0], torch.tensor([0.25 / 0.375, (0.125 + 0.0625) / 0.375, 0.125 / 0.375, 0.375]))


def test_nothing_at_all_is_nothing() -> None:
    colors, _ = coarse_pixels(torch.zeros(1, 4, 4, 4), index(0), index(1), index(1), index(2))
    assert torch.equal(colors, torch.zeros(1, 4))


def test_sizes_are_drawn_in_their_shares() -> None:
    exponents = draw_exponents(20_000, 4, 0.3, "cpu")
    shares = torch.bincount(exponents) / 20_000
    assert shares.tolist() == pytest.approx([0.7, 0.1, 0.1, 0.1], abs=0.02)
    assert not draw_exponents(100, 1, 0.0, "cpu").any()
