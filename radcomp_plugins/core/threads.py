"""The one thread pool that all numba kernels share.

Kernels are compiled with `nogil=True` and get a stripe of the work each. numba's own `prange` is never used: its
default threading layer aborts the process when two Python threads (a viewer's and a trainer's) enter it at once
(numba issue #8563).
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import extending, njit, types
from numpy.typing import NDArray

from radcomp_plugins.errors import InputError

ENV_NUM_THREADS = "RADCOMP_NUM_THREADS"
"""Environment variable that overrides the number of threads found at start."""

# Typed as anything: the decorator takes away the first argument, and type checkers do not see it.
intrinsic: Any = extending.intrinsic

_BLOCK = 1024
"""Items of a block: so many that claiming costs nothing, so few that the last ones do not keep others waiting."""

_lock = threading.Lock()
_num_threads = 0
_pool: ThreadPoolExecutor | None = None


def _default_num_threads() -> int:
    """The environment variable, or the number of cores this process may run on."""
    text = os.environ.get(ENV_NUM_THREADS)
    if text is None:
        if hasattr(os, "sched_getaffinity"):
            return max(1, len(os.sched_getaffinity(0)))
        return max(1, os.cpu_count() or 1)
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise InputError(f"environment variable {ENV_NUM_THREADS} is {text!r}: expected a whole number from 1 up")
    return int(text)


def get_num_threads() -> int:
    """Number of threads a kernel is spread over, the calling thread included.

    Raises:
        InputError: the environment variable RADCOMP_NUM_THREADS is not a positive whole number.
    """
    global _num_threads
    if _num_threads == 0:
        _num_threads = _default_num_threads()
    return _num_threads


def set_num_threads(count: int) -> None:
    """Spread every later kernel over `count` threads. Results do not depend on it.

    Raises:
        ValueError: `count` is below 1.
    """
    global _num_threads, _pool
    if count < 1:
        raise ValueError(f"number of threads is {count}, expected 1 or more")
    with _lock:
        if count != _num_threads and _pool is not None:
            # Callers already inside keep their futures: a pool that is shut down finishes what it was given.
            _pool.shutdown(wait=False)
            _pool = None
        _num_threads = count


def _submit(kernel: Callable[..., Any], stripes: int, args: tuple[Any, ...]) -> list[Future[Any]]:
    """Hand stripes 1 to `stripes` - 1 to the pool, which is made on first use."""
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max(1, get_num_threads() - 1), thread_name_prefix="radcomp")
        return [_pool.submit(kernel, start, stripes, *args) for start in range(1, stripes)]


def run_striped(kernel: Callable[..., Any], *args: Any) -> None:
    """Run `kernel(start, step, *args)` for start = 0 .. step - 1, side by side, and wait for all of them.

    The calling thread works too, and takes over stripes the pool has not begun, so a busy pool (another caller's
    kernels) never makes it wait for nothing. `step` is `get_num_threads()`. To give the same result for any number of
    threads, a kernel must compute each item of its stripe independently of how items are spread.

    Args:
        kernel: releases the GIL (`numba.njit(nogil=True)`) and writes its result into arrays among `args`.
        *args: passed on to every call.
    """
    stripes = get_num_threads()
    futures = _submit(kernel, stripes, args) if stripes > 1 else []
    try:
        kernel(0, stripes, *args)
        for start, future in enumerate(futures, start=1):
            if future.cancel():
                kernel(start, stripes, *args)
    finally:
        # Arrays must not be given back while another thread still writes into them, even after an exception.
        for future in futures:
            if not future.cancel():
                future.result()


def _forget_pool() -> None:
    """A forked child has none of its parent's threads: it makes its own pool when it needs one."""
    global _pool, _lock
    _pool = None
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


@intrinsic
def claim(typingctx, counter):  # noqa: ANN001, ANN201
    """Number of the next item of work, for use inside kernels: counter[0], which is raised by one in the same step.

    Sharing out items one by one, not in fixed stripes, keeps a thread that the system has paused from holding up the
    rest. `counter` is a 1-D int64 array that begins at 0 and that all threads of a run share.
    """

    def codegen(context, builder, signature, args):  # noqa: ANN001, ANN202
        array = context.make_array(signature.args[0])(context, builder, args[0])
        one = context.get_constant(types.int64, 1)
        return builder.atomic_rmw("add", array.data, one, "monotonic")

    return types.int64(counter), codegen


def new_counter() -> NDArray[np.int64]:
    """A counter for one run of a kernel that uses `claim`."""
    return np.zeros(1, np.int64)


@njit(nogil=True, cache=True)
def claim_block(counter, count):  # noqa: ANN001, ANN201
    """First and one past the last of the next items to do, out of `count`; equal when none are left."""
    begin = min(claim(counter) * _BLOCK, count)
    return begin, min(begin + _BLOCK, count)
