"""Jittered patches and what the teacher says of them."""

import math

import pytest
import torch
from analytic_teacher import BallTeacher, orbit_rays
from nerfstudio.cameras.rays import RayBundle

from radcomp_plugins.smerf.layout import Layout
from radcomp_plugins.smerf.rays import (
    JitterSettings,
    TaughtPool,
    end_of_sight,
    jitter,
    rotate_about,
    taught_pool,
    weighty_points,
    without_most_empty,
)
from radcomp_plugins.smerf.submodels import Submodels, unit_frame


def submodels() -> Submodels:
    return Submodels(Layout(64, 16, scene_to_unit=unit_frame(torch.tensor([[2.5, 0.0, 0.0]]))))


def test_rotation_by_hand() -> None:
    turned = rotate_about(
        torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[math.pi / 2]])
    )
    torch.testing.assert_close(turned, torch.tensor([[0.0, 1.0, 2.0]]), atol=1e-6, rtol=0)


def test_jitter_moves_what_it_should() -> None:
    bundle = orbit_rays(200)
    moved = torch.arange(200) % 2 == 0
    changed = jitter(bundle, moved, 0.1, 0.2, 9)
    rays = moved.repeat_interleave(9)
    assert bool((changed.origins[~rays] == bundle.origins[~rays]).all())
    assert bool((changed.directions[~rays] == bundle.directions[~rays]).all())
    assert float((changed.origins - bundle.origins)[rays].std()) == pytest.approx(0.1, rel=0.1)
    torch.testing.assert_close(changed.directions.norm(dim=-1), torch.ones(1800))
    angle = (changed.directions * bundle.directions).sum(dim=-1).clamp(-1, 1).acos()[rays]
    assert float(angle.max()) <= 0.2 + 1e-3 and float(angle.max()) > 0.1
    # A patch turns as one: angles between its rays stay.
    before, after = (b.directions.view(200, 9, 3) for b in (bundle, changed))
    torch.testing.assert_close(
        (before[:, :1] * before).sum(-1), (after[:, :1] * after).sum(-1), atol=1e-5, rtol=0
    )  # fmt: skip
    # Their origins do not move as one (the authors' setting).
    shifts = (changed.origins - bundle.origins).view(200, 9, 3)[moved]
    assert float((shifts[:, 0] - shifts[:, 1]).abs().min(dim=0).values.sum()) > 0


def test_pool_is_in_the_unit_frame_and_on_the_background() -> None:
    frames, teacher = submodels(), BallTeacher()
    bundle = orbit_rays(100)
    pool = taught_pool(bundle, torch.full((900, 3), 0.25), teacher, frames, JitterSettings(0.0, 0.0, 0.0, 200))
    said = teacher.query_rays(bundle)
    torch.testing.assert_close(pool.origins.flatten(0, 1), bundle.origins / 2.5)
    assert pool.edges.shape[-1] == said.edges.shape[-1]
    assert float(pool.edges.max()) < 5.2 / 2.5
    nothing = pool.weights.sum(dim=-1) < 1e-6
    assert bool(nothing.any())
    torch.testing.assert_close(pool.target[nothing], torch.ones_like(pool.target[nothing]))


def test_photos_replace_the_teacher() -> None:
    pool = taught_pool(
        orbit_rays(50), torch.full((450, 3), 0.25), BallTeacher(), submodels(), JitterSettings(0.03, 0.03, 1.0, 500)
    )
    assert bool((pool.target == 0.25).all())
    torch.testing.assert_close(pool.origins.norm(dim=-1), torch.ones(50, 9))


def test_select() -> None:
    pool = taught_pool(
        orbit_rays(6), torch.zeros(54, 3), BallTeacher(), submodels(), JitterSettings(0.03, 0.03, 0.0, 500)
    )
    chosen = pool.select(torch.tensor([4, 1]))
    assert isinstance(chosen, TaughtPool) and len(chosen) == 2
    for name in ("origins", "directions", "edges", "weights", "target"):
        assert bool((getattr(chosen, name)[1] == getattr(pool, name)[1]).all())


def test_end_of_sight_by_hand() -> None:
    edges = torch.tensor([[0.0, 1.0, 2.0, 3.0]] * 3)
    weights = torch.tensor([[0.5, 0.497, 0.003], [0.2, 0.2, 0.2], [1.0, 0.0, 0.0]])
    assert end_of_sight(edges, weights, 100.0).tolist() == [2.0, 100.0, 1.0]


def test_a_long_interval_shares_its_weight_out() -> None:
    frames = submodels()
    # One ray along x through the linear region: 0.6 of weight on 0.02, then 0.3 on 0.1, unit frame; a voxel is 0.01.
    edges = torch.tensor([0.0, 0.05, 0.07, 0.17]).expand(1, 9, 4)
    weights = torch.tensor([0.0, 0.6, 0.3]).expand(1, 9, 3)
    directions = torch.tensor([1.0, 0.0, 0.0]).expand(1, 9, 3)
    pool = TaughtPool(torch.zeros(1, 9, 3), directions, edges, weights, torch.zeros(1, 9, 3))
    voxel = 0.01 * frames.layout.submodel_scale
    for threshold, farthest in ((0.029, 0.17), (0.031, 0.07), (0.29, 0.07)):
        points, _ = weighty_points(pool, threshold, frames, voxel)
        assert float(points[:, 0].min()) > 0.05 and farthest - 0.03 < float(points[:, 0].max()) < farthest
    assert len(weighty_points(pool, 0.31, frames, voxel)[0]) == 0
    assert len(weighty_points(pool, 0.31, frames, 10 * voxel)[0]) == 36, "shorter than a voxel: it counts whole"


def test_weighty_points_lie_on_the_balls() -> None:
    frames = submodels()
    pool = taught_pool(
        orbit_rays(300), torch.zeros(2700, 3), BallTeacher(), frames, JitterSettings(0.0, 0.0, 0.0, 3000)
    )
    points, origins = weighty_points(pool, 0.01, frames, 0.25)
    assert len(points) == len(origins) > 100
    scene = points / frames.unit_scale
    from analytic_teacher import CENTRES, RADII

    outside = ((scene[:, None] - CENTRES).norm(dim=-1) - RADII).min(dim=-1).values
    assert float(outside.max()) < 0.05  # an interval is 0.042 long


def test_query_in_chunks_is_the_same() -> None:
    rays: RayBundle = orbit_rays(40)
    pools = [
        taught_pool(rays, torch.zeros(360, 3), BallTeacher(), submodels(), JitterSettings(0.0, 0.0, 1.0, chunk))
        for chunk in (50, 1000)
    ]
    assert pools[0].weights.shape == pools[1].weights.shape


def test_most_empty_patches_are_left_out() -> None:
    pool = taught_pool(
        orbit_rays(400), torch.zeros(3600, 3), BallTeacher(), submodels(), JitterSettings(0.0, 0.0, 0.0, 4000)
    )
    empty = ~(pool.weights.sum(dim=-1) > 0.01).any(dim=-1)
    assert 50 < int(empty.sum()) < 350
    kept = without_most_empty(pool, 0.2)
    kept_empty = int((~(kept.weights.sum(dim=-1) > 0.01).any(dim=-1)).sum())
    assert len(kept) - kept_empty == int((~empty).sum())
    assert 0.05 * int(empty.sum()) < kept_empty < 0.4 * int(empty.sum())
    assert without_most_empty(pool, 1.0) is pool
