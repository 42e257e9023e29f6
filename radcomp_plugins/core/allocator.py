"""Keeping what a training step frees for the next one.

glibc gives every block above 32 MB back to the system when it is freed, and a step that makes tensors of that size asks
for new pages each time: the system clears them, one by one, on the thread that writes first. With VQ-AD's tables of
600,000 vertices that was a third of a step (177 against 126 ms on two cores).
"""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names that glibc's malloc.h gives to `mallopt`'s parameters."""
_LARGEST_KEPT = 2**30
"""Bytes of a block from which it is given back all the same."""
_MOST_KEPT = 2**31 - 1
"""Bytes at the heap's end from which they are given back: as many as `mallopt` takes."""


def keep_freed_memory() -> bool:
    """Let this process keep freed memory for itself; returns whether its C library can (glibc: Linux)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)) and bool(mallopt(_TRIM_THRESHOLD, _MOST_KEPT))
