"""Rays depend on seed, step and process, and on nothing drawn before."""

from typing import Any

import pytest
import torch
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager

from radcomp_plugins import seeded_rays
from radcomp_plugins.seeded_rays import SeededDataManager


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One without a dataset, whose rays are four random numbers."""
    monkeypatch.setattr(VanillaDataManager, "next_train", lambda self, step: (torch.rand(4), {}))
    return SeededDataManager.__new__(SeededDataManager)


def test_rays_of_a_step_are_the_same_whatever_was_drawn_before(manager: Any) -> None:
    first = [manager.next_train(step)[0] for step in range(3)]
    torch.rand(7)
    before = torch.get_rng_state()
    assert torch.equal(manager.next_train(2)[0], first[2]) and torch.equal(manager.next_train(0)[0], first[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[1], first[2])


def test_seed_and_process_change_them(manager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = manager.next_train(5)[0]
    monkeypatch.setattr(seeded_rays, "process_index", lambda: 1)
    other = manager.next_train(5)[0]
    monkeypatch.undo()
    monkeypatch.setattr(VanillaDataManager, "next_train", lambda self, step: (torch.rand(4), {}))
    manager.seed = 1
    assert not torch.equal(plain, other) and not torch.equal(plain, manager.next_train(5)[0])
