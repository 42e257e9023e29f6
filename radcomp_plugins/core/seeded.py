"""Random numbers that depend on where a run is, not on how it got there, so that a resumed run draws the same."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_PURPOSES = 8
_PROCESSES = 4096


@contextmanager
def seeded(seed: int, index: int, purpose: int, process: int = 0) -> Iterator[None]:
    """Within the block torch's generators depend on the arguments alone; after it they are as they were.

    Args:
        seed: of the run.
        index: step, or number of a pool, of any sign.
        purpose: what is drawn, 0 to 7: draws for different purposes at one index are independent.
        process: number of this process among all of a run.
    """
    number = ((seed * 1_000_003 + index) * _PURPOSES + purpose) * _PROCESSES + process
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(number % 2**63)
        yield
