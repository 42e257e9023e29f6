"""Significance: contributions against a slow per-pixel reference, scores against numbers worked out by hand."""

import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import make_scene, orbit, views_of

from radcomp_plugins.splats.draw import draw
from radcomp_plugins.splats.gaussians import Gaussians
from radcomp_plugins.splats.rasterize import rasterize
from radcomp_plugins.splats.significance import Contributions, contributions, most_significant, score, volume_term
from radcomp_plugins.splats.views import PinholeView

# Contributions --------------------------------------------------------------------------------------------------------


def weights_of_every_pixel(scene: Gaussians, view: PinholeView) -> torch.Tensor:
    """[H * W, N] weights: a scene whose i-th Gaussian has the i-th unit vector as colour shows them one by one."""
    render, _, _ = rasterize(
        scene.means,
        scene.quats,
        scene.scales.exp(),
        scene.opacities.sigmoid(),
        torch.eye(len(scene)),
        view.viewmat[None],
        view.K[None],
        view.width,
        view.height,
        rasterize_mode="antialiased" if scene.antialiased else "classic",
    )
    return render[0].flatten(0, 1)


@pytest.mark.parametrize("antialiased", [False, True])
def test_hits_sums_and_maxima_are_those_of_every_pixel(antialiased):
    scene, views = make_scene(count=20, antialiased=antialiased), views_of(orbit(3))
    pixels = torch.cat([weights_of_every_pixel(scene, view) for view in views]).double()
    hits, sums, maxima = [0] * 20, [0.0] * 20, [0.0] * 20
    for pixel in pixels.tolist():
        for index, weight in enumerate(pixel):
            hits[index] += weight > 0
            sums[index] += weight
            maxima[index] = max(maxima[index], weight)
    seen = contributions(scene, views)
    assert seen.hits.tolist() == hits and sum(hits) > 1000
    assert seen.weight_sum.tolist() == pytest.approx(sums, rel=1e-5, abs=1e-9)
    assert seen.weight_max.tolist() == pytest.approx(maxima, rel=1e-5)


def in_front_of_one_pixel(opacities: list[float], depths: list[float]) -> tuple[Gaussians, PinholeView]:
    """Large Gaussians on the axis of a camera with a single pixel, which so sees their peaks."""
    count = len(depths)
    scene = Gaussians(
        means=torch.tensor([[0.0, 0.0, depth] for depth in depths]),
        quats=torch.tensor([[1.0, 0.0, 0.0, 0.0]]).expand(count, 4),
        scales=torch.zeros(count, 3),
        opacities=torch.logit(torch.tensor(opacities)),
        sh0=torch.zeros(count, 3),
        shN=torch.zeros(count, 0, 3),
    )
    intrinsics = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])
    return scene, PinholeView(torch.eye(4), intrinsics, 1, 1)


def test_weights_worked_out_by_hand():
    scene, view = in_front_of_one_pixel([0.5, 0.25, 0.8], depths=[4.0, 2.0, 3.0])
    seen = contributions(scene, [view, view])
    # Front to back: 0.25, then 0.8 of the remaining 0.75, then 0.5 of the remaining 0.15.
    expected = [0.075, 0.25, 0.6]
    assert seen.hits.tolist() == [2, 2, 2]
    assert seen.weight_sum.tolist() == pytest.approx([2 * w for w in expected], rel=1e-4)
    assert seen.weight_max.tolist() == pytest.approx(expected, rel=1e-4)


def test_what_no_view_sees_contributes_nothing():
    scene, view = in_front_of_one_pixel([0.5, 0.5], depths=[2.0, -2.0])
    seen = contributions(scene, [view])
    assert seen.hits.tolist() == [1, 0] and seen.weight_sum[1] == 0 and seen.weight_max[1] == 0
    none = contributions(scene, [])
    assert none.hits.tolist() == [0, 0] and not none.weight_sum.any()


def test_weights_of_a_view_add_up_to_its_alphas():
    scene, views = make_scene(), views_of(orbit(2))
    alphas = sum(draw(scene, view)[1].double().sum().item() for view in views)
    assert contributions(scene, views).weight_sum.sum().item() == pytest.approx(alphas, rel=1e-5)


# Scores ---------------------------------------------------------------------------------------------------------------


def test_volume_is_clipped_at_its_90th_percentile():
    # Volumes in proportion 1 to 11: the 90th percentile lies at the tenth of eleven.
    scales = torch.tensor([[math.log(k), 0.0, 0.0] for k in range(1, 12)])
    expected = [(k / 10) ** 0.1 for k in range(1, 11)] + [1.0]
    assert volume_term(scales).tolist() == pytest.approx(expected, rel=1e-6)
    assert volume_term(scales, power=0.0).tolist() == [1.0] * 11
    # It is the volume, whatever the axes, and its unit cancels.
    torch.testing.assert_close(volume_term(scales[:, [2, 0, 1]] + 3.0), volume_term(scales))


def test_paper_score_worked_out_by_hand():
    scales = torch.tensor([[math.log(k), 0.0, 0.0] for k in range(1, 12)])
    scene = Gaussians(
        torch.zeros(11, 3), torch.ones(11, 4), scales, torch.logit(torch.full((11,), 0.5)), torch.zeros(11, 3),
        torch.zeros(11, 0, 3),
    )  # fmt: skip
    seen = Contributions(torch.arange(11), torch.arange(11).double() * 4, torch.full((11,), 0.25))
    # Eq. 3: 3 hits * opacity 0.5 * (4 / 10)^0.1.
    assert score(scene, seen, "paper")[3].item() == pytest.approx(3 * 0.5 * 0.4**0.1, rel=1e-6)
    assert score(scene, seen, "paper")[10].item() == pytest.approx(10 * 0.5, rel=1e-6)
    assert score(scene, seen, "hits").tolist() == list(range(11))
    assert score(scene, seen, "hits-opacity").tolist() == pytest.approx([0.5 * k for k in range(11)])
    assert score(scene, seen, "weight-sum").tolist() == pytest.approx([4.0 * k for k in range(11)])
    assert score(scene, seen, "weight-max").tolist() == [0.25] * 11
    assert score(scene, seen, "exact").tolist() == pytest.approx([math.sqrt(k) for k in range(11)])
    assert torch.equal(score(scene, seen), score(scene, seen, "exact"))


def test_unknown_criterion_is_named():
    scene = make_scene(count=2)
    seen = Contributions(torch.ones(2, dtype=torch.int64), torch.ones(2).double(), torch.ones(2))
    # The checker of argument types, which only tests have, would stop it first.
    with pytest.raises(ValueError, match="got 'loudness', expected one of exact, paper"):
        inspect.unwrap(score)(scene, seen, "loudness")  # type: ignore[arg-type]


# Ranking --------------------------------------------------------------------------------------------------------------

scores = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.5]), min_size=1, max_size=40)


@given(values=scores, keep=st.floats(0.01, 1.0))
def test_the_largest_are_kept_and_ties_go_to_the_lower_index(values, keep):
    significance = torch.tensor(values)
    mask = most_significant(significance, keep)
    count = max(1, round(keep * len(values)))
    expected = sorted(range(len(values)), key=lambda index: (-values[index], index))[:count]
    assert mask.dtype == torch.bool and torch.where(mask)[0].tolist() == sorted(expected)


@given(values=scores, keep=st.floats(0.01, 1.0), factor=st.sampled_from([0.25, 2.0, 64.0]))
def test_the_unit_of_the_score_does_not_matter(values, keep, factor):
    significance = torch.tensor(values)
    assert torch.equal(most_significant(significance, keep), most_significant(significance * factor, keep))
