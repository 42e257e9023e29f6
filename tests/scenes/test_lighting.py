import math

import numpy as np
import pytest

from radcomp_plugins.core.threads import get_num_threads, set_num_threads
from radcomp_plugins.scenes import shapes
from radcomp_plugins.scenes.lighting import bake
from radcomp_plugins.scenes.world import AreaLight, BulbLight, Material, Scene, Sun, World, compile_scene

GREY = {"m": Material(colors=((0.5, 0.5, 0.5),), f0=0.0)}


def lit(scene: Scene, **options) -> World:
    world = compile_scene(scene)
    bake(world, 256, **options)
    return world


def floor(size: float = 0.02) -> list[shapes.Patch]:
    return [shapes.quad((-size, -size, 0), (2 * size, 0, 0), (0, 2 * size, 0), "m", texel=size)]


def test_open_sky_gives_pi_times_its_radiance() -> None:
    world = lit(Scene(GREY, floor(), sky=((0.7, 0.7, 0.7),) * 3))
    assert np.allclose(world.irradiance[:, :3], 0.7 * math.pi, rtol=1e-3)
    assert np.allclose(world.irradiance[:, 3], 1.0)
    assert np.allclose(world.radiosity, 0.5 * 0.7, rtol=1e-3)


def test_small_area_light_follows_the_inverse_square_and_both_cosines() -> None:
    h = 0.01
    light = AreaLight((1.5, 0, 2), (h, 0, 0), (0, -h, 0), (100.0, 50.0, 10.0))
    world = lit(Scene(GREY, floor(), areas=(light,)))
    square = 1.5**2 + 2**2
    expected = np.array([100, 50, 10]) * (2 * h) ** 2 * (4 / square) / square
    assert np.allclose(world.irradiance[:, :3], expected, rtol=0.03)


def test_bulb_follows_the_inverse_square() -> None:
    world = lit(Scene(GREY, floor(), bulbs=(BulbLight((0, 3, 4), 0.01, (5.0, 5.0, 5.0)),)))
    assert np.allclose(world.irradiance[:, :3], 5.0 * 0.8 / 25, rtol=0.02)


def test_sun_is_kept_for_the_view_but_counts_for_bounces() -> None:
    world = lit(Scene(GREY, floor(), sun=Sun((0, 0.6, 0.8), (2.0, 2.0, 2.0))))
    assert np.allclose(world.irradiance[:, :3], 0.0)
    assert np.allclose(world.radiosity, 0.5 * 1.6 / math.pi, rtol=1e-5)
    assert world.sunny.all()


def test_things_in_between_cast_shadows() -> None:
    lid = shapes.place([shapes.quad((-1, -1, 0), (2, 0, 0), (0, 2, 0), "m", texel=1.0)], (0, 0, 1))
    light = AreaLight((0, 0, 2), (0.1, 0, 0), (0, -0.1, 0), (100.0,) * 3)
    sun = Sun((0, 0.1, 1), (1.0,) * 3)
    world = lit(Scene(GREY, [*floor(), *lid], areas=(light,), sun=sun, bulbs=(BulbLight((0, 0, 3), 0.1, (9.0,) * 3),)))
    below = world.texel[:, 0] == 0
    # What little there is has been thrown back by the lid.
    assert world.irradiance[below, :3].max() < 1e-3
    assert not world.sunny[below].any()


def test_white_furnace() -> None:
    """Inside a closed grey box that glows, radiance is emission / (1 - albedo), whatever the shape."""
    glowing = {"m": Material(colors=((0.5, 0.5, 0.5),), f0=0.0, emission=1.0)}
    inward = [shapes.grid(p.points[:, ::-1], "m", texel=0.25) for p in shapes.box((1, 1, 1), "m")]
    world = lit(Scene(glowing, inward), bounces=40)
    assert np.allclose(world.radiosity, 0.5 / (1 - 0.5), rtol=1e-3)


def test_buried_texels_take_the_light_of_their_neighbours() -> None:
    ground = shapes.quad((-1, -1, 0), (2, 0, 0), (0, 2, 0), "m", texel=0.1)
    block = shapes.place(shapes.box((0.5, 0.5, 0.5), "m", texel=0.25), (0, 0, -0.1))
    world = lit(Scene(GREY, [ground, *block], sky=((1.0, 1.0, 1.0),) * 3))
    chart = world.irradiance[world.texel[:, 0] == 0, 0].reshape(20, 20)
    assert chart.min() > 0.3
    assert chart[0, 0] > 2.5


def test_maps_do_not_depend_on_the_number_of_threads() -> None:
    before = get_num_threads()
    patches = [shapes.sphere(0.5, "m", texel=0.1), *shapes.place(floor(1.0), (0, 0, -0.5))]
    light = AreaLight((0, 1, 2), (0.5, 0, 0), (0, -0.5, 0), (3.0, 2.0, 1.0))
    maps = []
    try:
        for threads in (1, 2, 4):
            set_num_threads(threads)
            world = compile_scene(Scene(GREY, patches, sky=((1.0, 1.0, 1.0),) * 3, areas=(light,)))
            bake(world, 32)
            maps.append(world.irradiance.tobytes() + world.radiosity.tobytes())
    finally:
        set_num_threads(before)
    assert maps[0] == maps[1] == maps[2]
    assert pytest.approx(0.0) != np.frombuffer(maps[0], np.float32).max()
