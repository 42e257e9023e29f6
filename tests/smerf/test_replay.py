"""Which patches a step draws: from the last few pools, each as often as any other, and the same after a resume."""

from collections import Counter
from contextlib import AbstractContextManager
from typing import Any

import torch

from radcomp_plugins.smerf.rays import TaughtPool
from radcomp_plugins.smerf.replay import Replay


def pool(index: int, patches: int = 12) -> TaughtPool:
    """A pool whose patches say which they are, in their first target."""
    origins = torch.zeros(patches, 9, 3)
    target = torch.zeros(patches, 9, 3)
    target[:, 0, 0] = index * 100 + torch.arange(patches)
    return TaughtPool(origins, origins, torch.zeros(patches, 9, 3), torch.zeros(patches, 9, 2), target)


class Seeded(AbstractContextManager[None]):
    def __init__(self, index: int) -> None:
        self.index, self.fork = index, torch.random.fork_rng()

    def __enter__(self) -> None:
        self.fork.__enter__()
        torch.manual_seed(self.index)

    def __exit__(self, *error: Any) -> None:
        self.fork.__exit__(*error)


def make(kept: int, asked: list[int]) -> Replay:
    def draw(index: int) -> TaughtPool:
        asked.append(index)
        return pool(index)

    return Replay(draw, Seeded, kept=kept, steps=4, batch=6)


def drawn(replay: Replay, step: int) -> list[int]:
    return [int(v) for v in replay.patches_of(step).target[:, 0, 0]]


def test_one_pool_is_used_up_evenly() -> None:
    asked: list[int] = []
    replay = make(1, asked)
    for index in range(3):
        counts = Counter(patch for turn in range(4) for patch in drawn(replay, index * 4 + turn))
        assert set(counts) == {index * 100 + i for i in range(12)} and set(counts.values()) == {2}
    assert asked == [0, 1, 2]


def test_several_pools_are_drawn_from_together() -> None:
    asked: list[int] = []
    replay = make(3, asked)
    seen = [drawn(replay, step) for step in range(40)]
    assert asked == list(range(10)), "every pool is asked for once"
    late = Counter(patch // 100 for patches in seen[36:] for patch in patches)
    assert set(late) == {7, 8, 9} and sum(late.values()) == 24
    assert all(len(set(patches)) == 6 for patches in seen[8:]), "no patch twice in a step"


def test_a_resumed_run_draws_the_same() -> None:
    whole, resumed = make(3, []), make(3, [])
    expected = [drawn(whole, step) for step in range(30)]
    assert [drawn(resumed, step) for step in range(17, 30)] == expected[17:]
