import numpy as np
import pytest

from radcomp_plugins.core.threads import get_num_threads, set_num_threads
from radcomp_plugins.scenes import shapes
from radcomp_plugins.scenes.lighting import bake
from radcomp_plugins.scenes.render import Camera, draw
from radcomp_plugins.scenes.still_life import look_at
from radcomp_plugins.scenes.world import AreaLight, Material, Scene, World, compile_scene

WHITE_SKY = ((1.0, 1.0, 1.0),) * 3


def lit(patches: list[shapes.Patch], material: Material, **options) -> World:
    world = compile_scene(Scene({"m": material}, patches, sky=WHITE_SKY, **options))
    bake(world, 32)
    return world


def view(eye: tuple[float, ...], size: int = 41, focal: float = 60.0) -> Camera:
    return Camera(look_at(eye, (0.0, 0.0, 0.0)), size, size, focal)


def test_depth_is_that_of_the_sphere_along_the_view_axis() -> None:
    camera = view((0.0, -3.0, 0.4))
    world = lit([shapes.sphere(0.6, "m", sides=256, texel=0.2)], Material())
    image, depth = draw(world, camera)
    grid = (np.arange(41) + 0.5 - 20.5) / 60.0
    x, y = np.meshgrid(grid, -grid)
    rays = np.stack([x, y, -np.ones_like(x)], axis=-1) @ camera.pose[:3, :3].T
    eye = camera.pose[:3, 3]
    a, b, c = (rays**2).sum(-1), rays @ eye, eye @ eye - 0.36
    root = np.asarray(b * b - a * c)
    expected = np.where(root > 0, (np.negative(b) - np.sqrt(np.maximum(root, 0))) / a, 0.0)
    clear = np.abs(root) > 0.1
    assert np.allclose(depth[clear], expected[clear], atol=2e-3)
    assert ((depth > 0) == (expected > 0))[clear].all()
    assert (image[..., 3][clear & (root < 0)] == 0).all()
    assert (image[image[..., 3] == 0] == 0).all()
    assert (image[20, 20, 3], image[0, 0, 3]) == (255, 0)
    assert ((image[..., 3] > 0) & (image[..., 3] < 255)).any()


def test_alpha_is_the_covered_part_of_a_pixel() -> None:
    """The edge of a large square that cuts pixels at a third, seen head on."""
    square = shapes.quad((-5, 0, -5), (5 + (1 / 3) / 60.0 * 3.0, 0, 0), (0, 0, 10), "m", texel=5.0)
    image, _ = draw(lit([square], Material()), view((0.0, -3.0, 0.0), 40))
    assert (image[:, :20, 3] == 255).all() and (image[:, 21:, 3] == 0).all()
    assert np.allclose(image[:, 20, 3] / 255, 1 / 3, atol=0.09)


def test_image_is_upright_and_not_mirrored() -> None:
    """A ball to the right of and above another one, seen from -y."""
    right_up = shapes.place([shapes.sphere(0.2, "m")], (0.6, 0.0, 0.6))
    _, depth = draw(lit(right_up, Material()), view((0.0, -3.0, 0.0)))
    rows, columns = np.nonzero(depth)
    assert rows.mean() == pytest.approx(20 - 60 * 0.2, abs=0.5)
    assert columns.mean() == pytest.approx(20 + 60 * 0.2, abs=0.5)


def test_matt_surfaces_look_the_same_from_everywhere_and_glossy_ones_do_not() -> None:
    light = AreaLight((0, -2, 3), (0.6, 0, 0), (0, -0.5, -0.3), (9.0, 9.0, 9.0))
    spread = []
    for material in (Material(f0=0.0), Material(f0=0.05, roughness=0.1)):
        world = lit([shapes.disc(1.0, "m", texel=0.2)], material, areas=(light,))
        middle = [draw(world, view(eye))[0][20, 20, :3].astype(int) for eye in ((0, 2, 3), (2, 0, 3), (0, -2, 3))]
        spread.append(np.ptp(middle, axis=0).max())
    assert spread[0] <= 1 and spread[1] > 10


def test_metal_mirrors_what_stands_before_it() -> None:
    mirror = Material(colors=((1.0, 1.0, 1.0),), metallic=1.0, roughness=0.0)
    red = Material(colors=((1.0, 0.0, 0.0),), f0=0.0, emission=1.0)
    patches = [shapes.disc(2.0, "m", texel=1.0), *shapes.place([shapes.sphere(0.3, "red")], (0, 1.0, 1.0))]
    world = compile_scene(Scene({"m": mirror, "red": red}, patches, sky=WHITE_SKY))
    bake(world, 16)
    image, _ = draw(world, view((0.0, -2.0, 2.0)))
    assert image[20, 20, 0] > 100 and image[20, 20, 1] < 10
    assert image[20, 3, 1] > 150


def test_picture_does_not_depend_on_the_number_of_threads() -> None:
    before = get_num_threads()
    world = lit([shapes.sphere(0.6, "m")], Material())
    pictures = []
    try:
        for threads in (1, 2, 4):
            set_num_threads(threads)
            image, depth = draw(world, view((1.0, -3.0, 0.4)))
            pictures.append(image.tobytes() + depth.tobytes())
    finally:
        set_num_threads(before)
    assert pictures[0] == pictures[1] == pictures[2]
