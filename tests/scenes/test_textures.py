import numpy as np
import pytest

from radcomp_plugins.scenes import textures
from radcomp_plugins.scenes.still_life import MATERIALS as STILL_LIFE
from radcomp_plugins.scenes.two_rooms import MATERIALS as TWO_ROOMS

ALL = {**STILL_LIFE, **TWO_ROOMS}


@pytest.mark.parametrize("name", ALL)
def test_every_material_has_a_finite_colour_everywhere(name: str) -> None:
    row = ALL[name].row()
    rng = np.random.default_rng(0)
    for place in rng.uniform(-1, 1, (200, 3)):
        color = np.array(textures.albedo(row, *place))
        assert np.isfinite(color).all() and (color >= 0).all() and (color <= 1.6).all()


def test_every_texture_is_used() -> None:
    assert {m.texture for m in ALL.values()} >= set(textures.Kind) - {textures.Kind.CHECKER}


def test_checker() -> None:
    from radcomp_plugins.scenes.world import Material

    row = Material(textures.Kind.CHECKER, ((1.0, 0, 0), (0, 0, 1.0)), (0.5, 0.25)).row()
    assert textures.albedo(row, 0.1, 0.1, 0.0) == (1, 0, 0)
    assert textures.albedo(row, 0.6, 0.1, 0.0) == (0, 0, 1)
    assert textures.albedo(row, 0.6, 0.3, 0.0) == (1, 0, 0)
    assert textures.albedo(row, -0.1, 0.1, 0.0) == (0, 0, 1)


def test_noise_is_continuous_and_spread_over_its_range() -> None:
    line = np.array([textures.noise(x, 0.3, -7.7) for x in np.linspace(-5, 5, 2001)])
    assert np.abs(np.diff(line)).max() < 0.02
    rng = np.random.default_rng(0)
    values = np.array([textures.noise(*p) for p in rng.uniform(-50, 50, (2000, 3))])
    assert 0 <= values.min() < 0.15 and 0.85 < values.max() <= 1 and abs(values.mean() - 0.5) < 0.03


def test_cells_are_exact_near_a_point() -> None:
    """Against a search through all cubes within two of the place."""
    rng = np.random.default_rng(1)
    for place in rng.uniform(-4, 4, (100, 3)):
        base = np.floor(place).astype(int)
        distances = []
        for offset in np.ndindex(5, 5, 5):
            cube = base + offset - 2
            h = textures.hash3(*(int(c) for c in cube))
            point = cube + np.array([h & 1023, (h >> 10) & 1023, (h >> 20) & 1023]) / 1023.0
            distances.append(np.linalg.norm(point - place))
        first = textures.cells(*place)[0]
        assert first >= min(distances) - 1e-12
        if min(distances) < 0.5:
            assert first == pytest.approx(min(distances))


def test_letters_are_upright_and_readable() -> None:
    """The ink of an L is the left column and the bottom row of its 5 x 7 dots within a 6 x 9 cell."""
    ink = [[textures._letter(ord("L") - 65, (c + 0.5) / 6, 1 - (r + 0.5) / 9) for c in range(6)] for r in range(9)]
    rows = ["".join("#" if dot else "." for dot in line) for line in ink]
    assert rows == ["......"] + ["#....."] * 6 + ["#####."] + ["......"]
