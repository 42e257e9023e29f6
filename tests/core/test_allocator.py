"""Freed memory is kept: in a process of its own, because there is no way back."""

import subprocess
import sys

import pytest

from radcomp_plugins.core.allocator import keep_freed_memory

FAULTS = """
import resource, sys
import torch
from radcomp_plugins.core.allocator import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "kept" else None
# At the heap's end, where nothing above them keeps the heap from shrinking, and with a small block above.
def blocks(number):
    for _ in range(number):
        torch.zeros(2**24)
        torch.zeros(2**24).sum()
blocks(8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
blocks(2)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is meant")
def test_blocks_of_64_megabytes_are_used_again() -> None:
    faults = {}
    for how in ("kept", "given back"):
        ran = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        answer, number = ran.stdout.split()
        assert answer == ("True" if how == "kept" else "None")
        faults[how] = int(number)
    # Huge pages of the system's own accord would leave 32 faults a block instead of 16,384.
    assert faults["kept"] < 16 and faults["given back"] >= 4 * 32


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
