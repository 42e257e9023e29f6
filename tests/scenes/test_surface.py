# Star arguments before others: pyright takes them for all that follow.
# pyright: reportCallIssue=false
import numpy as np
import pytest

from radcomp_plugins.scenes import bvh, shapes, surface
from radcomp_plugins.scenes.world import AreaLight, Material, Scene, compile_scene


@pytest.fixture(scope="module")
def world():
    patches = [shapes.sphere(0.5, "m", sides=64, texel=0.2), shapes.leaf(1.0, 0.5, "m")]
    light = AreaLight((0, 0, 2), (0.5, 0, 0), (0, -0.5, 0), (3.0, 2.0, 1.0))
    return compile_scene(Scene({"m": Material()}, patches, sky=((1, 2, 3), (0.5, 0.5, 0.5), (0, 0, 0)), areas=(light,)))


def test_hit_on_a_sphere_is_where_the_formula_says(world) -> None:
    stack, s = np.empty(bvh.STACK_SIZE, np.int64), np.empty(surface.SCRATCH)
    rng = np.random.default_rng(0)
    for _ in range(100):
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        origin = -2 * direction + 0.2 * np.cross(direction, rng.normal(size=3))
        t, tri, b1, b2 = bvh.trace(world.bvh, *origin, *direction, np.inf, False, stack)
        half = origin @ direction
        root = half**2 - origin @ origin + 0.25
        if tri < 0 or world.triangle[tri, 0] != 0 or root < 0.02:
            continue
        assert t == pytest.approx(-half - np.sqrt(root), abs=6e-3)
        k, u, v = surface.locate(world, tri, b1, b2)
        surface.evaluate(world, k, u, v, s)
        assert np.allclose(s[0:3], origin + t * direction, atol=2e-3)
        assert np.allclose(s[3:6], s[0:3] / np.linalg.norm(s[0:3]), atol=1e-2)
        assert np.allclose(s[6:9], s[0:3], atol=1e-9)


def test_place_of_a_hit_round_trips(world) -> None:
    """A point on a triangle of the leaf, asked for by barycentric weights, is the point of its grid place."""
    s = np.empty(surface.SCRATCH)
    own = np.nonzero(world.triangle[:, 0] == 1)[0]
    for tri in own:
        k, u, v = surface.locate(world, tri, 0.0, 1.0)
        surface.evaluate(world, k, u, v, s)
        corner = world.bvh.triangles[tri]
        assert np.allclose(s[0:3], corner[0:3] + corner[6:9], atol=1e-12)


def test_lightmap_lookup_is_bilinear_and_wraps(world) -> None:
    nu, nv, first = world.patch[0, surface.TEXELS_U], world.patch[0, surface.TEXELS_V], world.patch[0, surface.TEXEL]
    rng = np.random.default_rng(0)
    maps = rng.random((len(world.texel), 4)).astype(np.float32)
    chart, out = maps[first : first + nu * nv].reshape(nv, nu, 4), np.empty(4)
    surface.baked(world, maps, 0, 2.5 / nu, 1.5 / nv, False, out)
    assert np.allclose(out, chart[1, 2])
    surface.baked(world, maps, 0, 0.0, 2.0 / nv, False, out)
    assert np.allclose(out, (chart[1, 0] + chart[1, -1] + chart[2, 0] + chart[2, -1]) / 4)
    surface.baked(world, maps, 0, 0.5 / nu, 1.0, False, out)
    assert np.allclose(out, chart[-1, 0])


def test_two_sided_patches_have_a_chart_for_each_side(world) -> None:
    outer, inner = surface.texel_at(world, 1, 0.5, 0.5, False), surface.texel_at(world, 1, 0.5, 0.5, True)
    assert world.texel[outer, 3] == 0 and world.texel[inner, 3] == 1
    assert world.texel[outer, :3].tolist() == world.texel[inner, :3].tolist()
    assert surface.texel_at(world, 0, 0.5, 0.5, True) == surface.texel_at(world, 0, 0.5, 0.5, False)


def test_surroundings_show_the_light_in_its_place(world) -> None:
    assert np.allclose(surface.sky(world, 1.0), (1, 2, 3)) and np.allclose(surface.sky(world, -1.0), 0)
    middle = surface.surroundings(world, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    assert np.allclose(middle, (4, 4, 4))
    beside = np.array([0.6, 0.0, 2.0]) / np.linalg.norm([0.6, 0.0, 2.0])
    assert np.allclose(surface.surroundings(world, 0.0, 0.0, 0.0, *beside, 0.0), surface.sky(world, beside[2]))
    behind = surface.surroundings(world, 0.0, 0.0, 3.0, 0.0, 0.0, -1.0, 0.0)
    assert np.allclose(behind, 0)
    blurred = surface.surroundings(world, 0.0, 0.0, 0.0, *beside, 0.3)
    assert blurred[0] > surface.sky(world, beside[2])[0] + 0.1
