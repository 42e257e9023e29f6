"""Rays depend on seed, step and process, and on nothing drawn before."""

from typing import Any

import pytest
import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager

from radcomp_plugins import seeded_rays
from radcomp_plugins.seeded_rays import SeededDataManager


def drawn(manager: SeededDataManager, step: int) -> torch.Tensor:
    return manager.next_train(step)[0].origins


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> SeededDataManager:
    """One without a dataset, whose rays start at random places."""

    def random_rays(_: Any, step: int) -> tuple[RayBundle, dict[str, Any]]:
        return RayBundle(torch.rand(4, 3), torch.ones(4, 3), torch.ones(4, 1)), {}

    monkeypatch.setattr(VanillaDataManager, "next_train", random_rays)
    return SeededDataManager.__new__(SeededDataManager)


def test_rays_of_a_step_are_the_same_whatever_was_drawn_before(manager: SeededDataManager) -> None:
    first = [drawn(manager, step) for step in range(3)]
    torch.rand(7)
    before = torch.get_rng_state()
    assert torch.equal(drawn(manager, 2), first[2]) and torch.equal(drawn(manager, 0), first[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[1], first[2])


def test_seed_and_process_change_them(manager: SeededDataManager, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = drawn(manager, 5)
    with monkeypatch.context() as patch:
        patch.setattr(seeded_rays, "process_index", lambda: 1)
        assert not torch.equal(plain, drawn(manager, 5))
    assert torch.equal(plain, drawn(manager, 5))
    manager.seed = 1
    assert not torch.equal(plain, drawn(manager, 5))
