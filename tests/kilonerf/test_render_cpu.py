"""The fused CPU renderer against one ray, one sample, one network at a time in float64."""

import math

import numpy as np
import pytest
import torch
from kilo_scenes import shell_scene, sphere_rays

from radcomp_plugins.core import threads
from radcomp_plugins.kilonerf.grid import CellLookup
from radcomp_plugins.kilonerf.render_cpu import CpuRenderer, RenderSettings
from radcomp_plugins.kilonerf.scene import NetworkShape


def reference(scene, networks, origin, direction, *, start=None, end=math.inf, termination=0.01, steps=1.0):
    """Colour, accumulation, depth, samples and heaviest network of one ray, and the distances of its samples."""
    lookup, step = CellLookup(scene.grid).double(), scene.grid.step / steps
    t = (scene.near if start is None else start) + (torch.arange(int(6.0 / step), dtype=torch.float64) + 0.5) * step
    points = torch.tensor(np.float64(origin)) + t[:, None] * torch.tensor(np.float64(direction))
    t = t[(rows := lookup.occupied(points) & (t <= end))]
    ids, local, share = lookup.blend(points[rows])
    toward = torch.tensor(np.float64(direction)).expand(len(t) * 8, 3)
    raw, rgb = networks.grouped(local.reshape(-1, 3), toward, ids.reshape(-1).clamp(min=0))
    alphas = (1.0 - torch.exp(-networks.optical_depth(raw, 1.0 / steps))).view(-1, 8).numpy()
    rgb, share = rgb.view(-1, 8, 3).numpy(), share.numpy()
    light, color, depth, taken, best = 1.0, np.zeros(3), 0.0, [], (0.0, -1)
    for k in range(len(t)):
        if light < termination:
            break
        for corner in np.flatnonzero(share[k]):
            weight = light * share[k, corner] * alphas[k, corner]
            color += weight * rgb[k, corner]
            depth += weight * float(t[k])
            best = max(best, (weight, int(ids[k, corner])))
        light *= 1.0 - (share[k] * alphas[k]).sum()
        taken.append(float(t[k]))
    color = color + light * scene.background
    return color, 1.0 - light, depth / (1.0 - light) if light < 1.0 else 0.0, len(taken), best[1], taken


def compare(scene, networks, drawn, rays, **options):
    """All rays but the few whose samples lie on the border of voxels, which rounding may put on either side."""
    networks, disagree = networks.double(), 0
    for i, (origin, direction) in enumerate(zip(*rays, strict=True)):
        with torch.no_grad():
            color, accumulation, depth, count, best, _ = reference(scene, networks, origin, direction, **options)
        if count != drawn.samples[i]:
            disagree += 1
            continue
        np.testing.assert_allclose(drawn.rgb[i], color, atol=2e-4)
        np.testing.assert_allclose(drawn.accumulation[i], accumulation, atol=2e-4)
        np.testing.assert_allclose(drawn.depth[i], depth, atol=1e-3)
        assert drawn.network[i] == best or accumulation < 0.05 or scene.grid.overlap > 0
    assert disagree <= len(rays[0]) // 20
    assert drawn.samples.max() > 8


@pytest.mark.parametrize(
    "shape, overlap, settings",
    [
        (NetworkShape(), 0.0, RenderSettings()),
        (NetworkShape(width=8, position_octaves=3, direction_octaves=0), 0.2, RenderSettings(termination=0.0)),
        (NetworkShape(width=36, position_octaves=0, direction_octaves=2), 0.0, RenderSettings(steps=2.0)),
        (NetworkShape(width=4, position_octaves=5), 0.0, RenderSettings(samples_per_pass=1)),
        (NetworkShape(width=4, position_octaves=5), 0.1, RenderSettings(samples_per_pass=100)),
    ],
)
def test_same_as_one_sample_at_a_time(shape, overlap, settings):
    scene, networks = shell_scene(shape, overlap=overlap)
    rays = sphere_rays(60)
    drawn = CpuRenderer(scene).rays(*rays, settings=settings)
    compare(scene, networks, drawn, rays, termination=settings.termination, steps=settings.steps)


def test_starts_and_ends_bound_the_samples():
    scene, networks = shell_scene(NetworkShape(width=4, position_octaves=2))
    rays = sphere_rays(40)
    starts, ends = np.full(40, 1.9, np.float32), np.full(40, 2.6, np.float32)
    drawn = CpuRenderer(scene).rays(*rays, starts, ends)
    compare(scene, networks, drawn, rays, start=1.9, end=2.6)


def camera():
    return np.array([[1.0, 0, 0, 0.1], [0, 1, 0, -0.2], [0, 0, 1, 2.4]]), 40.0, 44.0, 17.0, 13.0, 36, 24


def test_pictures_are_the_rays_of_their_pixels():
    scene, _ = shell_scene(NetworkShape(width=8, position_octaves=4))
    pose, fx, fy, cx, cy, width, height = camera()
    renderer = CpuRenderer(scene)
    picture = renderer.picture(*camera())
    v, u = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    directions = np.stack([(u - cx) / fx, (cy - v) / fy, -np.ones_like(u)], -1).reshape(-1, 3) @ pose[:, :3].T
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    rays = renderer.rays(np.broadcast_to(pose[:, 3], directions.shape), directions)
    assert picture.rgb.shape == (width * height, 3)
    same = picture.samples == rays.samples
    assert same.mean() > 0.97
    np.testing.assert_allclose(picture.rgb[same], rays.rgb[same], atol=2e-4)


def test_the_number_of_threads_and_of_rays_changes_no_bit():
    scene, _ = shell_scene(overlap=0.1)
    renderer, rays = CpuRenderer(scene), sphere_rays(5000)
    before = threads.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            threads.set_num_threads(count)
            results.append(renderer.rays(*rays))
    finally:
        threads.set_num_threads(before)
    alone = renderer.rays(rays[0][77:78], rays[1][77:78])
    for other in results[1:]:
        for name in ("rgb", "accumulation", "depth", "samples", "network"):
            np.testing.assert_array_equal(getattr(results[0], name), getattr(other, name))
    np.testing.assert_array_equal(results[0].rgb[77:78], alone.rgb)
    assert results[0].counters.samples == results[2].counters.samples == results[0].samples.sum()


def test_samples_per_pass_changes_no_bit():
    scene, _ = shell_scene()
    renderer, rays = CpuRenderer(scene), sphere_rays(300)
    drawn = [renderer.rays(*rays, settings=RenderSettings(samples_per_pass=k)).rgb for k in (1, 3, 16, 64)]
    for other in drawn[1:]:
        np.testing.assert_array_equal(drawn[0], other)


def test_skipping_saves_work_and_changes_nothing():
    scene, _ = shell_scene()
    renderer, rays = CpuRenderer(scene), sphere_rays(300)
    fast, slow = (renderer.rays(*rays, settings=RenderSettings(skip=skip)) for skip in (True, False))
    np.testing.assert_allclose(fast.rgb, slow.rgb, atol=1e-6)
    np.testing.assert_allclose(fast.accumulation, slow.accumulation, atol=1e-6)
    assert slow.counters.lanes > 1.5 * fast.counters.lanes


def test_termination_saves_work_and_little_light():
    scene, _ = shell_scene()
    renderer, rays = CpuRenderer(scene), sphere_rays(300)
    full, short = (renderer.rays(*rays, settings=RenderSettings(termination=t)) for t in (0.0, 0.1))
    assert short.counters.samples < full.counters.samples
    assert short.counters.lanes <= full.counters.lanes
    assert 1e-4 < np.abs(full.rgb - short.rgb).max() < 0.1


def test_rays_that_see_nothing():
    scene, _ = shell_scene()
    renderer = CpuRenderer(scene)
    up = np.array([[0.0, 0.0, 1.0]], np.float32)
    for origin in ([5.0, 0.0, 0.0], [0.0, 0.0, 0.9], [0.99, 0.0, 0.0]):
        drawn = renderer.rays(np.array([origin], np.float32), up)
        np.testing.assert_array_equal(drawn.rgb[0], scene.background.astype(np.float32))
        assert drawn.accumulation[0] == drawn.depth[0] == drawn.samples[0] == 0 and drawn.network[0] == -1
    assert renderer.rays(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)).rgb.shape == (0, 3)


def test_counters_add_up():
    scene, _ = shell_scene()
    drawn = CpuRenderer(scene).rays(*sphere_rays(3000))
    counters = drawn.counters
    assert counters.rays == 3000 and 0 < counters.hit < 3000
    assert counters.samples == drawn.samples.sum() <= counters.lanes
    assert counters.blocks >= counters.lanes / 32
    assert set(counters.seconds) == {"enter", "march", "sort", "evaluate", "composite"}
    assert counters.seconds["evaluate"] > 0


@pytest.mark.parametrize("overlap", [0.0, 0.2])
def test_lit_samples_are_those_that_counted(overlap):
    scene, networks = shell_scene(NetworkShape(width=8, position_octaves=3), overlap=overlap)
    renderer, rays = CpuRenderer(scene), sphere_rays(200)
    offsets, away = renderer.lit_samples(*rays)
    drawn = renderer.rays(*rays)
    np.testing.assert_array_equal(np.diff(offsets), drawn.samples)
    for ray in range(0, 200, 20):
        with torch.no_grad():
            *_, taken = reference(scene, networks.double(), rays[0][ray], rays[1][ray])
        found = away[offsets[ray] : offsets[ray + 1]]
        assert len(taken) != len(found) or np.allclose(found, taken, atol=1e-5)


def test_rays_of_wrong_shapes_are_refused():
    renderer = CpuRenderer(shell_scene()[0])
    with pytest.raises(ValueError, match="rays have shapes"):
        renderer.rays(np.zeros((4, 3), np.float32), np.zeros((3, 3), np.float32))
