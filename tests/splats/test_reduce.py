"""Dropping or merging: the better pictures decide, and scenes are remembered."""

import pytest
import torch

from radcomp_plugins.splats import reduce as module
from radcomp_plugins.splats.gaussians import Gaussians
from radcomp_plugins.splats.merge import merge
from radcomp_plugins.splats.reduce import MERGE_BELOW, SCENES_KEPT, Reducer


def line(n: int = 40) -> Gaussians:
    """Gaussians side by side."""
    means = torch.stack([torch.arange(n).float() * 0.1, torch.zeros(n), torch.zeros(n)], dim=1)
    quats = torch.tensor([[1.0, 0, 0, 0]]).repeat(n, 1)
    return Gaussians(means, quats, torch.full((n, 3), -2.0), torch.zeros(n), torch.zeros(n, 3), torch.zeros(n, 0, 3))


WEIGHTS = torch.linspace(1.0, 2.0, 40)


def likes_merged(scene: Gaussians) -> float:
    """Merged Gaussians are larger than all that were there."""
    return float(scene.scales.max() > -2.0)


def test_the_better_pictures_decide() -> None:
    g = line()
    merged = Reducer(g, WEIGHTS, likes_merged).at(10)
    expected = merge(g, WEIGHTS, 10)
    assert merged.merged and torch.equal(merged.scene.means, expected.scene.means)
    assert torch.equal(merged.significance, expected.weights)
    for reducer in (Reducer(g, WEIGHTS, lambda s: -likes_merged(s)), Reducer(g, WEIGHTS, likes_merged, merging=False)):
        dropped = reducer.at(10)
        assert not dropped.merged and torch.equal(dropped.scene.means, g.means[30:])
        assert torch.equal(dropped.significance, WEIGHTS[30:])


def test_many_gaussians_are_dropped_without_a_look() -> None:
    reducer = Reducer(line(), WEIGHTS, likes_merged)
    assert not reducer.at(int(MERGE_BELOW * 40) + 1).merged and reducer.at(int(MERGE_BELOW * 40)).merged


def test_merging_goes_on_from_the_smallest_scene_that_has_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []

    def counted(scene: Gaussians, weights: torch.Tensor, count: int) -> object:
        begun.append(len(scene))
        return merge(scene, weights, count)

    monkeypatch.setattr(module, "merge", counted)
    reducer = Reducer(line(), WEIGHTS, likes_merged)
    counts = [20, 10, 15, 15, 5]
    assert [len(reducer.at(count).scene) for count in counts] == counts
    assert begun == [40, 20, 20, 10]
    for count in range(4, 4 - SCENES_KEPT, -1):
        reducer.at(count)
    # 20 is forgotten by now.
    assert len(reducer.at(20).scene) == 20 and begun[-1] == 40
