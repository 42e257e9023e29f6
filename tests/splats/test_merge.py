"""Merging: moments by hand, the bound against its definition, counts, weights, and pictures better than dropping's."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from radcomp_plugins.splats.comparison import SceneComparison
from radcomp_plugins.splats.gaussians import SH_C0, Gaussians
from radcomp_plugins.splats.merge import COLOUR_SPREAD, FLATTEST, cheapest_pairs, costs, merge, merge_pairs
from radcomp_plugins.splats.significance import most_significant
from radcomp_plugins.splats.virtual_views import virtual_views


def cloud(n: int, seed: int = 0, degree_rest: int = 3) -> Gaussians:
    g = torch.Generator().manual_seed(seed)
    return Gaussians(
        torch.randn(n, 3, generator=g), torch.randn(n, 4, generator=g), torch.randn(n, 3, generator=g) * 0.5 - 2,
        torch.randn(n, generator=g), torch.randn(n, 3, generator=g), torch.randn(n, degree_rest, 3, generator=g),
    )  # fmt: skip


def covariance(g: Gaussians, i: int) -> np.ndarray:
    w, x, y, z = g.quats[i].double().tolist()
    turned = Rotation.from_quat([x, y, z, w]).as_matrix() * g.scales[i].double().exp().numpy()
    return turned @ turned.T


def test_two_become_the_one_with_their_moments() -> None:
    g = Gaussians(
        means=torch.tensor([[1.0, 0, 0], [-3.0, 0, 0]]),
        quats=torch.tensor([[1.0, 0, 0, 0], [2.0, 0, 0, 0]]),
        scales=torch.log(torch.tensor([[1.0, 2, 3], [1.0, 2, 3]])),
        opacities=torch.tensor([-1.0, 0.5]),
        sh0=torch.tensor([[4.0, 0, 8], [0, 4, 0]]),
        shN=torch.ones(2, 3, 3) * torch.tensor([1.0, 5.0])[:, None, None],
    )
    merged, weights, kept = merge_pairs(g, np.array([3.0, 1.0]), np.array([[0, 1]]))
    assert torch.equal(merged.means, torch.zeros(1, 3))
    # Along x 1 and the spread of the means about 0: (3 * 1 + 1 * 9) / 4.
    assert np.allclose(covariance(merged, 0), np.diag([4.0, 4.0, 9.0]), rtol=1e-6)
    assert torch.allclose(merged.sh0, torch.tensor([[3.0, 1, 6]])) and torch.allclose(merged.shN, torch.tensor(2.0))
    assert merged.opacities.tolist() == [0.5]
    assert weights.tolist() == [4.0] and kept.tolist() == [0]


def test_a_turned_pair_keeps_its_covariance() -> None:
    g, weights = cloud(2, seed=4), np.array([0.3, 0.7])
    merged = merge_pairs(g, weights, np.array([[0, 1]]))[0]
    m = g.means.double().numpy()
    mean = weights @ m
    expected = sum(w * (covariance(g, i) + np.outer(m[i] - mean, m[i] - mean)) for i, w in enumerate(weights))
    assert np.allclose(merged.means[0], mean, atol=1e-6)
    assert np.allclose(covariance(merged, 0), expected, rtol=1e-5, atol=1e-7)


def test_costs_are_the_bound() -> None:
    g, weights, pairs = cloud(6, seed=1), np.arange(1.0, 7.0), np.array([[0, 1], [2, 5], [3, 4]])
    flat = g.scales.exp().maximum(FLATTEST * g.scales.exp().amax(dim=1, keepdim=True)).log()
    thick = replace(g, scales=flat)
    for (i, j), cost in zip(pairs.tolist(), costs(g, weights, pairs), strict=True):
        wi, wj = weights[i], weights[j]
        w = wi + wj
        apart = (g.means[i] - g.means[j]).double().numpy()
        sixth = np.zeros((3, 6, 6))
        for at, k in ((0, i), (1, j)):
            sixth[at, :3, :3], sixth[at, 3:, 3:] = covariance(thick, k), COLOUR_SPREAD**2 * np.eye(3)
        colour = SH_C0 * (g.sh0[i] - g.sh0[j]).double().numpy()
        sixth[2] = (wi * sixth[0] + wj * sixth[1]) / w
        sixth[2, :3, :3] += wi * wj / w**2 * np.outer(apart, apart)
        sixth[2, 3:, 3:] += wi * wj / w**2 * np.outer(colour, colour)
        logs = np.linalg.slogdet(sixth)[1]
        assert cost == pytest.approx(0.5 * (w * logs[2] - wi * logs[0] - wj * logs[1]), rel=1e-5)


def test_alike_gaussians_cost_nothing_and_go_first() -> None:
    g = cloud(10, seed=2)
    twice = g.select(torch.arange(10).repeat(2))
    assert np.allclose(costs(twice, np.ones(20), np.array([[3, 13]])), 0, atol=1e-5)
    merged = merge(twice, torch.ones(20), 10)
    assert merged.place.tolist() == list(range(10)) and merged.weights.tolist() == pytest.approx([2.0] * 10)
    for name in ("means", "sh0", "shN", "opacities"):
        assert torch.allclose(merged.scene.tensors[name], g.tensors[name], atol=1e-6)
    assert all(np.allclose(covariance(merged.scene, i), covariance(g, i), rtol=1e-5, atol=1e-7) for i in range(10))


def test_one_without_weight_vanishes_in_its_neighbour() -> None:
    g = cloud(2, seed=3)
    merged = merge(g, torch.tensor([0.0, 2.0]), 1).scene
    assert torch.allclose(merged.means[0], g.means[1], atol=1e-5)
    assert torch.allclose(merged.sh0[0], g.sh0[1], atol=1e-5)
    assert np.allclose(covariance(merged, 0), covariance(g, 1), rtol=1e-5)


@given(n=st.integers(1, 40), keep=st.floats(0, 1), seed=st.integers(0, 99), same_place=st.booleans())
def test_counts_weights_and_the_mean_are_kept(n: int, keep: float, seed: int, same_place: bool) -> None:
    g = cloud(n, seed)
    if same_place:
        g = replace(g, means=torch.zeros(n, 3))
    weights = torch.rand(n, generator=torch.Generator().manual_seed(seed)) + 0.01
    count = max(1, round(keep * n))
    merged = merge(g, weights, count)
    assert len(merged.scene) == len(merged.weights) == len(merged.place) == count
    assert bool(merged.scene.finite().all()) and merged.scene.shN.shape == (count, 3, 3)
    assert bool((merged.place.diff() > 0).all()) and 0 <= int(merged.place.min()) <= int(merged.place.max()) < n
    assert float(merged.weights.sum()) == pytest.approx(float(weights.sum()), rel=1e-4)
    mean = (merged.weights[:, None] * merged.scene.means).sum(dim=0)
    assert torch.allclose(mean, (weights[:, None] * g.means).sum(dim=0), atol=1e-3)


def test_pairs_share_no_gaussian_and_the_cheapest_come_first() -> None:
    g, weights = cloud(60, seed=6), np.ones(60)
    pairs = cheapest_pairs(g, weights, 12)
    assert len(pairs) == 12 and len(np.unique(pairs)) == 24 and bool((pairs[:, 0] < pairs[:, 1]).all())
    assert bool((np.diff(costs(g, weights, pairs)) >= 0).all())
    near = [(i, j) for i in range(60) for j in (g.means - g.means[i]).norm(dim=1).argsort()[1:9].tolist()]
    assert tuple(pairs[0]) == min((tuple(sorted(p)) for p in near), key=lambda p: costs(g, weights, np.array([p]))[0])


@pytest.mark.parametrize("count", [0, 4])
def test_a_count_out_of_range_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"got {count}, expected 1 to 3"):
        merge(cloud(3), torch.ones(3), count)


def test_a_covered_ball_looks_better_merged_than_thinned() -> None:
    """Many splats that cover a surface together: without a quarter of them there are holes."""
    directions = torch.randn(3000, 3, generator=torch.Generator().manual_seed(0))
    means = torch.nn.functional.normalize(directions, dim=1)
    colours = torch.nn.functional.normalize(means + 0.3, dim=1)
    quats = torch.tensor([[1.0, 0, 0, 0]]).repeat(3000, 1)
    g = Gaussians(means, quats, torch.full((3000, 3), -3.2), torch.full((3000,), 1.0), colours, torch.zeros(3000, 0, 3))
    weights = 1 + 0.1 * torch.rand(3000, generator=torch.Generator().manual_seed(1))
    judge = SceneComparison(g, virtual_views(g, 3, 48))
    assert judge.psnr_of(merge(g, weights, 1000).scene) > 3 + judge.psnr_of(g.select(most_significant(weights, 1 / 3)))
