"""The thread pool: every stripe and every item is done once, for any number of threads and callers."""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numba import njit

from radcomp_plugins.core import threads
from radcomp_plugins.errors import InputError


@pytest.fixture(autouse=True)
def same_threads_afterwards() -> Iterator[None]:
    before = threads.get_num_threads()
    yield
    threads.set_num_threads(before)


@njit(nogil=True)
def count_items(start, step, counter, done):
    while True:
        begin, end = threads.claim_block(counter, done.shape[0])
        if begin == end:
            break
        for i in range(begin, end):
            done[i] += 1


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_stripe_runs_once(count):
    threads.set_num_threads(count)
    seen = []
    threads.run_striped(lambda start, step, extra: seen.append((start, step, extra)), "x")
    assert sorted(seen) == [(start, count, "x") for start in range(count)]


@pytest.mark.parametrize("items", [0, 1, 1023, 1024, 50_000])
@pytest.mark.parametrize("count", [1, 4])
def test_every_item_is_claimed_once(items, count):
    threads.set_num_threads(count)
    done = np.zeros(items, np.int64)
    threads.run_striped(count_items, threads.new_counter(), done)
    assert (done == 1).all()


def test_concurrent_callers_do_not_wait_for_each_other():
    threads.set_num_threads(2)

    def call(_: int) -> bool:
        done = np.zeros(20_000, np.int64)
        threads.run_striped(count_items, threads.new_counter(), done)
        return bool((done == 1).all())

    with ThreadPoolExecutor(4) as callers:
        assert all(callers.map(call, range(40)))


def test_the_caller_takes_over_what_a_busy_pool_has_not_begun():
    threads.set_num_threads(2)
    release, began = threading.Event(), threading.Event()

    def block(start: int, step: int) -> None:
        if threading.current_thread().name.startswith("radcomp"):
            began.set()
            release.wait(30)
        else:
            began.wait(30)

    other = threading.Thread(target=threads.run_striped, args=(block,))
    other.start()
    began.wait(30)
    seen: list[int] = []
    threads.run_striped(lambda start, step: seen.append(start))
    assert seen == [0, 1], "the only worker is busy, so this call has to do both stripes itself"
    release.set()
    other.join(30)


@pytest.mark.parametrize("broken", [0, 1])
def test_an_error_in_a_stripe_reaches_the_caller_after_all_have_ended(broken):
    threads.set_num_threads(2)
    ended = []

    def kernel(start: int, step: int) -> None:
        if start == broken:
            raise RuntimeError("stripe failed")
        time.sleep(0.05)
        ended.append(start)

    with pytest.raises(RuntimeError, match="stripe failed"):
        threads.run_striped(kernel)
    # A stripe that had not begun may be dropped, but none may still run.
    after = list(ended)
    time.sleep(0.1)
    assert ended == after


def test_number_of_threads_from_the_environment(monkeypatch):
    monkeypatch.setattr(threads, "_num_threads", 0)
    monkeypatch.setenv(threads.ENV_NUM_THREADS, "3")
    assert threads.get_num_threads() == 3


@pytest.mark.parametrize("text", ["0", "-1", "two", "", "1.5"])
def test_a_wrong_environment_variable_is_named(monkeypatch, text):
    monkeypatch.setattr(threads, "_num_threads", 0)
    monkeypatch.setenv(threads.ENV_NUM_THREADS, text)
    with pytest.raises(InputError, match=threads.ENV_NUM_THREADS):
        threads.get_num_threads()


def test_number_of_threads_is_at_least_one():
    with pytest.raises(ValueError, match="expected 1 or more"):
        threads.set_num_threads(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_makes_its_own_pool():
    threads.set_num_threads(2)
    threads.run_striped(lambda start, step: None)
    child = os.fork()
    if child == 0:
        inherited = threads._pool is not None
        done = np.zeros(5000, np.int64)
        threads.run_striped(count_items, threads.new_counter(), done)
        os._exit(0 if (done == 1).all() and not inherited else 1)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the child hangs: it waits for its parent's threads")
