"""Console scripts run as a user runs them, each in a working directory of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TIMEOUT = 900
OFFLINE = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1"}
"""No LPIPS weights: whether they can be had does not change a test."""


def command(name: str) -> str:
    """A console script of the Python that runs the tests."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        pytest.skip(f"no {name} beside {sys.executable}")
    return str(path)


def environment(folder: Path) -> dict[str, str]:
    """Variables that a command of the tests sees."""
    return {**os.environ, **OFFLINE, "TORCH_HOME": str(folder / "torch"), "COLUMNS": "200"}


def run(folder: Path, name: str, *args: object) -> subprocess.CompletedProcess:
    """Run a command in a working directory of its own."""
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        [command(name), *map(str, args)], cwd=folder, env=environment(folder), capture_output=True, text=True,
        timeout=TIMEOUT, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def done(result: subprocess.CompletedProcess) -> subprocess.CompletedProcess:
    """The result of a command that has to have succeeded."""
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result
