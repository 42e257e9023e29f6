"""Damaged files: every reader must read them or refuse them in one line, in bounded time and memory."""

import random
import tracemalloc
import warnings
from collections.abc import Callable, Iterable

from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.gaussians import Gaussians

MUTATIONS = 10_000
MAX_MEMORY = 64 * 2**20


def damage(data: bytes, chance: random.Random, head: int) -> bytes:
    """A few bytes changed, set to extremes, cut out or put in, mostly in the first `head`."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        i = min(chance.randrange(head if chance.random() < 0.8 else len(data)), max(len(out) - 1, 0))
        match chance.randrange(8):
            case 0:
                del out[i : i + chance.randrange(1, 40)]
            case 1:
                out[i:i] = chance.randbytes(chance.randrange(1, 9))
            case 2:
                out[i : i + 4] = chance.choice((b"\xff" * 4, b"\0" * 4, b"\0\0\0\x80", b"\xff\xff\xff\x7f"))
            case 3:
                out[i : i + 4] = b"\0\0\xc0\x7f"
            case _ if i < len(out):
                out[i] = chance.randrange(256)
    if chance.random() < 0.05:
        del out[chance.randrange(len(out) + 1) :]
    return bytes(out)


def check_damaged(read: Callable[[bytes], Gaussians], files: Iterable[bytes]) -> tuple[int, int]:
    """How many of the files are read and how many refused; anything else is an error.

    Raises:
        AssertionError: A scene that is not finite, a message of several lines, or more memory than `MAX_MEMORY`.
    """
    counts = [0, 0]
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            warnings.simplefilter("ignore", UserWarning)
            for data in files:
                try:
                    assert bool(read(data).finite().all())
                    counts[0] += 1
                except InputError as error:
                    assert "\n" not in str(error)
                    counts[1] += 1
        assert tracemalloc.get_traced_memory()[1] < MAX_MEMORY
    finally:
        tracemalloc.stop()
    return counts[0], counts[1]
